"""The solver that moves most where the gradients of all classes are large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import make_attack, universal
from spa_jax.losses import cross_entropy
from spa_jax.solvers import grid, l1_apgd, projected_gradient, shared_mask
from spa_jax.spaces import linf
from tests.analytic_victims import SIZE, images

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, X, Y = jax.random.key(0), images(low=0.3, high=0.7), jnp.arange(4) % 3
W = np.random.default_rng(5).normal(size=(*SIZE, 3)) * np.linspace(0, 1, 4)[:, None, None, None]
"""The first row of the image matters to no class."""


def three_classes(w, x):
    return jnp.tensordot(x - 0.5, w, 3)


VICTIM = Partial(three_classes, jnp.asarray(W, jnp.float32))


def class_gradients(x):
    """|d log p_k / dx| of the linear victim, [b, h, w, c, k], in float64."""
    logits = np.tensordot(np.asarray(x, np.float64) - 0.5, W, 3)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.abs(W[None] - np.einsum("hwck,bk->bhwc", W, p)[..., None])


def relative(shared, axes):
    return np.minimum(1, shared / shared.mean(axes, keepdims=True))


@pytest.mark.parametrize("over", ["min", "mean"])
def test_one_step_is_the_sign_step_times_what_is_shared(over):
    attack = make_attack(
        linf(0.1), cross_entropy, shared_mask(projected_gradient(1.0), over), 1, random_start=False, keep="last"
    )
    plain = make_attack(linf(0.1), cross_entropy, projected_gradient(1.0), 1, random_start=False, keep="last")
    full = np.asarray(plain(KEY, VICTIM, X, Y).variables)
    weights = relative(getattr(np, over)(class_gradients(X), axis=-1), (1, 2, 3))
    assert np.all(weights[:, 0] == 0) and weights.max() == 1
    np.testing.assert_allclose(attack(KEY, VICTIM, X, Y).variables, full * weights, atol=1e-5)


def test_shared_noise_has_one_mask():
    solver = shared_mask(projected_gradient(0.5))
    attack = make_attack(linf(0.1), cross_entropy, solver, 1, lift=universal, random_start=False, keep="last")
    found = np.asarray(attack(KEY, VICTIM, X, Y).variables)
    assert found.shape == SIZE and np.all(found[0] == 0) and np.abs(found).max() == pytest.approx(0.05)


def test_a_victim_without_gradient_is_attacked_by_full_steps():
    flat = Partial(three_classes, jnp.zeros_like(jnp.asarray(W, jnp.float32)))
    attack = make_attack(linf(0.1), cross_entropy, shared_mask(projected_gradient(0.5)), 2, keep="last")
    assert np.all(np.isfinite(attack(KEY, flat, X, Y).x))


def test_solvers_without_steps_to_shorten_are_refused():
    for solver, name in ((l1_apgd(), "L1Apgd"), (grid(3), "Grid")):
        with pytest.raises(ValueError, match=f"solver={name} must take gradient steps within the space"):
            shared_mask(solver)
    with pytest.raises(ValueError, match="over='max' must be one of min, mean"):
        shared_mask(projected_gradient(0.1), "max")
