"""Attacks that search on one victim and are judged by another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

from spa_jax import crafted_on, eot, in_chunks, pgd, purify, randomized, restarts, straight_through, worst_of
from spa_jax.losses import margin
from spa_jax.parallel import data_mesh
from tests.analytic_victims import ascent, linear, margins, strongest, weights
from tests.attack_cases import (
    BATCH,
    INNER,
    KEY,
    MLP,
    PGD,
    SPA,
    TWO,
    W,
    X,
    Y,
    assert_consistent,
    assert_never_weaker,
    judged,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

OTHER = Partial(lambda w, x: linear(w)(x), weights(seed=5))
TURNED = Partial(lambda w, x: linear(-w)(x), W)
CLIMB = pgd(0.1, 5, loss="margin", random_start=False)


def quantised(x):
    """A purifier that passes no gradient."""
    return jnp.round(8 * x) / 8


@pytest.mark.parametrize("attack", [PGD, SPA, in_chunks(PGD, 3), restarts(PGD, 2), worst_of(PGD, CLIMB)])
def test_an_attack_crafted_on_the_victim_itself_is_the_attack(attack):
    expected, found = attack(KEY, MLP, X, Y), crafted_on(attack, MLP)(KEY, MLP, X, Y)
    np.testing.assert_array_equal(found.success, expected.success)
    for name in ("x", "value", "without"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            getattr(found, name),
            getattr(expected, name),
        )


def test_the_images_are_those_of_the_surrogate_and_the_verdict_is_the_victims():
    linear_optimum = strongest("linf", ascent(W, TWO), INNER, 0.1)
    found = crafted_on(CLIMB, linear(W))(KEY, TURNED, INNER, TWO)
    np.testing.assert_allclose(found.x, linear_optimum, atol=1e-6)
    np.testing.assert_allclose(found.value, margins(-W, linear_optimum, TWO), rtol=1e-4, atol=1e-5)
    assert_consistent(found, TURNED, TWO, margin)
    assert np.all(found.value < margins(-W, INNER, TWO)), "what fools the turned network helps this one"


@pytest.mark.parametrize("make", [lambda f: f, lambda f: Partial(f)])
def test_straight_through_gets_past_what_the_full_gradient_does_not(make):
    victim = make(lambda x: linear(W)(quantised(x)))
    bypassed = purify(linear(W), straight_through(quantised))
    clean = judged(INNER, victim, TWO, loss=margin).value
    blind = CLIMB(KEY, victim, INNER, TWO)
    np.testing.assert_allclose(blind.value, clean, atol=1e-6)
    strong = worst_of(CLIMB, crafted_on(CLIMB, bypassed))(KEY, victim, INNER, TWO)
    assert np.all(strong.value > clean + 0.3)
    assert np.all(strong.variables["winner"] == 1)
    assert_consistent(strong, victim, TWO, margin)


def test_the_worst_of_both_is_never_weaker_than_either():
    victim = purify(linear(W), quantised)
    transfer = crafted_on(PGD, OTHER)
    both = worst_of(PGD, transfer)(KEY, victim, X, TWO)
    for i, member in enumerate((PGD, transfer)):
        images = both.variables["found"][i]
        assert_never_weaker(both, judged(jnp.clip(X + images, 0, 1), victim, TWO, loss=margin))
        assert np.all(np.abs(images) <= 0.1 + 1e-6), member


def test_it_is_jitted_chunked_and_stepped_alike():
    whole = crafted_on(PGD, OTHER)
    expected = whole(KEY, MLP, X, Y % 2)
    np.testing.assert_allclose(jax.jit(whole)(KEY, MLP, X, Y % 2).value, expected.value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(in_chunks(whole, 3)(KEY, MLP, X, Y % 2).value, expected.value, rtol=1e-4, atol=1e-5)
    state = whole.init(KEY, MLP, X, Y % 2)
    for _ in range(whole.num_steps):
        state = whole.step(state, MLP, X, Y % 2)
    np.testing.assert_allclose(whole.result(state, MLP, X, Y % 2).value, expected.value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole.apply(expected.variables, MLP, X, Y % 2), expected.x, atol=1e-6)


def test_new_weights_of_a_surrogate_that_is_a_plain_function_are_seen():
    held = {"w": W}
    attack = crafted_on(CLIMB, lambda x: linear(held["w"])(x))
    first = attack(KEY, linear(W), INNER, TWO)
    held["w"] = -W
    second = attack(KEY, linear(W), INNER, TWO)
    np.testing.assert_allclose(second.x - INNER, INNER - first.x, atol=1e-6)


def test_it_works_inside_shard_map():
    mesh = data_mesh(jax.devices()[:1])
    attack, split = crafted_on(PGD, OTHER), PartitionSpec("data")
    keys = jax.random.split(KEY, BATCH)
    run = jax.shard_map(
        lambda keys, x, y: attack(keys, MLP, x, y).value, mesh=mesh, in_specs=(split,) * 3, out_specs=split
    )
    expected = attack(keys, MLP, X, Y % 2).value
    np.testing.assert_allclose(jax.jit(run)(keys, X, Y % 2), expected, rtol=1e-5, atol=1e-5)


def test_a_randomised_victim_judges_with_keys_that_the_search_has_not_seen():
    """The victim is fooled by a coin that its own keys throw: no search can find images that fool it more often."""

    @randomized
    def coin(keys, x):
        heads = jax.vmap(jax.random.bernoulli)(keys)
        return jnp.stack([heads, ~heads], axis=-1).astype(x.dtype)

    x, y = jnp.full((400, 2, 2, 1), 0.5), jnp.zeros(400, jnp.int32)
    share = np.mean(crafted_on(pgd(0.1, 10), eot(coin, 3))(KEY, coin, x, y).success)
    assert abs(share - 0.5) < 4 * 0.5 / 20


def test_surrogates_may_not_answer_for_another_set_of_classes():
    with pytest.raises(ValueError, match=r"labels.max\(\)=2: classes must lie in \[0, 1\] for 2 classes"):
        crafted_on(PGD, OTHER)(KEY, MLP, X, Y)


def test_what_the_surrogate_cannot_answer_is_not_held_against_the_victim():
    def broken(x):
        return linear(W)(x) / 0.0 * 0.0

    found = crafted_on(pgd(0.1, 2), broken)(KEY, linear(W), INNER, TWO)
    assert found.nonfinite is not None
    np.testing.assert_array_equal(found.nonfinite.answers, 0)
    assert_consistent(found, linear(W), TWO)


def test_what_is_no_attack_or_no_surrogate_is_refused():
    """Beside our own errors, the annotations say so in these tests."""
    with pytest.raises((ValueError, TypeError), match="attack"):
        crafted_on(pgd, OTHER)
    with pytest.raises((ValueError, TypeError), match="surrogate"):
        crafted_on(PGD, 3)
