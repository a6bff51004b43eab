"""Region adversarial training (RAT): fine-tuning on perturbations made once, against the network it starts from."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.attacks import PureAttack, deepfool_uap, uap
from spa_jax.evaluation.universal import craft, logits_of, nearest_to
from spa_jax.spaces import noise_ball
from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.recipes.base import Start
from spa_jax.training.recipes.universal import objective_without_edits
from spa_jax.training.state import Carried, TrainState
from spa_jax.types import Example, Images
from spa_jax.validation import require_choice, require_classes, require_count

_TARGET = 8
_CRAFTING_BATCH, _LOGITS_BATCH = 50, 500
_HALVES = {"name": "cross_entropy", "clean_weight": 0.5, "attacked_weight": 0.5}


def region(
    learner: Learner,
    model: Mapping,
    radius: float,
    targets: str | Sequence[int] = "all",
    norm: str = "linf",
    crafting: str = "gradient",
    num_images: int = 200,
    num_epochs: int = 20,
    success_share: float = 0.8,
    outer: str | Mapping = _HALVES,
) -> TrainStep:
    """A step of region adversarial training.

    Before training, one targeted universal perturbation is made for each target class, against a network trained
    before, from the images nearest to that class's region (`spa_jax.evaluation.boundary_points`). Each step then trains
    on images with one of them and their true labels: each image meets the perturbation of a random target that is not
    its own class, or stays as it is where there is none. Let the network start from the same one by
    `training.start_from`, and train on a small share of the data by `training.train_share`.

    Only the abstract is public (Xu et al., Knowledge-Based Systems 2021): it names targeted universal perturbations, a
    small set of images near the boundary, and retraining on them. All numbers here are our choice.

    Args:
        learner: network and optimiser.
        model: the network that perturbations are made against, `{"part": NAME}`.
        radius: of the perturbations, on the [0, 1] scale.
        targets: classes, or "all".
        norm: "linf" or "l2".
        crafting: "gradient", ascent on the mean of log p_t over batches; or "sequential", the accumulation of targeted
            DeepFool vectors image by image, which is slow.
        num_images: images near the boundary, for each target.
        num_epochs: passes over them, at most, for the sequential construction.
        success_share: 1 - delta, the share at which the sequential construction stops.
        outer: the outer objective; the default weighs clean and perturbed images alike.

    Raises:
        ConfigError: an unknown name or option.
        ValueError: a number out of range; an objective that sees edited images, or no attacked ones; targets that
            are not 'all' or some classes.
    """
    objective = objective_without_edits(outer)
    _check_targets(targets)
    _crafting_attack(crafting, radius, norm, num_epochs, success_share)
    require_count("num_images", num_images)
    space = noise_ball(norm, radius)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        examples = learner.examples(state, batch, key)
        images = {"clean": examples.image, "attacked": _perturbed(space, state.carried.shared, examples)}
        return learner.learn(state, objective, images, examples)

    return train_step


def carry_region(
    start: Start,
    model: Mapping,
    radius: float,
    targets: str | Sequence[int] = "all",
    norm: str = "linf",
    crafting: str = "gradient",
    num_images: int = 200,
    num_epochs: int = 20,
    success_share: float = 0.8,
    **_: Any,
) -> Carried:
    """The perturbations, [t, h, w, c], and the classes that they lead to, [t].

    Raises:
        ValueError: a target that is not a class, or near whose region there are no images.
    """
    attack = _crafting_attack(crafting, radius, norm, num_epochs, success_share)
    victim = start.parts[model["part"]]
    chosen = _chosen(targets, jax.eval_shape(victim, jnp.zeros((1, *start.image_shape))).shape[-1])
    if start.is_resumed:
        return Carried({"noise": jnp.zeros((len(chosen), *start.image_shape)), "target": chosen})
    logits, labels = logits_of(victim, start.train, key=start.key, batch_size=_LOGITS_BATCH)
    sequential = crafting == "sequential"
    made = []
    for target in chosen.tolist():
        own = jax.random.fold_in(start.key, target)
        images = start.train.subset(nearest_to(logits, labels, target, num_images))
        size = len(images) if sequential else _CRAFTING_BATCH
        state = craft(attack, victim, images, key=own, target=target, batch_size=size, num_epochs=num_epochs)
        made.append(attack.found(state))
    return Carried({"noise": jnp.stack(made), "target": chosen})


def _check_targets(targets: str | Sequence[int]) -> None:
    if not len(targets) or (isinstance(targets, str) and targets != "all"):
        raise ValueError(f"targets={targets!r} must be 'all' or some classes")


def _chosen(targets: str | Sequence[int], classes: int) -> Any:
    if isinstance(targets, str):
        return jnp.arange(classes)
    require_classes("targets", targets, classes)
    return jnp.asarray(targets, jnp.int32)


def _crafting_attack(crafting: str, radius: float, norm: str, num_epochs: int, success_share: float) -> Any:
    require_choice("crafting", crafting, ("gradient", "sequential"))
    require_count("num_epochs", num_epochs)
    sequential: PureAttack = deepfool_uap(radius, num_epochs, norm, success_share)
    return sequential if crafting == "sequential" else uap(radius, norm=norm, loss="cross_entropy")


def _perturbed(space: Any, made: Any, examples: Example) -> Images:
    """Each image with the perturbation of a random target that is not its class."""

    def one(example: Example) -> Any:
        others = made["target"] != example.label
        index = jax.random.categorical(jax.random.fold_in(example.key, _TARGET), jnp.where(others, 0.0, -jnp.inf))
        changed = space.apply(made["noise"][index], example)
        return jnp.where(jnp.any(others), changed, example.image)

    return jax.vmap(one)(examples.replace(weight=None))
