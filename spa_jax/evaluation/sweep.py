"""One pass of a function over examples of a split, batch by batch, sharded over all devices."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from spa_jax.data.batching import eval_batches, to_unit_float
from spa_jax.data.types import Examples, IndexArray
from spa_jax.parallel import data_mesh, replicate, shard_batch, to_host
from spa_jax.types import Example, Images, Key, Keys, Labels, Predict, Victim
from spa_jax.validation import check_values
from spa_jax.victims import as_victim, trace_for

_LABELLED_EXAMPLES = 1000

Progress = Callable[[str, int, int], None]
"""`(what is running, examples done, examples in all)`, called after every batch."""


AnyAttack: TypeAlias = Callable[..., Any]
"""An attack of this library, or any function `(keys [b], victim, images, labels) -> Result`."""


@dataclasses.dataclass(frozen=True)
class DeviceBatch:
    """Examples on the devices, split over the mesh.

    Attributes:
        index: [b], of each example in the split; randomness is keyed by it.
        images: [b, h, w, c] in [0, 1].
        labels: [b].
        attribute: [b, m] where the split has attributes, else None.
    """

    index: Any
    images: Images
    labels: Labels
    attribute: Any = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Passes over a split in batches of one size, so that a compiled function serves all of them.

    Attributes:
        split: the examples.
        batch_size: of the global batch, divisible by the devices of the mesh.
        mesh: of `data_mesh`.
        on_batch: called with the progress after each batch, or None.
    """

    split: Examples
    batch_size: int
    mesh: Mesh
    on_batch: Progress | None = None

    def place(self, victim: Victim, attacks: Iterable[Any] = ()) -> Victim:
        """The victim on all devices, called as before, and traced once for every batch if it is a plain function.

        A pytree (`spa_jax.classifier`) keeps its structure, so models of one architecture share the compiled programs.

        Args:
            victim: any.
            attacks: that will attack it; some show it parts of a batch.
        """
        sizes = {self.batch_size}
        for attack in attacks:
            sizes |= attack.batch_sizes(self.batch_size) if hasattr(attack, "batch_sizes") else set()
        return replicate(trace_for(victim, self.blank, sizes), self.mesh)

    def predict(self, victim: Victim) -> Predict:
        """The victim as `(keys [b], images) -> logits`, for a compiled function to take as an argument."""
        return as_victim(victim, self.blank, inline=False)

    @property
    def blank(self) -> Images:
        """A batch of black images."""
        shape = self.split.take(np.arange(1))["image"].shape[1:]
        return jnp.zeros((self.batch_size, *shape), jnp.float32)

    def check_labels(self, victim: Victim, labels: Any) -> int:
        """Check that the victim returns logits for a batch, and that the labels are among its classes.

        Returns:
            The number of its classes.

        Raises:
            ValueError: naming what it returned, or the labels.
        """
        return check_values(self.predict(victim), jax.random.key(0), Example(self.blank, np.asarray(labels)))

    def run(
        self,
        name: str,
        function: Callable[[DeviceBatch], Any],
        indices: Int[np.ndarray, " m"],
        keep: Callable[[Any], Any] = lambda found: found,
    ) -> Any:
        """`function(batch)`, a tree of arrays [b, ...], for the examples at `indices`, as NumPy arrays [m, ...].

        The last batch is padded with copies whose results are dropped. `keep` is given what was found of each batch, as
        NumPy arrays without padding, and returns what is kept of it.

        Raises:
            ValueError: `indices` is empty.
        """
        if not len(indices):
            raise ValueError("indices must not be empty")
        parts, done = [], 0
        for size, batch in self._batches(indices):
            parts.append(keep(jax.tree.map(lambda leaf, size=size: leaf[:size], to_host(function(batch)))))
            done += size
            if self.on_batch:
                self.on_batch(name, done, len(indices))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def _batches(self, indices: Int[np.ndarray, " m"]) -> Iterator[tuple[int, DeviceBatch]]:
        """The batches, each with the number of its examples, excluding padding."""
        processes = sorted({device.process_index for device in self.mesh.devices.flat})
        place = {"process_index": processes.index(jax.process_index()), "process_count": len(processes)}
        for number, batch in enumerate(eval_batches(self.split.subset(indices), self.batch_size, **place)):
            index = indices[batch["index"]].astype(np.int32)
            arrays = (index, batch["image"], batch["label"], batch.get("attribute"))
            index, images, labels, attribute = shard_batch(arrays, self.mesh)
            size = min(self.batch_size, len(indices) - number * self.batch_size)
            yield size, DeviceBatch(index, floats(images), labels, attribute)


floats = jax.jit(to_unit_float)
"""`to_unit_float`, compiled."""


def make_sweep(split: Examples, batch_size: int, mesh: Mesh | None, on_batch: Progress | None = None) -> Sweep:
    """A sweep in batches of `batch_size`, rounded up to a multiple of the devices, of which the last is padded.

    Args:
        split: the examples.
        batch_size: at least 1.
        mesh: default: all devices.
        on_batch: called with the progress after each batch.

    Raises:
        ValueError: `batch_size` below 1, or an empty split.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if not len(split):
        raise ValueError("split holds no examples")
    mesh = data_mesh() if mesh is None else mesh
    shares = -(-batch_size // mesh.size)
    return Sweep(split, shares * mesh.size, mesh, on_batch)


def evenly_spaced(split: Examples, count: int) -> Examples:
    """At most `count` examples of a split, evenly spaced over it.

    Raises:
        ValueError: `count` below 1.
    """
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    chosen = min(count, len(split))
    return split.subset(np.arange(chosen) * len(split) // max(chosen, 1))


def first_of_each_class(split: Examples, count: int) -> IndexArray:
    """Indices of the first example of each class, then the second, until there are `count`; ordered by class."""
    labels = split.labels
    if labels is None:
        labels = split.take(np.arange(min(len(split), _LABELLED_EXAMPLES)))["label"]
    nth_of_class = np.zeros(len(labels), int)
    for label in np.unique(labels):
        nth_of_class[labels == label] = np.arange(np.sum(labels == label))
    chosen = np.lexsort((labels, nth_of_class))[:count]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def stream(key: Key, *names: str) -> Key:
    """A key for one purpose, the same whatever else is evaluated beside it."""
    return functools.reduce(jax.random.fold_in, [np.uint32(zlib.crc32(name.encode())) for name in names], key)


@jax.jit
def example_keys(key: Key, index: Int[jax.Array, " b"]) -> Keys:
    """One key per example from its index in the split, so that batch size and devices do not matter."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
