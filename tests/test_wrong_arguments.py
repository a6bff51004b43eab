"""Natural first tries: wrong types of arguments get one line of our own, where no annotation is checked at run time."""

import json
import re
import subprocess
import sys

import pytest

SETTING = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
import spa_jax
from spa_jax import *
from spa_jax.data import Dataset, Split
from spa_jax.evaluation import evaluate

KEY, X, Y = jax.random.key(0), jnp.full((2, 6, 6, 1), 0.5), jnp.zeros(2, jnp.int32)
victim = lambda x: x.reshape(len(x), -1)[:, :10]
split = Split(np.zeros((2, 6, 6, 1), np.uint8), np.zeros(2, np.int32))
rate = {"key": KEY, "batch_size": 2}

def outcome(source):
    try:
        return str(eval(source))
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps({source: outcome(source) for source in json.loads(sys.stdin.read())}))
"""

REFUSED = {
    "pgd(0.1, 2.0)": "num_steps=2.0 must be an integer of at least 1",
    "pgd(0.1, True)": "num_steps=True must be an integer of at least 1",
    "restarts(pgd, 2)": r"attack=<function pgd at .*> must be an attack, .*: call it first, as pgd\(...\)",
    "restarts([pgd(0.1)], 2)": r"attack=\[.*must be an attack, such as pgd\(8/255\): say worst_of\(\*attacks\)",
    "worst_of([pgd(0.1), fgsm(0.1)])": r"attack=\[.*must be an attack, .*: say worst_of\(\*attacks\)",
    "worst_of(pgd(0.1), 'pgd')": r"attack='pgd' must be an attack, such as pgd\(8/255\)",
    "in_chunks(pgd, 2)": "attack=<function pgd at .*> must be an attack",
    "crafted_on(pgd, victim)": "attack=<function pgd at .*> must be an attack",
    "fixed_draw(randomized(lambda keys, x: x), jax.random.split(KEY))": r"key.shape=\(2,\)",
    "crafted_on(pgd(0.1), 3)": "surrogate=3 must be a function from images to logits",
    "spa(0.1, solver=solvers.apgd)": r"solver=<function apgd at .*> must be a solver: call it, as apgd\(\)",
    "stage(solvers.projected_gradient, 2)": r"solver=<function .*: call it, as projected_gradient\(\)",
    "make_attack(spaces.linf(0.1), solver='apgd')": r"solver='apgd' must be a solver: such as spa_jax.solvers.apgd\(\)",
    "make_attack(spaces.linf(0.1), solver=[solvers.apgd()])": r"solver holds Apgd.* must be stages: stage\(solver",
    "make_attack(spaces.linf, 'margin')": "space=<function linf at .*> must be a space",
    "pgd(0.1)(0, victim, X, Y)": r"key=0 must be a key: make one with jax.random.key\(seed\)",
    "pgd(0.1)(KEY, victim, X, ['cat', 'dog'])": "labels.dtype=<U3 must be an integer dtype of class indices",
    "pgd(0.1)(KEY, None, X, Y)": "victim=None must be a function from images to logits",
    "evaluate(victim, (X, Y), {'pgd': pgd(0.1)}, **rate)": r"split=tuple must be .*Split\(images, labels\)",
    "evaluate(victim, split, [pgd(0.1)], **rate)": r"attacks=\[.* must be a mapping of names to attacks",
    "evaluate(victim, split, pgd(0.1), **rate)": "attacks=IterativeAttack.* must be a mapping of names to attacks",
    "evaluate(victim, split, {'pgd': pgd}, **rate)": r"attacks\['pgd'\]=<function pgd .*: call it first, as pgd\(...\)",
    "evaluate(victim, split, {}, key=0, batch_size=2)": "key=0 must be a key",
    "attack_from_config(None)": "attack=None must be a mapping with a `name`",
    "attack_from_config('pgd')": "attack='pgd' must be a mapping with a `name`",
}
ACCEPTED = {
    "pgd(0.1, np.int64(3)).num_steps": "3",
    "restarts(pgd(0.1, np.int32(3)), np.uint8(2)).num_steps": "6",
    "cw(1.0, np.int64(3), np.int64(2)).num_steps": "6",
    "spa(0.1, start_points=np.int64(5), num_steps=np.int64(3)).num_steps": "8",
    "type(pgd(0.1, np.int64(3)).stages[0].num_steps).__name__": "int",
    "evaluate(victim, split, {}, key=jax.random.PRNGKey(0), batch_size=2).clean.tolist()": "[True, True]",
}


@pytest.fixture(scope="module")
def outcomes():
    sources = json.dumps([*REFUSED, *ACCEPTED])
    done = subprocess.run([sys.executable, "-c", SETTING], input=sources, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("source", REFUSED)
def test_a_wrong_argument_is_named_in_one_line(source, outcomes):
    kind, _, message = outcomes[source].partition(": ")
    assert kind in ("ValueError", "ConfigError") and "\n" not in message
    assert re.search(REFUSED[source], message), message


@pytest.mark.parametrize("source", ACCEPTED)
def test_integers_of_numpy_and_keys_of_the_old_style_are_welcome(source, outcomes):
    assert outcomes[source] == ACCEPTED[source]
