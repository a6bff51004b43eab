"""Purifiers and AToP: their losses by hand, a discriminator that is heard, a classifier that stays as it is."""

import functools
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.errors import ConfigError
from spa_jax.losses import cross_entropy
from spa_jax.models import Inpainter, PatchDiscriminator, SmallCNN, init_variables
from spa_jax.runs import loop
from spa_jax.runs.checkpoints import load_variables
from spa_jax.runs.experiment import check_config
from spa_jax.runs.reporting import load_part
from spa_jax.training.learner import Learner
from spa_jax.training.networks import Network
from spa_jax.training.recipes import atop, becomes, purifier
from spa_jax.training.recipes.atop import atop_accuracies
from spa_jax.training.recipes.purifier import purifier_errors
from spa_jax.types import Example
from spa_jax.victims import classifier, rt1, rt2
from spa_jax.victims import purifier as make_purifier
from tests.training.conftest import assert_trees_close, run_steps, stop_requested_at, tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE, RADIUS, RATE = (6, 6, 3), 0.1, 0.1
CNN = SmallCNN(width=2, hidden=8, convs_per_stage=1)


class Filler(nn.Module):
    """Two convolutions of an image and its mask."""

    width: int = 4

    def example_inputs(self, image_shape):
        return jnp.zeros((1, *image_shape)), jnp.zeros((1, *image_shape[:2], 1))

    @nn.compact
    def __call__(self, images, masks, train=False):
        x = nn.relu(nn.Conv(self.width, (3, 3))(jnp.concatenate([images, masks], -1)))
        return nn.sigmoid(nn.Conv(images.shape[-1], (3, 3))(x))


NET = Filler()
PART = {"part": "classifier"}
FGSM = {"name": "fgsm", "radius": RADIUS}
ONE_STEP = {
    "name": "pgd",
    "radius": RADIUS,
    "num_steps": 1,
    "rel_step_size": 1.0,
    "random_start": False,
    "keep": "last",
}
RT2 = {"name": "rt2", "sigma": 0.1, "grid": 3}
NOTHING = {"name": "rt1", "grid": 1, "share": 0.0}


def victim_of(variables):
    """A classifier that small differences of pixels matter to."""
    return classifier(CNN, variables, 0.5, 0.3)


def made(net=NET, gan=False, optimizer=None):
    """A learner and its state before the first step, beside a frozen classifier."""
    networks = {"discriminator": Network(PatchDiscriminator(width=2, depth=1), optax.sgd(0.1))} if gan else {}
    builders = {"classifier": victim_of}
    learner = Learner(net, optimizer or optax.sgd(RATE), networks=networks, builders=builders)
    frozen = {"classifier": init_variables(CNN, jax.random.key(7), SHAPE)}
    return learner, learner.init(jax.random.key(0), SHAPE).replace(frozen=frozen)


def trained(recipe, batch, net=NET, engine="jit", devices=1, steps=2, optimizer=None):
    learner, state = made(net, recipe.keywords.get("gan_weight", 0) > 0, optimizer)
    return run_steps(learner, recipe, state, batch, engine, devices, steps)


def pixels(batch):
    return jnp.asarray(batch["image"], jnp.float32) / 255


def mean_of(values, batch):
    return jnp.sum(values * batch["mask"].astype(np.float32)) / batch["mask"].sum().astype(np.float32)


# --- the same on any layout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        functools.partial(purifier, transform={"name": "rt3", "sigma": 0.1, "grid": 3, "masks": 2}, gan_weight=0.5),
        functools.partial(atop, classifier=PART, transform=RT2, attack=FGSM, gan_weight=0.5),
        pytest.param(
            functools.partial(
                atop,
                classifier=PART,
                transform={"name": "rt1", "grid": 3},
                attack={"name": "pgd", "radius": 0.1, "num_steps": 2},
                through="straight_through",
                target="attacked",
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["purifier", "atop", "straight_through"],
)
def test_one_device_and_eight_and_either_engine_reach_the_same_state(recipe, batch):
    reference, metrics = trained(recipe, batch)
    assert all(np.isfinite(value) for step in metrics for value in step.values())
    for engine in ("jit", "pmap"):
        state, other = trained(recipe, batch, engine=engine, devices=8)
        assert_trees_close((state, other), (reference, metrics), rtol=1e-3, atol=1e-4)


def test_masked_examples_do_not_count(batch):
    learner, state = made(gan=True)
    step = jax.jit(atop(learner, classifier=PART, transform=RT2, attack=FGSM, gan_weight=0.5))
    other = batch | {
        "image": np.where(batch["mask"][:, None, None, None], batch["image"], 255 - batch["image"]),
        "label": np.where(batch["mask"], batch["label"], (batch["label"] + 1) % 10),
    }
    assert_trees_close(*(step(state, each, jax.random.key(1)) for each in (other, batch)))


# --- the losses -----------------------------------------------------------------------------------------------------


def test_a_discriminator_moves_the_network_by_the_gradient_of_its_score(batch):
    """In AToP's code the image is detached before the discriminator sees it: the term has no gradient there."""
    recipe = functools.partial(purifier, transform=NOTHING, reconstruction_weight=0.0, gan_weight=1.0)
    learner, state = made(gan=True)
    judge, before = learner.networks["discriminator"].model, state.networks["discriminator"].variables()

    def score(params):
        made_up = NET.apply({"params": params}, pixels(batch), jnp.zeros((16, 6, 6, 1)))
        return -mean_of(judge.apply(before, made_up).mean((1, 2)), batch)

    gradient = jax.jit(jax.grad(score))(state.params)
    assert optax.tree.norm(gradient) > 1e-4
    after, metrics = trained(recipe, batch, steps=1)
    assert_trees_close(after.params, jax.tree.map(lambda p, g: p - RATE * g, state.params, gradient), atol=1e-6)
    np.testing.assert_allclose(metrics[0]["loss"], score(state.params), rtol=1e-4)
    taught = after.networks["discriminator"].params
    assert optax.tree.norm(jax.tree.map(jnp.subtract, taught, state.networks["discriminator"].params)) > 1e-4


@pytest.mark.parametrize("target", ["clean", "attacked"])
@pytest.mark.parametrize("through", ["system", "straight_through", "classifier"])
def test_the_loss_is_that_of_images_crafted_by_hand(through, target, batch):
    _, state = made()
    victim, x = victim_of(state.frozen["classifier"]), pixels(batch)
    clean = make_purifier(NET, state.variables())
    seen = {
        "system": lambda x: victim(clean(x)),
        "straight_through": lambda x: victim(x + jax.lax.stop_gradient(clean(x) - x)),
        "classifier": victim,
    }[through]
    examples = Example(x, jnp.asarray(batch["label"]))
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(seen(x), examples).sum()))(x)
    attacked = jnp.clip(x + RADIUS * jnp.sign(gradient), 0, 1)
    wanted = x if target == "clean" else attacked
    l1 = mean_of(jnp.abs(clean(wanted) - wanted).mean((1, 2, 3)), batch)
    logits = victim(clean(attacked))
    classified = mean_of(cross_entropy(logits, examples), batch)
    options = {"through": through, "target": target, "classification_weight": 3.0, "reconstruction_weight": 2.0}
    recipe = functools.partial(atop, classifier=PART, transform=NOTHING, attack=ONE_STEP, **options)
    _, (metrics,) = trained(recipe, batch, steps=1)
    expected = {"l1": l1, "cross_entropy": classified, "loss": 2 * l1 + 3 * classified}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, err_msg=name)
    accuracy = mean_of((jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32), batch)
    np.testing.assert_allclose(metrics["robust_accuracy"], accuracy, rtol=1e-5)


def test_the_coarse_image_of_two_passes_is_compared_too(batch):
    net = Inpainter(width=2)
    _, state = made(net)
    args = (state.variables(), pixels(batch), jnp.zeros((16, 6, 6, 1)))
    fine, sown = net.apply(*args, mutable=["intermediates"])
    apart = [jnp.abs(image - pixels(batch)).mean((1, 2, 3)) for image in (fine, *sown["intermediates"]["coarse"])]
    _, (metrics,) = trained(functools.partial(purifier, transform=NOTHING), batch, net, steps=1)
    np.testing.assert_allclose(metrics["l1"], mean_of(apart[0] + apart[1], batch), rtol=1e-4)


def test_steps_lower_both_terms_and_leave_the_classifier_alone(batch):
    recipe = functools.partial(
        atop, classifier=PART, transform={"name": "rt1", "grid": 3}, attack=FGSM, classification_weight=1.0
    )
    state, metrics = trained(recipe, batch, Filler(8), steps=60, optimizer=optax.adam(1e-2))
    for name, least in {"l1": 0.005, "cross_entropy": 0.02}.items():
        values = [entry[name] for entry in metrics]
        assert np.mean(values[-5:]) < np.mean(values[:5]) - least
    before = jax.device_get(made()[1].frozen)
    for a, b in zip(jax.tree.leaves(state.frozen), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


# --- as parts, and while they are chosen ----------------------------------------------------------------------------


def test_a_part_is_a_purifier_with_the_transform_of_its_training_or_another(batch):
    _, state = made()
    build = becomes({"name": "atop", "transform": RT2, "attack": FGSM, "classifier": PART}, None, NET, 0.0, 1.0)
    part, keys = build(state.variables()), jax.random.split(jax.random.key(3), 16)
    expected = make_purifier(NET, state.variables(), rt2(0.1, 3))(keys, pixels(batch))
    np.testing.assert_array_equal(part()(keys, pixels(batch)), expected)
    assert part(transform=rt1(2)).transform == rt1(2)
    assert not part(transform=None).is_randomized


def test_validation_tells_of_each_image_how_it_is_restored_and_classified(batch):
    learner, state = made()
    keys, labels = jax.random.split(jax.random.key(3), 16), jnp.asarray(batch["label"])
    found = purifier_errors(learner, state, keys, pixels(batch), labels, None, transform=RT2)
    clean = make_purifier(NET, state.variables(), rt2(0.1, 3))(keys, pixels(batch))
    np.testing.assert_allclose(found["l1"], jnp.abs(clean - pixels(batch)).mean((1, 2, 3)), rtol=1e-6)
    victim = victim_of(state.frozen["classifier"])
    right = jnp.argmax(victim(make_purifier(NET, state.variables())(pixels(batch))), -1)
    found = atop_accuracies(learner, state, keys, pixels(batch), right, None, PART, NOTHING, FGSM | {"radius": 0.0})
    np.testing.assert_array_equal(found["accuracy"], 1.0)
    np.testing.assert_array_equal(found["robust_accuracy"], 1.0)
    wrong = atop_accuracies(learner, state, keys, pixels(batch), (right + 1) % 10, None, PART, NOTHING, FGSM)
    assert not wrong["accuracy"].any() and not wrong["robust_accuracy"].any()


# --- by config ------------------------------------------------------------------------------------------------------


def atop_config():
    """A classifier, a purifier before it, and the same purifier fine-tuned."""
    transform = {"name": "rt2", "grid": 4, "sigma": 0.1}
    training = {"batch_size": 240, "num_epochs": 1.0, "ema_decay": 0.0}
    discriminator = {"model": {"name": "patch_discriminator", "width": 2, "depth": 1}, "optimizer": "adam"}
    pretrained = {
        "name": "pretrained",
        "model": {"name": "unet", "width": 2, "depth": 1},
        "networks": None,
        "recipe": {"name": "purifier", "transform": transform},
        "training": {"start_from": None},
    }
    standard = {"name": "standard", "networks": None, "recipe": "standard", "training": {"start_from": None}}
    small = tiny_config()["model"]
    return tiny_config(
        model=pretrained["model"],
        recipe={"name": "atop", "classifier": PART, "transform": transform, "attack": FGSM, "gan_weight": 0.1},
        networks={"discriminator": discriminator},
        parts={"classifier": {"model": "standard"}, "before": {"model": "pretrained"}},
        training=training | {"start_from": {"part": "before"}},
        baselines=(standard | {"model": small}, pretrained),
    )


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_and_saves_the_classifier_once(tmp_path):
    config = check_config(atop_config())

    def train(workdir):
        loop.train_models(config, workdir)
        return load_variables(workdir / "tiny", step="latest")

    whole = train(tmp_path / "whole")
    assert not whole.variables.get("frozen")
    standard = load_variables(tmp_path / "whole" / "standard").variables["params"]
    kept = load_variables(tmp_path / "whole" / "tiny" / "frozen", names=["classifier"]).variables["classifier"]
    assert_trees_close(kept["params"], standard, rtol=0, atol=0)
    for name in ("standard", "pretrained"):
        shutil.copytree(tmp_path / "whole" / name, tmp_path / "stopped" / name)
    with stop_requested_at(3), pytest.raises(loop.Interrupted, match="step=3 of 5, saved"):
        train(tmp_path / "stopped")
    resumed = train(tmp_path / "stopped")
    for a, b in zip(jax.tree.leaves(resumed.variables), jax.tree.leaves(whole.variables), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert load_part(tmp_path / "whole", "tiny")().is_randomized
    lines = (tmp_path / "whole" / "tiny" / "metrics.jsonl").read_text()
    assert "robust_accuracy" in lines and "cross_entropy" in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"through": "purifier"}, "through='purifier' must be one of system, straight_through, classifier"),
        ({"target": "both"}, "target='both' must be one of clean, attacked"),
        ({"classification_weight": -1.0}, "classification_weight=-1.0 must be 0 or larger"),
        ({"gan_weight": 1.0}, "gan_weight=1.0 needs networks="),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight=-1.0 must be 0 or larger"),
        ({"attack": {"name": "uap", "radius": 0.1}}, "must have variables for each image"),
        ({"classifier": {"model": "standard"}}, "must name a part"),
        ({"transform": {"name": "rt2", "sigma": -1.0}}, "sigma=-1.0 must be 0 or larger"),
    ],
)
def test_broken_rules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        atop(made()[0], **({"classifier": PART, "transform": RT2, "attack": FGSM} | options))


def test_an_unknown_transform_is_named():
    with pytest.raises(ConfigError, match=r"recipe\.transform\.name='rt4' is not a known transform"):
        purifier(made()[0], {"name": "rt4"})
