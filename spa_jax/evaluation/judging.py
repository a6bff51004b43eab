"""Who is classified correctly, clean and under each attack: every attacked image is judged anew."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spa_jax.attacks.minimal_norm import DISTANCES
from spa_jax.evaluation.changes import (
    attack_distances,
    attribute_spaces,
    attribute_values,
    edited_images,
    moves_noise,
    names_of_numbers,
)
from spa_jax.evaluation.description import describe
from spa_jax.evaluation.gallery import NO_ANSWER, Collector, Sighting
from spa_jax.evaluation.records import (
    AttackRecord,
    AttributeValues,
    Distance,
    ExampleFlags,
    ExampleLabels,
    ExampleShares,
    ModelReport,
    Nearest,
)
from spa_jax.evaluation.sweep import AnyAttack, DeviceBatch, Sweep, example_keys, stream
from spa_jax.goals import is_answer
from spa_jax.losses import margin
from spa_jax.numerics import on_grid
from spa_jax.trees import jit_by_kinds
from spa_jax.types import DistanceOfImages, Example, Images, Key, Labels, Logits, Predict, Values, Victim
from spa_jax.victims.tracing import is_randomized

_ROUNDING = 1e-6


class Verdict(NamedTuple):
    """What was found of each image, [b].

    Attributes:
        correct: the victim answers its label; an image that is not in [0, 1] is cut to it first.
        finite: there is an answer, see `answers`.
        inside: the image is finite and lies in [0, 1], to 1e-6.
        answer: of the victim, see `answers`.
        margin: by how much the largest logit of another class lies above the label's; NaN where there is no answer.
    """

    correct: Any
    finite: Any
    inside: Any
    answer: Any
    margin: Any

    @property
    def stands(self) -> Any:
        """[b], the attack has not fooled the victim: an image that is not in [0, 1] is not a success."""
        return self.finite & (self.correct | ~self.inside)


def judge_all(
    victim: Victim,
    sweep: Sweep,
    attacks: Mapping[str, AnyAttack],
    key: Key,
    survivors_only: bool,
    levels: int | None = None,
    judge_draws: int = 1,
    examples_per_class: int = 0,
    perceptual: DistanceOfImages | None = None,
) -> ModelReport:
    """Classify every example of a sweep as it is and under each attack; see `spa_jax.evaluation.evaluate`."""
    draws = judge_draws if is_randomized(victim) else 1
    options: dict[str, Any] = {"levels": levels, "draws": draws, "examples_per_class": examples_per_class}
    options["perceptual"] = perceptual
    clean, labels, failed = classify_clean(victim, sweep, key, draws)
    records = {}
    standing = clean
    for name, attack in attacks.items():
        candidates = clean if not survivors_only or nearest_in(attack) else standing
        records[name] = _attack_all(name, attack, victim, sweep, key, candidates, **options)
        if records[name].nearest is None:
            standing = standing & records[name].correct
    return ModelReport(labels, clean, records, survivors_only, draws=draws, failed=failed)


def classify_clean(
    victim: Victim, sweep: Sweep, key: Key, draws: int
) -> tuple[ExampleFlags, ExampleLabels, ExampleShares | None]:
    """Who is right as it is, the labels, and of several draws the share in which each is wrong; checks the split."""
    sweep.check_labels(victim, sweep.split.take(np.arange(1))["label"])
    predict, judge_key = sweep.predict(victim), stream(key, "clean")

    def classify(batch: DeviceBatch) -> Any:
        verdict = judge(predict, judge_key, batch.index, batch.images, batch.labels)
        return verdict, batch.labels, _failures(predict, judge_key, batch, batch.images, draws)

    found, labels, failures = sweep.run("clean", classify, np.arange(len(sweep.split)))
    if not found.inside.all():
        broken, first_broken = np.sum(~found.inside), found.inside.argmin()
        raise ValueError(f"split holds {broken} images with pixels outside of [0, 1], the first at {first_broken}")
    sweep.check_labels(victim, labels)
    correct = found.correct & found.finite
    return correct, labels, None if draws == 1 else _shares(correct, failures, draws)


def _failures(predict: Predict, key: Key, batch: DeviceBatch, images: Images, draws: int) -> Any:
    """In how many further draws each image is misclassified, [b]."""
    wrong = [answers(predict, stream(key, f"draw {i}"), batch.index, images) != batch.labels for i in range(1, draws)]
    return sum(flags.astype(jnp.int32) for flags in wrong) if wrong else jnp.zeros_like(batch.labels)


def _shares(correct: ExampleFlags, failures: Any, draws: int) -> ExampleShares:
    """The share of all draws, the one that the verdict is made of included, in which each image is misclassified."""
    return (failures + ~correct) / np.float64(draws)


def _failed_shares(verdict: Verdict, failures: Any, draws: int) -> ExampleShares:
    """The same of attacked images: 0 where the image is not in [0, 1], 1 where something is not finite."""
    shares = np.where(verdict.inside, _shares(verdict.stands, failures, draws), 0)
    return np.where(verdict.finite, shares, 1)


def _attack_all(
    name: str,
    attack: AnyAttack,
    victim: Victim,
    sweep: Sweep,
    key: Key,
    candidates: ExampleFlags,
    levels: int | None,
    draws: int,
    examples_per_class: int,
    perceptual: DistanceOfImages | None,
) -> AttackRecord:
    """The attack on the candidates; all others are wrong already."""
    attack_key, judge_key = stream(key, "attack", name), stream(key, "judge", name)
    predict, collector, norm = sweep.predict(victim), Collector(examples_per_class), nearest_in(attack)
    is_joint = bool(attribute_spaces(attack)) and moves_noise(attack)

    def survive(batch: DeviceBatch) -> Any:
        found, edited = run_attack(attack, victim, attack_key, batch, levels)
        verdict = judge_found(predict, judge_key, batch, found)
        failures = _failures(predict, judge_key, batch, found.x, draws)
        changes = _measured(found, batch, edited, perceptual, norm), attribute_values(attack, found.variables)
        if not examples_per_class:
            return verdict, failures, *changes
        between = answers(predict, judge_key, batch.index, edited) if is_joint else verdict.answer
        return verdict, failures, *changes, _sighting(batch, found, edited, verdict, between, changes[1])

    def keep(found: Any) -> Any:
        verdict, *others, seen = found
        collector.add(seen, verdict.inside)
        return verdict, *others

    correct, indices = np.zeros_like(candidates), np.flatnonzero(candidates)
    failed = None if draws == 1 else np.ones(len(correct))
    nearest = None if norm is None else Nearest(norm, np.zeros(len(correct)))
    if not len(indices):
        return AttackRecord(correct, 0, parameters=described(attack), failed=failed, nearest=nearest)
    started = time.perf_counter()
    options = {"keep": keep} if examples_per_class else {}
    found, failures, distances, attributes = sweep.run(name, survive, indices, **options)
    correct[indices] = found.stands
    if failed is not None:
        failed[indices] = _failed_shares(found, failures, draws)
    if nearest is not None:
        nearest.distances[indices] = np.where(correct[indices], np.inf, np.nan_to_num(distances.pop("nearest")))
    return AttackRecord(
        correct,
        len(indices),
        int(np.sum(found.finite & ~found.inside)),
        time.perf_counter() - started,
        described(attack),
        *_of_fooled(attack, found.inside & ~correct[indices], distances, attributes),
        broken=int(np.sum(~found.finite)),
        failed=failed,
        gallery=collector.gallery(*_what_moves(attack)),
        nearest=nearest,
    )


def _measured(
    found: Any, batch: DeviceBatch, edited: Images, perceptual: DistanceOfImages | None, norm: str | None
) -> dict[str, Any]:
    """How far the attacked images lie from the originals, by name, [b] each."""
    measured = attack_distances(found, batch.images, edited)
    if perceptual is not None:
        measured["perceptual"] = _distance(perceptual, found.x, batch.images)
    if norm is not None:
        measured["nearest"] = DISTANCES[norm](found.x, batch.images)
    return measured


@jit_by_kinds
def _distance(distance: DistanceOfImages, attacked: Images, x: Images) -> Values:
    return distance(attacked, x)


def _sighting(
    batch: DeviceBatch, found: Any, edited: Images, verdict: Verdict, edited_answer: Labels, attributes: Any
) -> Sighting:
    who = batch.index, batch.labels, verdict.inside & ~verdict.stands
    return Sighting(*who, verdict.answer, edited_answer, found.value, batch.images, edited, found.x, attributes)


def _what_moves(attack: AnyAttack) -> tuple[dict[str, list[str]], bool]:
    """The names of the numbers of each attribute of an attack, and whether it moves noise."""
    named = {name: names_of_numbers(name, space) for name, space in attribute_spaces(attack).items()}
    return named, moves_noise(attack)


def nearest_in(attack: AnyAttack) -> str | None:
    """The norm in which an attack looks for the nearest image that fools; None where it does not, or does not say."""
    return getattr(attack, "nearest_in", None)


def described(attack: AnyAttack) -> Mapping[str, Any]:
    """What an attack is made of, as plain data."""
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


def run_attack(
    attack: AnyAttack, victim: Victim, key: Key, batch: DeviceBatch, levels: int | None = None
) -> tuple[Any, Images]:
    """The attack's result on a batch, and the edited images A(x, a), which are the originals for noise alone.

    With `levels` the attacked images are rounded to multiples of 1 / levels, as a file would hold them.
    """
    found = attack(example_keys(key, batch.index), victim, batch.images, batch.labels)
    edited = edited_images(attack, found, victim, batch.images, batch.labels)
    if levels is not None:
        found = dataclasses.replace(found, x=on_grid(found.x, levels))
    return found, edited


@jax.jit
def judge(predict: Predict, key: Key, index: Any, images: Images, labels: Labels) -> Verdict:
    """The victim's own answer to each image, with fresh keys."""
    inside = jnp.all((images >= -_ROUNDING) & (images <= 1 + _ROUNDING), axis=(1, 2, 3))
    logits, found = _answered(predict, key, index, images)
    margins = jnp.where(found == NO_ANSWER, jnp.nan, margin(logits, Example(images, labels)))
    return Verdict(found == labels, found != NO_ANSWER, inside, found, margins)


def judge_found(predict: Predict, key: Key, batch: DeviceBatch, found: Any) -> Verdict:
    """The verdict on the images that an attack has found; one that met what is not finite counts as broken."""
    verdict = judge(predict, key, batch.index, found.x, batch.labels)
    if found.nonfinite is None:
        return verdict
    return verdict._replace(finite=verdict.finite & (found.nonfinite.answers == 0))


def logits_of_batch(predict: Predict, key: Key, batch: DeviceBatch) -> Any:
    """The victim's logits of the images as they are, with fresh keys, [b, k]."""
    return _logits(predict, key, batch.index, batch.images)


@jax.jit
def _logits(predict: Predict, key: Key, index: Any, images: Images) -> Any:
    return predict(example_keys(key, index), images)


@jax.jit
def answers(predict: Predict, key: Key, index: Any, images: Images) -> Labels:
    """The class that the victim answers each image with, with fresh keys; `NO_ANSWER` where something is not finite.

    There is an answer where the image is finite, no logit is NaN, and the largest is a number. A logit of minus
    infinity is an answer, namely that a class is impossible.
    """
    return _answered(predict, key, index, images)[1]


def _answered(predict: Predict, key: Key, index: Any, images: Images) -> tuple[Logits, Labels]:
    """The logits of the images, cut to [0, 1], and the answers."""
    logits = predict(example_keys(key, index), jnp.clip(images, 0, 1))
    finite = jnp.all(jnp.isfinite(images), axis=(1, 2, 3)) & is_answer(logits)
    return logits, jnp.where(finite, jnp.argmax(logits, axis=-1), NO_ANSWER)
