"""SPAT: training on examples that move away from smoothed labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from spa_jax import pgd, spat
from spa_jax.losses import smoothed_cross_entropy
from spa_jax.training.learner import Learner
from spa_jax.training.recipes import adversarial
from tests.training.conftest import assert_trees_close, run_steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (6, 6, 3)
SPAT = {"name": "spat", "radius": 0.1, "num_steps": 2}


def _train(model, batch, recipe, steps=1, **layout):
    learner = Learner(model, optax.sgd(0.1))
    state, seen = run_steps(learner, recipe, learner.init(jax.random.key(0), SHAPE), batch, steps=steps, **layout)
    return state, seen[-1]


def test_without_smoothing_it_is_training_against_pgd(tiny_net, batch):
    plain = {"name": "pgd", "radius": 0.1, "num_steps": 2, "keep": "last"}
    states = [
        _train(tiny_net, batch, functools.partial(adversarial, attack=attack), steps=2)[0]
        for attack in (plain, SPAT | {"smoothing": 0.0})
    ]
    assert_trees_close(*states)


def test_the_metrics_count_the_examples_that_a_step_helps(plain_net, batch):
    """The network as it starts, made sure of itself by a scale of its images; half of the labels are its answers."""
    learner = Learner(plain_net, optax.sgd(0.1), std=np.float32(0.02))
    images = jnp.asarray(batch["image"], jnp.float32) / 255
    p = np.asarray(jax.nn.softmax(learner.victim(learner.init(jax.random.key(0), SHAPE))(images)))
    labels = np.where(np.arange(16) % 2, p.argmax(1), batch["label"]).astype(np.int32)
    recipe = functools.partial(adversarial, attack=SPAT | {"smoothing": 0.5, "chunk_size": 8})
    start = learner.init(jax.random.key(0), SHAPE)
    _, seen = run_steps(learner, recipe, start, batch | {"label": labels}, steps=1)
    expected = (p[np.arange(16), labels] > 1 - 0.5 + 0.5 / 10)[batch["mask"]].mean()
    assert 0 < expected < 1
    assert seen[0]["reversed_clean"] == pytest.approx(expected)
    assert 0 <= seen[0]["reversed_attacked"] <= 1


def test_other_attacks_count_none(plain_net, batch):
    for attack, outer in (({"name": "fgsm", "radius": 0.1}, "cross_entropy"), (SPAT, "trades")):
        _, metrics = _train(plain_net, batch, functools.partial(adversarial, attack=attack, outer=outer))
        assert "reversed_clean" not in metrics


def test_trades_crafts_with_the_smoothed_loss_if_told_to(plain_net, batch):
    own = {"name": "trades", "attack_maximises": "own"}
    _, metrics = _train(plain_net, batch, functools.partial(adversarial, attack=SPAT, outer=own))
    assert "reversed_clean" in metrics and np.isfinite(metrics["loss"])


def sure(height, images):
    """Two classes, of which class 0 has probability sigmoid(height + 4 (mean - 0.5))."""
    z = height + 4 * (jnp.mean(images, axis=(1, 2, 3)) - 0.5)
    return jnp.stack([z / 2, -z / 2], axis=-1)


@pytest.mark.parametrize(("guard", "rises"), [("off", True), ("anneal", False)])
def test_a_guard_removes_the_reversal_of_an_attack(guard, rises):
    """At p_y = 0.95 and a smoothing of 0.5 the unguarded attack raises p_y."""
    images, labels, victim = jnp.full((2, 4, 4, 1), 0.5), jnp.zeros(2, jnp.int32), Partial(sure, 3.0)
    found = spat(0.05, 5, smoothing=0.5, guard=guard)(jax.random.key(0), victim, images, labels)
    before, after = (jax.nn.softmax(victim(own))[:, 0] for own in (images, found.x))
    assert np.all(after > before) == rises and np.all(after != before)


def test_the_preset_is_pgd_of_a_smoothed_loss(tiny_net):
    images, labels, victim = jnp.full((2, 4, 4, 1), 0.5), jnp.zeros(2, jnp.int32), Partial(sure, 0.3)
    twin = pgd(0.05, 5, loss=smoothed_cross_entropy(0.3), keep="last")
    found, expected = (a(jax.random.key(0), victim, images, labels) for a in (spat(0.05, 5, smoothing=0.3), twin))
    np.testing.assert_array_equal(found.x, expected.x)
    for options, message in (
        ({"loss": "margin"}, "loss='margin' must be one of smoothed_cross_entropy, independent_bce"),
        ({"mask": "max"}, "mask='max' must be one of min, mean"),
        ({"guard": "on"}, "guard='on' must be one of off, clamp, anneal"),
    ):
        with pytest.raises(ValueError, match=message):
            spat(0.1, **options)
