"""The regressor: its loss against NumPy, its units, and the errors it names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.training.learner import Learner
from spa_jax.training.recipes.regressor import reading, regressor, regressor_errors

pytestmark = pytest.mark.usefixtures("quick_compilation")

UNITS = {"centre": tuple(map(float, range(10))), "scale": tuple(map(float, range(1, 11)))}


@pytest.fixture
def attribute():
    return np.random.default_rng(3).normal(size=(16, 10)).astype(np.float32)


def test_the_loss_is_the_mean_square_in_scales_over_what_counts(tiny_net, batch, attribute):
    learner = Learner(tiny_net, optax.sgd(0.1))
    state = learner.init(jax.random.key(0), (6, 6, 3))
    _, metrics = jax.jit(regressor(learner, **UNITS))(state, batch | {"attribute": attribute}, jax.random.key(1))
    images = jnp.asarray(batch["image"], jnp.float32) / 255
    outputs = np.asarray(learner.logits(state.params, state, images)[0], np.float64)
    centre, scale = np.arange(10), np.arange(1, 11)
    errors = (outputs - (attribute - centre) / scale)[batch["mask"]]
    np.testing.assert_allclose(metrics["loss"], np.mean(errors**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["absolute_error"], np.mean(np.abs(errors * scale)), rtol=1e-5)


def test_readings_are_in_the_units_of_the_attributes(tiny_net, batch, attribute):
    learner = Learner(tiny_net, optax.sgd(0.1))
    state = learner.init(jax.random.key(0), (6, 6, 3))
    images, keys = jnp.asarray(batch["image"], jnp.float32) / 255, jax.random.split(jax.random.key(0), 16)
    victim = learner.victim(state)
    read = reading(victim, **UNITS)(images)
    np.testing.assert_allclose(read, np.arange(10) + np.arange(1, 11) * np.asarray(victim(images)), rtol=1e-5)
    errors = regressor_errors(learner, state, keys, images, batch["label"], attribute, **UNITS)
    np.testing.assert_allclose(errors["absolute_error"], np.abs(read - attribute).mean(-1), rtol=1e-5)


@pytest.mark.parametrize(
    ("centre", "scale", "message"),
    [((0.0,), (1.0, 2.0), "must have one length"), ((0.0,), (0.0,), "every scale must be above 0")],
)
def test_wrong_units_are_named(centre, scale, message, tiny_net):
    with pytest.raises(ValueError, match=message):
        regressor(Learner(tiny_net, optax.sgd(0.1)), centre, scale)
