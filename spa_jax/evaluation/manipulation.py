"""The quality of an attribute manipulator: whether an edit shows the value that was set and changes nothing else.

The judges are independent of the manipulator: a regressor that reads attributes from images, and a classifier, both
trained on real images. Every number is reported beside their errors on real images, its floor.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from spa_jax.data.types import AttributeInfo, Examples
from spa_jax.distances import psnr, ssim
from spa_jax.evaluation.records import Distance, Proportion
from spa_jax.evaluation.sweep import (
    DeviceBatch,
    Progress,
    Sweep,
    example_keys,
    first_of_each_class,
    make_sweep,
    stream,
)
from spa_jax.numerics import clip_to_unit
from spa_jax.parallel import replicate
from spa_jax.solvers import fold_in
from spa_jax.trees import as_pytree, jit_by_kinds, pytree
from spa_jax.types import Images, Key, Keys, Predict, Victim
from spa_jax.validation import require_count
from spa_jax.victims import randomized

_MOST_DECIBELS = 100.0
_AT_RANDOM, _KINDS = 0, 3

Row = Float[np.ndarray, " m"]
AttributeRows = Float[np.ndarray, "n m"]


@dataclasses.dataclass(frozen=True)
class ReadBack:
    """How far the regressor's reading of an edited image lies from the value that was set.

    Attributes:
        error: mean absolute error over values drawn uniformly from the box, one an example.
        floor: the regressor's mean absolute error on the real images: no manipulator can be seen to be better.
        error_at_low, error_at_high: with all examples set to an end of the box.
        reading_at_low, reading_at_high: the mean reading there.
    """

    error: float
    floor: float
    error_at_low: float
    error_at_high: float
    reading_at_low: float
    reading_at_high: float


@dataclasses.dataclass(frozen=True)
class Bin:
    """Accuracy on images whose attribute was set to a value in a part of the box.

    Attributes:
        low, high: of the part.
        accuracy: of the classifier, or None where no value fell.
    """

    low: float
    high: float
    accuracy: Proportion | None


@dataclasses.dataclass(frozen=True)
class LabelPreservation:
    """The independent classifier's accuracy against the labels of the originals.

    Attributes:
        real: on the images as they are.
        together: on images with all attributes set at random.
        alone: by attribute, on images with this attribute alone set at random.
        by_value: `alone`, by parts of the box.
    """

    real: Proportion
    together: Proportion
    alone: Mapping[str, Proportion]
    by_value: Mapping[str, Sequence[Bin]]


@dataclasses.dataclass(frozen=True, eq=False)
class AttributeSweep:
    """Some images with one attribute set to evenly spaced values; column 0 is the original.

    Attributes:
        attribute: which one.
        values: [p], from one end of the box to the other.
        images: [r, 1 + p, h, w, c].
        readings: [r, 1 + p], the regressor's of this attribute.
        predictions: [r, 1 + p], the classifier's.
        labels: [r].
    """

    attribute: AttributeInfo
    values: Float[np.ndarray, " p"]
    images: Float[np.ndarray, "r columns h w c"]
    readings: Float[np.ndarray, "r columns"]
    predictions: Any
    labels: Any


@dataclasses.dataclass(frozen=True, eq=False)
class ManipulationReport:
    """How a manipulator fared on a split.

    Attributes:
        attributes: m of them, in the order of the values.
        low, high: [m], the box.
        num_examples: of the split.
        reconstruction: "psnr" in decibels (an image that is closer than 100 dB counts as 100) and "ssim", of images
            encoded and decoded without an edit; empty for a manipulator that does not reconstruct.
        read_back: by attribute.
        cross_effects: [m, m]: attribute i drawn from its box, the mean absolute change of the regressor's reading of
            attribute j against its reading of the unedited image. The diagonal is what was meant to change.
        labels: whether images keep their class.
        sweeps: pictures, one an attribute.
    """

    attributes: Sequence[AttributeInfo]
    low: Row
    high: Row
    num_examples: int
    reconstruction: Mapping[str, Distance]
    read_back: Mapping[str, ReadBack]
    cross_effects: Float[np.ndarray, "m m"]
    labels: LabelPreservation
    sweeps: Sequence[AttributeSweep] = ()

    @property
    def half_ranges(self) -> Row:
        """[m], half of each side of the box."""
        return (self.high - self.low) / 2

    @property
    def relative_cross_effects(self) -> Float[np.ndarray, "m m"]:
        """`cross_effects`, column j in half ranges of attribute j."""
        return self.cross_effects / self.half_ranges


def evaluate_manipulator(
    manipulator: Any,
    split: Examples,
    *,
    low: Any,
    high: Any,
    attributes: Sequence[AttributeInfo],
    regressor: Victim,
    classifier: Victim,
    key: Key,
    batch_size: int,
    bins: int = 8,
    rows: int = 8,
    points: int = 9,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> ManipulationReport:
    """Evaluate a manipulator on a split by a regressor and a classifier that were trained independently of it.

    Each attribute in turn is set to a random value of its box, one an example, and to both ends; then all of them at
    once to random values. Attributes that are not set stay at the image's own value: that of `manipulator.read`, or
    the data's attribute for a manipulator without `read`. Draws are keyed by `key` and the example's index.

    Args:
        manipulator: a pytree `edit(image [h, w, c], values [m]) -> image`, as for `spa_jax.attribute`. It may have
            `read(image, prepared) -> values [m]`, `prepare(image) -> prepared` (then the edit takes it as a third
            argument) and `reconstruct(image) -> image`.
        split: with `attribute` [n, m].
        low, high: the box, m numbers each.
        attributes: their names and units, as of a `Dataset`.
        regressor: any function from images to values [b, m], called as a victim is.
        classifier: any function from images to logits [b, k].
        key: of all draws.
        batch_size, mesh, on_batch: as for `evaluate`.
        bins: parts of the box for the accuracy by value.
        rows, points: examples (the first of each class) and values of the pictures.

    Raises:
        ValueError: a box whose bounds are not in order, a split without attributes, an output of another shape.
    """
    for name, count in {"bins": bins, "rows": rows, "points": points}.items():
        require_count(name, count)
    box = _checked_box(low, high, attributes)
    sweep = make_sweep(split, batch_size, mesh, on_batch)
    edit = replicate(as_pytree(manipulator), sweep.mesh)
    judges = _Judges(edit, _placed(sweep, regressor), _placed(sweep, classifier))
    _check_shapes(judges, sweep, len(attributes))
    found = _observations(judges, sweep, box, stream(key, "manipulation"))
    pictured = make_sweep(split.subset(first_of_each_class(split, rows)), rows, sweep.mesh)
    judges = _Judges(edit, _placed(pictured, regressor), _placed(pictured, classifier))
    return ManipulationReport(
        attributes,
        *box,
        len(split),
        {name: Distance.of(name, found[name]) for name in ("psnr", "ssim") if name in found},
        {attribute.name: _read_back(found, box, i) for i, attribute in enumerate(attributes)},
        _cross_effects(found),
        _label_preservation(found, box, attributes, bins),
        _sweeps(judges, pictured, box, attributes, points, stream(key, "sweeps")),
    )


def _placed(sweep: Sweep, victim: Victim) -> Predict:
    return sweep.predict(sweep.place(victim))


@pytree
class _Judges:
    """The manipulator and those who judge it, over batches."""

    manipulator: Any
    regressor: Any
    classifier: Any

    def prepare(self, images: Images) -> Any:
        return jax.vmap(self.manipulator.prepare)(images) if hasattr(self.manipulator, "prepare") else None

    def own_values(self, images: Images, prepared: Any, attribute: Any) -> Any:
        if not hasattr(self.manipulator, "read"):
            return attribute.astype(images.dtype)
        return jax.vmap(self.manipulator.read)(images, prepared).reshape(attribute.shape)

    def edit(self, images: Images, values: Any, prepared: Any) -> Any:
        def one(image: Any, value: Any, prepared: Any) -> Any:
            extra = (prepared,) if hasattr(self.manipulator, "prepare") else ()
            return clip_to_unit(self.manipulator(image, value, *extra))

        return jax.vmap(one)(images, values, prepared)

    def judge(self, keys: Keys, images: Images) -> tuple[Any, Any]:
        """Readings [b, m] and predicted classes [b]."""
        return self.regressor(keys, images), jnp.argmax(self.classifier(keys, images), axis=-1)


def _checked_box(low: Any, high: Any, attributes: Sequence[AttributeInfo]) -> tuple[Row, Row]:
    bounds = np.asarray(low, np.float32), np.asarray(high, np.float32)
    for name, bound in zip(("low", "high"), bounds, strict=True):
        if bound.shape != (len(attributes),) or not np.isfinite(bound).all():
            raise ValueError(f"{name}={bound!r} must be finite, one number for each of {len(attributes)} attributes")
    if not np.all(bounds[0] < bounds[1]):
        raise ValueError(f"low={bounds[0]!r} must be smaller than high={bounds[1]!r}, number by number")
    return bounds


def _check_shapes(judges: _Judges, sweep: Sweep, count: int) -> None:
    first = sweep.split.take(np.arange(1))
    attribute = first.get("attribute")
    if attribute is None or attribute.shape != (1, count):
        found = "none" if attribute is None else f"{attribute.shape[1]}"
        raise ValueError(f"split holds {found} of the {count} attributes")
    sweep.check_labels(randomized(judges.classifier), first["label"])
    images = sweep.blank
    # Judges are no argument here: those of other classes might be taken for them (`spa_jax.trees.pytree`).
    read = functools.partial(_edited_and_read, judges)
    edited, reading = jax.eval_shape(read, images, np.repeat(attribute, len(images), axis=0))
    if edited.shape != images.shape:
        raise ValueError(f"manipulator(image, values) has shape {edited.shape[1:]!r}, must be {images.shape[1:]!r}")
    if reading.shape != (len(images), count):
        raise ValueError(f"regressor(images) has shape {reading.shape!r}, must be values ({len(images)}, {count})")


def _edited_and_read(judges: _Judges, images: Images, attribute: Any) -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0), len(images))
    return judges.edit(images, attribute, judges.prepare(images)), judges.regressor(keys, images)


# --- numbers --------------------------------------------------------------------------------------------------------


def _observations(judges: _Judges, sweep: Sweep, box: tuple[Row, Row], key: Key) -> dict[str, Any]:
    def observe(batch: DeviceBatch) -> Any:
        return _observe(judges, key, *box, batch.index, batch.images, batch.labels, batch.attribute)

    return sweep.run("manipulation", observe, np.arange(len(sweep.split)))


@jit_by_kinds
def _observe(
    judges: _Judges, key: Key, low: Any, high: Any, index: Any, images: Images, labels: Any, attribute: Any
) -> dict[str, Any]:
    keys, prepared = example_keys(key, index), judges.prepare(images)
    drawn = jax.vmap(lambda k: jax.random.uniform(k, (2, len(low)), jnp.float32, low, high))(keys)
    alone, together = drawn[:, 0], drawn[:, 1]
    settings = _settings(judges.own_values(images, prepared, attribute), alone, together, low, high)

    def look(numbered: Any) -> Any:
        number, values = numbered
        return judges.judge(fold_in(keys, number), judges.edit(images, values, prepared))

    readings, predictions = jax.lax.map(look, (jnp.arange(len(settings)), settings))
    reading, prediction = judges.judge(fold_in(keys, len(settings)), images)
    found = {
        "attribute": attribute,
        "set": alone,
        "reading": reading,
        "correct": prediction == labels,
        "readings": jnp.swapaxes(readings, 0, 1),
        "corrects": jnp.swapaxes(predictions == labels[None], 0, 1),
    }
    return found | _reconstruction(judges.manipulator, images)


def _settings(own: Any, alone: Any, together: Any, low: Any, high: Any) -> Float[Array, "s b m"]:
    """Values to edit by: each attribute at random, at its low and at its high end, and last all of them at random."""
    set_to = jnp.stack([alone, jnp.broadcast_to(low, alone.shape), jnp.broadcast_to(high, alone.shape)])
    is_set = jnp.eye(len(low), dtype=bool)[:, None, None, :]
    each = jnp.where(is_set, set_to[None], own[None, None])
    return jnp.concatenate([each.reshape(-1, *alone.shape), together[None]])


def _reconstruction(manipulator: Any, images: Images) -> dict[str, Any]:
    if not hasattr(manipulator, "reconstruct"):
        return {}
    again = clip_to_unit(jax.vmap(manipulator.reconstruct)(images))
    return {"psnr": jnp.minimum(psnr(again, images), _MOST_DECIBELS), "ssim": ssim(again, images)}


def _read_back(found: Mapping[str, Any], box: tuple[Row, Row], i: int) -> ReadBack:
    at_random, at_low, at_high = (found["readings"][:, _KINDS * i + kind, i] for kind in range(_KINDS))
    low, high = box[0][i], box[1][i]
    return ReadBack(
        error=_mean_absolute(at_random - found["set"][:, i]),
        floor=_mean_absolute(found["reading"][:, i] - found["attribute"][:, i]),
        error_at_low=_mean_absolute(at_low - low),
        error_at_high=_mean_absolute(at_high - high),
        reading_at_low=float(np.mean(at_low, dtype=np.float64)),
        reading_at_high=float(np.mean(at_high, dtype=np.float64)),
    )


def _mean_absolute(values: Any) -> float:
    return float(np.mean(np.abs(values), dtype=np.float64))


def _cross_effects(found: Mapping[str, Any]) -> Float[np.ndarray, "m m"]:
    changed = found["readings"][:, _AT_RANDOM:-1:_KINDS] - found["reading"][:, None]
    return np.asarray(np.mean(np.abs(changed), axis=0, dtype=np.float64))


def _label_preservation(
    found: Mapping[str, Any], box: tuple[Row, Row], attributes: Sequence[AttributeInfo], bins: int
) -> LabelPreservation:
    alone, by_value = {}, {}
    for i, attribute in enumerate(attributes):
        correct = found["corrects"][:, _KINDS * i + _AT_RANDOM]
        alone[attribute.name] = Proportion.of(correct)
        by_value[attribute.name] = _by_value(found["set"][:, i], correct, float(box[0][i]), float(box[1][i]), bins)
    return LabelPreservation(Proportion.of(found["correct"]), Proportion.of(found["corrects"][:, -1]), alone, by_value)


def _by_value(values: Any, correct: Any, low: float, high: float, bins: int) -> list[Bin]:
    edges = np.linspace(low, high, bins + 1)
    places = np.clip(np.digitize(values, edges) - 1, 0, bins - 1)
    parts = []
    for place in range(bins):
        inside = correct[places == place]
        accuracy = Proportion.of(inside) if len(inside) else None
        parts.append(Bin(float(edges[place]), float(edges[place + 1]), accuracy))
    return parts


# --- pictures -------------------------------------------------------------------------------------------------------


def _sweeps(
    judges: _Judges, sweep: Sweep, box: tuple[Row, Row], attributes: Sequence[AttributeInfo], points: int, key: Key
) -> list[AttributeSweep]:
    grid = np.linspace(*box, points, dtype=np.float32).T
    settings = np.broadcast_to(grid.reshape(-1, 1), (grid.size, len(attributes)))
    is_set = np.repeat(np.eye(len(attributes), dtype=bool), points, axis=0)

    def look(batch: DeviceBatch) -> Any:
        return _look(judges, key, settings, is_set, batch.index, batch.images, batch.attribute), batch.labels

    (images, readings, predictions), labels = sweep.run("pictures", look, np.arange(len(sweep.split)))
    found = []
    for i, attribute in enumerate(attributes):
        columns = np.concatenate([[0], 1 + np.arange(points) + i * points])
        shown = images[:, columns], readings[:, columns, i], predictions[:, columns]
        found.append(AttributeSweep(attribute, grid[i], *shown, labels))
    return found


@jit_by_kinds
def _look(
    judges: _Judges, key: Key, settings: Any, is_set: Any, index: Any, images: Images, attribute: Any
) -> tuple[Any, Any, Any]:
    """The originals and the images under every setting, with their readings and predictions, [b, 1 + s, ...]."""
    keys, prepared = example_keys(key, index), judges.prepare(images)
    own = judges.own_values(images, prepared, attribute)

    def look(setting: Any) -> Any:
        values, chosen = setting
        edited = judges.edit(images, jnp.where(chosen[None], values[None], own), prepared)
        return edited, *judges.judge(keys, edited)

    edited = jax.lax.map(look, (settings, is_set))
    originals = (images, *judges.judge(keys, images))
    return jax.tree.map(lambda one, many: jnp.swapaxes(jnp.concatenate([one[None], many]), 0, 1), originals, edited)
