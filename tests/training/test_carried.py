"""What a recipe carries: the same on any layout, and saved and resumed bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax import losses, make_attack, spaces
from spa_jax.runs import loop
from spa_jax.runs.checkpoints import load_variables
from spa_jax.runs.experiment import check_config
from spa_jax.solvers import projected_gradient
from spa_jax.training.learner import Learner
from spa_jax.training.recipes import RECIPES, STEPS, Recipe, Start
from spa_jax.training.state import Carried
from tests.training.conftest import assert_trees_close, run_steps, stop_requested_at, tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _attack(learner):
    lift = functools.partial(spaces.universal, axis_name=learner.axis_name)
    solver = projected_gradient(0.25)
    return make_attack(spaces.linf(0.1), losses.cross_entropy, solver, 5, lift=lift, keep="last")


def universal_training(learner):
    """Each step moves one shared perturbation, and trains on it and on noise that each place of the batch keeps."""
    attack = _attack(learner)

    def train_step(state, batch, key):
        examples = learner.examples(state, batch, key)
        arguments = (learner.victim(state), examples.image, examples.label)
        shared = attack.step(state.carried.shared, *arguments, weight=examples.weight)
        own = 0.9 * state.carried.per_example + 0.1 * examples.image
        moved = jnp.clip(attack.apply(shared.variables, *arguments) + 0.05 * own, 0, 1)

        def loss(params):
            logits, statistics = learner.logits(params, state, moved)
            return learner.cross_entropy(logits, examples), (statistics, {})

        state, metrics = learner.descend(state, loss)
        return state.replace(carried=Carried(shared, own)), metrics

    return train_step


def carried(start):
    images, labels = jnp.zeros((2, *start.image_shape)), jnp.zeros(2, jnp.int32)
    shared = _attack(start.learner).init(start.key, lambda images: images.reshape(2, -1)[:, :10], images, labels)
    return Carried(shared, jnp.zeros((start.batch_size, *start.image_shape)))


def test_one_device_and_eight_and_either_engine_reach_the_same_state(tiny_net, batch):
    learner = Learner(tiny_net, optax.sgd(0.1))
    slot = carried(Start(learner, jax.random.key(3), 16, (6, 6, 3)))
    start = learner.init(jax.random.key(0), (6, 6, 3)).replace(carried=slot)

    def train(engine, devices):
        fresh = jax.tree.map(lambda leaf: leaf.copy(), start)
        state, _ = run_steps(learner, universal_training, fresh, batch, engine, devices, 3)
        slot = state.carried
        return state.params, slot.shared.variables, int(slot.shared.step), slot.per_example

    reference = train("jit", 1)
    assert np.abs(reference[1]).max() > 0.05 and reference[2] == 3 and reference[3].any()
    for engine in ("jit", "pmap"):
        assert_trees_close(train(engine, 8), reference)


def test_the_slot_is_saved_and_resumed_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "universal_training", Recipe(universal_training, carried))
    monkeypatch.setitem(STEPS, "universal_training", universal_training)
    config = check_config(tiny_config(recipe={"name": "universal_training"}))

    def train(workdir):
        loop.train_models(config, workdir)
        return load_variables(workdir / "tiny", step="latest")

    whole = train(tmp_path / "whole")
    assert np.any(np.asarray(whole.variables["carried"]["shared"]["variables"]))
    with stop_requested_at(7), pytest.raises(loop.Interrupted, match="step=7 of 15, saved"):
        train(tmp_path / "stopped")
    resumed = train(tmp_path / "stopped")
    for a, b in zip(jax.tree.leaves(resumed.variables), jax.tree.leaves(whole.variables), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
