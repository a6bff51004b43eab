"""Adversarial training with edited images and a generator: the same on any layout, its order, variants and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.models import NoiseGenerator
from spa_jax.training.learner import Learner
from spa_jax.training.networks import Network
from spa_jax.training.recipes import adversarial
from spa_jax.training.recipes.noise_generator import as_noise
from tests.training.conftest import assert_trees_close, run_steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (6, 6, 3)
ROTATION = {"rotation": {"low": -20.0, "high": 20.0}}
NOISE = {"part": "generator", "num_steps": 2}
PLAIN = {"solver": "projected_gradient", "start": "none", "num_steps": 1, "keep": "last"}
DIRECT = {"name": "spa", "radius": 0.1, "attributes": ROTATION, **PLAIN}
SPA = DIRECT | {"noise": NOISE}
L2L = {"name": "noise", "radius": 0.1, "noise": NOISE, "num_steps": 1, "keep": "last"}
GENERATOR = {"radius": 0.1, "num_steps": 2}


def _learner(model, **changes):
    generator = NoiseGenerator(width=2, latent_dim=2)
    return Learner(
        model,
        optax.sgd(0.1, momentum=0.9),
        networks={"generator": Network(generator, optax.sgd(0.1))},
        builders={"generator": as_noise(generator, 0.0, 1.0)},
        **changes,
    )


def _train(learner, recipe, batch, engine="jit", devices=1, steps=2):
    state, seen = run_steps(learner, recipe, learner.init(jax.random.key(0), SHAPE), batch, engine, devices, steps)
    return state, seen[-1]


def test_one_device_and_eight_and_either_engine_reach_the_same_state(tiny_net, batch):
    learner = _learner(tiny_net)
    recipe = functools.partial(adversarial, attack=SPA, outer="spa", generator=GENERATOR)
    reference, metrics = _train(learner, recipe, batch)
    assert all(np.isfinite(value) for value in metrics.values())
    for engine in ("jit", "pmap"):
        state, other = _train(learner, recipe, batch, engine, 8)
        assert_trees_close(state, reference)
        assert_trees_close(other, metrics)


@pytest.mark.slow
def test_generalised_adversarial_training_is_the_composite_attack_in_a_random_order(plain_net, batch):
    """GAT: every image has an order of its own, and one device and eight reach the same network."""
    ranges = {"hue": (-1.0, 1.0), "contrast": (0.7, 1.3)}
    attack = {"name": "caa", "radius": 0.1, "attributes": ranges, "order": "random", "num_steps": 2, "keep": "last"}
    learner = Learner(plain_net, optax.sgd(0.1))
    recipe = functools.partial(adversarial, attack=attack)
    state, metrics = _train(learner, recipe, batch, steps=3)
    other, _ = _train(learner, recipe, batch, "pmap", 8, steps=3)
    assert_trees_close(state, other)
    _, at_first = _train(learner, recipe, batch, steps=1)
    assert metrics["loss"] < at_first["loss"]


def test_both_networks_learn(tiny_net, batch):
    learner = _learner(tiny_net)
    before = jax.device_get(learner.init(jax.random.key(0), SHAPE))
    recipe = functools.partial(adversarial, attack=SPA, outer="spa", generator=GENERATOR)
    after, metrics = _train(learner, recipe, batch)
    for old, new in ((before.params, after.params), (before.networks["generator"], after.networks["generator"])):
        assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
    assert {"accuracy", "edited_accuracy", "robust_accuracy", "loss", "generator_loss"} <= set(metrics)


def test_during_the_warm_up_the_joint_images_do_not_count(plain_net, batch):
    def loss(warmup=0, **weights):
        options = {
            "outer": {"name": "spa", **weights},
            "generator": GENERATOR | {"radius": 0.3},
            "generator_warmup": warmup,
        }
        recipe = functools.partial(adversarial, attack=SPA | {"radius": 0.3}, **options)
        return _train(_learner(plain_net, std=np.float32(0.1)), recipe, batch, steps=1)[1]["loss"]

    warming = loss(warmup=1)
    np.testing.assert_allclose(warming, loss(attacked_weight=0.0), rtol=1e-5)
    assert abs(loss() - warming) > 1e-3


def test_generator_only_training_has_no_attribute_images(tiny_net, batch):
    outer = {"name": "cross_entropy", "clean_weight": 1.0}
    recipe = functools.partial(adversarial, attack=L2L, outer=outer, generator=GENERATOR)
    _, metrics = _train(_learner(tiny_net), recipe, batch)
    assert "edited_accuracy" not in metrics and np.isfinite(metrics["loss"])


def test_a_generator_in_chunks_sees_edited_images_as_without(tiny_net, batch):
    recipe = functools.partial(adversarial, outer="spa", generator=GENERATOR)
    results = [
        _train(_learner(tiny_net), functools.partial(recipe, attack=SPA | size), batch, steps=1)
        for size in ({}, {"chunk_size": 5})
    ]
    for a, b in zip(*results, strict=True):
        assert_trees_close(a, b)


def test_trades_adds_the_divergence_of_both_kinds_of_images(plain_net, batch):
    def loss(**options):
        outer = {"name": "trades", "attack_maximises": "own", "edited_weight": 1.0, **options}
        recipe = functools.partial(adversarial, attack=DIRECT, outer=outer)
        return _train(_learner(plain_net), recipe, batch, steps=1)[1]["loss"]

    clean = loss(beta=0.0)
    edited, attacked = (loss(beta=1.0, **{f"{name}_weight": 0.0}) for name in ("attacked", "edited"))
    assert min(edited, attacked) > clean
    mixed = loss(beta=2.0, edited_weight=1.0, attacked_weight=3.0)
    np.testing.assert_allclose(mixed - clean, 2 * (0.25 * (edited - clean) + 0.75 * (attacked - clean)), rtol=1e-3)


def _trades_by_hand(model, state, batch, beta, apart):
    """Weights and running statistics after a step of SGD on CE(x) + beta KL(p(x) || p(x')), x' of one FGSM step."""
    images, labels = jnp.asarray(batch["image"], jnp.float32) / 255, batch["label"]
    weights = batch["mask"] / batch["mask"].sum()

    def cross_entropy(logits):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

    def clean_loss(images):
        return cross_entropy(model.apply({"params": state.params, "batch_stats": state.batch_stats}, images)).sum()

    attacked = jnp.clip(images + 0.1 * jnp.sign(jax.grad(clean_loss)(images)), 0, 1)

    def respond(params, statistics, images):
        variables = {"params": params, "batch_stats": statistics}
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, updates["batch_stats"]

    def loss(params):
        if apart:
            clean, statistics = respond(params, state.batch_stats, images)
            moved, statistics = respond(params, statistics, attacked)
        else:
            both, statistics = respond(params, state.batch_stats, jnp.concatenate([images, attacked]))
            clean, moved = both[: len(images)], both[len(images) :]
        log_p = jax.nn.log_softmax(clean)
        divergence = jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(moved)), axis=1)
        return jnp.sum(weights.astype(np.float32) * (cross_entropy(clean) + beta * divergence)), statistics

    gradient, statistics = jax.grad(loss, has_aux=True)(state.params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradient), statistics


def test_trades_passes_clean_and_attacked_images_together_or_apart(tiny_net, batch):
    learner, found = _learner(tiny_net), {}
    start = learner.init(jax.random.key(0), SHAPE)
    for batch_norm in ("together", "apart"):
        outer = {"name": "trades", "beta": 2.0, "attack_maximises": "own", "batch_norm": batch_norm}
        recipe = functools.partial(adversarial, attack={"name": "fgsm", "radius": 0.1}, outer=outer)
        state, _ = _train(learner, recipe, batch, steps=1)
        expected = _trades_by_hand(tiny_net, start, batch, 2.0, batch_norm == "apart")
        assert_trees_close((state.params, state.batch_stats), jax.device_get(expected))
        found[batch_norm] = state.batch_stats
    differing = zip(*(jax.tree.leaves(statistics) for statistics in found.values()), strict=True)
    assert any(np.abs(together - apart).max() > 1e-3 for together, apart in differing)


def test_statistics_kept_apart_go_with_passes_apart(tiny_net, batch):
    """Each kind has statistics of its own, so a pass of its own changes nothing for one attacked image an example."""
    outer = {"name": "trades", "attack_maximises": "own"}
    states = []
    for batch_norm in ("together", "apart"):
        recipe = functools.partial(adversarial, attack=DIRECT, outer=outer | {"batch_norm": batch_norm})
        states.append(_train(_learner(tiny_net, separate_statistics=True), recipe, batch, steps=1)[0])
    assert_trees_close(*states)


def test_separate_statistics_are_those_of_their_own_images(tiny_net, batch):
    learner = _learner(tiny_net, separate_statistics=True)
    recipe = functools.partial(adversarial, attack=DIRECT, outer="spa")
    state, _ = _train(learner, recipe, batch, steps=1)
    start = learner.init(jax.random.key(0), SHAPE)
    images = jnp.asarray(batch["image"], jnp.float32) / 255
    _, expected = learner.logits(start.params, start, images)
    assert_trees_close(state.clean_batch_stats, jax.device_get(expected))
    differing = zip(jax.tree.leaves(state.clean_batch_stats), jax.tree.leaves(state.batch_stats), strict=True)
    assert any(np.any(clean != attacked) for clean, attacked in differing)
    assert state.variables()["batch_stats"] is state.batch_stats


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": L2L}, "has no edited images"),
        ({"generator": GENERATOR | {"radius": -1.0}}, "radius=-1.0"),
        ({"generator_warmup": -1}, "generator_warmup=-1"),
        ({"outer": {"name": "trades", "beta": -1.0}}, "beta=-1.0"),
    ],
)
def test_broken_rules_are_named(changes, message, tiny_net):
    with pytest.raises(ValueError, match=message):
        adversarial(_learner(tiny_net), **({"attack": SPA, "outer": "spa", "generator": GENERATOR} | changes))


def test_a_missing_generator_is_named(tiny_net):
    with pytest.raises(ValueError, match="networks=\\[\\] must hold the 'generator'"):
        adversarial(Learner(tiny_net, optax.sgd(0.1)), SPA, "spa", GENERATOR)
