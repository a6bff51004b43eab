"""RayS finds the nearest image in l-infinity across a linear boundary, whose distance is known, from labels alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import random_attack, rays
from spa_jax.attacks.label_only import _in_block, _next_block
from spa_jax.data import Split
from spa_jax.evaluation import robustness_curve
from tests.analytic_victims import ascent, images, linear, linear_logits, margins, weights
from tests.attack_cases import INNER, LIGHT, LIGHT_GAIN, NOISE_GAIN, TWO

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W, BATCH = jax.random.key(0), weights(), 8
ON_BOUNDS = images(batch=BATCH)
ATTACK = rays(num_steps=500)


def labelled(w, x):
    """The decision of the linear victim, and no score."""
    return jax.nn.one_hot(jnp.argmax(linear_logits(w, x), axis=-1), 2)


VICTIM = Partial(labelled, W)


def answers(x):
    return jnp.argmax(VICTIM(x), axis=-1)


def nearest(x, y):
    """The l-infinity distance to the boundary, with the pixels kept in [0, 1], by bisection in float64."""
    g, x = ascent(W, y), np.asarray(x, np.float64)
    low, high = np.zeros(len(x)), np.ones(len(x))
    for _ in range(60):
        radius = (low + high) / 2
        room = np.where(g > 0, 1 - x, x)
        gain = np.sum(np.abs(g) * np.minimum(room, radius[:, None, None, None]), axis=(1, 2, 3))
        reached = gain >= -margins(W, x, y)
        low, high = np.where(reached, low, radius), np.where(reached, radius, high)
    return high


def distances(result, x):
    return np.abs(np.asarray(result.x - x, np.float64)).max((1, 2, 3))


def test_without_a_radius_an_evaluation_measures_the_distance():
    x = INNER
    y = np.asarray(answers(x), np.int32)
    split = Split(np.asarray(x), y)
    curve = robustness_curve(VICTIM, split, ATTACK, key=KEY, batch_size=len(y))
    assert ATTACK.nearest_in == "linf" and rays(0.1).nearest_in is None
    np.testing.assert_allclose(curve.median, np.median(nearest(x, y)), atol=2e-3)


@pytest.mark.parametrize("x", [INNER, ON_BOUNDS], ids=["inner", "on_bounds"])
def test_the_distance_is_the_smallest_that_fools(x):
    y = answers(x)
    result = ATTACK(KEY, VICTIM, x, y)
    np.testing.assert_array_equal(result.success, True)
    np.testing.assert_array_equal(answers(result.x) != y, True)
    assert np.min(result.x) >= 0 and np.max(result.x) <= 1
    shortest, found = nearest(x, y), distances(result, x)
    assert np.all(found >= shortest - 1e-5) and np.all(found <= shortest + 2e-3), found - shortest
    np.testing.assert_allclose(result.variables, result.x - x)


def test_success_counts_within_the_radius_only_and_failures_stay_clean():
    y = answers(INNER)
    shortest = nearest(INNER, y)
    radius = float(np.sort(shortest)[4] + 3e-3)
    result = rays(radius, 500)(KEY, VICTIM, INNER, y)
    np.testing.assert_array_equal(result.success, shortest <= radius)
    assert np.all(distances(result, INNER) <= radius * (1 + 1e-6))
    np.testing.assert_array_equal(result.x[~result.success], INNER[~result.success])


def test_an_image_that_is_misclassified_is_its_own_answer():
    result = rays(num_steps=20)(KEY, VICTIM, INNER, 1 - answers(INNER))
    np.testing.assert_array_equal(result.success, True)
    np.testing.assert_array_equal(result.x, INNER)


def test_scores_do_not_matter_and_every_image_is_searched_alone():
    y = answers(INNER)
    attack = rays(num_steps=60)
    by_label, by_score = attack(KEY, VICTIM, INNER, y), attack(KEY, linear(W), INNER, y)
    np.testing.assert_array_equal(by_label.x, by_score.x)
    singles = [attack(KEY, VICTIM, INNER[i : i + 1], y[i : i + 1]).x[0] for i in (0, 5)]
    np.testing.assert_array_equal(by_label.x[jnp.asarray([0, 5])], jnp.stack(singles))


def test_blocks_of_every_level_cover_each_pixel_once():
    x = jnp.zeros((1, 3, 5, 1))
    level, block = jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
    covered, seen = {}, 0
    while seen == 0 or level[0] > 0 or block[0] > 0:
        covered[int(level[0])] = covered.get(int(level[0]), 0) + np.asarray(_in_block(x, level, block)).astype(int)
        level, block = _next_block(level, block, 15)
        seen += 1
    assert sorted(covered) == [0, 1, 2, 3, 4] and seen == 1 + 2 + 4 + 8 + 15
    assert all(np.all(count == 1) for count in covered.values())


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"radius": -0.1}, {"tolerance": 0.0}])
def test_bad_numbers_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        rays(**options)


# --- random points --------------------------------------------------------------------------------------------------


def test_random_points_of_attributes_and_noise_gain_less_than_both_can():
    """The margin gains at most what brightness and noise add, and attributes alone at most the first of them."""
    clean = margins(W, INNER, TWO)
    both = random_attack(0.2, LIGHT, 200)(KEY, linear(W), INNER, TWO)
    alone = random_attack(attributes=LIGHT, num_steps=200)(KEY, linear(W), INNER, TWO)
    noise = random_attack(0.2, num_steps=200)(KEY, linear(W), INNER, TWO)
    gains = [np.asarray(found.value, np.float64) - clean for found in (both, alone, noise)]
    assert np.all(gains[0] <= (LIGHT_GAIN + NOISE_GAIN) * (1 + 1e-5)) and np.all(gains[0] > 0.15 * NOISE_GAIN)
    assert np.all(gains[1] <= LIGHT_GAIN * (1 + 1e-5)) and np.all(gains[1] > 0.9 * LIGHT_GAIN)
    assert np.all(gains[2] <= NOISE_GAIN * (1 + 1e-5))
    assert set(both.variables) == {"brightness", "noise"} and set(alone.variables) == {"brightness"}


def test_something_must_be_drawn():
    with pytest.raises(ValueError, match=r"radius=None with attributes=None: random_attack\(\) has nothing to draw"):
        random_attack()
