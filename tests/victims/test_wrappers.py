"""Victims: normalisation, purification, straight-through gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spa_jax import classifier, normalize, pgd, purify, randomized, straight_through
from spa_jax.victims import purification_stages
from tests.analytic_victims import images, labels, linear, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH = 6
KEYS = jax.random.split(jax.random.key(0), BATCH)
X, W = images(batch=BATCH), weights()
MEAN, STD = [0.2, 0.4, 0.5], [0.5, 0.25, 2.0]


def rounded(x):
    """A purifier without a useful gradient."""
    return jnp.round(x * 4) / 4


def bits(keys):
    return np.asarray(jax.random.key_data(keys))


# --- normalisation --------------------------------------------------------------------------------------------------


def flat_sums(x):
    return 2 * jnp.sum(x, axis=(1, 2))


def test_the_network_sees_normalised_pixels_and_the_attack_plain_ones():
    x = images(batch=BATCH, size=(4, 4, 3))
    expected = 2 * np.sum((np.asarray(x, np.float64) - MEAN) / STD, axis=(1, 2))
    np.testing.assert_allclose(normalize(flat_sums, MEAN, STD)(x), expected, rtol=1e-5)
    keyed = normalize(randomized(lambda keys, x: flat_sums(x)), MEAN, STD)
    np.testing.assert_allclose(keyed(KEYS, x), expected, rtol=1e-5)


class SmallNetwork(nn.Module):
    """Batch statistics and one dense layer."""

    classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


def test_a_classifier_uses_running_statistics_and_equal_models_are_one_program():
    variables = jax.jit(lambda: SmallNetwork(3).init(jax.random.key(0), X, train=False))()
    first, second = classifier(SmallNetwork(3), variables), classifier(SmallNetwork(3), variables)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert jax.tree.structure(first) != jax.tree.structure(classifier(SmallNetwork(4), variables))
    run = jax.jit(lambda predict, x: predict(x))
    np.testing.assert_allclose(run(first, X)[:1], run(first, X.at[1:].set(0))[:1], atol=1e-6)


def test_a_classifier_normalises_as_normalize_does():
    variables = jax.jit(lambda: SmallNetwork(3).init(jax.random.key(0), X, train=False))()
    expected = normalize(classifier(SmallNetwork(3), variables), 0.5, 0.25)(X)
    np.testing.assert_allclose(classifier(SmallNetwork(3), variables, 0.5, 0.25)(X), expected, rtol=1e-6)


# --- purification ---------------------------------------------------------------------------------------------------


def test_purifier_and_classifier_get_keys_of_their_own():
    seen = {}

    @randomized
    def purifier(keys, x):
        seen["purifier"] = bits(keys)
        return x / 2

    @randomized
    def predict(keys, x):
        seen["classifier"] = bits(keys)
        return linear(W)(x)

    logits = purify(predict, purifier)(KEYS, X)
    np.testing.assert_allclose(logits, linear(W)(X / 2), rtol=1e-5)
    together = np.concatenate([bits(KEYS), seen["purifier"], seen["classifier"]])
    assert len(np.unique(together, axis=0)) == 3 * BATCH
    np.testing.assert_allclose(purify(linear(W), rounded)(X), linear(W)(rounded(X)), rtol=1e-5)


def test_the_stages_are_what_the_network_behind_a_purifier_is_shown():
    seen = {}

    def predict(x):
        seen["images"] = x
        return linear(W)(x)

    @randomized
    def shaken(keys, x):
        return x + jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(keys)

    for victim in (
        purify(predict, shaken),
        purify(predict, straight_through(shaken)),
        purify(purify(predict, rounded), shaken),
        purify(predict, rounded),
    ):
        keys = KEYS if victim.is_randomized else None
        stages = purification_stages(victim, keys, X)
        victim(*(X,) if keys is None else (keys, X))
        assert list(stages) == ["purified"]
        np.testing.assert_allclose(stages["purified"], seen["images"], atol=1e-6)
    assert purification_stages(linear(W), KEYS, X) == {}
    assert purification_stages(normalize(predict, 0.5, 0.5), None, X) == {}


@pytest.mark.parametrize("wrap", [lambda f: normalize(f, 0.0, 1.0), lambda f: purify(f, rounded), straight_through])
def test_a_wrapper_is_randomized_if_what_it_wraps_is(wrap):
    assert not wrap(linear(W)).is_randomized
    assert wrap(randomized(lambda keys, x: x)).is_randomized
    assert purify(linear(W), randomized(lambda keys, x: x)).is_randomized
    with pytest.raises(TypeError, match=r"takes \(images\), got 2 arguments"):
        wrap(linear(W))(KEYS, X)
    with pytest.raises(TypeError, match=r"takes \(keys, images\), got 1 arguments"):
        wrap(randomized(lambda keys, x: x))(X)


def test_marking_twice_is_marking_once():
    once = randomized(lambda keys, x: x)
    assert randomized(once) is once
    with pytest.raises(ValueError, match="function=3 must be a function of"):
        randomized(3)


def test_straight_through_keeps_the_value_and_has_the_gradient_of_the_identity():
    passed = straight_through(rounded)
    np.testing.assert_allclose(passed(X), rounded(X), atol=1e-7)
    slopes = jnp.cos(jnp.arange(X.size)).reshape(X.shape)

    def slope(purifier):
        return jax.grad(lambda x: jnp.sum(slopes * purifier(x)))(X)

    np.testing.assert_allclose(slope(passed), slopes)
    np.testing.assert_array_equal(slope(rounded), 0)


def test_an_attack_gets_past_a_rounding_purifier_only_straight_through():
    x, y = images(low=0.3, high=0.7), labels()
    clean = linear(W)(rounded(x))
    attack = pgd(0.2, 5, loss="margin", random_start=False)
    blind = attack(KEYS[0], purify(linear(W), rounded), x, y)
    np.testing.assert_array_equal(blind.x, x)
    seeing = attack(KEYS[0], purify(linear(W), straight_through(rounded)), x, y)
    gain = seeing.value - (clean[jnp.arange(4), 1 - y] - clean[jnp.arange(4), y])
    assert np.all(gain > 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: normalize(flat_sums, 0.0, 0.0), r"std=.*must be larger than 0 in every channel"),
        (lambda: classifier(SmallNetwork(3), {}, 0.0, [1.0, -1.0, 1.0]), r"std=.*larger than 0"),
        (lambda: normalize(flat_sums, "imagenet", 1.0), r"mean='imagenet' must be a number or one number per channel"),
        (
            lambda: classifier(SmallNetwork(3), {"Dense_0": {}}),
            r"variables=Dense_0 must hold params: pass all that init",
        ),
        (lambda: classifier(SmallNetwork(3), [1]), "variables=list must hold params"),
        (lambda: classifier(flat_sums, {}), r"model=function must be a flax.linen module; of a function say .*Partial"),
        (
            lambda: classifier(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), {}),
            r"model=Linear must be a flax.linen.*from_nnx\(module\)",
        ),
    ],
)
def test_bad_victims_are_refused_with_value_and_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()
