"""Many draws of a randomised victim: their mean and vote, at once or in parts, and one draw that stays the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import crafted_on, eot, fixed_draw, majority_vote, pgd, purify, randomized
from spa_jax.victims import purification_stages
from tests.analytic_victims import SIZE, images, linear, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH = 6
KEYS = jax.random.split(jax.random.key(0), BATCH)
X, W = images(batch=BATCH), weights()


@randomized
def shaken(keys, x):
    """A stochastic victim: every image gets noise of its own before the linear one."""
    noise = jax.vmap(lambda key: jax.random.normal(key, SIZE))(keys)
    return linear(W)(x + noise)


def dimmed(keys, x):
    """A purifier that darkens every image by a share of its own."""
    return x * jax.vmap(jax.random.uniform)(keys)[:, None, None, None]


def draws(n):
    """The outputs of a stochastic victim for each draw, one after the other."""
    return jnp.stack([shaken(jax.vmap(jax.random.fold_in, (0, None))(KEYS, i), X) for i in range(n)])


def test_eot_is_the_mean_over_draws():
    each = np.asarray(draws(3), np.float64)
    np.testing.assert_allclose(eot(shaken, 3)(KEYS, X), each.mean(0), rtol=1e-4, atol=1e-5)
    probabilities = np.exp(each) / np.exp(each).sum(-1, keepdims=True)
    averaged = eot(shaken, 3, "probabilities")(KEYS, X)
    np.testing.assert_allclose(averaged, np.log(probabilities.mean(0)), rtol=1e-4, atol=1e-5)


def test_eot_approaches_the_expectation_and_its_gradient():
    logits, gradient = jax.jit(jax.value_and_grad(lambda x: eot(shaken, 2000)(KEYS, x)[0, 1]))(X)
    np.testing.assert_allclose(logits, linear(W)(X)[0, 1], atol=0.15)
    np.testing.assert_allclose(gradient[0], W / 2, atol=5e-5)  # 2000 summands in float32


def test_eot_does_not_depend_on_the_layout_of_the_batch():
    averaged = eot(shaken, 4)
    together = averaged(KEYS, X)
    np.testing.assert_allclose(averaged(KEYS[::-1], X[::-1])[::-1], together, rtol=1e-5, atol=1e-6)


def test_another_average_is_refused():
    """Beside our own error, the annotation says so in these tests."""
    with pytest.raises((ValueError, TypeError), match="median"):
        eot(shaken, 2, "median")


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_draws_in_parts_are_the_draws_at_once_and_so_is_their_gradient(at_once, average):
    def total(x, **options):
        return jnp.sum(eot(shaken, 5, average, **options)(KEYS, x)[:, 0] ** 2)

    whole, parts = (jax.value_and_grad(total)(X, **own) for own in ({}, {"at_once": at_once}))
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-4, atol=1e-5)


def test_draws_in_parts_take_the_memory_of_a_part():
    """Each draw holds activations of 400 times its image; their gradient needs all of those that are held."""
    wide = jax.random.normal(jax.random.key(3), (SIZE[0] * SIZE[1], 6400))

    @randomized
    def deep(keys, x):
        return jnp.tanh(shaken_pixels(keys, x).reshape(BATCH, -1) @ wide)[:, :3] ** 2 + jnp.sum(
            jnp.sin(shaken_pixels(keys, x).reshape(BATCH, -1) @ wide), axis=1, keepdims=True
        )

    def temporary(**options):
        gradient = jax.grad(lambda x: jnp.sum(eot(deep, 16, **options)(KEYS, x)))
        return jax.jit(gradient).lower(X).compile().memory_analysis().temp_size_in_bytes

    assert temporary(at_once=2) < 0.4 * temporary()


def shaken_pixels(keys, x):
    return x + jax.vmap(lambda key: jax.random.normal(key, SIZE))(keys)


def test_a_vote_counts_the_answers_of_the_draws():
    answers = np.argmax(np.asarray(draws(7)), axis=-1)
    expected = np.stack([np.bincount(column, minlength=2) for column in answers.T])
    for at_once in (None, 3):
        np.testing.assert_array_equal(majority_vote(shaken, 7, at_once)(KEYS, X), expected)
    assert len(np.unique(expected)) > 2, "the draws disagree on some image"


def test_a_vote_has_no_gradient_and_is_attacked_through_the_mean():
    x, y = images(low=0.3, high=0.7, batch=BATCH), jnp.arange(BATCH) % 2
    voted = majority_vote(shaken, 25)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(voted(KEYS, x)[:, 0]))(x), 0)
    attack = pgd(0.3, 5, loss="margin", random_start=False)
    blind = attack(KEYS[0], voted, x, y)
    np.testing.assert_array_equal(blind.x, x)
    seeing = crafted_on(attack, eot(shaken, 25))(KEYS[0], voted, x, y)
    assert np.sum(seeing.success) > np.sum(blind.success)


def test_a_fixed_draw_is_the_same_for_every_call_image_and_batch():
    key = jax.random.key(7)
    fixed = fixed_draw(shaken, key)
    assert not getattr(fixed, "is_randomized", False)
    expected = shaken(jnp.broadcast_to(key, 1), X[:1])
    np.testing.assert_allclose(fixed(X)[:1], expected, rtol=1e-5)
    np.testing.assert_allclose(fixed(X[::-1])[::-1], fixed(X), rtol=1e-5)
    assert np.any(np.abs(fixed_draw(shaken, jax.random.key(8))(X) - fixed(X)) > 0.01)
    assert fixed_draw(linear(W), key).args[0] is W, "what draws nothing stays as it is"


def test_the_stages_of_a_mean_or_a_vote_are_those_of_its_first_draw():
    purified = purify(linear(W), randomized(dimmed))
    for many in (eot, majority_vote):
        first = purification_stages(many(purified, 1), KEYS, X)["purified"]
        np.testing.assert_array_equal(purification_stages(many(purified, 3), KEYS, X)["purified"], first)
    np.testing.assert_allclose(linear(W)(first), eot(purified, 1)(KEYS, X), rtol=1e-4, atol=1e-5)
    fixed = fixed_draw(purified, KEYS[0])
    np.testing.assert_allclose(linear(W)(purification_stages(fixed, KEYS, X)["purified"]), fixed(X), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eot(shaken, 0), r"n=0 must be an integer of at least 1"),
        (lambda: eot(shaken, 2, at_once=0), r"at_once=0 must be an integer of at least 1"),
        (lambda: majority_vote(shaken, 0), r"n=0 must be an integer of at least 1"),
        (lambda: eot(shaken, 2)(None, X), r"keys=None: eot and majority_vote draw"),
    ],
)
def test_bad_numbers_and_keys_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
