"""A bank: one set of variables for each class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import Example, attribute, chain, make_attack, universal
from spa_jax.losses import margin
from spa_jax.solvers import projected_gradient
from spa_jax.spaces import bank, l2, linf
from tests.analytic_victims import images, labels, linear, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, X, Y, W = jax.random.key(0), images(low=0.3, high=0.7), labels(), weights()


def found(space, x=X, y=Y, target=None):
    attack = make_attack(space, margin, projected_gradient(0.5), 4, lift=universal, keep="last")
    return attack(KEY, linear(W), x, y, target)


def test_each_class_gets_its_own_optimum():
    variables = found(bank(linf(0.1), 2)).variables
    expected = 0.1 * np.stack([np.sign(W), -np.sign(W)])
    np.testing.assert_allclose(variables, expected, atol=1e-6)


def test_targets_pick_too():
    result = found(bank(linf(0.1), 2, by="target"), target=1 - Y)
    np.testing.assert_allclose(result.variables, 0.1 * np.stack([-np.sign(W), np.sign(W)]), atol=1e-6)
    np.testing.assert_allclose(result.x, X + result.variables[1 - Y], atol=1e-6)


def test_every_set_is_projected():
    space = bank(l2(0.5), 2)
    projected = space.project(jnp.ones((2, 4, 4, 1)) * jnp.array([0.01, 1.0])[:, None, None, None], None)
    np.testing.assert_allclose(jnp.sqrt(jnp.sum(projected**2, axis=(1, 2, 3))), [0.04, 0.5], rtol=1e-5)


def test_identity_changes_nothing_and_a_share_is_smaller():
    space, example = bank(chain(light=attribute("brightness"), noise=linf(0.2)), 2), Example(X[0], Y[0])
    np.testing.assert_array_equal(space.apply(space.identity(example), example), X[0])
    assert space.scaled(0.5).members()["noise"].radius == 0.1
    assert list(space.without("noise").members()) == ["light"]


def test_a_class_without_images_keeps_its_set():
    start = jnp.zeros((4, 4, 1))
    variables = found(bank(linf(0.1), 2), y=jnp.zeros(4, jnp.int32)).variables
    expected = make_attack(bank(linf(0.1), 2), margin, lift=universal, keep="last")
    untouched = expected.init(KEY, linear(W), X, Y).variables[1]
    np.testing.assert_array_equal(variables[1], untouched)
    assert np.abs(variables[0] - start).max() > 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bank(linf(0.1), 0), "size=0 must be an integer of at least 1"),
        (lambda: bank(linf(0.1), 2, by="image"), "by='image' must be one of label, target"),
        (lambda: found(bank(linf(0.1), 3)), "size=3 by 'label': the victim has 2 classes"),
        (lambda: found(chain(noise=bank(linf(0.1), 3))), "size=3 by 'label': the victim has 2 classes"),
        (lambda: found(bank(linf(0.1), 2, by="target")), "the examples have no target"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
