"""Adversarial weight perturbation: how far it goes, where the gradient is taken, and what is updated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.data import load_dataset
from spa_jax.errors import ConfigError
from spa_jax.runs.experiment import check_config, make_learner
from spa_jax.training.learner import Learner
from spa_jax.training.recipes import adversarial, free
from spa_jax.training.recipes.base import Start
from spa_jax.training.recipes.universal import carry_free
from spa_jax.training.weight_perturbation import WeightPerturbation
from tests.training.conftest import assert_trees_close, run_steps, tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (6, 6, 3)
FGSM = {"name": "fgsm", "radius": 0.1}
PGD = {"name": "pgd", "radius": 0.1, "num_steps": 2, "keep": "last"}
RATE = 0.1


def _learner(model, gamma=0.05, warmup=0, **changes):
    return Learner(model, optax.sgd(RATE), weight_perturbation=WeightPerturbation(gamma, warmup), **changes)


def _train(learner, batch, recipe, **layout):
    state, seen = run_steps(learner, recipe, learner.init(jax.random.key(0), SHAPE), batch, **layout)
    return state, seen[-1]


def test_each_layer_moves_by_its_share_along_the_gradient_and_biases_stay():
    rng = np.random.default_rng(0)
    params, gradient = (
        {"kernel": rng.normal(size=(3, 4)), "conv": rng.normal(size=(2, 2, 1, 3)), "bias": rng.normal(size=4)}
        for _ in range(2)
    )
    gradient["flat"], params["flat"] = np.zeros((2, 2)), np.ones((2, 2))
    as_jax = functools.partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, jnp.float32))
    moved = WeightPerturbation(0.01, warmup=3).moved(as_jax(params), as_jax(gradient), jnp.asarray(3))
    for name in ("kernel", "conv"):
        moves = np.asarray(moved[name]) - params[name]
        assert np.linalg.norm(moves) == pytest.approx(0.01 * np.linalg.norm(params[name]), rel=1e-4)
        np.testing.assert_allclose(
            moves / np.linalg.norm(moves), gradient[name] / np.linalg.norm(gradient[name]), atol=1e-4
        )
    for name in ("bias", "flat"):
        np.testing.assert_allclose(moved[name], params[name], rtol=1e-6)
    early = WeightPerturbation(0.01, warmup=3).moved(as_jax(params), as_jax(gradient), jnp.asarray(2))
    assert_trees_close(early, params, rtol=1e-6)


def _by_hand(model, state, batch, gamma):
    """The weights after SGD on the cross entropy of FGSM images, with the gradient at the moved weights."""
    images, labels = jnp.asarray(batch["image"], jnp.float32) / 255, jnp.asarray(batch["label"])
    weights = (batch["mask"] / batch["mask"].sum()).astype(np.float32)

    def loss(params, images, weights=weights):
        log_p = jax.nn.log_softmax(model.apply({"params": params}, images))
        return -jnp.sum(weights * log_p[np.arange(len(labels)), labels])

    attacked = jnp.clip(images + 0.1 * jnp.sign(jax.grad(loss, 1)(state.params, images, 1.0)), 0, 1)
    ascent = jax.grad(loss)(state.params, attacked)

    def move(weight, slope):
        length = np.linalg.norm(slope)
        return weight + gamma * np.linalg.norm(weight) * slope / length if weight.ndim > 1 else weight

    there = jax.tree.map(move, state.params, ascent)
    gradient = jax.grad(loss)(there, attacked)
    return jax.tree.map(lambda weight, slope: weight - RATE * slope, state.params, gradient), loss(there, attacked)


def test_the_update_is_that_of_the_moved_weights_on_the_original_ones(plain_net, batch):
    learner = _learner(plain_net)
    start = learner.init(jax.random.key(0), SHAPE)
    expected, value = jax.device_get(_by_hand(plain_net, start, batch, 0.05))
    state, metrics = _train(learner, batch, functools.partial(adversarial, attack=FGSM), steps=1)
    assert_trees_close(state.params, expected)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)
    plain, _ = _train(Learner(plain_net, optax.sgd(RATE)), batch, functools.partial(adversarial, attack=FGSM), steps=1)
    assert (
        max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (state.params, plain.params)), strict=True))
        > 1e-4
    )


def test_the_loss_at_the_moved_weights_is_higher(tiny_net, batch):
    recipe = functools.partial(adversarial, attack=PGD)
    losses = [_train(_learner(tiny_net, gamma), batch, recipe, steps=1)[1]["loss"] for gamma in (0.0, 0.01, 0.05)]
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize(
    "outer", ["cross_entropy", *(pytest.param(name, marks=pytest.mark.slow) for name in ("trades", "mart"))]
)
def test_one_device_and_eight_and_either_engine_reach_the_same_state(outer, tiny_net, batch):
    learner = _learner(tiny_net, warmup=1, ema_decay=0.9)
    attack = PGD | {"name": "spat", "guard": "anneal"}
    recipe = functools.partial(adversarial, attack=attack, outer=outer)
    reference, metrics = _train(learner, batch, recipe, steps=3)
    assert all(np.isfinite(value) for value in metrics.values())
    for engine in ("jit", "pmap"):
        state, other = _train(learner, batch, recipe, engine=engine, devices=8, steps=3)
        assert_trees_close(state, reference)
        assert_trees_close(other, metrics)


def test_free_training_takes_it_too(plain_net, batch):
    attack = {"name": "pgd", "radius": 0.1, "num_steps": 1}
    results = []
    for gamma in (0.0, 0.1):
        learner = _learner(plain_net, gamma)
        carried = carry_free(Start(learner, jax.random.key(0), 16, SHAPE), attack)
        state = learner.init(jax.random.key(0), SHAPE).replace(carried=carried)
        results.append(run_steps(learner, functools.partial(free, attack=attack), state, batch, steps=1)[1][0]["loss"])
    assert results[1] > results[0]


def test_a_config_asks_for_it_by_share_of_the_steps():
    config = tiny_config()
    config["training"] = config["training"] | {"weight_perturbation": {"warmup": 0.25}}
    learner = make_learner(check_config(config), load_dataset("digits"), 40)
    assert learner.weight_perturbation == WeightPerturbation(5e-3, 10)
    config["training"]["weight_perturbation"] = {"gama": 1.0}
    with pytest.raises(ConfigError, match=r"config.training.weight_perturbation.gama is unknown"):
        check_config(config)
    config["training"]["weight_perturbation"] = {"gamma": -1.0}
    with pytest.raises(ValueError, match=r"gamma=-1.0 must be 0 or larger"):
        check_config(config)


@pytest.mark.parametrize("negative", [{"gamma": -1.0}, {"warmup": -1}])
def test_negative_numbers_are_refused(negative):
    with pytest.raises(ValueError, match="must be 0 or larger"):
        WeightPerturbation(**negative)
