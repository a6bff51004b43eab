"""Attacks as plain data."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np

from spa_jax import ATTACKS, attack_from_config
from spa_jax.evaluation import describe
from spa_jax.evaluation.description import flatten, summarise
from spa_jax.spaces import linf


def test_every_preset_is_described_in_strict_json():
    special = {"attribute": {"edit": "rotation"}, "noise": {"radius": 0.125, "noise": {"part": "painter"}}}
    for name in ATTACKS:
        options = special.get(name, {"radius": 0.125})
        repeats = 1 if name.endswith("uap") else 2
        attack = attack_from_config({"name": name, "restarts": repeats, **options}, {"painter": linf})
        described = describe(attack)
        assert json.loads(json.dumps(described, allow_nan=False)) == described
        if name != "attribute":
            assert 0.125 in flatten(described).values()


def test_parameters_stand_in_the_summary():
    attack = attack_from_config({"name": "pgd", "radius": 0.25, "num_steps": 20, "restarts": 3})
    text = summarise(describe(attack))
    assert text.startswith("Restarts(IterativeAttack(Lifted(LInf(radius=0.25)), loss=cross_entropy, ")
    assert "num_steps=20" in text
    assert "step_size=0.125" in text
    assert text.endswith("n=3, at_once=1)")


def test_values_that_json_lacks_become_text():
    partial = jax.tree_util.Partial(flatten, np.float32(0.5))
    value = {
        "a": math.inf,
        "b": np.zeros((9, 9), np.float32),
        "c": jnp.arange(2),
        "d": partial,
        "e": (1, None),
        "f": 1j,
    }
    described = describe(value)
    assert described["a"] == "inf"
    assert described["b"] == "float32[9, 9]"
    assert described["c"] == [0, 1]
    assert described["d"] == {"type": "flatten", "0": 0.5}
    assert described["e"] == [1, None]
    assert described["f"] == "1j"


def test_weights_are_counted_not_listed():
    weights = {"params": {"dense": {"kernel": np.zeros((3, 5), np.float32), "bias": jnp.zeros(5)}}}
    partial = jax.tree_util.Partial(flatten, variables=weights)
    assert describe(partial) == {"type": "flatten", "variables": "20 numbers"}
    assert describe({"step_size": {"noise": 0.5}, "few": {"a": np.zeros(2)}})["step_size"] == {"noise": 0.5}
    assert describe({"few": {"a": np.zeros(2)}}) == {"few": {"a": [0.0, 0.0]}}
