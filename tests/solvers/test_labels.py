"""The solver that counts which wrong classes a universal perturbation leads to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import make_attack, uap, universal
from spa_jax.losses import class_balanced, cross_entropy
from spa_jax.solvers import projected_gradient, track_labels
from spa_jax.spaces import linf
from tests.analytic_victims import images, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, X, VICTIM = jax.random.key(0), images(batch=6), mlp()
Y = jnp.arange(6) % 3


def attack(loss=None, lift=universal, decay=0.5):
    solver = track_labels(projected_gradient(0.1), decay)
    return make_attack(linf(0.2), class_balanced() if loss is None else loss, solver, 3, lift=lift, keep="last")


def off_label(x, weight):
    p = np.array(jax.nn.softmax(VICTIM(x)))
    p[np.arange(6), Y] = 0
    return (p * np.asarray(weight)[:, None]).sum(0) / np.sum(weight)


def test_the_running_mean_is_that_of_the_batches_shown():
    climb, weight = attack(), jnp.array([1.0, 1, 2, 1, 1, 0])
    state = climb.init(KEY, VICTIM, X, Y)
    np.testing.assert_array_equal(state.solver[0].off_label, jnp.zeros(3))
    expected = None
    for step in range(3):
        now = off_label(climb.apply(state.variables, VICTIM, X, Y), weight)
        expected = now if expected is None else 0.5 * expected + 0.5 * now
        state = climb.step(state, VICTIM, X, Y, weight=weight)
        np.testing.assert_allclose(state.solver[0].off_label, expected, rtol=1e-4)
        assert state.solver[0].batches == step + 1


def test_over_devices_the_mean_is_that_of_the_whole_batch():
    y = jnp.asarray(Y)
    whole = attack()
    state = whole.init(KEY, VICTIM, X, y)
    for _ in range(2):
        state = whole.step(state, VICTIM, X, y)
    parts = attack(lift=lambda space: universal(space, "d"))

    def two_steps(x, y):
        own = parts.init(KEY, VICTIM, x, y)
        for _ in range(2):
            own = parts.step(own, VICTIM, x, y)
        return own.solver[0].off_label, own.variables

    deal = (X.reshape(2, 3, 4, 4, 1), y.reshape(2, 3))
    shares, variables = jax.pmap(two_steps, axis_name="d", devices=jax.devices()[:2])(*deal)
    np.testing.assert_allclose(shares[0], state.solver[0].off_label, rtol=1e-4)
    np.testing.assert_allclose(variables[1], state.variables, atol=1e-5)


def test_without_its_terms_and_at_the_same_cap_it_is_the_plain_attack():
    plain = uap(0.2, 3, rel_step_size=0.1, random_start=True)
    found = attack(class_balanced(9.0, calibration=0.0, penalty=0.0, adjustment=0.0))(KEY, VICTIM, X, Y)
    np.testing.assert_allclose(found.variables, plain(KEY, VICTIM, X, Y).variables, atol=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"decay=1\.0 must be in \[0, 1\)"):
        track_labels(projected_gradient(0.1), 1.0)
    with pytest.raises(ValueError, match="use lift=universal"):
        make_attack(linf(0.1), class_balanced(), track_labels(projected_gradient(0.1)), 2)(KEY, VICTIM, X, Y)
    with pytest.raises(ValueError, match="does not read label shares"):
        attack(cross_entropy)(KEY, VICTIM, X, Y)
