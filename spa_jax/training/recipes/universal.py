"""Training against perturbations that outlive a batch: universal ones in two stages, and free adversarial training."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.attacks import attack_from_config
from spa_jax.attacks.iterative import IterativeAttack, not_shown
from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.outer import outer_from_spec
from spa_jax.training.recipes.adversarial import against
from spa_jax.training.recipes.base import Start
from spa_jax.training.state import Carried, TrainState
from spa_jax.trees import branch, repeat
from spa_jax.types import Evaluation, Example, Images, NonFinite
from spa_jax.validation import require_count

_MEMBER = 7
_UNIVERSAL = ("uap", "cb_uap")


def universal(
    learner: Learner,
    attack: Mapping,
    outer: str | Mapping = "cross_entropy",
    steps: int = 1,
    every: int = 1,
    members: int = 1,
    reset: bool = False,
) -> TrainStep:
    """A step of two-stage training against universal perturbations.

    Stage one moves a perturbation with the network frozen in inference mode; stage two trains the network on images
    with it. With `attack={"name": "cb_uap", ...}` this is CB-UAP's training: its objective is not the negative of the
    training loss, so the two stages are no game of one value. With "uap" it is universal adversarial training
    (Shafahi et al. 2020, algorithm 3), and with "uap" and `classes` class-wise training (Benz et al. 2021). Only the
    abstract of CB-UAP is public: rounds, banks and defaults are our choice.

    A batch costs, beside its own passes, `steps / every` forward and backward passes for the perturbation.

    Args:
        learner: network and optimiser.
        attack: a universal attack, "uap" or "cb_uap".
        outer: the outer objective, by name or `{"name": "cross_entropy", "clean_weight": 0.5, "attacked_weight": 0.5}`.
        steps: of the perturbation in a round, on the round's first batch.
        every: batches of a round.
        members: perturbations kept; rounds move one after the other, and each image meets one at random.
        reset: start each round from the attack's start instead of from where the perturbation was.

    Raises:
        ConfigError: an unknown name or option.
        ValueError: a number below 1; an attack with variables for each image; an objective that sees edited images, or
            no attacked ones.
    """
    objective = objective_without_edits(outer)
    for name, value in {"steps": steps, "every": every, "members": members}.items():
        require_count(name, value)
    perturbing = _universal_attack(learner, attack)

    def moved(state: TrainState, examples: Example, key: Any) -> Any:
        """The states of all perturbations after stage one."""
        one, examples = against(learner, learner.grown(perturbing, state), objective, state, examples)
        arguments = (learner.victim(state), examples.image, examples.label)
        extra = {"weight": examples.weight, "reference": examples.reference}

        def move(own: Any) -> Any:
            if reset:
                start = jax.random.fold_in(key, state.step)
                own = one.init(start, *arguments, **extra)
            own = one.step(own, *arguments, **extra)
            return repeat(lambda own: one.step(own, *arguments, **extra), own, steps - 1) if steps > 1 else own

        member = (state.step // every) % members
        own = jax.tree.map(lambda leaf: leaf[member], state.carried.shared)
        is_first = (state.step % every == 0).astype(jnp.int32)
        own = move(own) if every == 1 else branch(is_first, [lambda own: own, move], own)
        return jax.tree.map(lambda leaf, new: leaf.at[member].set(new), state.carried.shared, own)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        examples = learner.examples(state, batch, key)
        carried = jax.lax.stop_gradient(moved(state, examples, key))
        perturbed = with_one_of(learner.grown(perturbing, state), carried.variables, members, examples)
        images = {"clean": examples.image, "attacked": perturbed}
        state, metrics = learner.learn(state, objective, images, examples)
        return state.replace(carried=Carried(carried)), metrics

    return train_step


def carry_universal(start: Start, attack: Mapping, members: int = 1, **_: Any) -> Carried:
    """The states of the perturbations before the first step, stacked."""
    perturbing = _universal_attack(start.learner, attack)
    states = [_begin(start, perturbing, jax.random.fold_in(start.key, i)) for i in range(members)]
    return Carried(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def free(learner: Learner, attack: Mapping, outer: str | Mapping = "cross_entropy", replays: int = 1) -> TrainStep:
    """A step of free adversarial training: one backward pass moves the network and the perturbation.

    Each batch is shown `replays` times, each time with the perturbation as it then is, and the gradient of the one
    training loss updates the weights downwards and the perturbation upwards. The step that this returns is one of
    these; the state's step counts batches.

    | training | `attack` | `replays` |
    |---|---|---|
    | free adversarial training (Shafahi et al. 2019, algorithm 1) | "pgd": noise stays at its place of the batch | 8 |
    | simultaneous universal training (Shafahi et al. 2020) | "uap" | 1 |

    It costs `replays` forward and backward passes a batch, as many as `replays` batches of standard training.

    Args:
        learner: network and optimiser; its schedule counts the updates of all replays.
        attack: "pgd" or "uap", of which the space and the step size are used; `rel_step_size=1` is the papers'.
        outer: the outer objective, by name; what the perturbation maximises too.
        replays: updates on one batch, at least 1.

    Raises:
        ConfigError: an unknown name or option.
        ValueError: `replays` below 1; an attack of several stages; an objective that sees edited images, or no attacked
            ones.
    """
    objective = objective_without_edits(outer)
    require_count("replays", replays)
    perturbing = _single_stage(learner, attack)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        examples, grown = learner.examples(state, batch, key), learner.grown(perturbing, state)
        own = _own_state(perturbing, state, examples)
        own = own._replace(variables=grown.space.project(own.variables, examples))

        def loss(params: Any, variables: Any) -> Any:
            images = {"clean": examples.image, "attacked": grown.space.apply(variables, examples)}
            values, logits, statistics, seen = learner.weigh(params, state, objective, images, examples)
            fooled, zeros = grown.goal(logits["attacked"], examples), jnp.zeros(len(values), jnp.int32)
            evaluation = Evaluation(values, fooled, logits["attacked"], NonFinite(zeros, zeros))
            return learner.average(values, examples.weight), (statistics, seen, evaluation)

        moved, metrics, (evaluation, gradient) = learner.descend_beside(state, own.variables, loss)
        gradient = learner.total(gradient) if grown.shared else gradient
        after = jax.lax.stop_gradient(grown.follow(own, examples, evaluation, gradient))
        turn = state.carried.shared["turn"]
        shared = {"turn": (turn + 1) % replays, "attack": after if grown.shared else None}
        carried = Carried(shared, None if grown.shared else after.variables)
        step = state.step + (turn == replays - 1).astype(state.step.dtype)
        return moved.replace(step=step, carried=carried), metrics

    return train_step


def carry_free(start: Start, attack: Mapping, **_: Any) -> Carried:
    """The perturbation before the first step: the attack's state, or no noise at each place of the batch."""
    perturbing = _single_stage(start.learner, attack)
    turn = jnp.zeros((), jnp.int32)
    if perturbing.shared:
        return Carried({"turn": turn, "attack": _begin(start, perturbing, start.key)})
    blank = Example(jnp.full((start.batch_size, *start.image_shape), 0.5), jnp.zeros(start.batch_size, jnp.int32))
    return Carried({"turn": turn, "attack": None}, perturbing.space.identity(blank))


def replays_of(replays: int = 1, **_: Any) -> int:
    """How many updates of the weights free training makes on a batch."""
    return replays


def objective_without_edits(outer: str | Mapping) -> Any:
    """The outer objective of a recipe that has clean and attacked images alone.

    Raises:
        ValueError: it sees edited images, or no attacked ones.
    """
    objective = outer_from_spec(outer)
    if "attacked" not in objective.images:
        raise ValueError(f"outer={outer!r} sees no attacked images: give it an attacked_weight larger than 0")
    if "edited" in objective.images:
        raise ValueError(f"outer={outer!r} sees edited images: only the recipe 'adversarial' makes them")
    return objective


def _universal_attack(learner: Learner, attack: Mapping) -> Any:
    if attack.get("name") not in _UNIVERSAL:
        raise ValueError(f"attack={dict(attack)!r}: universal training carries one of {', '.join(_UNIVERSAL)}")
    return attack_from_config({**attack, "axis_name": learner.axis_name})


def _single_stage(learner: Learner, attack: Mapping) -> Any:
    if attack.get("name") == "uap":
        return _universal_attack(learner, attack)
    perturbing = attack_from_config({**attack, "keep": "last"})
    if not isinstance(perturbing, IterativeAttack) or len(perturbing.stages) > 1:
        raise ValueError(f"attack={dict(attack)!r}: free training follows one gradient, such as that of 'pgd' or 'uap'")
    return perturbing


def _begin(start: Start, attack: Any, key: Any) -> Any:
    """The state of an attack that has not met an image yet."""
    state = start.learner.init(jax.random.key(0), start.image_shape)
    images, labels = jnp.full((1, *start.image_shape), 0.5), jnp.zeros(1, jnp.int32)
    return _without_axis(attack).init(key, start.learner.victim(state), images, labels)


def _without_axis(attack: Any) -> Any:
    """Outside of the mapped program there is no axis to sum over."""
    return dataclasses.replace(attack, space=dataclasses.replace(attack.space, axis_name=None))


def _own_state(attack: Any, state: TrainState, examples: Example) -> Any:
    if attack.shared:
        return state.carried.shared["attack"]
    fresh = attack.start(examples.key, not_shown, examples)[1]
    return fresh._replace(variables=state.carried.per_example)


def with_one_of(attack: Any, variables: Any, members: int, examples: Example) -> Images:
    """Each image with one of the perturbations, drawn by its key."""
    if members == 1:
        index = jnp.zeros(len(examples.image), jnp.int32)
    else:
        drawn = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, _MEMBER), (), 0, members))
        index = drawn(examples.key)
    own = jax.tree.map(lambda leaf: leaf[index], variables)
    return jax.vmap(attack.space.space.apply)(own, examples)
