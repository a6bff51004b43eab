"""Accuracy on clean and on attacked images of a whole split, each attacked image judged anew."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spa_jax.data.types import Examples
from spa_jax.evaluation.changes import attack_distances, attribute_spaces, attribute_values, names_of_numbers
from spa_jax.evaluation.description import describe, flatten
from spa_jax.evaluation.records import (
    AttackRecord,
    AttributeValues,
    Distance,
    ExampleFlags,
    ExampleLabels,
    ModelReport,
)
from spa_jax.evaluation.sweep import DeviceBatch, Progress, Sweep, example_keys, make_sweep, stream
from spa_jax.inputs import check_victim
from spa_jax.parallel import replicate
from spa_jax.trees import as_pytree
from spa_jax.types import Attack, Flags, Images, Key, Labels, Predict

_ROUNDING = 1e-6
_RESERVED_NAMES = ("clean", "worst_case")


def evaluate(
    predict: Predict,
    split: Examples,
    attacks: Mapping[str, Attack],
    *,
    key: Key,
    batch_size: int,
    mesh: Mesh | None = None,
    survivors_only: bool = True,
    on_batch: Progress | None = None,
) -> ModelReport:
    """Classify every example of a split as it is and under each attack.

    An attack's own word for its success is not taken: the victim classifies each attacked image anew, with fresh keys,
    and an image that is not finite or not in [0, 1] (to 1e-6) is no success. Logits with a NaN are wrong. An example
    that is misclassified clean counts as wrong under every attack.

    Every random draw is keyed by `key`, the attack's name and the example's index in the split, so batch size, devices
    and the other attacks do not matter, apart from float rounding. Models of one architecture whose weights are leaves
    (`spa_jax.classifier`) share the compiled programs.

    Args:
        predict: the victim.
        split: the examples.
        attacks: per-example, untargeted attacks by name.
        key: of the whole evaluation.
        batch_size: examples at once over all devices; rounded up to a multiple of their number.
        mesh: the devices. Default: all of them.
        survivors_only: True runs a cascade: each attack only on what all before it have left, which gives the worst
            case for the least work, and for each attack the worst case so far. False runs each attack on everything
            classified correctly clean, which gives its own accuracy too.
        on_batch: called with the attack's name ("clean" at first), examples done and examples in all.

    Raises:
        ValueError: a broken rule, naming the value: empty split, an attack that is targeted, universal or called
            "clean" or "worst_case", labels out of range, images outside of [0, 1], a victim that returns no logits.
    """
    for name, attack in attacks.items():
        _check_attack(name, attack)
    sweep = make_sweep(split, batch_size, mesh, on_batch)
    predict = replicate(as_pytree(predict), sweep.mesh)
    clean, labels = _classify_clean(predict, sweep, key)
    records = {}
    standing = clean
    for name, attack in attacks.items():
        candidates = standing if survivors_only else clean
        records[name] = _attack_all(name, attack, predict, sweep, key, candidates)
        standing = standing & records[name].correct
    return ModelReport(labels, clean, records, survivors_only)


def _check_attack(name: str, attack: Attack) -> None:
    if name in _RESERVED_NAMES:
        raise ValueError(f"attacks hold the name {name!r}, which the report uses for itself")
    if not callable(attack):
        raise ValueError(f"attacks[{name!r}]={attack!r} must be an attack (key, predict, x, y) -> Result")
    for path, value in flatten(describe(attack)).items():
        if value is True and path.endswith(("is_targeted", "shared")):
            rule = "untargeted" if path.endswith("is_targeted") else "per example, not universal"
            raise ValueError(f"attacks[{name!r}].{path}=True: attacks are evaluated {rule}")


def _classify_clean(predict: Predict, sweep: Sweep, key: Key) -> tuple[ExampleFlags, ExampleLabels]:
    first = sweep.split.take(np.arange(1))
    image = jax.ShapeDtypeStruct(first["image"].shape, jnp.float32)
    check_victim(predict, key[None], image, first["label"])
    judge_key = stream(key, "clean")

    def classify(batch: DeviceBatch) -> Any:
        return *_judge(predict, judge_key, batch.index, batch.images, batch.labels), batch.labels

    correct, valid, labels = sweep.run("clean", classify, np.arange(len(sweep.split)))
    if not valid.all():
        broken, first_broken = np.sum(~valid), valid.argmin()
        raise ValueError(f"split holds {broken} images with pixels outside of [0, 1], the first at {first_broken}")
    check_victim(predict, key[None], image, labels)
    return correct, labels


def _attack_all(
    name: str, attack: Attack, predict: Predict, sweep: Sweep, key: Key, candidates: ExampleFlags
) -> AttackRecord:
    """The attack on the candidates; all others are wrong already."""
    traceable = as_pytree(attack)
    attack_key, judge_key = stream(key, "attack", name), stream(key, "judge", name)

    def survive(batch: DeviceBatch) -> Any:
        found = run_attack(traceable, predict, attack_key, batch)
        judged = _judge(predict, judge_key, batch.index, found.x, batch.labels)
        return *judged, attack_distances(attack, found, batch.images), attribute_values(attack, found.variables)

    correct, indices = np.zeros_like(candidates), np.flatnonzero(candidates)
    if not len(indices):
        return AttackRecord(correct, 0, parameters=describe(attack))
    started = time.perf_counter()
    survived, valid, distances, attributes = sweep.run(name, survive, indices)
    correct[indices] = survived | ~valid
    return AttackRecord(
        correct,
        len(indices),
        int(np.sum(~valid)),
        time.perf_counter() - started,
        describe(attack),
        *_of_fooled(attack, valid & ~survived, distances, attributes),
    )


def _of_fooled(
    attack: Attack, fooled: ExampleFlags, distances: Mapping[str, Any], attributes: Mapping[str, Any]
) -> tuple[dict[str, Distance], dict[str, AttributeValues]]:
    if not fooled.any():
        return {}, {}
    measured = {name: Distance.of(name, values[fooled]) for name, values in distances.items()}
    values: dict[str, AttributeValues] = {}
    for name, space in attribute_spaces(attack).items():
        values |= AttributeValues.of(names_of_numbers(name, space), attributes[name][fooled], space.low, space.high)
    return measured, values


def run_attack(attack: Any, predict: Predict, key: Key, batch: DeviceBatch) -> Any:
    """The attack's result on a batch; one program for every batch, key, radius and victim of the same structure."""
    return _attacked(attack, predict, key, batch.index, batch.images, batch.labels)


@jax.jit
def _attacked(attack: Any, predict: Predict, key: Key, index: Any, images: Images, labels: Labels) -> Any:
    return attack(example_keys(key, index), predict, images, labels)


@jax.jit
def _judge(predict: Predict, key: Key, index: Any, images: Images, labels: Labels) -> tuple[Flags, Flags]:
    """Per example: whether it is classified correctly, and whether it is an image at all."""
    valid = jnp.all((images >= -_ROUNDING) & (images <= 1 + _ROUNDING), axis=(1, 2, 3))
    logits = predict(example_keys(key, index), jnp.clip(images, 0, 1))
    correct = (jnp.argmax(logits, axis=-1) == labels) & ~jnp.any(jnp.isnan(logits), axis=-1)
    return correct, valid
