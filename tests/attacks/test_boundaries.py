"""The shortest ways onto a linearised boundary are those of linear programs and of an independent bisection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.attacks.boundaries import VECTOR_NORMS, distance_to, nearest, onto, onto_within_image
from tests.analytic_victims import images, shortest

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH = 12
X = images(batch=BATCH)
SLOPES = jnp.asarray(np.random.default_rng(5).normal(size=X.shape), jnp.float32)
MOST = np.sum(np.maximum(SLOPES * (1 - X), -SLOPES * X), axis=(1, 2, 3))
"""What each image can gain within [0, 1]."""


def project(norm, gaps, slopes, x=X):
    return jax.vmap(lambda *case: onto_within_image(*case, norm))(x, jnp.asarray(gaps, jnp.float32), slopes)


def gains(change, slopes=SLOPES):
    return np.sum(np.asarray(change, np.float64) * np.asarray(slopes, np.float64), axis=(1, 2, 3))


def sizes(norm, change):
    return np.asarray(jax.vmap(VECTOR_NORMS[norm])(change))


@pytest.mark.parametrize("norm", VECTOR_NORMS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_the_projection_within_the_box_is_the_shortest(norm, share):
    change = project(norm, share * MOST, SLOPES)
    assert np.min(X + change) >= 0 and np.max(X + change) <= 1
    np.testing.assert_allclose(gains(change), share * MOST, rtol=1e-4)
    np.testing.assert_allclose(sizes(norm, change), shortest(norm, SLOPES, X, share * MOST), rtol=2e-4)


@pytest.mark.parametrize("norm", VECTOR_NORMS)
def test_a_gap_to_be_lost_is_one_to_be_gained_along_the_opposite_slope(norm):
    np.testing.assert_allclose(project(norm, -0.3 * MOST, -SLOPES), project(norm, 0.3 * MOST, SLOPES))
    assert np.all(project(norm, np.zeros(BATCH), SLOPES) == 0)


@pytest.mark.parametrize("norm", VECTOR_NORMS)
def test_a_boundary_out_of_reach_is_approached_as_far_as_the_box_allows(norm):
    change = project(norm, 2 * MOST, SLOPES)
    np.testing.assert_allclose(gains(change), MOST, rtol=1e-5)


@pytest.mark.parametrize("norm", VECTOR_NORMS)
def test_slopes_of_any_scale_and_with_zeros_are_taken(norm):
    sparse = SLOPES.at[:, 0].set(0)
    change = project(norm, 0.1 * MOST, sparse)
    assert np.all(change[:, 0] == 0)
    np.testing.assert_allclose(project(norm, 1e-11 * MOST, 1e-10 * sparse), change, rtol=1e-3, atol=1e-6)
    assert np.all(project(norm, MOST, 0 * SLOPES) == 0)


@pytest.mark.parametrize("norm", VECTOR_NORMS)
def test_equal_slopes_share_or_follow_each_other(norm):
    change = project(norm, np.full(BATCH, 0.5), jnp.ones_like(SLOPES))
    room = np.sum(1 - np.asarray(X, np.float64), axis=(1, 2, 3))
    np.testing.assert_allclose(gains(change, np.ones(X.shape)), np.minimum(0.5, room), rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_the_box_the_way_is_gap_over_dual_norm(norm):
    gap = 0.7
    change = onto(jnp.float32(gap), SLOPES[0], norm)
    slope = np.asarray(SLOPES[0], np.float64)
    dual = np.abs(slope).sum() if norm == "linf" else np.linalg.norm(slope)
    np.testing.assert_allclose(np.sum(change * slope), gap, rtol=1e-5)
    np.testing.assert_allclose(VECTOR_NORMS[norm](change), gap / dual, rtol=1e-5)


@pytest.mark.parametrize("norm", VECTOR_NORMS)
def test_the_nearest_boundary_is_that_of_the_smallest_distance(norm):
    gaps = -jnp.linspace(0.2, 2, BATCH)
    distances = [float(distance_to(gap, slope, norm)) for gap, slope in zip(gaps, SLOPES, strict=True)]
    gap, slope = nearest(gaps, SLOPES, norm)
    assert gap == gaps[np.argmin(distances)]
    np.testing.assert_array_equal(slope, SLOPES[np.argmin(distances)])
