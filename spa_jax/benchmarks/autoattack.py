"""AutoAttack of ours, its authors and torchattacks on the same weights: what each breaks, and how long it takes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import numpy as np

from spa_jax.attacks.cascade import autoattack_parts
from spa_jax.attacks.minimal_norm import DISTANCES
from spa_jax.benchmarks.peers import check_peers, seed_libraries, to_torch_images
from spa_jax.benchmarks.speed import Row
from spa_jax.benchmarks.strength import check_victims, logits_of, train_victim
from spa_jax.benchmarks.torch_port import to_torch
from spa_jax.benchmarks.workers import Spec, time_in_turns
from spa_jax.configuration import check_keys
from spa_jax.data import arrays_of, load_dataset
from spa_jax.data.types import Split
from spa_jax.evaluation.cascade import autoattack
from spa_jax.evaluation.sweep import evenly_spaced
from spa_jax.models import create_model
from spa_jax.validation import require_choice, require_count
from spa_jax.victims import Classifier, classifier

AUTOATTACK_SCHEMA: Mapping[str, Any] = {
    "model": Mapping,
    "batch_size": int,
    "learning_rate": float,
    "victims": Mapping,
    "norm": str,
    "num_images": int,
    "seeds": tuple | list,
    "devices": int,
    "give_up_after": tuple | list,
    "peers": tuple | list,
}
"""Section `autoattack`: a victim has a `recipe`, `num_epochs` and the `radius` that it is attacked at.

Ours runs as it is, and once more for each of `give_up_after`.
"""
AUTOATTACK_REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "torchattacks_autoattack": ("torch", "torchattacks"),
    "torchattacks_100_steps": ("torch", "torchattacks"),
    "autoattack_authors": ("torch", "autoattack"),
}
"""The libraries that the other evaluations import."""
_NORMS: Mapping[str, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}
"""What the others call the norms."""
_NORMS_OF_TORCHATTACKS = ("linf", "l2")
_Built: TypeAlias = tuple[Row, Mapping[str, Callable[[], Any]]]
_Named: TypeAlias = tuple[str, Callable[[Any, Any], Any]]
"""An attack on images and labels in PyTorch, and what it is called."""
_ROUNDING = 1e-5
_IMAGES_PER_DEVICE = 128
_HERE = "spa_jax.benchmarks.autoattack"


class _Part(NamedTuple):
    name: str
    broken: int
    seconds: float


def check_autoattack(section: Mapping[str, Any]) -> None:
    """Check the section `autoattack` of a config before anything is read or trained.

    Raises:
        ConfigError: an unknown or missing key, name or library.
        ValueError: a number out of range, or a norm that one of the libraries does not have.
    """
    check_keys(section, AUTOATTACK_SCHEMA, "config.autoattack")
    check_victims(section, "config.autoattack")
    of_torchattacks = any("torchattacks" in AUTOATTACK_REQUIREMENTS.get(peer, ()) for peer in section["peers"])
    require_choice("norm", section["norm"], _NORMS_OF_TORCHATTACKS if of_torchattacks else tuple(_NORMS))
    for name in ("num_images", "devices"):
        require_count(name, section[name])
    for count in section["give_up_after"]:
        require_count("give_up_after", count)
    for victim in section["victims"].values():
        autoattack_parts(victim["radius"], section["norm"])
    check_peers(section["peers"], AUTOATTACK_REQUIREMENTS)


def compare_autoattack(section: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """Train each victim, and evaluate it by all libraries on the same test images, each time in a fresh process.

    Args:
        section: see `AUTOATTACK_SCHEMA`.
        data: arguments of `load_dataset`.
        seed: of the training.

    Returns:
        One row for each victim, seed and library, the others' before ours: `robust_accuracy` on the images as the Flax
        network judges them, and of ours in points by how much it lies above that of each other (`above`); `seconds`,
        compilation included, and `again_s`, where it was run again in the same process; `times`, our seconds in units
        of theirs; `broken`, how many images each attack broke of those that the ones before it had left, and `part_s`,
        its seconds.
    """
    dataset = load_dataset(**data)
    x, y = arrays_of(evenly_spaced(dataset.test, section["num_images"]))
    for name, spec in section["victims"].items():
        _, victim = train_victim(section, spec, dataset, seed)
        task = {
            "model": dict(section["model"]) | {"num_classes": dataset.num_classes},
            "variables": jax.tree.map(np.asarray, victim.variables),
            "images": x,
            "labels": y,
            "radius": spec["radius"],
            "norm": section["norm"],
        }
        common = {"victim": name, "norm": section["norm"], "radius": spec["radius"], "images": len(x)}
        for own in section["seeds"]:
            for row in _compared(task | {"seed": own}, section):
                yield common | {"seed": own} | row


def _compared(task: Mapping[str, Any], section: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one victim and seed; a library after the other, so that none disturbs another."""
    theirs = {
        peer: _in_a_process({"build": f"{_HERE}:evaluate_{peer}", "devices": 1, **task}) for peer in section["peers"]
    }
    for peer, row in theirs.items():
        yield {"library": peer} | row
    for give_up_after in (None, *section["give_up_after"]):
        options = {"devices": section["devices"], "give_up_after": give_up_after}
        ours = _in_a_process({"build": f"{_HERE}:evaluate_ours", **options, **task})
        name = "spa_jax" if give_up_after is None else f"spa_jax, giving up after {give_up_after}"
        ratios = {
            "above": [f"{100 * (ours['robust_accuracy'] - row['robust_accuracy']):+.1f}" for row in theirs.values()],
            "times": [f"{ours['seconds'] / row['seconds']:.2f}" for row in theirs.values()],
        }
        yield {"library": name} | ours | ratios


def _in_a_process(spec: Spec) -> Row:
    return dict(time_in_turns({"it": spec}, 1)["it"].facts)


# --- in the processes -----------------------------------------------------------------------------------------------


def evaluate_ours(
    devices: int,
    give_up_after: int | None,
    model: Any,
    variables: Any,
    images: Any,
    labels: Any,
    radius: float,
    norm: str,
    seed: int,
) -> _Built:
    """Our evaluation, twice; see `workers.Build`."""
    victim = classifier(_network(model, images), variables)
    options: dict[str, Any] = {"batch_size": _IMAGES_PER_DEVICE * devices, "give_up_after": give_up_after}

    def run() -> tuple[float, Any]:
        started = time.perf_counter()
        card = autoattack(victim, Split(images, labels), radius, norm=norm, seed=seed, sanity=False, **options)
        return time.perf_counter() - started, card

    (first, card), (again, _) = run(), run()
    parts = [_Part(part.name, part.broken, part.seconds) for part in card.parts]
    return _row(card.clean.value, card.robust.value, first, parts) | {"again_s": again}, {}


def evaluate_torchattacks_autoattack(**task: Any) -> _Built:
    """That of torchattacks as it is, with 10 steps in its gradient attacks; see `workers.Build`."""
    return _torchattacks(None, **task)


def evaluate_torchattacks_100_steps(**task: Any) -> _Built:
    """The same with AutoAttack's 100 steps; see `workers.Build`."""
    return _torchattacks(100, **task)


def _torchattacks(num_steps: int | None, norm: str, radius: float, seed: int, **task: Any) -> _Built:
    def attacks_of(module: Any, classes: int) -> Iterator[_Named]:
        import torchattacks

        attack = torchattacks.AutoAttack(module, norm=_NORMS[norm], eps=radius, n_classes=classes, seed=seed)
        for part in attack._autoattack.attacks:
            if num_steps is not None and hasattr(part, "steps"):
                part.steps = num_steps
            yield type(part).__name__, part

    return _in_torch(attacks_of, norm=norm, radius=radius, seed=seed, **task)


def evaluate_autoattack_authors(norm: str, radius: float, seed: int, **task: Any) -> _Built:
    """That of AutoAttack's authors, all images in one batch; see `workers.Build`."""

    def attacks_of(module: Any, classes: int) -> Iterator[_Named]:
        from autoattack import AutoAttack

        attack = AutoAttack(module, norm=_NORMS[norm], eps=radius, seed=seed, verbose=False, device="cpu")
        for name in list(attack.attacks_to_run):

            def run(x: Any, y: Any, name: str = name) -> Any:
                attack.attacks_to_run = [name]
                return attack.run_standard_evaluation(x, y, bs=len(x))

            yield name, run

    return _in_torch(attacks_of, norm=norm, radius=radius, seed=seed, **task)


def _in_torch(
    attacks_of: Callable[[Any, int], Iterator[_Named]],
    devices: int,
    model: Any,
    variables: Any,
    images: Any,
    labels: Any,
    radius: float,
    norm: str,
    seed: int,
) -> _Built:
    """Attack by attack on what is left, as each library's loop does; `attacks_of` takes a module and its classes."""
    import torch

    seed_libraries(seed)
    network = _network(model, images)
    victim = classifier(network, variables)
    standing = _right(victim, images, labels)
    clean, parts = float(standing.mean()), []
    for name, attack in attacks_of(to_torch(network, variables, images.shape[1:]), int(model["num_classes"])):
        rows = np.flatnonzero(standing)
        if not len(rows):
            break
        x, y = to_torch_images(images[rows], False), torch.from_numpy(np.array(labels[rows], np.int64))
        started = time.perf_counter()
        found = attack(x, y).detach()
        seconds = time.perf_counter() - started
        found = found.permute(0, 2, 3, 1).contiguous().numpy()
        near = np.asarray(DISTANCES[norm](found, images[rows])) <= radius * (1 + _ROUNDING) + _ROUNDING
        left = _right(victim, found, labels[rows]) | ~near
        standing[rows] = left
        parts.append(_Part(name, int(np.sum(~left)), seconds))
    return _row(clean, float(standing.mean()), sum(part.seconds for part in parts), parts), {}


def _network(model: Mapping[str, Any], images: np.ndarray) -> nn.Module:
    return create_model(**model, input_shape=images.shape[1:])


def _right(victim: Classifier, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.argmax(np.asarray(logits_of(victim, images)), -1) == labels


def _row(clean: float, robust: float, seconds: float, parts: Sequence[_Part]) -> Row:
    return {
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "seconds": seconds,
        "broken": [f"{part.name} {part.broken}" for part in parts],
        "part_s": [round(part.seconds, 2) for part in parts],
    }
