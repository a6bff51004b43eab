"""NaN and infinity: of a gradient they count as 0, of logits and images as no success; both are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import (
    Example,
    apgd_ce,
    cw,
    ddn,
    deepfool,
    fab,
    fgsm,
    fmn,
    in_chunks,
    make_attack,
    pgd,
    restarts,
    spa,
    universal,
    worst_of,
)
from spa_jax.goals import misclassified
from spa_jax.losses import margin
from spa_jax.numerics import on_grid
from spa_jax.solvers import random_search
from spa_jax.spaces import linf
from tests.analytic_victims import images, labels, linear, mlp, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W, BATCH = jax.random.key(0), weights(), 6
Y = labels(BATCH)
X = images(batch=BATCH, low=0.2, high=0.8).at[:, 0].set(0.0)
"""Images whose first row is black."""


def by_rows(x, rest):
    """Rows at unit length and, where a row has none, `rest` of it."""
    squared = jnp.sum(x**2, axis=(2, 3), keepdims=True)
    return linear(W)(jnp.where(squared > 0, x / jnp.sqrt(jnp.where(squared > 0, squared, 1)), rest))


def careless(x):
    """Its gradient in a black row is NaN, since that of the square root is infinite there."""
    length = jnp.sqrt(jnp.sum(x**2, axis=(2, 3), keepdims=True))
    return linear(W)(x / jnp.where(length > 0, length, 1))


def careful(x):
    """The same logits, with a gradient of 0 in a black row."""
    return by_rows(x, jax.lax.stop_gradient(x))


@pytest.mark.parametrize(
    "attack",
    [
        fgsm(0.3, loss="margin"),
        pgd(0.3, 5, random_start=False),
        pgd(0.5, 5, norm="l2", random_start=False),
        make_attack(linf(0.2), num_steps=4, lift=universal, random_start=False),
        spa(0.2, ["brightness"], 4),
        cw(num_steps=20, search_steps=3),
        deepfool("linf"),
        ddn(num_steps=20),
        fmn("l1", num_steps=20),
        fab("l2", num_steps=20),
    ],
    ids=["fgsm", "pgd", "l2", "universal", "spa", "cw", "deepfool", "ddn", "fmn", "fab"],
)
def test_an_attack_on_a_gradient_with_nan_is_that_with_zero_in_its_place(attack):
    assert np.all(np.isnan(jax.grad(lambda x: careless(x).sum())(X)[:, 0]))
    found, expected = attack(KEY, careless, X, Y), attack(KEY, careful, X, Y)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.x, expected.x, atol=1e-4)
    assert np.any(found.x != X) and np.all(np.isfinite(found.x))
    assert not np.any(expected.nonfinite) and not np.any(found.nonfinite.answers)


def test_entries_are_counted_over_all_steps():
    row = X.shape[2]
    assert fgsm(0.0)(KEY, careless, X, Y).nonfinite.gradients.tolist() == [row] * BATCH
    once = make_attack(linf(0.0), num_steps=3, random_start=False)
    assert once(KEY, careless, X, Y).nonfinite.gradients.tolist() == [3 * row] * BATCH
    for combined in (restarts(once, 2), worst_of(once, once), restarts(in_chunks(once, 2), 2)):
        assert combined(KEY, careless, X, Y).nonfinite.gradients.tolist() == [6 * row] * BATCH
    state = once.step(once.init(KEY, careless, X, Y), careless, X, Y)
    assert state.nonfinite.gradients.tolist() == [row] * BATCH
    shared = make_attack(linf(0.0), num_steps=3, lift=universal, random_start=False, keep="last")
    assert shared(KEY, careless, X, Y).nonfinite.gradients == 3 * row * BATCH


# --- logits ---------------------------------------------------------------------------------------------------------


def fragile(x):
    """NaN at every image that an 8-bit file does not hold."""
    whole = jnp.all(jnp.abs(x * 255 - jnp.round(x * 255)) < 1e-3, axis=(1, 2, 3))
    return jnp.where(whole[:, None], mlp32(x), jnp.nan)


def mlp32(x):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mlp())(x)


FILES = on_grid(X, 255)
ANSWERS = jnp.argmax(mlp32(FILES), axis=-1)


@pytest.mark.parametrize(
    "attack",
    [
        pgd(0.3, 5),
        apgd_ce(0.3, 5),
        make_attack(linf(0.3), solver=random_search(), num_steps=5),
        cw(num_steps=5),
        fmn(),
        fab(),
    ],
    ids=["pgd", "apgd", "random", "cw", "fmn", "fab"],
)
def test_nan_is_no_success_and_leaves_a_trace(attack):
    found = attack(KEY, fragile, FILES, ANSWERS)
    np.testing.assert_array_equal(found.success, False)
    np.testing.assert_array_equal(found.x, FILES)
    assert np.all(found.nonfinite.answers > 0)


def test_images_of_8_bits_get_through_to_a_victim_that_fails_elsewhere():
    found = pgd(0.3, 10).rounded()(KEY, fragile, FILES, ANSWERS)
    assert np.mean(found.success) >= 0.5 and not np.any(found.nonfinite)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_direct_call_never_takes_nan_for_a_success(keep):
    def never(x):
        return jnp.full((len(x), 3), jnp.nan) * x[:, 0, 0]

    for attack in (pgd(0.1, 3, keep=keep), worst_of(pgd(0.1, 3)), restarts(pgd(0.1, 3, keep=keep), 2)):
        np.testing.assert_array_equal(attack(KEY, never, X, Y + 1).success, False)


@pytest.mark.parametrize(("logit", "fools"), [(jnp.nan, False), (jnp.inf, False), (-jnp.inf, True), (1e30, True)])
def test_only_minus_infinity_is_a_logit_among_what_is_not_finite(logit, fools):
    logits = jnp.array([[0.0, 1.0, -1.0]]).at[0, 1 if logit == 1e30 else 2].set(logit)
    examples = Example(None, jnp.array([0]))
    assert bool(misclassified(logits, examples)[0]) == fools
    assert bool(misclassified(logits, Example(None, jnp.array([0]), jnp.array([1])))[0]) == fools

    def victim(x):
        return jnp.broadcast_to(logits, (len(x), 3)) + 0 * x[:, 0, 0]

    # A goal of one's own need not know of NaN.
    attack = make_attack(linf(0.1), margin, num_steps=2, goal=lambda logits, examples: jnp.ones(len(logits), bool))
    np.testing.assert_array_equal(attack(KEY, victim, X, jnp.zeros(BATCH, jnp.int32)).success, fools)


def test_one_broken_image_does_not_spoil_a_perturbation_of_all():
    def breaks(x):
        is_first = (jnp.arange(len(x)) == 0)[:, None]
        return jnp.where(is_first, jnp.nan, linear(W)(x))

    y, attack = jnp.zeros(BATCH, jnp.int32), make_attack(linf(0.1), margin, num_steps=5, lift=universal)
    x = images(batch=BATCH, low=0.2, high=0.8)
    found = attack(KEY, breaks, x, y)
    np.testing.assert_allclose(found.variables, 0.1 * np.sign(W), atol=1e-6)
    assert not found.success[0]
