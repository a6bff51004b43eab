"""Two-stage training against universal perturbations, and free adversarial training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax import attack_from_config, losses
from spa_jax.training.learner import Learner
from spa_jax.training.recipes import RECIPES, Start, free, region, universal
from spa_jax.training.recipes.universal import carry_universal, with_one_of
from spa_jax.types import Example
from tests.training.conftest import assert_trees_close, run_steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE, RADIUS = (6, 6, 3), 0.1
UAP = {"name": "uap", "radius": RADIUS, "rel_step_size": 0.5}
CB_UAP = {"name": "cb_uap", "radius": RADIUS, "rel_step_size": 0.5, "decay": 0.5}
PGD = {"name": "pgd", "radius": RADIUS, "rel_step_size": 1.0, "num_steps": 1, "random_start": False}
HALVES = {"name": "cross_entropy", "clean_weight": 0.5, "attacked_weight": 0.5}
CLEAN = {"name": "cross_entropy", "clean_weight": 1.0, "attacked_weight": 0.0}


def train(learner, recipe, batch, engine="jit", devices=1, steps=2):
    slot = RECIPES[recipe.func.__name__].init(Start(learner, jax.random.key(3), 16, SHAPE), **recipe.keywords)
    start = learner.init(jax.random.key(0), SHAPE).replace(carried=slot)
    return run_steps(learner, recipe, start, batch, engine, devices, steps)


def numbers(state):
    """The state's arrays without its keys."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [leaf for leaf in jax.tree.leaves(state) if not is_key(leaf)]


@pytest.mark.parametrize(
    "recipe",
    [
        functools.partial(universal, attack=CB_UAP, outer=HALVES, steps=2, every=2, members=2),
        pytest.param(
            functools.partial(universal, attack=UAP | {"classes": 10}, outer="trades"), marks=pytest.mark.slow
        ),
        pytest.param(functools.partial(free, attack=UAP), marks=pytest.mark.slow),
        functools.partial(free, attack=PGD, outer=HALVES, replays=2),
    ],
    ids=["class-balanced", "class-wise", "simultaneous", "free"],
)
def test_one_device_and_eight_and_either_engine_reach_the_same_state(recipe, tiny_net, batch):
    learner = Learner(tiny_net, optax.sgd(0.1))
    reference, metrics = train(learner, recipe, batch)
    assert all(np.isfinite(value) for value in metrics[-1].values())
    for engine in ("jit", "pmap"):
        assert_trees_close(numbers(train(learner, recipe, batch, engine, 8)[0]), numbers(reference))


def examples_of(learner, state, batch):
    return learner.examples(state, batch, jax.random.key(1))


def test_two_stages_are_a_sign_step_at_the_old_weights_and_a_descent_on_the_moved_images(plain_net, batch):
    learner = Learner(plain_net, optax.sgd(0.1))
    start = learner.init(jax.random.key(0), SHAPE)
    state, _ = train(learner, functools.partial(universal, attack=UAP), batch, steps=1)
    examples = examples_of(learner, start, batch)
    weight = examples.weight / examples.weight.sum()

    def loss(params, noise):
        logits = plain_net.apply({"params": params}, jnp.clip(examples.image + noise[None], 0, 1))
        return jnp.sum(weight * losses.cross_entropy(logits, examples))

    noise = 0.5 * RADIUS * jnp.sign(jax.grad(loss, 1)(start.params, jnp.zeros(SHAPE)))
    np.testing.assert_allclose(state.carried.shared.variables[0], noise, atol=1e-6)
    descent = jax.grad(loss)(start.params, noise)
    assert_trees_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, start.params, descent))


def test_rounds_move_one_member_after_the_other(plain_net, batch):
    recipe = functools.partial(universal, attack=UAP, every=2, members=2)
    moved = []
    for steps in (1, 2, 3, 4):
        state, _ = train(Learner(plain_net, optax.sgd(0.1)), recipe, batch, steps=steps)
        moved.append(list(state.carried.shared.step))
    assert moved == [[1, 0], [1, 0], [1, 1], [1, 1]]


def test_a_reset_starts_each_round_anew(plain_net, batch):
    recipe = functools.partial(universal, attack=UAP, reset=True)
    state, _ = train(Learner(plain_net, optax.sgd(0.0)), recipe, batch, steps=4)
    assert np.abs(state.carried.shared.variables).max() == pytest.approx(0.5 * RADIUS)
    kept, _ = train(Learner(plain_net, optax.sgd(0.0)), functools.partial(universal, attack=UAP), batch, steps=4)
    assert np.abs(kept.carried.shared.variables).max() == pytest.approx(RADIUS)


@pytest.mark.parametrize("attack", [PGD, UAP | {"rel_step_size": 1.0}], ids=["free", "simultaneous"])
def test_one_gradient_moves_weights_and_noise(attack, plain_net, batch):
    learner = Learner(plain_net, optax.sgd(0.1))
    start = learner.init(jax.random.key(0), SHAPE)
    state, _ = train(learner, functools.partial(free, attack=attack), batch, steps=2)
    shape = SHAPE if attack["name"] == "uap" else (16, *SHAPE)
    params, noise = start.params, jnp.zeros(shape)
    for step in range(2):
        examples = examples_of(learner, start.replace(step=step), batch)
        weight = examples.weight / examples.weight.sum()

        def loss(params, noise, examples=examples, weight=weight):
            noise = jnp.broadcast_to(noise, examples.image.shape)
            logits = plain_net.apply({"params": params}, jnp.clip(examples.image + noise, 0, 1))
            return jnp.sum(weight * losses.cross_entropy(logits, examples))

        if noise.ndim == 4:
            noise = jnp.clip(noise, -examples.image, 1 - examples.image)
        down, up = jax.grad(loss, (0, 1))(params, noise)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, down)
        noise = jnp.clip(noise + RADIUS * jnp.sign(up), -RADIUS, RADIUS)
        if noise.ndim == 4:
            noise = jnp.clip(noise, -examples.image, 1 - examples.image)
    found = state.carried.shared["attack"].variables if attack["name"] == "uap" else state.carried.per_example
    np.testing.assert_allclose(found, noise, atol=1e-6)
    assert_trees_close(state.params, params)


def test_replays_are_updates_on_one_batch(plain_net, batch):
    learner = Learner(plain_net, optax.sgd(optax.linear_schedule(0.1, 0.0, 4)))
    recipe = functools.partial(free, attack=PGD, replays=3)
    assert [int(train(learner, recipe, batch, steps=steps)[0].step) for steps in (2, 3, 5)] == [0, 1, 1]
    state, _ = train(learner, recipe, batch, steps=3)
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert counts == [3]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (functools.partial(universal, attack=UAP, every=0), "every=0 must be an integer of at least 1"),
        (
            functools.partial(universal, attack={"name": "deepfool_uap", "radius": 0.1}),
            "carries one of uap, cb_uap",
        ),
        (functools.partial(universal, attack=UAP, outer="spa"), "sees edited images"),
        (functools.partial(free, attack=UAP, outer=CLEAN), "sees no attacked images: give it an attacked_weight"),
        (functools.partial(universal, attack=UAP, outer=CLEAN), "sees no attacked images"),
        (functools.partial(region, model={"part": "trained"}, radius=0.1, outer=CLEAN), "sees no attacked images"),
        (functools.partial(free, attack={"name": "spa", "radius": 0.1}), "free training follows one gradient"),
        (functools.partial(free, attack=PGD, replays=0), "replays=0 must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_is_refused(recipe, message, plain_net):
    with pytest.raises(ValueError, match=message):
        recipe(Learner(plain_net, optax.sgd(0.1)))


def test_examples_meet_members_at_random(plain_net, batch):
    """With two members that differ, some images of a batch meet the one and some the other."""
    learner = Learner(plain_net, optax.sgd(0.1))
    attack = UAP | {"random_start": True}
    slot = carry_universal(Start(learner, jax.random.key(0), 16, SHAPE), attack=attack, members=2)
    examples = Example(jnp.full((16, *SHAPE), 0.5), key=jax.random.split(jax.random.key(2), 16))
    images = with_one_of(attack_from_config(attack), slot.shared.variables, 2, examples)
    of_first = [np.allclose(image, 0.5 + slot.shared.variables[0], atol=1e-6) for image in images]
    of_second = [np.allclose(image, 0.5 + slot.shared.variables[1], atol=1e-6) for image in images]
    assert 0 < sum(of_first) < 16 and sum(of_first) + sum(of_second) == 16
