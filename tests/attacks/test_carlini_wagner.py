"""The attack of Carlini & Wagner finds the nearest image across a linear boundary, whose distance is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import Example, cw
from spa_jax.losses import margin
from tests.analytic_victims import ascent, images, linear, margins, shortest, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W, BATCH = jax.random.key(0), weights(), 6
INNER, ON_BOUNDS = images(low=0.35, high=0.65, batch=BATCH), images(batch=BATCH)
ATTACK = cw(num_steps=400)


def answers(x):
    return jnp.argmax(linear(W)(x), axis=-1)


def distances(result, x):
    return np.linalg.norm(np.asarray(result.x - x, np.float64).reshape(BATCH, -1), axis=1)


def nearest(x, y):
    """The L2 distance to the boundary, with the pixels kept in [0, 1]."""
    return shortest("l2", ascent(W, y), x, -margins(W, x, y))


@pytest.mark.parametrize(("x", "tolerance"), [(INNER, 0.02), (ON_BOUNDS, 0.02)], ids=["inner", "on_bounds"])
def test_the_distance_is_the_smallest_that_fools(x, tolerance):
    y = answers(x)
    result = ATTACK(KEY, linear(W), x, y)
    np.testing.assert_array_equal(result.success, True)
    np.testing.assert_array_equal(answers(result.x) != y, True)
    assert np.min(result.x) >= 0 and np.max(result.x) <= 1
    shortest, found = nearest(np.asarray(x, np.float64), y), distances(result, x)
    assert np.all(found >= shortest * (1 - 1e-4)) and np.all(found <= shortest * (1 + tolerance)), found / shortest
    np.testing.assert_allclose(result.variables, result.x - x)
    np.testing.assert_allclose(result.value, -found, rtol=1e-5)


def test_the_plain_distance_of_the_boundary_is_margin_over_norm():
    y = answers(INNER)
    plain = np.abs(margins(W, INNER, y)) / np.linalg.norm(np.asarray(W, np.float64))
    np.testing.assert_allclose(nearest(np.asarray(INNER, np.float64), y), plain, rtol=1e-6)


def test_success_counts_within_the_radius_only_and_failures_stay_clean():
    y = answers(INNER)
    shortest = nearest(np.asarray(INNER, np.float64), y)
    radius = float(np.median(shortest))
    result = cw(radius, num_steps=400)(KEY, linear(W), INNER, y)
    within = shortest <= radius
    assert 0 < within.sum() < BATCH
    np.testing.assert_array_equal(result.success, within)
    np.testing.assert_array_equal(result.x[~within], INNER[~within])
    assert np.all(distances(result, INNER) <= radius)


def test_images_that_are_wrong_already_are_left_alone():
    result = ATTACK(KEY, linear(W), INNER, 1 - answers(INNER))
    np.testing.assert_array_equal(result.success, True)
    np.testing.assert_array_equal(result.x, INNER)


def test_confidence_asks_for_a_larger_margin():
    y = answers(INNER)
    result = cw(num_steps=400, confidence=0.3)(KEY, linear(W), INNER, y)
    assert np.all(margin(linear(W)(result.x), Example(INNER, y)) >= 0.3 - 1e-6)
    assert np.all(distances(result, INNER) > nearest(np.asarray(INNER, np.float64), y))


def test_a_target_is_reached_at_the_same_distance_in_two_classes():
    y = answers(INNER)
    aimed, straight = ATTACK(KEY, linear(W), INNER, y, 1 - y), ATTACK(KEY, linear(W), INNER, y)
    np.testing.assert_allclose(aimed.x, straight.x, atol=1e-5)
    np.testing.assert_array_equal(aimed.success, True)
