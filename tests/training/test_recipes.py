"""Recipes: what a step returns, the loss it minimises, and the same result however the batch is laid out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.data import Augmentation
from spa_jax.parallel import data_mesh
from spa_jax.training.learner import Learner, interleave, separate
from spa_jax.training.placement import make_engine
from spa_jax.training.recipes import adversarial, standard
from tests.training.conftest import assert_trees_close, run_steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

PGD = {"name": "pgd", "radius": 0.1, "num_steps": 2, "keep": "last"}
PLAIN = {"solver": "projected_gradient", "start": "none", "keep": "last"}
SPA = {"name": "spa", "radius": 0.1, "num_steps": 2, **PLAIN}
RECIPES = {
    "standard": standard,
    "adversarial": functools.partial(adversarial, attack=PGD),
    "mixed": functools.partial(adversarial, attack=PGD, outer={"name": "cross_entropy", "clean_weight": 1.0}),
    "trades": functools.partial(adversarial, attack=PGD, outer="trades"),
    "trades in chunks": functools.partial(adversarial, attack=PGD | {"chunk_size": 8}, outer="trades"),
    "spa": functools.partial(adversarial, attack=SPA, outer="spa"),
    "spa in chunks": functools.partial(adversarial, attack=SPA | {"chunk_size": 8}, outer="spa"),
}


def _learner(model, **changes):
    return Learner(model, optax.sgd(0.1, momentum=0.9), mean=np.float32(0.5), std=np.float32(0.25), **changes)


def _train(learner, recipe, batch, engine, devices, steps=3):
    state, seen = run_steps(learner, recipe, learner.init(jax.random.key(0), (6, 6, 3)), batch, engine, devices, steps)
    return state, seen[-1]


_assert_close = functools.partial(assert_trees_close, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_one_device_and_eight_and_either_engine_reach_the_same_state(name, tiny_net, batch):
    learner = _learner(tiny_net, ema_decay=0.9, augmentation=Augmentation(crop_padding=1))
    reference, metrics = _train(learner, RECIPES[name], batch, "jit", 1)
    assert int(reference.step) == 3
    assert all(np.isfinite(value) for value in metrics.values())
    for engine in ("jit", "pmap"):
        state, other = _train(learner, RECIPES[name], batch, engine, 8)
        _assert_close(state, reference)
        _assert_close(other, metrics)


def test_masked_examples_do_not_count(tiny_net, batch):
    learner = _learner(tiny_net)
    _, metrics = _train(learner, standard, batch, "jit", 1, steps=1)
    relabelled = batch | {"label": np.where(batch["mask"], batch["label"], (batch["label"] + 1) % 10)}
    _, other = _train(learner, standard, relabelled, "jit", 1, steps=1)
    _assert_close(metrics, other)


def test_standard_loss_is_the_mean_cross_entropy_in_training_mode(tiny_net, batch):
    learner = _learner(tiny_net)
    state = learner.init(jax.random.key(0), (6, 6, 3))
    _, metrics = jax.jit(standard(learner))(state, batch, jax.random.key(1))
    images = (batch["image"].astype(np.float32) / 255 - 0.5) / 0.25
    logits, _ = tiny_net.apply(state.training_variables(), images, train=True, mutable=["batch_stats"])
    values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(batch["label"]))
    np.testing.assert_allclose(metrics["loss"], np.asarray(values)[batch["mask"]].mean(), rtol=1e-5)


def test_adversarial_loss_is_above_the_clean_loss(tiny_net, batch):
    learner = _learner(tiny_net)
    _, clean = _train(learner, standard, batch, "jit", 1, steps=1)
    _, robust = _train(learner, RECIPES["adversarial"], batch, "jit", 1, steps=1)
    assert robust["loss"] > clean["loss"] + 0.05


def test_trades_without_its_divergence_is_the_clean_loss(tiny_net, batch):
    learner = _learner(tiny_net)
    state = learner.init(jax.random.key(0), (6, 6, 3))

    def loss(recipe):
        return jax.jit(recipe(learner))(state, batch, jax.random.key(1))[1]["loss"]

    without = functools.partial(adversarial, attack=PGD | {"radius": 0.0}, outer="trades")
    np.testing.assert_allclose(loss(without), loss(standard), rtol=1e-5)


def test_trades_crafts_images_that_diverge_more_than_those_of_cross_entropy(tiny_net, batch):
    learner = _learner(tiny_net)
    state = learner.init(jax.random.key(0), (6, 6, 3))

    def loss(maximised):
        outer = {"name": "trades", "attack_maximises": maximised}
        step = jax.jit(adversarial(learner, PGD | {"num_steps": 10}, outer))
        return step(state, batch, jax.random.key(1))[1]["loss"]

    assert loss("kl_divergence") > loss("own")


@pytest.mark.parametrize("outer", ["trades", "spa"])
def test_chunks_of_the_attack_change_nothing(outer, tiny_net, batch):
    """One step: reference logits and edited images are dealt out with the images."""
    attack = PGD if outer == "trades" else SPA
    learner = _learner(tiny_net)
    whole, chunked = (
        _train(learner, functools.partial(adversarial, attack=attack | size, outer=outer), batch, "jit", 1, steps=1)
        for size in ({}, {"chunk_size": 5})
    )
    _assert_close(whole, chunked)


def test_spa_weights_pick_the_samples(plain_net, batch):
    learner = _learner(plain_net)
    state = learner.init(jax.random.key(0), (6, 6, 3))

    def loss(**weights):
        step = jax.jit(adversarial(learner, SPA, {"name": "spa", **weights}))
        return step(state, batch, jax.random.key(1))[1]["loss"]

    parts = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    names = ("clean_weight", "edited_weight", "attacked_weight")
    clean, attribute, joint = (loss(**dict(zip(names, part, strict=True))) for part in parts)
    mixed = loss(clean_weight=1.0, edited_weight=2.0, attacked_weight=2.0)
    np.testing.assert_allclose(mixed, 0.2 * clean + 0.4 * attribute + 0.4 * joint, rtol=1e-5)
    assert joint > max(clean, attribute)


def test_averaged_weights_follow_the_weights(tiny_net, batch):
    learner = _learner(tiny_net, ema_decay=0.75)
    start = learner.init(jax.random.key(0), (6, 6, 3))
    before = jax.device_get(start.params)
    state, _ = _train(learner, standard, batch, "jit", 1, steps=1)
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, before, state.params)
    _assert_close(state.ema, expected)
    _assert_close(state.variables()["params"], expected)


def test_interleaved_variants_come_apart_again():
    first, second = np.zeros((3, 2, 2, 1)), np.ones((3, 2, 2, 1))
    joined = interleave(first, second)
    assert joined.shape == (6, 2, 2, 1)
    a, b = separate(joined.reshape(6, -1)[:, :2], 2)
    assert not a.any() and b.all()


def _adversarial(attack, **outer):
    return lambda learner: adversarial(learner, attack, outer or "cross_entropy")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (_adversarial(PGD, name="cross_entropy", clean_weight=-1.0), "clean_weight=-1.0 must be 0 or larger"),
        (_adversarial(PGD | {"radius": -1.0}), "radius=-1.0"),
        (_adversarial(PGD, name="trades", beta=-1.0), "beta=-1.0"),
        (_adversarial(PGD, name="trades", attack_maximises="dlr"), "attack_maximises='dlr' must be"),
        (_adversarial(PGD, name="marl"), "'marl' is .*outer objective.*cross_entropy, mart, spa, trades"),
        (_adversarial(PGD, name="spa"), "has no edited images"),
        (
            _adversarial(SPA, name="spa", clean_weight=0.0, edited_weight=0.0, attacked_weight=0.0),
            "must not all be 0",
        ),
        (_adversarial(SPA, name="spa", attacked_weight=-1.0), "attacked_weight=-1.0 must be 0 or larger"),
        (lambda learner: standard(learner, label_smoothing=2.0), "smoothing=2.0"),
    ],
)
def test_broken_rules_are_named(recipe, message, tiny_net):
    with pytest.raises(ValueError, match=message):
        recipe(_learner(tiny_net))


def test_unknown_engine_is_named(tiny_net):
    with pytest.raises(ValueError, match="engine='xmap' must be one of jit, pmap"):
        make_engine("xmap", data_mesh(), _learner(tiny_net), standard)
