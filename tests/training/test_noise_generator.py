"""Training of the noise generator: the same on any layout, its loss against its parts, what validation tells."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.losses import cross_entropy, diversity
from spa_jax.models import NoiseGenerator, SmallCNN, init_variables
from spa_jax.training.learner import Learner
from spa_jax.training.recipes import noise_generator
from spa_jax.training.recipes.noise_generator import (
    NoiseObjective,
    generator_loss,
    generator_success,
    latent_pairs,
)
from spa_jax.types import Example
from spa_jax.victims import classifier
from tests.training.conftest import assert_trees_close, run_steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (6, 6, 3)
VICTIM = {"part": "victim"}
CNN = SmallCNN(width=2, hidden=8, convs_per_stage=1)
GENERATOR = NoiseGenerator(width=2, latent_dim=2)


def victim_variables():
    return init_variables(CNN, jax.random.key(7), SHAPE)


def _learner(**changes):
    builders = {"victim": lambda variables: classifier(CNN, variables)}
    return Learner(GENERATOR, optax.sgd(0.1), builders=builders, **changes)


def _start(learner):
    return learner.init(jax.random.key(0), SHAPE).replace(frozen={"victim": victim_variables()})


def _train(batch, engine="jit", devices=1, steps=2, **options):
    recipe = functools.partial(noise_generator, victim=VICTIM, radius=0.1, num_steps=2, **options)
    learner = _learner()
    state, seen = run_steps(learner, recipe, _start(learner), batch, engine, devices, steps)
    return state, seen[-1]


@pytest.mark.parametrize(
    "attributes", [pytest.param(None, marks=pytest.mark.slow), {"rotation": {"low": -20.0, "high": 20.0}}]
)
def test_one_device_and_eight_and_either_engine_reach_the_same_state(batch, attributes):
    reference, metrics = _train(batch, attributes=attributes)
    assert int(reference.step) == 2
    assert all(np.isfinite(value) for value in metrics.values())
    for engine in ("jit", "pmap"):
        state, other = _train(batch, engine, 8, attributes=attributes)
        assert_trees_close(state, reference)
        assert_trees_close(other, metrics)


def test_the_generator_learns_and_the_victim_does_not(batch):
    before = jax.device_get(_start(_learner()))
    after, _ = _train(batch)
    assert_trees_close(after.frozen, before.frozen)
    changed = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True)]
    assert sum(changed) > len(changed) / 2
    statistics = zip(*map(jax.tree.leaves, (before.batch_stats, after.batch_stats)), strict=True)
    assert all(np.any(a != b) for a, b in statistics)


def _loss(objective, batch, keys):
    state = _start(_learner())
    images, labels = jnp.asarray(batch["image"], jnp.float32) / 255, jnp.asarray(batch["label"])
    victim = classifier(CNN, victim_variables())
    examples = Example(images, labels, key=keys)
    arguments = (GENERATOR, state.params, state.batch_stats, victim, jnp.mean, examples)
    value, found = generator_loss(objective, *arguments)
    return value, found, images, labels, victim


def test_the_loss_of_one_mini_step_is_its_two_parts(batch):
    keys = jax.random.split(jax.random.key(0), 16)
    objective = NoiseObjective(0.1, 1, adversarial_weight=2.0, diversity_weight=3.0, diversity_cap=0.01)
    value, found, images, labels, victim = _loss(objective, batch, keys)
    adversarial = cross_entropy(victim(found.images), Example(None, jnp.repeat(labels, 2))).mean()
    capped = float((value + 2 * adversarial) / -3)
    assert 0 < capped <= 0.01 + 1e-6
    np.testing.assert_allclose(found.metrics["adversarial_loss"], adversarial, rtol=1e-5)
    assert found.metrics["diversity"] >= capped - 1e-6
    assert float(jnp.abs(found.images - jnp.repeat(images, 2, 0)).max()) <= 0.1 + 1e-6


def test_the_diversity_is_that_of_neighbouring_noises(batch):
    objective = NoiseObjective(0.1, 1, adversarial_weight=0.0, diversity_weight=1.0, diversity_cap=9.0)
    value, found, *_ = _loss(objective, batch, _keys())
    assert value < 0
    np.testing.assert_allclose(-value, found.metrics["diversity"], rtol=1e-5)


def _keys():
    return jax.random.split(jax.random.key(0), 16)


def test_its_gradient_does_not_depend_on_computing_anew(batch):
    def gradient(remat):
        state = _start(_learner())
        images, labels = jnp.asarray(batch["image"], jnp.float32) / 255, jnp.asarray(batch["label"])
        objective, victim = NoiseObjective(0.1, 3, remat=remat), classifier(CNN, victim_variables())
        loss = lambda params: generator_loss(  # noqa: E731
            objective, GENERATOR, params, state.batch_stats, victim, jnp.mean, Example(images, labels, key=_keys())
        )[0]
        return jax.jit(jax.grad(loss))(state.params)

    for a, b in zip(*map(jax.tree.leaves, (gradient(True), gradient(False))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(jnp.abs(b).max()) + 1e-8)


def test_latents_of_a_pair_are_independent_and_standard_normal():
    z = latent_pairs(jax.random.split(jax.random.key(0), 4000), 3)
    assert z.shape == (8000, 3)
    np.testing.assert_allclose(z.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(z.std(0), 1, atol=0.05)
    assert abs(float((z[::2] * z[1::2]).mean())) < 0.03


def test_masked_examples_do_not_count(batch):
    _, metrics = _train(batch, steps=1)
    relabelled = batch | {"label": np.where(batch["mask"], batch["label"], (batch["label"] + 1) % 10)}
    _, other = _train(relabelled, steps=1)
    assert np.isfinite(metrics["loss"]) and abs(metrics["loss"] - other["loss"]) < 1e-2


def test_validation_tells_success_and_distance_of_each_example(batch):
    learner = _learner()
    images, labels = jnp.asarray(batch["image"], jnp.float32) / 255, jnp.asarray(batch["label"])
    found = generator_success(learner, _start(learner), _keys(), images, labels, None, VICTIM, 0.1, num_steps=2)
    assert set(found) == {"fooled", "pairwise_distance"}
    assert set(np.unique(found["fooled"])) <= {0.0, 1.0}
    apart = found["pairwise_distance"]
    assert apart.shape == (16,) and bool((apart >= 0).all() and (apart <= 2).all()) and float(apart.max()) > 0


def test_diversity_of_equal_latents_is_finite():
    noise, z = jnp.ones((2, 3, 3, 1)), jnp.ones((2, 4))
    np.testing.assert_array_equal(diversity(noise, noise, z, z), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -0.1}, "radius=-0.1"),
        ({"radius": 0.1, "num_steps": 0}, "num_steps=0"),
        ({"radius": 0.1, "step_share": 0.0}, "step_share=0.0"),
        ({"radius": 0.1, "diversity_weight": -1.0}, "diversity_weight=-1.0"),
        ({"radius": 0.1, "victim": {"model": "x"}}, "must name a part"),
    ],
)
def test_broken_rules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        noise_generator(_learner(), **({"victim": VICTIM} | options))
