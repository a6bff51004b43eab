"""Displaced pixels: where they are read, how far they may lie, and what unevenness costs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from spa_jax import Example, attribute, chain, make_attack, stadv
from spa_jax.losses import margin
from spa_jax.solvers import projected_gradient
from spa_jax.spaces import bank, flow, flow_loss, linf, per_example, universal
from spa_jax.spaces.rounded import rounded
from tests.analytic_victims import images, labels, linear, margins, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
SIZE = (6, 5, 3)
X = images(size=SIZE)[0]
EXAMPLE = Example(X)
SPACE = flow(1.3)


def drawn(seed=0, space=SPACE):
    return space.init(jax.random.key(seed), EXAMPLE)


@pytest.mark.parametrize("seed", range(3))
def test_pixels_are_read_bilinearly_where_the_field_points(seed):
    field = drawn(seed)
    place = np.moveaxis(np.indices(SIZE[:2]).transpose(1, 2, 0) + np.asarray(field, np.float64), -1, 0)
    expected = [map_coordinates(np.asarray(X[..., c], np.float64), place, order=1) for c in range(3)]
    np.testing.assert_allclose(SPACE.apply(field, EXAMPLE), np.stack(expected, -1), atol=1e-5)


def test_the_zero_field_leaves_the_image_bit_for_bit():
    np.testing.assert_array_equal(SPACE.apply(SPACE.identity(EXAMPLE), EXAMPLE), X)
    np.testing.assert_array_equal(SPACE.apply(drawn(space=flow(0.0)), EXAMPLE), X)


def test_projected_samples_lie_within_radius_and_image_and_stay_there():
    field = SPACE.project(5 * jax.random.normal(KEY, (*SIZE[:2], 2)), EXAMPLE)
    place = np.indices(SIZE[:2]).transpose(1, 2, 0) + np.asarray(field)
    assert np.all(np.abs(field) <= 1.3) and np.all(place >= 0) and np.all(place <= np.array(SIZE[:2]) - 1)
    np.testing.assert_array_equal(SPACE.project(field, None), field)
    assert np.ptp(SPACE.apply(field, EXAMPLE)) <= np.ptp(X)


def test_the_gradient_is_the_slope_between_neighbours_also_at_the_border():
    ramp = jnp.broadcast_to(jnp.linspace(0.1, 0.9, 5)[None, :, None], (4, 5, 1))
    example = Example(ramp)
    gradient = jax.grad(lambda v: jnp.sum(SPACE.apply(v, example)))(SPACE.identity(example))
    np.testing.assert_allclose(gradient[:, 1:-1, 1], 0.2, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, [0, -1], 1], 0.1, rtol=1e-5)
    np.testing.assert_allclose(gradient[..., 0], 0, atol=1e-6)


def test_the_flow_loss_is_the_papers():
    field = np.asarray(drawn(), np.float64)
    height, width = SIZE[:2]
    expected = 0.0
    for i, j in itertools.product(range(height), range(width)):
        for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if 0 <= k < height and 0 <= m < width:
                expected += np.sqrt(np.sum((field[i, j] - field[k, m]) ** 2))
    np.testing.assert_allclose(flow_loss(drawn()), expected, rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(flow_loss)(jnp.ones((4, 4, 2))), 0)


def test_the_search_finds_the_best_of_all_fields_of_a_line_of_pixels():
    """Three pixels in a row have three displacements, of which all combinations of 41 values are tried."""
    w, x, y = weights(size=(1, 3, 1)), jnp.array([[[[0.2], [0.6], [0.5]]]]), labels(1)
    space = flow(0.8, smoothness=0.02)
    values = np.linspace(-0.8, 0.8, 41)
    fields = np.array(list(itertools.product(values, repeat=3)))
    fields = fields[np.all((fields + np.arange(3) >= 0) & (fields + np.arange(3) <= 2), axis=1)]
    moved = np.interp((fields + np.arange(3)).ravel(), np.arange(3), np.asarray(x).ravel()).reshape(-1, 1, 3, 1)
    cost = 0.02 * 2 * np.abs(np.diff(fields, axis=1)).sum(axis=1)
    best = np.max(margins(w, moved, np.zeros(len(moved), int)) - cost)
    attack = make_attack(space, margin, projected_gradient(0.05), 200, random_start=False)
    found = attack(KEY, linear(w), x, y)
    assert best - 2e-3 < found.value[0] < best + 5e-3


def test_the_penalty_is_that_of_the_variables_in_every_wrapper():
    space, example = flow(1.0, 0.5), Example(X, label=jnp.int32(1))
    v = drawn(space=space)
    expected = 0.5 * flow_loss(v)
    np.testing.assert_allclose(space.penalty(v, example), expected, rtol=1e-6)
    np.testing.assert_allclose(rounded(space).penalty(v, example), expected, rtol=1e-6)
    np.testing.assert_allclose(bank(space, 2).penalty(jnp.stack([0 * v, v]), example), expected, rtol=1e-6)
    links = chain(light=attribute("brightness"), bend=space, noise=linf(0.1))
    np.testing.assert_allclose(links.penalty({"bend": v, "noise": X, "light": 0.0}, example), expected, rtol=1e-6)
    assert links.penalises and not chain(noise=linf(0.1)).penalises and not links.without("bend").penalises
    batch = Example(jnp.stack([X, X]), label=jnp.array([0, 1]))
    np.testing.assert_allclose(per_example(space).penalty(jnp.stack([v, 0 * v]), batch), [expected, 0], rtol=1e-6)
    np.testing.assert_allclose(universal(space).penalty(v, batch), [expected, expected], rtol=1e-6)


def test_more_smoothness_makes_a_smoother_field_and_a_weaker_attack():
    x, y = images(size=(8, 8, 1)), labels()
    victim = linear(weights(size=(8, 8, 1)))
    found = [stadv(0.5, 20, smoothness=tau)(KEY, victim, x, y) for tau in (0.0, 0.02, 0.2)]
    uneven = [np.mean(jax.vmap(flow_loss)(own.variables)) for own in found]
    gains = [np.mean(margin(victim(own.x), Example(own.x, y))) for own in found]
    assert uneven[0] > 1.2 * uneven[1] > 1.2 * uneven[2] and gains[0] > gains[1] > gains[2]
    clean = margin(victim(x), Example(x, y))
    assert np.all(found[0].value > clean + 0.1)


@pytest.mark.parametrize("options", [{"radius": -1.0}, {"radius": 1.0, "smoothness": -0.1}])
def test_negative_numbers_are_refused(options):
    with pytest.raises(ValueError, match=r"must be .*0 or larger"):
        flow(**options)
