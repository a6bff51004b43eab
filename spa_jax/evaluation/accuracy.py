"""Accuracy on clean and on attacked images of a whole split, each attacked image judged anew."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spa_jax.data.types import Examples
from spa_jax.evaluation.changes import (
    attack_distances,
    attribute_spaces,
    attribute_values,
    edited_images,
    names_of_numbers,
)
from spa_jax.evaluation.description import describe
from spa_jax.evaluation.records import (
    AttackRecord,
    AttributeValues,
    Distance,
    ExampleFlags,
    ExampleLabels,
    ModelReport,
)
from spa_jax.evaluation.sweep import AnyAttack, DeviceBatch, Progress, Sweep, example_keys, make_sweep, stream
from spa_jax.types import Flags, Images, Key, Labels, Predict, Victim

_ROUNDING = 1e-6
_RESERVED_NAMES = ("clean", "worst_case")


def evaluate(
    victim: Victim,
    split: Examples,
    attacks: Mapping[str, AnyAttack],
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
    and the other attacks do not matter, apart from float rounding. The victim is prepared once for all batches. Models
    of one architecture whose weights are leaves (`spa_jax.classifier`) share the compiled programs.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        attacks: per-example attacks by name; they are called without targets.
        key: of the whole evaluation.
        batch_size: examples at once over all devices; rounded up to a multiple of their number.
        mesh: the devices. Default: all of them.
        survivors_only: True runs a cascade: each attack only on what all before it have left, which gives the worst
            case for the least work, and for each attack the worst case so far. False runs each attack on everything
            classified correctly clean, which gives its own accuracy too.
        on_batch: called with the attack's name ("clean" at first), examples done and examples in all.

    Raises:
        ValueError: a broken rule, naming the value: empty split, an attack that is universal or called "clean" or
            "worst_case", labels out of range, images outside of [0, 1], a victim that returns no logits.
    """
    for name, attack in attacks.items():
        _check_attack(name, attack)
    sweep = make_sweep(split, batch_size, mesh, on_batch)
    victim = sweep.place(victim, attacks.values())
    clean, labels = _classify_clean(victim, sweep, key)
    records = {}
    standing = clean
    for name, attack in attacks.items():
        candidates = standing if survivors_only else clean
        records[name] = _attack_all(name, attack, victim, sweep, key, candidates)
        standing = standing & records[name].correct
    return ModelReport(labels, clean, records, survivors_only)


def _check_attack(name: str, attack: AnyAttack) -> None:
    if name in _RESERVED_NAMES:
        raise ValueError(f"attacks hold the name {name!r}, which the report uses for itself")
    if not callable(attack):
        raise ValueError(f"attacks[{name!r}]={attack!r} must be an attack (key, victim, images, labels) -> Result")
    if getattr(attack, "shared", False):
        raise ValueError(
            f"attacks[{name!r}] shares its variables over all images: attacks are evaluated per example, not universal"
        )


def _classify_clean(victim: Victim, sweep: Sweep, key: Key) -> tuple[ExampleFlags, ExampleLabels]:
    sweep.check_labels(victim, sweep.split.take(np.arange(1))["label"])
    predict, judge_key = sweep.predict(victim), stream(key, "clean")

    def classify(batch: DeviceBatch) -> Any:
        return *_judge(predict, judge_key, batch.index, batch.images, batch.labels), batch.labels

    correct, valid, labels = sweep.run("clean", classify, np.arange(len(sweep.split)))
    if not valid.all():
        broken, first_broken = np.sum(~valid), valid.argmin()
        raise ValueError(f"split holds {broken} images with pixels outside of [0, 1], the first at {first_broken}")
    sweep.check_labels(victim, labels)
    return correct, labels


def _attack_all(
    name: str, attack: AnyAttack, victim: Victim, sweep: Sweep, key: Key, candidates: ExampleFlags
) -> AttackRecord:
    """The attack on the candidates; all others are wrong already."""
    attack_key, judge_key = stream(key, "attack", name), stream(key, "judge", name)
    predict = sweep.predict(victim)

    def survive(batch: DeviceBatch) -> Any:
        found, edited = run_attack(attack, victim, attack_key, batch)
        judged = _judge(predict, judge_key, batch.index, found.x, batch.labels)
        return *judged, attack_distances(found, batch.images, edited), attribute_values(attack, found.variables)

    correct, indices = np.zeros_like(candidates), np.flatnonzero(candidates)
    if not len(indices):
        return AttackRecord(correct, 0, parameters=_described(attack))
    started = time.perf_counter()
    survived, valid, distances, attributes = sweep.run(name, survive, indices)
    correct[indices] = survived | ~valid
    return AttackRecord(
        correct,
        len(indices),
        int(np.sum(~valid)),
        time.perf_counter() - started,
        _described(attack),
        *_of_fooled(attack, valid & ~survived, distances, attributes),
    )


def _described(attack: AnyAttack) -> Mapping[str, Any]:
    description = describe(attack)
    return description if isinstance(description, Mapping) else {"type": description}


def _of_fooled(
    attack: AnyAttack, fooled: ExampleFlags, distances: Mapping[str, Any], attributes: Mapping[str, Any]
) -> tuple[dict[str, Distance], dict[str, AttributeValues]]:
    if not fooled.any():
        return {}, {}
    measured = {name: Distance.of(name, values[fooled]) for name, values in distances.items()}
    values: dict[str, AttributeValues] = {}
    for name, space in attribute_spaces(attack).items():
        values |= AttributeValues.of(names_of_numbers(name, space), attributes[name][fooled], space.low, space.high)
    return measured, values


def run_attack(attack: AnyAttack, victim: Victim, key: Key, batch: DeviceBatch) -> tuple[Any, Images]:
    """The attack's result on a batch, and the edited images A(x, a), which are the originals for noise alone."""
    found = attack(example_keys(key, batch.index), victim, batch.images, batch.labels)
    return found, edited_images(attack, found, victim, batch.images, batch.labels)


@jax.jit
def _judge(predict: Predict, key: Key, index: Any, images: Images, labels: Labels) -> tuple[Flags, Flags]:
    """Per example: whether it is classified correctly, and whether it is an image at all."""
    valid = jnp.all((images >= -_ROUNDING) & (images <= 1 + _ROUNDING), axis=(1, 2, 3))
    logits = predict(example_keys(key, index), jnp.clip(images, 0, 1))
    correct = (jnp.argmax(logits, axis=-1) == labels) & ~jnp.any(jnp.isnan(logits), axis=-1)
    return correct, valid
