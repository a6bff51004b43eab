"""The network of the noise generator: class-conditional BatchNorm against NumPy, any size, what it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.models import NoiseGenerator, create_model, init_variables, parameter_count
from spa_jax.models.noise_generator import ConditionalBatchNorm

pytestmark = pytest.mark.usefixtures("quick_compilation")


def inputs(shape, batch=3, seed=0, classes=10, dim=8):
    random = np.random.default_rng(seed)
    images, gradient, noise = (jnp.asarray(random.uniform(size=(batch, *shape)), jnp.float32) for _ in range(3))
    labels = jnp.asarray(random.integers(0, classes, batch), jnp.int32)
    return images, gradient / 10, 2 * noise - 1, labels, jnp.asarray(random.normal(size=(batch, dim)), jnp.float32)


# --- class-conditional BatchNorm ------------------------------------------------------------------------------------


def by_hand(x, labels, scale, bias, mean, variance):
    normalised = (x - mean) / np.sqrt(variance + 1e-5)
    rows = [(table[labels] + table[-1])[:, None, None] for table in (scale, bias)]
    return normalised * rows[0] + rows[1]


@pytest.mark.parametrize("train", [False, True])
def test_conditional_batch_norm_is_the_numpy_one(train):
    random = np.random.default_rng(1)
    x, labels = random.normal(2, 3, (5, 4, 3, 2)), np.array([0, 2, 1, 1, 0])
    scale, bias = random.normal(size=(4, 2)), random.normal(size=(4, 2))
    mean, variance = random.normal(size=2), random.uniform(1, 2, 2)
    with jax.enable_x64(True):
        variables = {
            "params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)},
            "batch_stats": {"statistics": {"mean": jnp.asarray(mean), "var": jnp.asarray(variance)}},
        }
        norm = ConditionalBatchNorm(3, dtype=jnp.float64)
        found, updates = norm.apply(variables, jnp.asarray(x), jnp.asarray(labels), train, mutable=["batch_stats"])
    batch = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = by_hand(x, labels, scale, bias, *(batch if train else (mean, variance)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    if train:
        running = updates["batch_stats"]["statistics"]
        np.testing.assert_allclose(running["mean"], 0.9 * mean + 0.1 * batch[0], rtol=1e-5)
        np.testing.assert_allclose(running["var"], 0.9 * variance + 0.1 * batch[1], rtol=1e-5)


def test_conditional_batch_norm_starts_near_plain_batch_norm():
    norm = ConditionalBatchNorm(100)
    params = norm.init(jax.random.key(0), jnp.zeros((1, 2, 2, 50)), jnp.zeros(1, jnp.int32), False)["params"]
    assert params["scale"].shape == params["bias"].shape == (101, 50)
    np.testing.assert_array_equal(params["bias"], 0)
    np.testing.assert_allclose(params["scale"][:-1].std(), 0.02, rtol=0.1)
    np.testing.assert_allclose(params["scale"][:-1].mean(), 0, atol=1e-3)
    np.testing.assert_allclose(params["scale"][-1].mean(), 1, atol=0.02)


# --- the network ----------------------------------------------------------------------------------------------------


def test_number_of_parameters_is_that_of_the_layers():
    model = NoiseGenerator(width=64)
    variables = jax.eval_shape(lambda key: model.init(key, *model.example_inputs((32, 32, 3))), jax.random.key(0))
    down = 9 * 17 * 64 + 16 * 72 * 64 + 16 * 72 * 128
    up = 16 * 128 * 64 + 16 * 128 * 64 + 9 * 128 * 3
    assert parameter_count(variables) == down + up + 3 * 2 * 11 * 64 + 2 * (8 * 8 + 8)


@pytest.mark.parametrize("shape", [(12, 12, 1), (28, 28, 1), (7, 9, 3), (1, 1, 1)])
@pytest.mark.parametrize("options", [{}, {"deep": True, "skips": False}])
def test_images_of_any_size_get_directions_of_their_size(shape, options):
    model = create_model("noise_generator", num_classes=10, input_shape=shape, width=2, **options)
    variables = init_variables(model, jax.random.key(0), shape)
    found = jax.jit(model.apply)(variables, *inputs(shape))
    assert found.shape == (3, *shape)
    assert float(jnp.abs(found).max()) < 1


def test_every_input_is_read_and_each_example_by_itself():
    model = NoiseGenerator(width=4)
    given = inputs((8, 8, 1))
    variables = init_variables(model, jax.random.key(0), (8, 8, 1))
    apply = jax.jit(model.apply)
    expected = apply(variables, *given)
    for i, other in enumerate(inputs((8, 8, 1), seed=1)):
        changed = list(given)
        changed[i] = given[i].at[1:].set((given[i][1:] + 1) % 10) if i == 3 else given[i].at[1:].set(other[1:])
        found = apply(variables, *changed)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-7)
        assert all(bool(jnp.any(found[j] != expected[j])) for j in (1, 2))


def test_bfloat16_gives_float32_near_the_exact_directions():
    given = inputs((8, 8, 3))
    variables = init_variables(NoiseGenerator(width=4), jax.random.key(0), (8, 8, 3))
    exact, rounded = (
        jax.jit(NoiseGenerator(width=4, dtype=dtype).apply)(variables, *given) for dtype in (None, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.1 * float(jnp.abs(exact).max()))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("i", "wrong", "message"),
    [
        (0, jnp.zeros((8, 8, 1)), "takes batches of images"),
        (1, jnp.zeros((3, 8, 7, 1)), r"gradient.shape=\(3, 8, 7, 1\) must be \(3, 8, 8, 1\)"),
        (2, jnp.zeros((3, 8, 8, 3)), "noise.shape="),
        (4, jnp.zeros((3, 7)), r"z.shape=\(3, 7\) must be \(3, 8\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(i, wrong, message):
    given = list(inputs((8, 8, 1)))
    given[i] = wrong
    with pytest.raises(ValueError, match=message):
        NoiseGenerator(width=2).init(jax.random.key(0), *given)


@pytest.mark.parametrize("field", ["width", "num_classes", "latent_dim"])
def test_sizes_below_one_are_named(field):
    with pytest.raises(ValueError, match=f"{field}=0 must be"):
        NoiseGenerator(**{field: 0})
