"""Which images are proved to withstand one attribute, at every value of its range, by sweeping it in small cells."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spa_jax.data.batching import arrays_of
from spa_jax.data.types import Examples
from spa_jax.edits import EDITS, displaced
from spa_jax.evaluation.curves import correct_by_attribute
from spa_jax.evaluation.intervals import Interval, MissingRuleError
from spa_jax.evaluation.linear_bounds import lowest_margins
from spa_jax.evaluation.records import ExampleFlags
from spa_jax.evaluation.sweep import Progress, make_sweep
from spa_jax.parallel import to_host
from spa_jax.types import Count, Image, Images, Key, Labels, Scalar, Victim
from spa_jax.validation import require_choice, require_count
from spa_jax.victims.tracing import is_randomized

_SLACK = 1e-5
_MOVES = 1e-4


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


def pixel_bounds(edit: str, image: Image, low: Scalar, high: Scalar) -> Interval:
    """Bounds of every pixel of an edited image over a cell of values, [h, w, c], wider by 1e-5 for rounding.

    The image under "brightness", "contrast" and "saturation" moves monotonously in each pixel, so the ends bound it. A
    "rotation" moves the place at which a pixel is read; the interpolated image takes its extremes over the box of these
    places at its corners and where it crosses lines of pixels. Cells in which a place moves by more than a pixel
    have the bounds 0 and 1.

    Args:
        edit: one of these four, by name.
        image: [h, w, c] in [0, 1].
        low, high: of the value.

    Raises:
        ValueError: another edit.
    """
    require_choice("edit", edit, tuple(_BOUNDS))
    found = _BOUNDS[edit](image, low, high)
    return Interval(jnp.clip(found.low - _SLACK, 0, 1), jnp.clip(found.high + _SLACK, 0, 1))


def _of_ends(edit: Callable[..., Any], image: Any, low: Any, high: Any) -> Interval:
    ends = edit(image, low), edit(image, high)
    return Interval(jnp.minimum(*ends), jnp.maximum(*ends))


def _of_rotation(image: Any, low: Any, high: Any) -> Interval:
    down, right = _places(image.shape, low, high)
    points = [[own.low, jnp.clip(jnp.floor(own.high), own.low, own.high), own.high] for own in (down, right)]
    # `floor` is of displacements plus whole numbers, so that lines of pixels are where displacements are whole.
    read = [displaced(image, d, r) for d in points[0] for r in points[1]]
    far = jnp.maximum(down.high - down.low, right.high - right.low)[..., None] > 1
    lowest, highest = functools.reduce(jnp.minimum, read), functools.reduce(jnp.maximum, read)
    return Interval(jnp.where(far, 0, lowest), jnp.where(far, 1, highest))


def _places(shape: tuple[int, ...], low: Any, high: Any) -> tuple[Interval, Interval]:
    """Bounds of how far down and to the right of itself each pixel is read, [h, w], for angles within 90 degrees."""
    low, high = (jnp.deg2rad(jnp.asarray(angle, jnp.float32)) for angle in (low, high))
    sine = Interval(jnp.sin(low), jnp.sin(high))
    ends = [-2 * jnp.sin(angle / 2) ** 2 for angle in (low, high)]
    most = jnp.where((low <= 0) & (high >= 0), 0, jnp.maximum(*ends))
    cosine = Interval(jnp.minimum(*ends), most)
    offsets = [jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2 for size in shape[:2]]
    rows, columns = jnp.meshgrid(*offsets, indexing="ij")
    down = _sum(_times(cosine, rows), _times(sine, columns))
    right = _sum(_times(Interval(-sine.high, -sine.low), rows), _times(cosine, columns))
    return down, right


def _times(own: Interval, number: Any) -> Interval:
    ends = own.low * number, own.high * number
    return Interval(jnp.minimum(*ends), jnp.maximum(*ends))


def _sum(a: Interval, b: Interval) -> Interval:
    return Interval(a.low + b.low - _MOVES, a.high + b.high + _MOVES)


_BOUNDS: Mapping[str, Callable[..., Interval]] = {
    "rotation": _of_rotation,
    **{name: functools.partial(_of_ends, EDITS[name].function) for name in ("brightness", "contrast", "saturation")},
}


def certify(
    victim: Victim,
    images: Images,
    labels: Labels,
    edit: str,
    low: Scalar,
    high: Scalar,
    *,
    cells: Count = 64,
    splits: Count = 6,
    batch_size: Count = 256,
) -> Certificate:
    """Prove images right at every value of one attribute, or find a value at which they are wrong.

    The range is cut into cells. In each, the pixels are bounded (`pixel_bounds`) and by these how far the label's logit
    is ahead (`spa_jax.evaluation.linear_bounds.lowest_margins`): where it stays above all others, the cell is proved.
    Where it is not, the image in the middle of the cell is classified; if it is right, the cell is halved.

    A proof holds for the edit as it is computed, up to rounding, for which pixels have some slack and the network has
    none: it is no formal verification of a program. A network in bfloat16 rounds by more than small margins.

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
    cells: Count = 64,
    splits: Count = 6,
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
