"""Half precision, 64-bit programs, keys of every style: the search is the same, and the result keeps its bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import (
    apgd_ce,
    attribute_attack,
    cw,
    ddn,
    deepfool,
    fab,
    fmn,
    make_attack,
    mi_fgsm,
    noise_attack,
    pgd,
    randomized,
    restarts,
    spa,
    universal,
    worst_of,
)
from spa_jax.losses import capped_cross_entropy, smoothed_cross_entropy
from spa_jax.solvers import random_search
from spa_jax.spaces import l2, linf
from spa_jax.validation import checked_keys
from tests.analytic_victims import images, labels, linear, mlp, weights
from tests.attacks.test_steps import shapes

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W = jax.random.key(0), weights()
X, Y = images(batch=16), labels(16)
HALF = [jnp.bfloat16, jnp.float16]


def in_half(dtype):
    """A victim that insists on the type of its images, and images that it holds exactly."""

    def victim(x):
        assert x.dtype == dtype
        return linear(W.astype(dtype))(x)

    return victim, X.astype(dtype)


def norm(order, difference):
    return np.linalg.norm(np.asarray(difference, np.float64).reshape(len(difference), -1), ord=order, axis=1)


# --- half precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("name", "order", "radius"),
    [("linf", np.inf, 8 / 255), ("l2", 2, 0.3), pytest.param("l1", 1, 0.7, marks=pytest.mark.slow)],
)
def test_the_bound_holds_in_the_type_of_the_images(dtype, name, order, radius):
    victim, x = in_half(dtype)
    attack = apgd_ce(radius, 20, norm=name) if name == "l1" else pgd(radius, 10, norm=name)
    found = attack(KEY, victim, x, Y)
    assert found.x.dtype == dtype and found.value.dtype == jnp.float32
    change = norm(order, np.asarray(found.x, np.float64) - np.asarray(x, np.float64))
    assert np.all(change <= radius + 1.1e-6 * max(radius, 1)), change / radius
    assert np.max(change) >= 0.8 * radius
    logits = np.asarray(victim(found.x), np.float64)
    np.testing.assert_array_equal(found.success, logits.argmax(1) != Y)


@pytest.mark.parametrize("dtype", HALF)
def test_the_search_is_that_of_float32(dtype):
    victim, x = in_half(dtype)
    half = pgd(0.2, 10, random_start=False)(KEY, victim, x, Y)
    single = pgd(0.2, 10, random_start=False)(KEY, linear(W), x.astype(jnp.float32), Y)
    np.testing.assert_allclose(half.value, single.value, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("attack", [cw(num_steps=200), deepfool(), fmn(), fab("l2")], ids=["cw", "df", "fmn", "fab"])
@pytest.mark.parametrize("dtype", HALF)
def test_minimal_norm_attacks_succeed_in_half_precision_at_the_distance_of_float32(dtype, attack):
    victim, x = in_half(dtype)
    y = jnp.argmax(linear(W)(x.astype(jnp.float32)), axis=-1)
    half, single = attack(KEY, victim, x, y), attack(KEY, linear(W), x.astype(jnp.float32), y)
    assert half.x.dtype == dtype
    np.testing.assert_array_equal(half.success, True)
    np.testing.assert_array_equal(np.asarray(victim(half.x)).argmax(1) != y, True)
    near, nearest = (norm(2, np.asarray(r.x, np.float64) - np.asarray(x, np.float64)) for r in (half, single))
    assert np.all(near <= nearest * 1.1 + 0.02)


def test_chains_and_steps_in_half_precision_return_images_of_that_type():
    victim, x = in_half(jnp.bfloat16)
    attack = spa(8 / 255, ["brightness"], 5)
    found = attack(KEY, victim, x, Y)
    assert found.x.dtype == found.without["noise"].dtype == jnp.bfloat16
    state = attack.init(KEY, victim, x, Y)
    for _ in range(attack.num_steps):
        state = attack.step(state, victim, x, Y)
    stepped = attack.result(state, victim, x, Y)
    np.testing.assert_array_equal(stepped.x, found.x)
    np.testing.assert_array_equal(attack.apply(found.variables, victim, x, Y), found.x)
    np.testing.assert_array_equal(pgd(0.0, 2)(KEY, victim, x, Y).x, x)


# --- 64-bit programs ------------------------------------------------------------------------------------------------

SMALL, SMALL_Y = X[:4], jnp.arange(4) % 3
MAKES = {
    "pgd": lambda r: pgd(r, 3, rel_step_size=0.4),
    "pgd_l2": lambda r: pgd(r, 3, norm="l2", rel_step_size=0.4),
    "pgd_l1": lambda r: pgd(r, 3, norm="l1", rel_step_size=0.4),
    "apgd": lambda r: apgd_ce(r, 3),
    "apgd_l1": lambda r: apgd_ce(r, 5, norm="l1"),
    "mi_fgsm": lambda r: mi_fgsm(r, 3),
    "universal": lambda r: make_attack(linf(r), num_steps=3, lift=universal),
    "random": lambda r: make_attack(l2(r), solver=random_search(), num_steps=3),
    "latent": lambda r: noise_attack(r, shapes, "gradient", num_steps=3),
    "spa": lambda r: spa(r, [{"name": "brightness", "low": np.float64(-0.1), "high": np.float64(0.1)}], 3),
    "attribute": lambda r: attribute_attack("brightness", -r, r, num_steps=3),
    "capped": lambda r: pgd(0.1, 3, loss=capped_cross_entropy(1 + r)),
    "smoothed": lambda r: pgd(0.1, 3, loss=smoothed_cross_entropy(r)),
    "cw": lambda r: cw(r, 3, 2, learning_rate=0.01 + r),
    "deepfool": lambda r: deepfool("linf", 10 * r, 3, overshoot=r),
    "ddn": lambda r: ddn(10 * r, 3, gamma=r),
    "fmn": lambda r: fmn("l1", 10 * r, 3, gamma=r),
    "fab": lambda r: fab("l2", 10 * r, 3, alpha_max=r, random_start=True),
}


QUICK = {"pgd", "apgd_l1", "universal", "spa", "cw", "fmn", "fab"}
BY_NAME = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in MAKES]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_program_of_64_bits_keeps_the_type_of_the_images(name):
    """`vmap` over float64 radii equals one attack for each; nothing is widened on the way."""
    radii = np.array([0.05, 0.2])
    victim = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mlp())
    expected = [MAKES[name](float(r))(KEY, victim, SMALL, SMALL_Y) for r in radii]
    with jax.enable_x64(True):
        found = jax.vmap(lambda r: MAKES[name](r)(KEY, victim, SMALL, SMALL_Y))(jnp.asarray(radii, jnp.float64))
        single = MAKES[name](np.float64(radii[1]))(KEY, victim, SMALL, SMALL_Y)
    assert found.x.dtype == single.x.dtype == jnp.float32
    for i, one in enumerate(expected):
        np.testing.assert_allclose(found.value[i], one.value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(single.value, expected[1].value, rtol=1e-3, atol=1e-4)


def test_images_of_64_bits_are_searched_in_64_bits():
    with jax.enable_x64(True):
        found = pgd(0.1, 3)(KEY, mlp(), jnp.asarray(np.asarray(SMALL), jnp.float64), SMALL_Y)
    assert found.x.dtype == found.value.dtype == jnp.float64


# --- keys -----------------------------------------------------------------------------------------------------------


def start(key, batch=4):
    return pgd(0.3, 1).init(key, linear(W), X[:batch], Y[:batch]).variables


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_the_start_by_keys_of_another_generator_does_not_depend_on_the_batch_size(impl):
    key = jax.random.key(3, impl=impl)
    np.testing.assert_array_equal(start(key, 16)[:4], start(key, 4))
    np.testing.assert_array_equal(start(jax.random.split(key, 4)), start(jax.random.split(key, 4)))
    assert np.any(start(jax.random.split(key, 4)) != start(key))
    assert np.any(start(jax.random.key(4, impl=impl)) != start(key))


def test_keys_of_the_old_style_are_those_of_the_new():
    np.testing.assert_array_equal(start(jax.random.PRNGKey(3)), start(jax.random.key(3)))
    old, new = (jax.random.split(make(3), 4) for make in (jax.random.PRNGKey, jax.random.key))
    np.testing.assert_array_equal(start(old), start(new))
    rbg = jax.random.key(3, impl="rbg")
    np.testing.assert_array_equal(start(jax.random.key_data(rbg)), start(rbg))


def test_keys_become_threefry_by_all_their_words():
    keys = [jax.random.wrap_key_data(jnp.array([1, 2, 3, last], jnp.uint32), impl="rbg") for last in (4, 5)]
    data = [jax.random.key_data(checked_keys(key, 2)) for key in keys]
    assert np.all(np.any(data[0] != data[1], axis=-1))
    with pytest.raises(ValueError, match=r"must be a key: make one with jax\.random\.key"):
        start(jnp.zeros(3, jnp.uint32))


# --- a randomised victim judges with fresh keys ---------------------------------------------------------------------


@randomized
def coin(keys, x):
    """Heads or tails, whatever the image; 45 % tails."""
    tails = jax.vmap(lambda key: jax.random.uniform(key) < 0.45)(keys).astype(x.dtype)
    return jnp.stack([-tails, tails], axis=-1) + jnp.sum(x, axis=(1, 2, 3))[:, None] * 0


@pytest.mark.parametrize(
    "attack",
    [
        pgd(0.0, 40),
        restarts(pgd(0.0, 4), 10),
        worst_of(pgd(0.0, 9), pgd(0.0, 9)),
        cw(num_steps=5, search_steps=2),
        fmn(),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_success_against_chance_is_chance_and_not_the_best_of_many_draws(attack):
    x = jnp.full((400, 2, 2, 1), 0.5)
    found = attack(KEY, coin, x, jnp.zeros(400, jnp.int32))
    assert 0.35 < np.mean(found.success) < 0.55
    if not isinstance(attack, type(cw())):
        np.testing.assert_array_equal(found.success, found.value > np.log(2))
