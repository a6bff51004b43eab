"""Robust accuracy of the same weights under our attacks and under those of other libraries."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from spa_jax.attacks.base import PureAttack
from spa_jax.attacks.catalogue import attack_from_config
from spa_jax.benchmarks.peers import REQUIREMENTS, Peer, Task, check_peers, make_peer, task_of
from spa_jax.benchmarks.speed import Row
from spa_jax.configuration import build, check_keys, check_spec
from spa_jax.data import Dataset, arrays_of, load_dataset, steps_per_epoch, train_batches
from spa_jax.evaluation.sweep import evenly_spaced
from spa_jax.models import create_model
from spa_jax.parallel import data_mesh, replicate, shard_batch
from spa_jax.training.learner import Learner
from spa_jax.training.optimizers import one_cycle
from spa_jax.training.placement import make_engine
from spa_jax.training.recipes import STEPS
from spa_jax.trees import one_ahead
from spa_jax.victims import Classifier, call

STRENGTH_SCHEMA: Mapping[str, Any] = {
    "model": Mapping,
    "batch_size": int,
    "learning_rate": float,
    "victims": Mapping,
    "num_images": int,
    "seeds": tuple | list,
    "attacks": Mapping,
}
_VICTIM_SCHEMA: Mapping[str, Any] = {"recipe": Mapping, "num_epochs": float, "radius": float}
_ATTACK_SCHEMA: Mapping[str, Any] = {"attack": Mapping, "peers": tuple | list}
_ROUNDING = 1e-6


def check_strength(section: Mapping[str, Any]) -> None:
    """Check the section `strength` of a config before anything is read or trained.

    Raises:
        ConfigError: an unknown or missing key, name or library.
        ValueError: a number out of range.
    """
    check_keys(section, STRENGTH_SCHEMA, "config.strength")
    check_victims(section, "config.strength")
    for name, match in section["attacks"].items():
        check_keys(match, _ATTACK_SCHEMA, f"config.strength.attacks.{name}")
        attack_from_config(dict(match["attack"]) | {"radius": 0.0})
        check_peers(match["peers"])


def check_victims(section: Mapping[str, Any], path: str, schema: Mapping[str, Any] | None = None) -> None:
    """Check the `victims` of a section: what `train_victim` takes.

    Args:
        section: the section.
        path: where it stands.
        schema: of a victim. Default: a recipe, epochs, and the radius that it is attacked at.

    Raises:
        ConfigError: an unknown or missing key or name.
    """
    for name, victim in section["victims"].items():
        check_keys(victim, schema or _VICTIM_SCHEMA, f"{path}.victims.{name}")
        check_spec(STEPS, victim["recipe"], "recipe", f"{path}.victims.{name}.recipe", ("learner",))


def compare_strength(section: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> list[Row]:
    """Train each victim, attack the same test images with ours and theirs, judge all by the Flax network.

    Peers get the radius, steps and step size of the attack that they are set against. An image outside of the ball or
    of [0, 1] by more than 1e-6 fools nobody.

    Args:
        section: see `STRENGTH_SCHEMA`; attacks are without their radius, which is the victim's.
        data: arguments of `load_dataset`.
        seed: of the training.

    Returns:
        One row for each victim, attack and library: `clean_accuracy`; `robust_accuracy`, the mean over the seeds of
        the random start (`by_seed`); `all_seeds`, the share of images that survive every seed; by how many points
        ours is higher in the one and in the other (`ours_minus_theirs`, `all_seeds_minus_theirs`; above 0 our attack
        is the weaker one); `logits_off`, the largest difference of the PyTorch form's logits on the clean images, for
        peers that attack it.
    """
    dataset = load_dataset(**data)
    rows = []
    for name, spec in section["victims"].items():
        learner, victim = train_victim(section, spec, dataset, seed)
        rows += [{"victim": name} | row for row in _attack_victim(section, spec["radius"], learner, victim, dataset)]
    return rows


def train_victim(
    section: Mapping[str, Any], spec: Mapping[str, Any], dataset: Dataset, seed: int
) -> tuple[Learner, Classifier]:
    """A network trained by a recipe with Adam and a one-cycle schedule, on all devices."""
    total = round(spec["num_epochs"] * steps_per_epoch(dataset.train, section["batch_size"]))
    model = create_model(num_classes=dataset.num_classes, input_shape=dataset.image_shape, **section["model"])
    learner = Learner(model, optax.adam(one_cycle(total, section["learning_rate"])))
    recipe = functools.partial(build, STEPS, spec["recipe"], "recipe", "config.strength.victims.recipe")
    engine = make_engine("jit", data_mesh(), learner, lambda learner: recipe(learner=learner))
    init_key, train_key = jax.random.split(jax.random.key(seed))
    state = engine.place_state(learner.init(init_key, dataset.image_shape))
    train_key = engine.place_state(train_key)
    before: Any = None
    for _, batch in zip(range(total), train_batches(dataset.train, section["batch_size"], seed=seed), strict=False):
        state, metrics = engine.step(state, engine.place_batch(batch), train_key)
        before = one_ahead(before, metrics)
    return learner, learner.victim(state)


def _attack_victim(
    section: Mapping[str, Any], radius: float, learner: Learner, victim: Classifier, dataset: Dataset
) -> list[Row]:
    x, y = arrays_of(evenly_spaced(dataset.test, section["num_images"]))
    judge = functools.partial(_survivors, victim, x, y, radius)
    rows = []
    for name, match in section["attacks"].items():
        spec = dict(match["attack"]) | {"radius": radius}
        attack = attack_from_config(spec)
        ask = functools.partial(task_of, spec, learner.model, victim.variables, dataset.image_shape)
        common = {"radius": radius, "images": len(x), "attack": name, "clean_accuracy": float(judge(x).mean())}
        ours = [judge(_ours(attack, victim, seed)(x, y)) for seed in section["seeds"]]
        rows.append(common | {"library": "spa_jax"} | _compared(ours, ours))
        for peer in match["peers"]:
            theirs = [judge(make_peer(peer, ask(seed=seed))(x, y)) for seed in section["seeds"]]
            off = {"logits_off": logits_off(victim, ask(seed=0), x) if "torch" in REQUIREMENTS[peer] else None}
            rows.append(common | {"library": peer} | _compared(ours, theirs) | off)
    return rows


def _compared(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> Row:
    """What two attacks leave, each by seed and image, in the words of `compare_strength`."""
    return {
        "robust_accuracy": float(np.mean(theirs)),
        "by_seed": [float(survivors.mean()) for survivors in theirs],
        "all_seeds": float(np.all(theirs, axis=0).mean()),
        "ours_minus_theirs": _points(np.mean(ours, axis=0), np.mean(theirs, axis=0)),
        "all_seeds_minus_theirs": _points(np.all(ours, axis=0), np.all(theirs, axis=0)),
    }


def _points(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(100 * (ours.mean() - theirs.mean()))


def logits_off(victim: Classifier, task: Task, x: np.ndarray) -> float:
    """The largest difference of the PyTorch form's logits on images [n, h, w, c]."""
    import torch

    theirs = task.torch_module()(torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)).numpy()
    return float(np.abs(theirs - logits_of(victim, x)).max())


def _ours(attack: PureAttack, victim: Classifier, seed: int) -> Peer:
    def run(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        mesh = data_mesh()
        x, y = shard_batch((images, labels), mesh)
        return np.asarray(attack(jax.random.key(seed), replicate(victim, mesh), x, y).x)

    return run


def _survivors(victim: Classifier, x: np.ndarray, y: np.ndarray, radius: float, adversarial: np.ndarray) -> np.ndarray:
    farthest = np.abs(adversarial - x).max(axis=(1, 2, 3))
    outside = np.maximum(-adversarial, adversarial - 1).max(axis=(1, 2, 3))
    valid = (farthest <= radius + _ROUNDING) & (outside <= _ROUNDING)
    right = np.asarray(jax.numpy.argmax(logits_of(victim, adversarial), -1)) == y
    return right | ~valid


@jax.jit
def logits_of(victim: Classifier, images: Any) -> Any:
    """The victim's logits [n, k] of images [n, h, w, c]."""
    return call(victim, None, images)
