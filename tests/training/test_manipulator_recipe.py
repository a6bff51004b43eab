"""Training of the manipulator: its terms against float64, one device and eight, and what it learns of a known edit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.models import create_model
from spa_jax.training.learner import Learner
from spa_jax.training.networks import Network
from spa_jax.training.recipes import manipulator
from spa_jax.training.recipes.manipulator import manipulator_errors
from tests.training.conftest import assert_trees_close, run_steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (6, 6, 3)
FACTS = {"attribute_names": ("rotation", "light"), "attribute_centre": (5.0, 0.5), "attribute_scale": (20.0, 0.2)}
KNOWN = {"known_edits": {"rotation": "rotation"}}


def _learner(discriminator=False, optimizer=None):
    sizes = {"width": 2, "latent_dim": 5, "hidden": 8}
    model = create_model("msp", num_classes=10, input_shape=SHAPE, num_attributes=2, **sizes, **FACTS)
    judge = create_model("patch_discriminator", num_classes=10, input_shape=SHAPE, width=2)
    networks = {"discriminator": Network(judge, optax.sgd(0.1))} if discriminator else {}
    return Learner(model, optimizer or optax.sgd(1e-4), networks=networks)


@pytest.fixture
def batch(batch):
    rng = np.random.default_rng(1)
    attribute = np.stack([rng.uniform(-30, 40, 16), rng.uniform(0.2, 0.8, 16)], 1).astype(np.float32)
    return batch | {"attribute": attribute}


def _train(learner, options, batch, engine, devices, steps):
    recipe = functools.partial(manipulator, **options)
    return run_steps(learner, recipe, learner.init(jax.random.key(0), SHAPE), batch, engine, devices, steps)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param(KNOWN, marks=pytest.mark.slow),
        KNOWN | {"patch_weight": 1.0},
    ],
)
def test_one_device_and_eight_and_either_engine_reach_the_same_state(options, batch):
    learner = _learner(discriminator="patch_weight" in options)
    reference, metrics = _train(learner, options, batch, "jit", 1, 2)
    for engine in ("jit", "pmap"):
        state, other = _train(learner, options, batch, engine, 8, 2)
        assert_trees_close((state, other), (reference, metrics))


def test_steps_lower_the_loss_and_leave_the_datas_facts_alone(batch):
    learner = _learner(optimizer=optax.adam(1e-2))
    state, metrics = _train(learner, KNOWN | {"cycle_noise": 0.0}, batch, "jit", 1, 40)
    losses = [entry["loss"] for entry in metrics]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    np.testing.assert_array_equal(state.batch_stats["attribute_centre"], FACTS["attribute_centre"])
    np.testing.assert_array_equal(state.batch_stats["attribute_scale"], np.float32(FACTS["attribute_scale"]))


def test_terms_are_sums_over_what_they_compare_and_means_over_examples_that_count(batch):
    learner = _learner()
    state = learner.init(jax.random.key(0), SHAPE)
    _, metrics = jax.jit(manipulator(learner))(state, batch, jax.random.key(1))
    subspace = np.asarray(state.params["subspace"], np.float64)
    x = jnp.asarray(batch["image"], jnp.float32) / 255
    mean, log_variance = (
        np.asarray(found, np.float64) for found in learner.model.apply(state.variables(), x, method="encode")
    )
    a = (batch["attribute"] - np.array(FACTS["attribute_centre"])) / np.array(FACTS["attribute_scale"])
    beside = mean @ (np.eye(5) - np.linalg.pinv(subspace) @ subspace)
    expected = {
        "attribute": ((mean @ subspace.T - a) ** 2).sum(1),
        "complement": ((a @ subspace - mean) ** 2).sum(1),
        "kl": 0.5 * ((beside**2).sum(1) + (np.exp(log_variance) - 1 - log_variance).sum(1)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[name], values[batch["mask"]].mean(), rtol=1e-4)


def test_the_loss_is_the_weighted_sum_of_its_terms(batch):
    learner = _learner(discriminator=True)
    state = learner.init(jax.random.key(0), SHAPE)
    names = ("reconstruction", "kl", "attribute", "complement", "cycle", "cycle_complement", "label", "known", "patch")
    weights = {f"{name}_weight": 0.5 + i for i, name in enumerate(names)}
    _, metrics = jax.jit(manipulator(learner, **weights, **KNOWN))(state, batch, jax.random.key(1))
    expected = sum(weights[f"{name}_weight"] * metrics[name] for name in names)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_masked_examples_do_not_count(batch):
    learner = _learner()
    state = learner.init(jax.random.key(0), SHAPE)
    step = jax.jit(manipulator(learner, **KNOWN))
    other = batch | {
        "image": np.where(batch["mask"][:, None, None, None], batch["image"], 255 - batch["image"]),
        "attribute": np.where(batch["mask"][:, None], batch["attribute"], 0),
    }
    for a, b in zip(*(jax.tree.leaves(step(state, each, jax.random.key(1))) for each in (batch, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_validation_tells_how_well_each_image_is_rebuilt_read_and_edited(batch):
    learner = _learner()
    state = learner.init(jax.random.key(0), SHAPE)
    x = jnp.asarray(batch["image"], jnp.float32) / 255
    keys = jax.random.split(jax.random.key(0), 16)
    found = manipulator_errors(learner, state, keys, x, None, jnp.asarray(batch["attribute"]))
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(
        ("psnr", "reading_error", "cycle_error", "round_trip_psnr"), (16,)
    )
    mse = np.mean((np.asarray(learner.model.apply(state.variables(), x), np.float64) - x) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(found["psnr"], -10 * np.log10(mse), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cycle_weight": -1.0}, "cycle_weight=-1.0 must be 0 or larger"),
        ({"span": 0.0}, "span=0.0 must be larger than 0"),
        ({"known_edits": {"hue": "hue"}}, "'hue' is not an attribute of the model"),
        ({"known_edits": {"light": "dimness"}}, "'dimness' is not an edit"),
        ({"patch_weight": 1.0}, "needs networks="),
    ],
)
def test_broken_rules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        manipulator(_learner(), **options)
