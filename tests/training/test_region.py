"""Region adversarial training: perturbations made once, against the network that training starts from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.data.types import Split
from spa_jax.runs import loop
from spa_jax.runs.checkpoints import load_variables
from spa_jax.runs.experiment import check_config
from spa_jax.training.learner import Learner
from spa_jax.training.recipes import Start, region
from spa_jax.training.recipes.region import carry_region
from spa_jax.victims import classifier
from tests.training.conftest import assert_trees_close, run_steps, tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE, RADIUS = (6, 6, 3), 0.3
MODEL = {"part": "base"}


def split(victim, count=48):
    """Images with the labels that the victim gives them."""
    images = np.random.default_rng(0).uniform(0.2, 0.8, (count, *SHAPE)).astype(np.float32)
    return Split(images, np.asarray(jnp.argmax(victim(jnp.asarray(images)), -1), np.int32))


def begun(net, **options):
    """A learner, the network that it starts from, its data, and the perturbations made against it."""
    learner = Learner(net, optax.sgd(0.02))
    state = learner.init(jax.random.key(0), SHAPE)
    victim = classifier(net, state.variables())
    data = split(victim)
    start = Start(learner, jax.random.key(1), 16, SHAPE, data, {"base": victim})
    return learner, victim, data, carry_region(start, MODEL, RADIUS, **options)


@pytest.mark.parametrize("crafting", ["gradient", "sequential"])
def test_each_perturbation_leads_to_its_target(plain_net, crafting):
    probe = begun(plain_net, targets=(0,), num_images=1, num_epochs=1)
    targets = tuple(int(label) for label in np.unique(probe[2].labels)[:2])
    _, victim, data, carried = begun(plain_net, targets=targets, crafting=crafting, num_images=16, num_epochs=20)
    assert carried.shared["noise"].shape == (2, *SHAPE)
    assert np.abs(carried.shared["noise"]).max() <= RADIUS + 1e-6
    for target, noise in zip(targets, carried.shared["noise"], strict=True):
        others = data.images[data.labels != target]
        answers = np.argmax(victim(jnp.clip(others + noise[None], 0, 1)), -1)
        assert np.mean(answers == target) >= 0.3  # none were answered so before


def test_a_resumed_run_makes_none_anew(plain_net):
    learner = Learner(plain_net, optax.sgd(0.1))
    victim = classifier(plain_net, learner.init(jax.random.key(0), SHAPE).variables())
    start = Start(learner, jax.random.key(1), 16, SHAPE, None, {"base": victim}, is_resumed=True)
    carried = carry_region(start, MODEL, RADIUS)
    assert carried.shared["noise"].shape == (10, *SHAPE) and not carried.shared["noise"].any()


def test_training_resists_the_perturbations_alike_on_any_layout(plain_net, batch):
    learner, _, data, carried = begun(plain_net, num_epochs=4)
    batch = {"image": data.images[:16], "label": data.labels[:16], "mask": np.ones(16, bool), "index": batch["index"]}
    recipe = functools.partial(region, model=MODEL, radius=RADIUS)
    start = learner.init(jax.random.key(0), SHAPE).replace(carried=carried)

    def trained(engine="jit", devices=1, steps=3):
        fresh = jax.tree.map(lambda leaf: leaf.copy(), start)
        return run_steps(learner, recipe, fresh, batch, engine, devices, steps)

    reference, _ = trained()
    for engine in ("jit", "pmap"):
        assert_trees_close(trained(engine, 8)[0].params, reference.params)
    np.testing.assert_array_equal(reference.carried.shared["noise"], carried.shared["noise"])
    seen = [step["robust_accuracy"] for step in trained(steps=40)[1]]
    assert np.mean(seen[-10:]) > np.mean(seen[:5]) + 0.2


def test_a_run_starts_from_the_network_before_it_on_a_share_of_the_data(tmp_path):
    recipe = {"name": "region", "model": MODEL, "radius": RADIUS, "targets": [1, 2], "num_images": 8, "num_epochs": 2}
    training = {"batch_size": 8, "num_epochs": 1.0, "start_from": MODEL, "train_share": 0.02}
    config = tiny_config(
        recipe=recipe, schedule={"name": "constant", "peak": 1e-9}, parts={"base": {"model": "before"}}
    )
    config["training"] = config["training"] | training
    before = {"name": "before", "recipe": "standard", "training": {"start_from": None, "num_epochs": 1.0}}
    loop.train_models(
        check_config(config | {"baselines": (before | {"schedule": {"name": "cosine", "peak": 0.05}},)}), tmp_path
    )
    after, old = (load_variables(tmp_path / name).variables for name in ("tiny", "before"))
    assert_trees_close(after["params"], old["params"] if old["ema"] is None else old["ema"], atol=1e-4)
    assert np.asarray(after["carried"]["shared"]["noise"]).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crafting": "random"}, "crafting='random' must be one of gradient, sequential"),
        ({"num_images": 0}, "num_images=0 must be an integer of at least 1"),
        ({"norm": "l1"}, "norm='l1' must be one of linf, l2"),
        ({"outer": "spa"}, "sees edited images"),
        ({"targets": "al"}, "targets='al' must be 'all' or some classes"),
        ({"targets": ()}, r"targets=\(\) must be 'all' or some classes"),
    ],
)
def test_what_cannot_be_is_refused(options, message, plain_net):
    with pytest.raises(ValueError, match=message):
        region(Learner(plain_net, optax.sgd(0.1)), MODEL, RADIUS, **options)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_target_outside_of_the_classes_is_refused_before_anything_is_crafted(is_resumed, plain_net):
    learner = Learner(plain_net, optax.sgd(0.1))
    victim = classifier(plain_net, learner.init(jax.random.key(0), SHAPE).variables())
    start = Start(learner, jax.random.key(1), 16, SHAPE, None, {"base": victim}, is_resumed)
    with pytest.raises(ValueError, match=r"targets holds 10: classes must lie in \[0, 9\] for 10 classes"):
        carry_region(start, MODEL, RADIUS, targets=(1, 10))


def test_a_start_from_another_network_is_refused(plain_net, tiny_net):
    learner, other = Learner(plain_net, optax.sgd(0.1)), Learner(tiny_net, optax.sgd(0.1))
    state = learner.init(jax.random.key(0), SHAPE)
    with pytest.raises(ValueError, match="start_from is of another network"):
        learner.started_from(state, other.init(jax.random.key(0), SHAPE).variables())
