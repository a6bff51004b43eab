"""Minimal-norm attacks of ours and of other libraries on the same weights: the median distance, and the passes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float

from spa_jax.attacks.base import PureAttack
from spa_jax.attacks.catalogue import attack_from_config
from spa_jax.attacks.minimal_norm import DISTANCES
from spa_jax.benchmarks.minimal_norm_peers import NORM_REQUIREMENTS, Found, NormPeer, make_norm_peer
from spa_jax.benchmarks.peers import Task, check_peers
from spa_jax.benchmarks.speed import Row
from spa_jax.benchmarks.strength import check_victims, logits_of, logits_off, train_victim
from spa_jax.configuration import check_keys
from spa_jax.data import arrays_of, load_dataset
from spa_jax.evaluation.sweep import evenly_spaced
from spa_jax.types import Images
from spa_jax.validation import require_count
from spa_jax.victims import Classifier, call

MINIMAL_NORM_SCHEMA: Mapping[str, Any] = {
    "model": Mapping,
    "batch_size": int,
    "learning_rate": float,
    "victims": Mapping,
    "num_images": int,
    "seeds": tuple | list,
    "attacks": Mapping,
}
"""Section `minimal_norm`: a victim has a `recipe` and `num_epochs`, an attack `attack` and `peers`."""
_VICTIM_SCHEMA: Mapping[str, Any] = {"recipe": Mapping, "num_epochs": float}
_ATTACK_SCHEMA: Mapping[str, Any] = {"attack": Mapping, "peers": tuple | list}
_ROUNDING = 1e-6

_Distances: TypeAlias = Float[np.ndarray, " n"]


def check_minimal_norm(section: Mapping[str, Any]) -> None:
    """Check the section `minimal_norm` of a config before anything is read or trained.

    Raises:
        ConfigError: an unknown or missing key, name or library.
        ValueError: a number out of range, or an attack that does not look for the nearest image.
    """
    path = "config.minimal_norm"
    check_keys(section, MINIMAL_NORM_SCHEMA, path)
    check_victims(section, path, _VICTIM_SCHEMA)
    require_count("num_images", section["num_images"])
    for name, match in section["attacks"].items():
        check_keys(match, _ATTACK_SCHEMA, f"{path}.attacks.{name}")
        if attack_from_config(match["attack"]).nearest_in is None:
            raise ValueError(f"{path}.attacks.{name}.attack does not look for the nearest image that fools")
        check_peers(match["peers"], NORM_REQUIREMENTS)


def compare_minimal_norm(section: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """Train each victim, and attack the same test images with ours and theirs in equally many steps.

    Args:
        section: see `MINIMAL_NORM_SCHEMA`.
        data: arguments of `load_dataset`.
        seed: of the training.

    Returns:
        The rows of `compare_on` for each victim.
    """
    dataset = load_dataset(**data)
    x, y = arrays_of(evenly_spaced(dataset.test, section["num_images"]))
    for name, spec in section["victims"].items():
        learner, victim = train_victim(section, spec, dataset, seed)
        for row in compare_on(section["attacks"], section["seeds"], learner.model, victim, x, y):
            yield {"victim": name} | row


def compare_on(
    attacks: Mapping[str, Any], seeds: Sequence[int], model: nn.Module, victim: Classifier, x: np.ndarray, y: np.ndarray
) -> Iterator[Row]:
    """Attack the images that a victim classifies correctly, and judge what is found by the Flax network.

    Args:
        attacks: by name, as in the section.
        seeds: of the attacks' draws.
        model: the Flax network.
        victim: the same with its weights.
        x, y: images [n, h, w, c] and labels [n].

    Returns:
        One row for each attack and library: `images`, how many are attacked; `median` distance, the mean over the
        seeds (`by_seed`), infinite distances of images that do not fool among them; `found`, the share that fools;
        `forwards` and `backwards` for each image and their sum `passes`; `times_theirs`, our median in units of theirs
        (above 1 our attack is the weaker one); `nearer` and `farther`, the shares of images for which ours is nearer or
        farther than theirs by more than a hundredth; `logits_off` as in `compare_strength`.
    """
    right = np.asarray(jax.numpy.argmax(logits_of(victim, x), -1)) == y
    x, y = x[right], y[right]
    for name, match in attacks.items():
        attack: Any = attack_from_config(match["attack"])
        norm, steps = attack.nearest_in, getattr(attack, "attack", attack).num_steps
        common = {"attack": name, "norm": norm, "images": len(x), "steps": steps}
        tasks = [Task(model, victim.variables, x.shape[1:], math.inf, 0.0, steps, seed) for seed in seeds]
        ours = _measured(norm, [_ours(attack, victim, seed) for seed in seeds], victim, x, y)
        yield common | {"library": "spa_jax"} | _compared(ours, ours)
        for peer in match["peers"]:
            theirs = _measured(norm, [make_norm_peer(peer, task) for task in tasks], victim, x, y)
            off = {"logits_off": logits_off(victim, tasks[0], x)}
            yield common | {"library": peer} | _compared(ours, theirs) | off


_Measured: TypeAlias = tuple[list[_Distances], float, float]
"""Distances by seed, and forward and backward passes for each image."""


def _measured(norm: str, runs: Sequence[NormPeer], victim: Classifier, x: np.ndarray, y: np.ndarray) -> _Measured:
    found = [run(x, y) for run in runs]
    distances = [_distances(norm, victim, x, y, one.images) for one in found]
    total = len(x) * len(found)
    return distances, sum(one.forwards for one in found) / total, sum(one.backwards for one in found) / total


def _distances(norm: str, victim: Classifier, x: np.ndarray, y: np.ndarray, images: np.ndarray) -> _Distances:
    """How far each image lies that fools and is in [0, 1], to 1e-6; infinity in the place of the others."""
    outside = np.maximum(-images, images - 1).max(axis=(1, 2, 3))
    fools = np.asarray(jax.numpy.argmax(logits_of(victim, images), -1)) != y
    return np.where(fools & (outside <= _ROUNDING), np.asarray(DISTANCES[norm](images, x)), np.inf)


def _compared(ours: _Measured, theirs: _Measured) -> Row:
    distances, forwards, backwards = theirs
    medians = [float(np.median(own)) for own in distances]
    median, own = float(np.mean(medians)), float(np.mean([np.median(one) for one in ours[0]]))
    return {
        "median": median,
        "by_seed": medians,
        "found": float(np.mean(np.isfinite(distances))),
        "forwards": forwards,
        "backwards": backwards,
        "passes": forwards + backwards,
        "times_theirs": own / median if math.isfinite(median) else None,
        "nearer": float(np.mean(np.less(ours[0], np.multiply(0.99, distances)))),
        "farther": float(np.mean(np.multiply(0.99, ours[0]) > distances)),
    }


# --- ours, counted --------------------------------------------------------------------------------------------------


def _ours(attack: PureAttack, victim: Classifier, seed: int) -> NormPeer:
    def run(images: np.ndarray, labels: np.ndarray) -> Found:
        _COUNT.update(forwards=0, backwards=0)
        found = attack(jax.random.key(seed), lambda images: call(victim, None, _counted(images)), images, labels)
        images = np.asarray(found.x)
        jax.effects_barrier()
        return Found(images, _COUNT["forwards"], _COUNT["backwards"])

    return run


_COUNT = {"forwards": 0, "backwards": 0}


def _tell(name: str, batch: Images) -> None:
    """Count the images of a batch when the program runs, once for each member of a `vmap` over batches."""

    size = len(batch)

    def tell(pixel: Any) -> None:
        _COUNT[name] += size

    jax.debug.callback(tell, batch[0, 0, 0, 0])


@jax.custom_vjp
def _counted(images: Images) -> Images:
    """The images; every pass through it is counted."""
    _tell("forwards", images)
    return images


def _counted_forward(images: Images) -> tuple[Images, None]:
    return _counted(images), None


def _counted_backward(_: None, gradient: Images) -> tuple[Images]:
    _tell("backwards", gradient)
    return (gradient,)


_counted.defvjp(_counted_forward, _counted_backward)
