"""Which images are proved to withstand one attribute, at every value of its range, by sweeping it in small cells."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spa_jax.data.batching import arrays_of
from spa_jax.data.types import Examples
from spa_jax.edits import EDITS, displaced
from spa_jax.evaluation.bands import Band, MissingRuleError, narrower
from spa_jax.evaluation.curves import correct_by_attribute
from spa_jax.evaluation.linear_bounds import lowest_margins
from spa_jax.evaluation.records import ExampleFlags
from spa_jax.evaluation.sweep import Progress, make_sweep
from spa_jax.parallel import to_host
from spa_jax.types import Count, Image, Images, Key, Labels, Scalar, Victim
from spa_jax.validation import require_choice, require_count
from spa_jax.victims.tracing import is_randomized

_SLACK = 1e-5
_MOVES, _LARGE = 1e-4, 256


class Certificate(NamedTuple):
    """What a sweep has found of each image, [n].

    Attributes:
        proved: the prediction is right at every value of the range.
        broken: a value was found at which it is wrong.
        cells: how many cells were looked at, each by bounds and one pass of images.
    """

    proved: ExampleFlags
    broken: ExampleFlags
    cells: int

    @property
    def undecided(self) -> ExampleFlags:
        """Neither: smaller cells would tell."""
        return ~self.proved & ~self.broken


def pixel_bounds(edit: str, image: Image, low: Scalar, high: Scalar) -> Band:
    """Bounds of every pixel of an edited image over a cell of values, [h, w, c], wider by 1e-5 for rounding.

    They lie around the chord of each pixel: from its value at `low` to that at `high`, while t goes from -1 to 1. Under
    "brightness", "contrast" and "saturation" a pixel is on it until it reaches 0 or 1. A "rotation" moves the place at
    which a pixel is read: the steepest ways up and down of the interpolated image over the box of these places bound
    how far a pixel leaves its chord. Where the interval of its values is narrower it stands in its place: these take
    their extremes at the ends, and for a rotation at the corners of the box and where it crosses lines of pixels. Cells
    in which a place moves by more than a pixel have the bounds 0 and 1.

    Args:
        edit: one of these four, by name.
        image: [h, w, c] in [0, 1].
        low, high: of the value, `low` below `high`, angles within 90 degrees.

    Raises:
        ValueError: another edit.
    """
    require_choice("edit", edit, tuple(_BOUNDS))
    ends = EDITS[edit].function(image, low), EDITS[edit].function(image, high)
    away, lowest, highest = _BOUNDS[edit](image, low, high, *ends)
    chord = Band.around((ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2, away + _SLACK)
    return narrower(chord, Band.between(jnp.clip(lowest - _SLACK, 0, 1), jnp.clip(highest + _SLACK, 0, 1)))


class _Pixels(NamedTuple):
    """How far pixels leave their chord at most, and their least and largest values."""

    away: Any
    lowest: Any
    highest: Any


def _of_linear(image: Any, low: Any, high: Any, first: Any, last: Any) -> _Pixels:
    lowest, highest = jnp.minimum(first, last), jnp.maximum(first, last)
    return _Pixels(jnp.where((lowest > 0) & (highest < 1), 0, jnp.inf), lowest, highest)


def _of_rotation(image: Any, low: Any, high: Any, first: Any, last: Any) -> _Pixels:
    low, high = (jnp.deg2rad(jnp.asarray(angle, jnp.float32)) for angle in (low, high))
    down, right, down_rate, right_rate = _places(image.shape, low, high)
    down_points, right_points = (
        [own.low, jnp.clip(jnp.floor(own.high), own.low, own.high), own.high] for own in (down, right)
    )
    # `floor` is of displacements plus whole numbers, so that lines of pixels are where displacements are whole.
    read = [displaced(image, d, r) for d in down_points for r in right_points]
    downhill = _range_of(_rise(image, jnp.floor(d), r, 1, 0) for d in (down.low, down.high) for r in right_points)
    sideways = _range_of(_rise(image, d, jnp.floor(r), 0, 1) for r in (right.low, right.high) for d in down_points)
    rates = [_product(downhill, down_rate), _product(sideways, right_rate)]
    least, most = ((high - low) / 2 * sum(getattr(own, end) for own in rates) for end in ("low", "high"))
    mean = jnp.clip((last - first) / 2, least, most)
    away = 2 * (most - mean) * (mean - least) / jnp.where(most > least, most - least, 1)
    away += _moves(image.shape) * sum(jnp.maximum(jnp.abs(own.low), jnp.abs(own.high)) for own in (downhill, sideways))
    far = jnp.maximum(down.high - down.low, right.high - right.low)[..., None] > 1
    values = _range_of(read)
    return _Pixels(jnp.where(far, jnp.inf, away), jnp.where(far, 0, values.low), jnp.where(far, 1, values.high))


class _Range(NamedTuple):
    low: Any
    high: Any


def _range_of(values: Iterable[Any]) -> _Range:
    found = jnp.stack(list(values))
    return _Range(jnp.min(found, axis=0), jnp.max(found, axis=0))


def _rise(image: Any, down: Any, right: Any, rows: int, columns: int) -> Any:
    """From a place to the pixel below or beside it."""
    return displaced(image, down + rows, right + columns) - displaced(image, down, right)


def _product(slope: _Range, rate: _Range) -> _Range:
    return _range_of(own * other[..., None] for own in slope for other in rate)


def _places(shape: tuple[int, ...], low: Any, high: Any) -> tuple[_Range, _Range, _Range, _Range]:
    """How far down and to the right of itself each pixel is read, [h, w], and the derivatives, within a right angle."""
    sine, less = _Range(jnp.sin(low), jnp.sin(high)), [-2 * jnp.sin(angle / 2) ** 2 for angle in (low, high)]
    shrunk = _Range(jnp.minimum(*less), jnp.where((low <= 0) & (high >= 0), 0, jnp.maximum(*less)))
    cosine, back = _Range(1 + shrunk.low, 1 + shrunk.high), _Range(-sine.high, -sine.low)
    offsets = [jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2 for size in shape[:2]]
    rows, columns = jnp.meshgrid(*offsets, indexing="ij")
    down, right = (_sum(own, _moves(shape)) for own in ((shrunk, rows, sine, columns), (back, rows, shrunk, columns)))
    return down, right, _sum((back, rows, cosine, columns)), _sum((cosine, -rows, back, columns))


def _moves(shape: tuple[int, ...]) -> float:
    """By how many pixels rounding may move a place, which grows with the image."""
    return _MOVES * max(1, max(shape[:2]) / _LARGE)


def _sum(terms: tuple[_Range, Any, _Range, Any], slack: float = 0.0) -> _Range:
    """Of two products of a range with numbers."""
    parts = [_range_of(own * number for own in terms[i]) for i, number in ((0, terms[1]), (2, terms[3]))]
    return _Range(parts[0].low + parts[1].low - slack, parts[0].high + parts[1].high + slack)


_BOUNDS: Mapping[str, Callable[..., _Pixels]] = {
    "rotation": _of_rotation,
    "brightness": _of_linear,
    "contrast": _of_linear,
    "saturation": _of_linear,
}


def certify(
    victim: Victim,
    images: Images,
    labels: Labels,
    edit: str,
    low: Scalar,
    high: Scalar,
    *,
    cells: Count = 16,
    splits: Count = 8,
    batch_size: Count = 256,
) -> Certificate:
    """Prove images right at every value of one attribute, or find a value at which they are wrong.

    The range is cut into cells. In each, the pixels are bounded (`pixel_bounds`) and by these how far the label's logit
    is ahead (`spa_jax.evaluation.linear_bounds.lowest_margins`): where it stays above all others, the cell is proved.
    Where it is not, the image in the middle of the cell is classified; if it is right, the cell is halved.

    A proof holds for the edit as it is computed, up to rounding, for which pixels have some slack and the network has
    none: it is no formal verification of a program. A network in bfloat16, or on an accelerator that multiplies float32
    with fewer digits, rounds by more than small margins; here products are made at the highest precision.

    Args:
        victim: a function from images to logits of dense layers, convolutions, ReLU and poolings, in inference mode.
        images: [n, h, w, c] in [0, 1].
        labels: [n].
        edit: "rotation" (within 90 degrees), "brightness", "contrast" or "saturation".
        low, high: the range of the value.
        cells: at first; our choice.
        splits: how often a cell may be halved before the image is undecided; our choice.
        batch_size: cells at once.

    Raises:
        ValueError: another edit, a range that is empty or too wide, numbers below 1, no images, a victim with a
            primitive that has no interval rule.
    """
    check_range(edit, low, high)
    cells, splits, batch_size = (
        require_count(name, value) for name, value in (("cells", cells), ("splits", splits), ("batch_size", batch_size))
    )
    if not len(images):
        raise ValueError("images holds no image to prove anything of")
    pictures: Any = np.asarray(images, np.float32)
    compiled = jax.jit(functools.partial(_look, victim, edit))
    look = functools.partial(_looked_at, compiled, pictures, np.asarray(labels), batch_size)
    ends = np.linspace(low, high, cells + 1)
    owner = np.repeat(np.arange(len(images)), cells)
    lows, highs = (np.tile(own, len(images)) for own in (ends[:-1], ends[1:]))
    broken, undecided, seen = np.zeros(len(images), bool), np.zeros(len(images), bool), 0
    for _ in range(splits + 1):
        proved, wrong = look(owner, lows, highs)
        seen += len(owner)
        broken[owner[wrong]] = True
        left = ~proved & ~broken[owner]
        owner, lows, highs = owner[left], lows[left], highs[left]
        middles = (lows + highs) / 2
        undecided = np.isin(np.arange(len(images)), owner)
        owner, lows, highs = np.tile(owner, 2), np.append(lows, middles), np.append(middles, highs)
        if not len(owner):
            break
    return Certificate(~broken & ~undecided, broken, seen)


def check_range(edit: str, low: Scalar, high: Scalar, name: str = "edit") -> None:
    """Refuse what cannot be proved: another edit, which is called by this name, or a range that is empty or too wide.

    Raises:
        ValueError: it is one of these.
    """
    require_choice(name, edit, tuple(_BOUNDS))
    if not low < high or not math.isfinite(high - low) or (edit == "rotation" and max(-float(low), float(high)) > 90):
        raise ValueError(f"low={low!r}, high={high!r} must be a range, of angles within 90 degrees")


def _look(victim: Victim, edit: str, images: Any, labels: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """Whether each cell is proved, and whether the image in its middle is wrong."""
    boxes = jax.vmap(functools.partial(pixel_bounds, edit))(images, low, high)
    ahead = jax.vmap(functools.partial(lowest_margins, lambda image: victim(image[None])[0]))(boxes, labels)
    middle = jax.vmap(EDITS[edit].function)(images, (low + high) / 2)
    return jnp.all(ahead > 0, axis=-1), jnp.argmax(victim(middle), axis=-1) != labels


def _looked_at(
    look: Callable[..., Any], images: Any, labels: Any, size: int, owner: Any, lows: Any, highs: Any
) -> tuple[Any, Any]:
    """`look` at all cells, in batches of one size."""
    found: list[Any] = []
    for start in range(0, len(owner), size):
        part = np.arange(start, start + size) % len(owner)
        who = owner[part]
        ends = (np.asarray(own[part], np.float32) for own in (lows, highs))
        with jax.default_matmul_precision("highest"):
            found.append(jax.device_get(look(images[who], labels[who], *ends)))
    proved, wrong = (np.concatenate(own)[: len(owner)] for own in zip(*found, strict=True))
    return proved, wrong


# --- a proof beside a sweep -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class CertifiedRecord:
    """What was proved of one model, beside what a sweep of points has left.

    Attributes:
        correct: [n], right as it is.
        unbroken: [n], right at every point of the sweep too.
        certificate: what was proved; None where nothing could be.
        reason: why nothing could be proved; empty where something was.
    """

    correct: ExampleFlags
    unbroken: ExampleFlags
    certificate: Certificate | None
    reason: str = ""


def measure_certified(
    victim: Victim,
    split: Examples,
    edit: str,
    low: Scalar,
    high: Scalar,
    *,
    points: Count = 41,
    cells: Count = 16,
    splits: Count = 8,
    key: Key,
    batch_size: int,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> CertifiedRecord:
    """Sweep one attribute over points of its range, and prove what happens between them.

    A victim that draws at random, or has a primitive without an interval rule, is swept alone. Every process proves on
    one of its devices.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        edit, low, high, cells, splits: as for `certify`.
        points: evenly spaced over the range, both ends included; our choice.
        key, batch_size, mesh, on_batch: as for `evaluate`.

    Raises:
        ValueError: another edit, a bad range, numbers below 1, an empty split.
    """
    check_range(edit, low, high)
    swept, sweep = EDITS[edit], make_sweep(split, batch_size, mesh, on_batch)
    values = np.append(np.linspace(low, high, require_count("points", points)), swept.identity)
    correct = correct_by_attribute(victim, sweep, swept, values, key)
    images, labels = map(jnp.asarray, arrays_of(split))
    options: dict[str, Any] = {"cells": cells, "splits": splits, "batch_size": batch_size}
    certificate, reason = None, "the victim draws at random"
    if not is_randomized(victim):
        own = jax.tree.map(lambda leaf: to_host(leaf) if isinstance(leaf, jax.Array) else leaf, victim)
        try:
            certificate, reason = certify(own, images, labels, edit, low, high, **options), ""
        except MissingRuleError as error:
            reason = str(error)
    return CertifiedRecord(correct[:, -1], np.all(correct, axis=1), certificate, reason)
