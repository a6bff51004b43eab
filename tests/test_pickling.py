"""Attacks and victims are plain data: they come back from a pickle equal, and do the same."""

import pickle

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax import (
    ATTACKS,
    attack_from_config,
    classifier,
    crafted_on,
    eot,
    fixed_draw,
    in_chunks,
    majority_vote,
    make_attack,
    normalize,
    pgd,
    purify,
    randomized,
    restarts,
    spa,
    straight_through,
    universal,
    worst_of,
)
from spa_jax.solvers import projected_gradient, rule, steepest, take_turns
from spa_jax.spaces import l2, linf
from tests.analytic_victims import images, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, X, Y = jax.random.key(0), images(), jnp.arange(4) % 3
OPTIONS = {
    "autoattack": {"radius": 1.0},
    "attribute": {"edit": "contrast", "num_steps": 2},
    "caa": {"radius": 0.1, "attributes": ["contrast"], "num_steps": 2, "order_steps": 1},
    "cw": {"num_steps": 3, "search_steps": 2},
    "deepfool_uap": {"radius": 0.1, "num_passes": 2},
    "fgsm": {"radius": 0.1},
    "spa": {"radius": 0.1, "attributes": ["contrast"], "num_steps": 2},
}
ALTERNATING = {"search": "alternating", "solver": "projected_gradient", "step_schedule": "linear"}


def brighter(images):
    return jnp.clip(images + 0.1, 0, 1)


def noisy(keys, images):
    return images + 0.1 * jax.vmap(lambda key, image: jax.random.normal(key, image.shape))(keys, images)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def mlp32():
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mlp(classes=4))


def made():
    presets = {
        name: attack_from_config({"name": name, **OPTIONS.get(name, {"radius": 0.1, "num_steps": 2})})
        for name in ATTACKS
        if name != "noise"
    }
    return presets | {
        "alternating": spa(0.1, ["contrast"], 3, start="draws", **ALTERNATING),
        "combined": restarts(in_chunks(worst_of(pgd(0.1, 2), pgd(0.2, 2, norm="l2")), 3), 2),
        "crafted_on": crafted_on(pgd(0.1, 2), normalize(mlp32(), 0.1, 2.0)),
        "universal": make_attack(l2(0.3), num_steps=2, lift=universal),
        "adam": make_attack(linf(0.1), solver=projected_gradient(1.0, rule(optax.adam, 0.05)), num_steps=2),
        "rounded": pgd(0.1, 2).rounded(),
    }


@pytest.mark.parametrize("name", made())
def test_an_attack_comes_back_and_finds_the_same(name):
    attack = made()[name]
    again = pickle.loads(pickle.dumps(attack))
    assert jax.tree.structure(again) == jax.tree.structure(attack)
    with jax.numpy_dtype_promotion("standard"):  # inside of optax a float is raised to an integer power
        chex.assert_trees_all_equal(again(KEY, mlp32(), X, Y), attack(KEY, mlp32(), X, Y))


def victims():
    network = Net()
    known = classifier(network, network.init(KEY, X), 0.5, 0.25)
    return {
        "partial": mlp32(),
        "classifier": known,
        "normalize": normalize(mlp32(), 0.1, 2.0),
        "purify": purify(known, straight_through(brighter)),
        "randomized": eot(purify(known, randomized(noisy)), 2),
        "voted": majority_vote(purify(known, randomized(noisy)), 3, at_once=2),
        "fixed": fixed_draw(purify(known, randomized(noisy)), KEY),
    }


@pytest.mark.parametrize("name", victims())
def test_a_victim_comes_back_and_answers_the_same(name):
    victim = victims()[name]
    again = pickle.loads(pickle.dumps(victim))
    keys = jax.random.split(KEY, len(X))
    arguments = (keys, X) if name in ("randomized", "voted") else (X,)
    np.testing.assert_array_equal(again(*arguments), victim(*arguments))


def test_rules_that_were_made_alike_are_equal():
    assert rule(optax.adam, 0.1) == rule(optax.adam, 0.1) != rule(optax.adam, 0.2)
    assert take_turns(("a",), ("b",)) == take_turns(("a",), ("b",)) != take_turns(("b",), ("a",))
    assert len({steepest, rule(optax.sgd, 1.0), rule(optax.sgd, 2.0)}) == 2
    assert isinstance(steepest, optax.GradientTransformation) and steepest != (steepest.init, steepest.update)
