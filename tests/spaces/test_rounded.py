"""Images rounded inside of the search: what an 8-bit file holds, in the ball, with the gradient straight through."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import (
    Example,
    apgd_ce,
    attack_from_config,
    attribute,
    chain,
    cw,
    fab,
    fmn,
    make_attack,
    pgd,
    restarts,
    spa,
)
from spa_jax.losses import margin
from spa_jax.numerics import on_grid
from spa_jax.solvers import grid
from spa_jax.spaces import l1, l2, latent, linf, rounded
from tests.analytic_victims import SIZE, images, labels, linear, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W, BATCH = jax.random.key(0), weights(), 64
X, Y = on_grid(images(batch=BATCH), 255), labels(BATCH)
BALLS = {"linf": (linf, np.inf, 0.031), "l2": (l2, 2, 0.3), "l1": (l1, 1, 0.7)}


def saved(x):
    """The images as they come back from an 8-bit PNG."""
    image = pytest.importorskip("PIL.Image")
    files = []
    for array in np.round(np.asarray(x) * 255).astype(np.uint8):
        file = io.BytesIO()
        image.fromarray(array[..., 0]).save(file, "png")
        files.append(np.asarray(image.open(file))[..., None])
    return jnp.asarray(np.stack(files) / np.float32(255))


def points(space, seed=0):
    """Points of the set, most of them on the edge of the ball."""
    noise = np.random.default_rng(seed).normal(size=X.shape).astype(np.float32)
    return jax.jit(lambda v: jax.vmap(space.project)(v, Example(X)))(noise)


def shown(space, v):
    return jax.jit(lambda v: jax.vmap(space.apply)(v, Example(X)))(v)


@pytest.mark.parametrize("name", BALLS)
def test_rounded_noise_stays_on_the_grid_and_in_its_ball_and_keeps_its_strength(name):
    make, order, radius = BALLS[name]
    space = rounded(make(radius))
    v = points(space)
    image = shown(space, v)
    np.testing.assert_array_equal(image, saved(image))
    change = np.asarray(image, np.float64) - np.asarray(X, np.float64)
    size = np.linalg.norm(change.reshape(BATCH, -1), ord=order, axis=1)
    assert np.all(size <= radius * (1 + 2e-5) + 1e-6)
    assert np.median(size) >= 0.85 * radius, "shrunk more than rounding asks for"
    np.testing.assert_array_equal(shown(space, jnp.zeros_like(v)), X)


@pytest.mark.parametrize("name", BALLS)
def test_the_gradient_passes_straight_through(name):
    make, _, radius = BALLS[name]
    v = points(make(radius))
    spaces = (make(radius), rounded(make(radius)))
    slopes = [jax.grad(lambda v, space=space: jnp.sum(shown(space, v) * W[None]))(v) for space in spaces]
    np.testing.assert_array_equal(*slopes)
    assert np.any(slopes[0] != 0)


def test_a_chain_is_rounded_once_at_its_end_around_the_edited_image():
    edits = chain(light=attribute("brightness", -0.1, 0.1))
    space = rounded(chain(light=attribute("brightness", -0.1, 0.1), noise=linf(0.05)))
    v = {"light": jnp.linspace(-0.1, 0.1, BATCH), "noise": points(linf(0.05))}
    image, edited = shown(space, v), shown(edits, {"light": v["light"]})
    np.testing.assert_array_equal(image, saved(image))
    away = np.abs(np.asarray(image, np.float64) - np.asarray(edited, np.float64))
    assert np.max(away) <= 0.05 + 2e-6
    assert np.any(edited != saved(edited)), "the edited image itself is not rounded"
    np.testing.assert_array_equal(shown(space.without("noise"), {"light": v["light"]}), saved(edited))


def test_a_rounded_space_answers_as_the_space_it_rounds():
    inner = chain(turn=attribute("rotation"), light=attribute("brightness"), noise=linf(0.1))
    space = rounded(inner, 15)
    assert space.grid_axes == 2 and list(space.members()) == ["turn", "light", "noise"]
    assert space.scaled(0.5).space.members()["noise"].radius == 0.05 and space.scaled(0.5).grid == 15
    found = make_attack(space, margin, grid(3), 9, random_start=False)(KEY, linear(W), X, Y)
    assert len(np.unique(np.asarray(found.variables["light"]))) > 1
    np.testing.assert_allclose(np.asarray(found.x) * 15, np.round(np.asarray(found.x) * 15), atol=1e-5)
    free = rounded(latent(lambda z, example: example.image + z.reshape(SIZE), 16, 0.3))
    image = shown(free, jnp.full((BATCH, 16), 0.05))
    np.testing.assert_array_equal(image, saved(image))


@pytest.mark.parametrize(
    "attack",
    [
        pgd(0.1, 10),
        pgd(0.4, 10, norm="l2"),
        apgd_ce(1.0, 20, norm="l1"),
        restarts(pgd(0.1, 3), 2),
        spa(0.05, ["brightness"], 5),
        cw(num_steps=200),
        fmn("l1"),
        fab("linf"),
    ],
    ids=["pgd", "pgd_l2", "apgd_l1", "restarts", "spa", "cw", "fmn", "fab"],
)
def test_a_success_is_one_also_when_the_image_is_saved(attack):
    y = jnp.argmax(linear(W)(X), axis=-1)
    found = attack.rounded()(KEY, linear(W), X, y)
    file = saved(found.x)
    np.testing.assert_array_equal(found.x, file)
    np.testing.assert_array_equal(found.success, np.argmax(linear(W)(file), axis=-1) != y)
    assert np.mean(found.success) >= 0.5


def test_carlini_wagner_keeps_all_of_its_success_at_nearly_its_distance():
    """Unrounded, it stops right behind the boundary, and a file takes most of its success away."""
    y = jnp.argmax(linear(W)(X), axis=-1)
    attack = cw(num_steps=300)
    plain, found = attack(KEY, linear(W), X, y), attack.rounded()(KEY, linear(W), X, y)
    assert np.mean(np.argmax(linear(W)(saved(plain.x)), axis=-1) != y) < 0.9
    np.testing.assert_array_equal(np.argmax(linear(W)(saved(found.x)), axis=-1) != y, True)
    distances = [np.linalg.norm(np.asarray(result.x - X).reshape(BATCH, -1), axis=1) for result in (found, plain)]
    assert np.all(distances[0] <= distances[1] * 1.15 + 2 / 255)


def test_an_attack_of_a_config_is_rounded_by_its_levels():
    attack = attack_from_config({"name": "pgd", "radius": 0.1, "num_steps": 3, "levels": 255, "restarts": 2})
    assert attack.attack.space.space.grid == 255 and attack.attack.space.space.space.radius == 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rounded(linf(0.1), 0), r"levels=0 must be an integer of at least 1"),
        (lambda: pgd(0.1).rounded(0), r"levels=0 must be an integer of at least 1"),
    ],
)
def test_bad_use_is_refused_with_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
