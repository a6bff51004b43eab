"""Schedules and optimisers by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.training.optimizers import OPTIMIZERS, SCHEDULES, adamw, cosine, one_cycle, piecewise, sgd


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_reaches_the_peak_and_none_exceeds_it(name):
    schedule = SCHEDULES[name](100, 0.5, warmup=0.2)
    rates = np.array([schedule(step) for step in range(101)])
    assert rates[0] == 0
    np.testing.assert_allclose(rates[20], 0.5, rtol=1e-6)
    assert rates.max() <= 0.5 + 1e-6


def test_shapes_of_schedules():
    np.testing.assert_allclose([cosine(100, 1.0)(s) for s in (0, 50, 100)], [1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose([one_cycle(100, 1.0, 0.5)(s) for s in (0, 25, 50, 100)], [0, 0.5, 1, 0], atol=1e-6)
    np.testing.assert_allclose([piecewise(100, 1.0)(s) for s in (74, 76, 91)], [1, 0.1, 0.01], rtol=1e-5)


@pytest.mark.parametrize("rule", [sgd(0.1, momentum=0.0, weight_decay=0.5), adamw(0.1, weight_decay=0.5)])
def test_weight_decay_leaves_biases_alone(rule):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        updates, _ = rule.update(zeros, rule.init(params), params)
    np.testing.assert_allclose(updates["bias"], 0)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clipping_bounds_the_gradient(name):
    rule = OPTIMIZERS[name](optax.constant_schedule(1.0), clip_norm=1.0)
    params = {"kernel": jnp.zeros((2, 2))}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = rule.update({"kernel": jnp.full((2, 2), 1e6)}, rule.init(params), params)
    assert np.all(np.isfinite(updates["kernel"])) and optax.tree.norm(updates) <= 2.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cosine(10, 0.0), "peak=0.0"),
        (lambda: cosine(10, 1.0, warmup=1.0), "warmup=1.0"),
        (lambda: piecewise(10, 1.0, drops=(1.5,)), "drops"),
        (lambda: sgd(0.1, clip_norm=-1.0), "clip_norm=-1.0"),
    ],
)
def test_broken_rules_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
