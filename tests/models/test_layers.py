"""Layers against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.models.layers import batch_norm, conv, require_images, require_positive
from tests.victims.test_convolution import operands, stock

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_conv_pads_evenly_at_stride_two_as_pytorch_does():
    module = conv(4, 3, 2)
    x, kernel = operands((8, 8), (3, 3))
    actual = module.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(actual, stock(x, kernel, (2, 2), ((1, 1), (1, 1))), rtol=1e-6)


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
