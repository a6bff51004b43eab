"""A chain whose order is a variable: every order is that chain, and its gradient is that of the weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from spa_jax import Example, attribute, chain, per_example
from spa_jax.spaces import linf, order_of, ordered
from spa_jax.spaces.ordered import choices
from tests.analytic_victims import images

pytestmark = pytest.mark.usefixtures("quick_compilation")

LINKS = {"turn": attribute("rotation", -30, 20), "light": attribute("brightness"), "noise": linf(0.3)}
SPACE = ordered(**LINKS)
ORDERS = list(itertools.permutations(range(3)))
BATCH = 60
X = images(batch=BATCH)


@jax.jit
def start(keys, x):
    return SPACE_OVER.init(keys, Example(x))


@jax.jit
def apply(v, x):
    return SPACE_OVER.apply(v, Example(x))


@jax.jit
def project(v, x):
    return SPACE_OVER.project(v, Example(x))


SPACE_OVER = per_example(SPACE)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def scores_of(order):
    """Scores whose order is this one."""
    return 2 * jax.nn.one_hot(jnp.asarray(order), len(order)) - 1


def links_in(order):
    return {list(LINKS)[i]: LINKS[list(LINKS)[i]] for i in order}


def in_place(order, method, *arguments):
    return jax.jit(jax.vmap(getattr(chain(**links_in(order)), method)))(*arguments)


def test_the_order_is_the_assignment_with_the_largest_sum():
    scores = np.random.default_rng(0).uniform(-1, 1, (50, 5, 5))
    expected = [linear_sum_assignment(-own)[1] for own in scores]
    np.testing.assert_array_equal(order_of(jnp.asarray(scores, jnp.float32)), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_images_and_projections_are_those_of_the_chain_in_that_order(order):
    v = start(keys(BATCH), X) | {"order": jnp.tile(scores_of(order)[None], (BATCH, 1, 1))}
    own = {name: v[name] for name in LINKS}
    np.testing.assert_allclose(apply(v, X), in_place(order, "apply", own, Example(X)), atol=1e-6)
    far = v | {"light": 10 * v["light"], "noise": 5 * v["noise"]}
    projected = project(far, X)
    expected = in_place(order, "project", {name: far[name] for name in LINKS}, Example(X))
    for name in LINKS:
        np.testing.assert_allclose(projected[name], expected[name], atol=1e-5)


def test_every_image_has_an_order_of_its_own():
    v = start(keys(BATCH), X) | {"order": jnp.stack([scores_of(ORDERS[i % 6]) for i in range(BATCH)])}
    own = {name: v[name] for name in LINKS}
    for i, order in enumerate(ORDERS):
        part = jax.tree.map(lambda leaf, i=i: leaf[i::6], own)
        expected = in_place(order, "apply", part, Example(X[i::6]))
        np.testing.assert_allclose(apply(v, X)[i::6], expected, atol=1e-6)


def test_the_identity_leaves_the_image_alone_and_keeps_the_order_given():
    identity = SPACE_OVER.identity(Example(X))
    np.testing.assert_array_equal(apply(identity, X), X)
    np.testing.assert_array_equal(order_of(identity["order"]), np.tile(np.arange(3), (BATCH, 1)))
    jax.tree.map(np.testing.assert_array_equal, project(identity, X), identity)


def test_a_link_that_is_left_out_is_left_out_at_its_place():
    v = start(keys(BATCH), X) | {"order": jnp.tile(scores_of((2, 0, 1))[None], (BATCH, 1, 1))}
    rest = {name: own for name, own in v.items() if name != "noise"}
    edited = jax.jit(SPACE_OVER.without("noise").apply)(rest, Example(X))
    expected = in_place((0, 1), "apply", {name: v[name] for name in ("turn", "light")}, Example(X))
    np.testing.assert_allclose(edited, expected, atol=1e-6)


def test_random_starts_draw_every_order_alike():
    count = 3000
    drawn = order_of(jax.vmap(SPACE.draw_order, (0, None))(keys(count), jnp.float32))
    _, found = np.unique(np.asarray(drawn), axis=0, return_counts=True)
    assert len(found) == 6
    assert np.all(np.abs(found - count / 6) < 5 * np.sqrt(count * 5 / 36))


def test_rounded_images_are_on_the_grid_and_noise_that_comes_last_keeps_its_radius():
    v = start(keys(BATCH), X) | {"order": jnp.tile(scores_of((1, 0, 2))[None], (BATCH, 1, 1))}
    rounded = per_example(SPACE).on_grid(255)
    image = jax.jit(rounded.apply)(v, Example(X))
    np.testing.assert_allclose(image * 255, np.round(image * 255), atol=1e-4)
    edited = jax.jit(SPACE_OVER.without("noise").apply)({n: v[n] for n in ("turn", "light", "order")}, Example(X))
    assert np.max(np.abs(image - edited)) <= 0.3 + 1e-5


def sinkhorn(scores, steps=2000):
    weights = np.exp(np.asarray(scores, np.float64))
    for _ in range(steps):
        weights /= weights.sum(0, keepdims=True)
        weights /= weights.sum(1, keepdims=True)
    return weights


def test_the_gradient_of_the_order_is_that_of_the_doubly_stochastic_matrix():
    rng = np.random.default_rng(1)
    scores, gains = rng.uniform(-1, 1, (3, 3)), rng.normal(size=(3, 3))
    gradient = jax.grad(lambda scores: jnp.sum(choices(scores) * gains.astype(np.float32)))(
        jnp.asarray(scores, jnp.float32)
    )
    for i, j in itertools.product(range(3), range(3)):
        bump = np.zeros((3, 3))
        bump[i, j] = 1e-5
        slope = np.sum(gains * (sinkhorn(scores + bump) - sinkhorn(scores - bump))) / 2e-5
        np.testing.assert_allclose(gradient[i, j], slope, atol=1e-4)


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({}, "ordered() got 0 spaces, must be 1 to 7"),
        ({f"light{i}": LINKS["light"] for i in range(8)}, "ordered() got 8 spaces"),
        ({"order": LINKS["light"]}, "has a variable 'order' of its own"),
    ],
)
def test_bad_links_are_refused(spaces, message):
    with pytest.raises(ValueError) as caught:
        ordered(**spaces)
    assert message in str(caught.value)
