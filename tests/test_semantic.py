"""The SPA attack against the joint optimum of a linear victim, and the parts of its record."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import (
    attribute,
    cross_entropy,
    margin,
    spa,
    with_fields,
)
from tests.attack_cases import (
    BATCH,
    INNER,
    KEY,
    LIGHT,
    LIGHT_GAIN,
    MLP,
    NOISE_GAIN,
    SPA,
    TWO,
    W,
    X,
    Y,
    assert_consistent,
    assert_never_weaker,
)
from tests.victims import SIZE, linear, margins

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROTATION = [{"name": "rotation", "low": -20, "high": 20}]


@pytest.mark.parametrize(
    ("search", "solver", "share"),
    [
        ("joint", "projected_gradient", 1.0),
        ("joint", "apgd", 1.0),
        ("alternating", "projected_gradient", 1.0),
        ("grid", "projected_gradient", 1.0),
        ("random", "projected_gradient", 0.5),
    ],
)
def test_every_search_of_spa_reaches_the_joint_optimum(search, solver, share):
    step_size = 0.25 if solver == "projected_gradient" else None
    attack = spa(0.2, LIGHT, 20, step_size, search=search, solver=solver, loss="margin", candidates=5, unroll=1)
    result = attack(KEY, linear(W), INNER, TWO)
    clean = margins(W, INNER, TWO)
    gain = np.asarray(result.value, np.float64) - clean
    assert np.all(gain >= NOISE_GAIN + share * LIGHT_GAIN - 1e-4)
    assert np.all(gain <= NOISE_GAIN + LIGHT_GAIN + 1e-4)
    assert np.all(np.asarray(result.edited.value) - clean >= share * LIGHT_GAIN - 1e-4)
    np.testing.assert_allclose(result.edited.x, np.clip(INNER + bright(result.edited), 0, 1), atol=1e-6)
    if search in ("grid", "random"):
        np.testing.assert_array_equal(result.variables["brightness"], result.edited.variables["brightness"])
    assert_consistent(result, linear(W), TWO, margin)
    assert_consistent(result.edited, linear(W), TWO, margin)


@pytest.mark.parametrize("search", ["joint", "alternating", "grid"])
def test_steps_of_the_linear_schedule_shrink_and_reach_the_joint_optimum(search):
    options = {"search": search, "loss": "margin", "candidates": 5, "unroll": 1, "step_schedule": "linear"}
    result = spa(0.2, LIGHT, 20, **options)(KEY, linear(W), INNER, TWO)
    gain = np.asarray(result.value, np.float64) - margins(W, INNER, TWO)
    np.testing.assert_allclose(gain, NOISE_GAIN + LIGHT_GAIN, atol=1e-4)
    # Steps of 1, 2/3 and 1/3 of the first: where nothing is in the way, they add up to twice the first.
    way = spa(0.2, LIGHT, 3, 0.1, keep="last", **options | {"search": "joint"})
    still = spa(0.2, LIGHT, 3, 0.0, keep="last", **options | {"search": "joint"})
    moved, start = (attack(KEY, linear(W), INNER, TWO).variables["noise"] for attack in (way, still))
    free = np.abs(start) < 0.2 - 0.2 * 0.2
    np.testing.assert_allclose(np.abs(moved - start)[free], 0.2 * 0.2, atol=1e-6)


@pytest.mark.parametrize("solver", ["projected_gradient", "apgd"])
def test_joint_steps_move_on_from_the_attribute_values_of_a_search(solver):
    """Out of 2 points a grid picks an end of the range; with no step to take, the attack stays there."""
    options = {"loss": "margin", "candidates": 2, "unroll": 1}
    picked = spa(0.2, LIGHT, 1, 0.0, search="grid", **options)
    moved = spa(0.2, LIGHT, 1, 0.0, start_search="grid", **options)
    ends = [attack(KEY, linear(W), INNER, TWO).edited.variables["brightness"] for attack in (picked, moved)]
    np.testing.assert_array_equal(*ends)
    np.testing.assert_allclose(np.abs(ends[0]), 0.1, atol=1e-7)
    result = spa(0.2, LIGHT, 20, start_search="grid", solver=solver, **options)(KEY, linear(W), INNER, TWO)
    gain = np.asarray(result.value, np.float64) - margins(W, INNER, TWO)
    np.testing.assert_allclose(gain, NOISE_GAIN + LIGHT_GAIN, atol=1e-4)
    curve = spa(0.05, ROTATION, 5, start_search="grid", candidates=3, unroll=1)(KEY, MLP, X, Y)
    assert np.any(np.abs(np.asarray(curve.variables["rotation"])) % 20 != 0)


def test_attribute_steps_after_a_start_search_are_a_tenth_of_the_noises():
    attack = spa(0.05, ROTATION, 1, 0.25, start_search="grid", candidates=3, keep="last", unroll=1)
    turned = np.asarray(attack(KEY, MLP, X, Y).variables["rotation"], np.float64)
    moved = np.min(np.abs(turned[:, None] - [-20, 0, 20]), axis=1)
    inside = np.abs(turned) < 20
    assert np.any(inside)
    np.testing.assert_allclose(moved[inside], 0.1 * 0.25 * 20, rtol=1e-4)
    assert np.all(moved[~inside] == 0)


def test_an_unknown_start_search_is_refused():
    with pytest.raises((ValueError, TypeError), match="start_search"):
        spa(0.05, ROTATION, start_search="best")


@pytest.mark.parametrize("search", ["random", "grid"])
def test_a_start_search_for_a_search_that_picks_its_own_attributes_is_refused(search):
    with pytest.raises(ValueError, match=f"start_search='grid' with search='{search}'"):
        spa(0.05, ROTATION, search=search, start_search="grid")


@pytest.mark.parametrize("option", [{"step_schedule": "linear"}, {"step_size": 0.1}, {"attribute_step_size": 0.1}])
def test_steps_that_the_solver_would_not_take_are_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.*solver='apgd'"):
        spa(0.05, ROTATION, solver="apgd", **option)


def test_an_unknown_step_schedule_is_refused():
    with pytest.raises((ValueError, TypeError), match="step_schedule"):
        spa(0.05, ROTATION, step_schedule="cosine")


def bright(result):
    return np.asarray(result.variables["brightness"])[:, None, None, None]


def test_spa_is_never_weaker_than_clean_attribute_only_or_noise_only():
    result = SPA(KEY, MLP, X, Y)
    clean, noise_only = X, jnp.clip(X + result.variables["noise"], 0, 1)
    for candidate in (clean, result.edited.x, noise_only, SPA.edit(result.variables, X)):
        logits = MLP(None, candidate)
        seen = dataclasses.make_dataclass("Seen", ["success", "value"])(
            np.argmax(logits, axis=-1) != Y, cross_entropy(logits, Y)
        )
        assert_never_weaker(result, seen)


def test_spa_prefers_a_noise_only_image_that_beats_its_joint_point():
    """Light of either sign harms the attack, and its steps are too long to come to rest at none."""

    def afraid_of_light(w, keys, x):
        loss = 0.3 * jnp.abs(jnp.mean(x, axis=(1, 2, 3)) - 0.5)
        return linear(w)(keys, x) + loss[:, None] * jnp.array([0.5, -0.5])

    x = jnp.full((BATCH, *SIZE), 0.5, jnp.float32)
    balanced = W - jnp.mean(W)
    attack = spa(0.01, {"light": attribute("brightness")}, 3, 0.5, attribute_step_size=2.0, loss="margin", unroll=1)
    result = attack(KEY, Partial(afraid_of_light, balanced), x, jnp.zeros(BATCH, jnp.int32))
    np.testing.assert_array_equal(result.variables["light"], 0)
    np.testing.assert_allclose(result.value, 0.01 * np.sum(np.abs(balanced)), rtol=0.2)


def test_the_record_of_spa_fits_together():
    for result in (SPA(KEY, MLP, X, Y), with_fields(SPA, keep="last")(KEY, MLP, X, Y)):
        edited = SPA.edit(result.variables, X)
        assert np.max(np.abs(np.asarray(result.x) - np.asarray(edited))) <= 0.05 + 1e-6
        np.testing.assert_allclose(result.x, jnp.clip(edited + result.variables["noise"], 0, 1), atol=1e-6)
        np.testing.assert_allclose(result.edited.x, SPA.edit(result.edited.variables, X), atol=1e-6)
        np.testing.assert_array_equal(result.edited.variables["noise"], 0)
        assert np.all(np.abs(result.variables["rotation"]) <= 20)
        assert np.all((result.variables["contrast"] >= 0.7) & (result.variables["contrast"] <= 1.3))
        assert_consistent(result, MLP, Y)
        assert_consistent(result.edited, MLP, Y)


def test_the_steps_start_at_the_strongest_of_the_draws():
    options = {"num_steps": 1, "step_size": 0.0, "keep": "last", "unroll": 1, "attributes": ROTATION}
    found, one = (spa(0.05, start_candidates=n, **options)(KEY, MLP, X, Y) for n in (6, 1))
    assert_never_weaker(found, one)
    assert np.any(np.asarray(found.variables["rotation"]) != np.asarray(one.variables["rotation"]))
    best = spa(0.05, start_candidates=6, **options | {"keep": "best"})(KEY, MLP, X, Y)
    assert_never_weaker(best, found)
    assert_consistent(best, MLP, Y)


def test_random_search_draws_all_variables():
    attack = spa(0.05, ROTATION, num_steps=5, solver="random_search", unroll=1)
    found = attack(KEY, MLP, X, Y)
    assert_consistent(found, MLP, Y)
    with pytest.raises(ValueError, match="search='grid' with solver='random_search'"):
        spa(0.05, ROTATION, solver="random_search", search="grid")


def test_the_number_of_starts_is_checked():
    with pytest.raises(ValueError, match="start_candidates=0"):
        spa(0.05, ROTATION, start_candidates=0)
