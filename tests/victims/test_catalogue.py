"""Victims from plain data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import eot, fixed_draw, majority_vote, purify, randomized, straight_through
from spa_jax.errors import ConfigError
from spa_jax.victims import VICTIMS, bypassed, rt2, victim_from_config, victim_in_words
from spa_jax.victims.catalogue import check_victim
from tests.analytic_victims import images, linear, weights

X = images(batch=3, size=(8, 8, 1))
NETWORK = linear(weights(size=(8, 8, 1)))
KEYS = jax.random.split(jax.random.key(0), len(X))


@randomized
def blank(keys, x):
    """A purifier that forgets its images."""
    return jnp.full_like(x, 0.25)


def part(transform=None):
    """A part that is a function of a transform, by default a blank image."""
    return blank if transform is None else transform


def made(spec):
    return victim_from_config(spec, lambda *name: {("model", "net"): NETWORK}[name], {"purifier": part, "net": NETWORK})


MODEL, PURIFIED = {"model": "net"}, {"name": "purify", "victim": {"model": "net"}, "purifier": {"part": "purifier"}}
SHAKEN = {"name": "purify", "victim": MODEL, "purifier": {"name": "rt2", "sigma": 0.5}}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (MODEL, NETWORK),
        ({"part": "net"}, NETWORK),
        (PURIFIED, purify(NETWORK, blank)),
        (PURIFIED | {"purifier": {"part": "purifier", "transform": "rt2"}}, purify(NETWORK, rt2())),
        (SHAKEN, purify(NETWORK, rt2(0.5))),
        (PURIFIED | {"straight_through": True}, purify(NETWORK, straight_through(blank))),
        ({"name": "eot", "victim": SHAKEN, "n": 3, "at_once": 2}, eot(purify(NETWORK, rt2(0.5)), 3, at_once=2)),
        ({"name": "majority_vote", "victim": SHAKEN, "n": 3}, majority_vote(purify(NETWORK, rt2(0.5)), 3)),
        ({"name": "fixed_draw", "victim": SHAKEN, "seed": 4}, fixed_draw(purify(NETWORK, rt2(0.5)), jax.random.key(4))),
        (
            {"name": "bypassed", "victim": {"name": "eot", "victim": SHAKEN, "n": 2}},
            eot(purify(NETWORK, straight_through(rt2(0.5))), 2),
        ),
    ],
)
def test_a_victim_is_what_its_config_says(spec, expected):
    found = made(spec)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    arguments = (KEYS, X) if getattr(expected, "is_randomized", False) else (X,)
    np.testing.assert_array_equal(found(*arguments), expected(*arguments))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"victim": "other"}, "the victim other"),
        (PURIFIED, "the model net behind the purifier purifier (transform rt2)"),
        (
            PURIFIED | {"purifier": {"part": "purifier", "transform": {"name": "rt3", "sigma": 0.1}}},
            "the model net behind the purifier purifier (transform rt3)",
        ),
        (
            PURIFIED | {"purifier": {"part": "purifier", "transform": None}, "straight_through": True},
            "the model net behind the purifier purifier (no transform), straight through",
        ),
        (PURIFIED | {"purifier": {"part": "foreign"}}, "the model net behind the purifier foreign"),
        (
            {"name": "eot", "victim": SHAKEN, "n": 3, "at_once": 2},
            "the mean over 3 draws of the model net behind the transform rt2",
        ),
        ({"name": "majority_vote", "victim": {"part": "net"}, "n": 5}, "the majority vote of 5 draws of the part net"),
        ({"name": "fixed_draw", "victim": MODEL}, "one fixed draw (seed 0) of the model net"),
        ({"name": "bypassed", "victim": "attacked"}, "the victim that is attacked, every purifier straight through"),
    ],
)
def test_a_victim_is_told_in_words(spec, words):
    check_victim(spec)
    assert victim_in_words(spec, {"purifier": "rt2"}) == words


def test_every_kind_of_victim_has_words():
    specs = {name: {"name": name, "victim": MODEL, "n": 2, "purifier": "rt1"} for name in VICTIMS}
    assert all("the model net" in victim_in_words(spec, {}) for spec in specs.values())


def test_the_attacked_and_other_victims_stand_for_themselves():
    spec = {"name": "eot", "victim": "attacked", "n": 2}
    attacked = victim_from_config(spec, lambda kind, name: {"attacked": blank}[kind], {})
    assert attacked.victim is blank
    other = victim_from_config({"victim": "other"}, lambda *name: {("victim", "other"): blank}[name], {})
    assert other is blank


def test_a_bypassed_victim_has_the_same_answers_and_the_gradient_of_the_identity():
    victim = purify(NETWORK, lambda x: jnp.round(4 * x) / 4)
    np.testing.assert_allclose(bypassed(victim)(X), victim(X), atol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(bypassed(victim)(x)[:, 1]))(X)
    np.testing.assert_allclose(gradient, jax.grad(lambda x: jnp.sum(NETWORK(x)[:, 1]))(X), rtol=1e-5)
    assert bypassed(NETWORK) is NETWORK
    twice = bypassed(bypassed(victim))
    assert jax.tree.structure(twice) == jax.tree.structure(bypassed(victim))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("net", r"victim='net' must be a mapping with a `name`, .*'attacked'"),
        ({"modle": "net"}, r"must name a model, a victim or a part"),
        ({"model": "net", "part": "net"}, r"must name a model, a victim or a part"),
        ({"name": "purfy", "victim": MODEL}, r"victim.name='purfy' is not a known victim.*purify"),
        ({"name": "eot", "victim": MODEL}, r"victim.n is missing|n.*missing"),
        ({"name": "eot", "victim": MODEL, "n": 2, "draws": 3}, "victim.draws is unknown"),
        ({"name": "eot", "victim": {"name": "eot", "victim": MODEL, "m": 2}, "n": 2}, "victim.victim.m is unknown"),
        (PURIFIED | {"purifier": {"part": "purifier", "noise": 1}}, "victim.purifier.noise is unknown"),
        (PURIFIED | {"purifier": {"name": "rt9"}}, "victim.purifier.name='rt9' is not a known transform"),
        (PURIFIED | {"purifier": 3}, r"victim.purifier=3 must be \{'part': NAME\}"),
    ],
)
def test_what_is_no_victim_is_named(spec, message):
    with pytest.raises(ConfigError, match=message):
        made(spec)
