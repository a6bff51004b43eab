"""Images of an evaluation to look at: of each class some that an attack fooled, and the survivors that came closest."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

NO_ANSWER = -1
"""In the place of a class where the image or the victim's answer to it is not finite."""
_MOST = 400
_LARGEST_SIDE = 112

Rows: TypeAlias = Int[np.ndarray, " k"]


class Sighting(NamedTuple):
    """What an attack did to some images, [m] each.

    Attributes:
        index: of the example in the split.
        label: its class.
        fooled: whether the attack fooled the victim.
        answer: the class that the victim answers the attacked image with, in the draw of the verdict; `NO_ANSWER`
            where there is none.
        edited_answer: the same of the edited image A(x, a), where the attack has both attributes and noise.
        closeness: the attack's loss; of two survivors the one with the larger loss came closer to being fooled.
        clean, edited, attacked: [m, h, w, c] in [0, 1].
        attributes: the values of each attribute, [m] or [m, k].
    """

    index: Any
    label: Any
    fooled: Any
    answer: Any
    edited_answer: Any
    closeness: Any
    clean: Any
    edited: Any
    attacked: Any
    attributes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """A bounded sample of what one attack did to a split's images, at least one, in the order of classes.

    Attributes:
        sighting: of the examples, in NumPy arrays.
        names: of the numbers of each attribute, in the attack's order.
        moves_noise: whether the attack is known to add noise to the edited images.
    """

    sighting: Sighting
    names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    moves_noise: bool = False

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.sighting.index)

    @property
    def numbers(self) -> Float[np.ndarray, "m k"]:
        """The numbers of all attributes of each example, a column for each of their names."""
        values = [np.reshape(self.sighting.attributes[name], (len(self), -1)) for name in self.names]
        return np.concatenate([np.zeros((len(self), 0)), *values], axis=1)

    @property
    def noise(self) -> Float[np.ndarray, "m h w c"]:
        """What the attacked images have beyond their edited images."""
        return self.sighting.attacked - self.sighting.edited

    def thinned(self, per_class: int, most: int = _MOST) -> "Gallery":
        """The same with fewer examples of each class, and at most `most` in all, chosen by the rule of `Collector`."""
        return dataclasses.replace(self, sighting=_chosen(self.sighting, per_class, most))


class Collector:
    """Keeps a sample of the sightings that pass, batch by batch, in memory that does not grow with the split.

    Of each class it keeps the first fooled examples in the split's order, and half as many survivors, those that came
    closest; at most 400 in all, the first of each class before the second, fooled ones before survivors. Large images
    are reduced to at most 112 pixels a side, by the mean of blocks. Examples whose image is not finite or not in [0, 1]
    are left out.

    Args:
        per_class: how many fooled examples of each class.
    """

    def __init__(self, per_class: int) -> None:
        self._per_class = per_class
        self._kept: Sighting | None = None

    def add(self, seen: Sighting, is_image: Bool[np.ndarray, " m"]) -> None:
        """Take what is wanted of a batch."""
        small = seen._replace(
            clean=_reduced(seen.clean), edited=_reduced(seen.edited), attacked=_reduced(seen.attacked)
        )
        own = _take(small, np.flatnonzero(is_image))
        both = own if self._kept is None else jax.tree.map(lambda *parts: np.concatenate(parts), self._kept, own)
        self._kept = _chosen(both, self._per_class)

    def gallery(self, names: Mapping[str, Sequence[str]], moves_noise: bool) -> Gallery | None:
        """What was kept; None where nothing was."""
        if self._kept is None or not len(self._kept.index):
            return None
        return Gallery(self._kept, names, moves_noise)


def _take(seen: Sighting, rows: Rows) -> Sighting:
    return jax.tree.map(lambda leaf: leaf[rows], seen)


def _chosen(seen: Sighting, per_class: int, most: int = _MOST) -> Sighting:
    """The first fooled ones and the closest survivors of each class, ordered by class, fooled ones first."""
    groups = 2 * seen.label.astype(np.int64) + ~seen.fooled
    order, place = _places(groups, np.where(seen.fooled, seen.index, -_finite(seen.closeness)), seen.index)
    wanted = order[place < np.where(seen.fooled, per_class, (per_class + 1) // 2)[order]]
    rank = np.empty_like(order)
    rank[order] = place
    wanted = wanted[np.lexsort((seen.label[wanted], ~seen.fooled[wanted], rank[wanted]))][:most]
    return _take(seen, wanted[np.lexsort((rank[wanted], groups[wanted]))])


def _places(groups: Rows, ranking: Float[np.ndarray, " k"], index: Rows) -> tuple[Rows, Rows]:
    """The examples ordered by group, then ranking, and the place of each of these in its group, from 0."""
    order = np.lexsort((index, ranking, groups))
    starts = np.searchsorted(groups[order], groups[order])
    return order, np.arange(len(order)) - starts


def _finite(values: Any) -> Float[np.ndarray, " k"]:
    return np.nan_to_num(np.asarray(values, np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def _reduced(images: Float[np.ndarray, "m h w c"]) -> Float[np.ndarray, "m h2 w2 c"]:
    """Images of at most 112 pixels a side: each pixel the mean of a block, remainders at the edges cut off."""
    count, height, width, channels = images.shape
    block = -(-max(height, width) // _LARGEST_SIDE)
    if block == 1:
        return images
    high, wide = height // block, width // block
    blocks = images[:, : high * block, : wide * block].reshape(count, high, block, wide, block, channels)
    return blocks.mean(axis=(2, 4), dtype=np.float32)
