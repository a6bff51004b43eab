"""Layers against their definitions, max-pooling against an independent NumPy reference."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from spa_jax.models.layers import batch_norm, conv, leaky_relu, max_pool, relu, require_images, require_positive
from tests.models.test_convolution import operands, stock

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_conv_pads_evenly_at_stride_two_as_pytorch_does():
    module = conv(4, 3, 2)
    x, kernel = operands((8, 8), (3, 3))
    actual = module.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(actual, stock(x, kernel, (2, 2), ((1, 1), (1, 1))), rtol=1e-6)


def test_leaky_relu_and_its_gradient():
    x = jnp.array([-2.0, -0.0, 0.0, 3.0])
    np.testing.assert_allclose(leaky_relu(x), [-0.4, 0, 0, 3], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: leaky_relu(x).sum())(x), [0.2, 0.2, 0.2, 1], rtol=1e-6)
    assert leaky_relu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


# --- max pooling ----------------------------------------------------------------------------------------------------


def reference_pool(x, g, window):
    """Largest values, and the gradient at the first of them in row-major order, by loops."""
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    out, gradient = np.zeros((batch, rows, columns, channels), x.dtype), np.zeros_like(x)
    for b, i, j, c in itertools.product(range(batch), range(rows), range(columns), range(channels)):
        patch = x[b, i * window : (i + 1) * window, j * window : (j + 1) * window, c]
        di, dj = divmod(int(np.argmax(patch)), window)
        out[b, i, j, c] = patch[di, dj]
        if g is not None:
            gradient[b, i * window + di, j * window + dj, c] = g[b, i, j, c]
    return out, gradient


@pytest.mark.parametrize(("size", "window"), [((6, 6), 2), ((7, 5), 2), ((5, 7), 3), ((6, 6), 3), ((3, 4), 1)])
def test_max_pool_and_its_gradient_follow_the_first_largest_value_rule(size, window):
    random = np.random.default_rng(0)
    flat_tied_and_distinct = [random.integers(0, levels, (2, *size, 2)) for levels in (1, 3, 1000)]
    x = np.concatenate(flat_tied_and_distinct).astype(np.float32)
    g = random.integers(1, 9, reference_pool(x, None, window)[0].shape).astype(np.float32)

    @jax.jit
    def pooled(x, g):
        out, pull = jax.vjp(lambda x: max_pool(x, window), x)
        return out, pull(g)[0]

    for actual, expected in zip(pooled(x, g), reference_pool(x, g, window), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_max_pool_on_a_flat_image_sends_the_whole_gradient_to_the_first_pixel(dtype):
    with jax.enable_x64(True):
        gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.zeros((1, 4, 4, 1), dtype))
    assert gradient.dtype == dtype
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(np.asarray(gradient)[0, :, :, 0].astype(np.float64), expected)


def test_max_pool_under_jit_vmap_and_scan():
    x = jnp.round(jax.random.uniform(jax.random.key(0), (3, 5, 6, 2)) * 3)
    gradient = jax.grad(lambda x: (max_pool(x) ** 2).sum())

    @jax.jit
    def all_forms(x):
        return gradient(x), jax.vmap(gradient)(x), lax.scan(lambda c, image: (c, gradient(image)), 0, x)[1]

    _, expected = reference_pool(np.asarray(x), 2 * reference_pool(np.asarray(x), None, 2)[0], 2)
    for form in all_forms(x):
        np.testing.assert_array_equal(form, expected)


def test_max_pool_refuses_images_smaller_than_the_window():
    with pytest.raises(ValueError, match=r"shape=\(2, 4, 1\).*window=3"):
        max_pool(jnp.zeros((1, 2, 4, 1)), 3)
    with pytest.raises(ValueError, match="window=0"):
        max_pool(jnp.zeros((1, 2, 4, 1)), 0)


def test_relu_and_its_gradient_under_jit_vmap_and_scan():
    x = jnp.asarray([[-1.0, 0.0, 2.0], [3.0, -0.0, -2.0]])
    gradient = jax.grad(lambda x: (relu(x) * jnp.arange(1.0, 4)).sum())

    @jax.jit
    def all_forms(x):
        return gradient(x), jax.vmap(gradient)(x), lax.scan(lambda c, row: (c, gradient(row)), 0, x)[1]

    np.testing.assert_array_equal(relu(x), np.maximum(x, 0))
    for form in all_forms(x):
        np.testing.assert_array_equal(form, [[0, 0, 3], [1, 0, 0]])


# --- BatchNorm ------------------------------------------------------------------------------------------------------


def test_batch_norm_uses_running_statistics_unless_it_trains():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (64, 4, 4, 5))
    fresh = batch_norm(False).init(jax.random.key(1), x)
    np.testing.assert_allclose(batch_norm(False).apply(fresh, x), x / np.sqrt(1 + 1e-5), rtol=1e-5)
    trained, updated = batch_norm(True).apply(fresh, x, mutable=["batch_stats"])
    np.testing.assert_allclose(trained.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(trained.std((0, 1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-4)


def test_batch_norm_with_axis_name_has_the_statistics_of_the_global_batch():
    x = jax.random.normal(jax.random.key(0), (4, 2, 3, 3, 5)) * jnp.arange(1.0, 5)[:, None, None, None, None]
    variables = batch_norm(False).init(jax.random.key(1), x[0])
    whole, stats = batch_norm(True).apply(variables, x.reshape(8, 3, 3, 5), mutable=["batch_stats"])
    mapped = jax.vmap(
        lambda x: batch_norm(True, axis_name="data").apply(variables, x, mutable=["batch_stats"]), axis_name="data"
    )
    parts, part_stats = mapped(x)
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(part_stats), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(ours, jnp.broadcast_to(theirs, ours.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2"])
def test_require_positive_names_the_value(value):
    with pytest.raises(ValueError, match="width="):
        require_positive("width", value)


def test_require_images_names_the_shape():
    with pytest.raises(ValueError, match=r"images.shape=\(4, 4, 3\): net takes batches"):
        require_images("net", (4, 4, 3), 4)
    with pytest.raises(ValueError, match=r"images.shape=\(1, 3, 4, 3\): net .* at least 4x4"):
        require_images("net", (1, 3, 4, 3), 4)
