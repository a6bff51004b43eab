"""Examples that are read on demand, because all of them would not fit into memory."""

import functools
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from spa_jax.data.types import Batch, Examples, ImageShape, IndexArray, LabelArray, Split

MEMORY_LIMIT = 2**30
_CHUNK = 1024


@runtime_checkable
class Records(Protocol):
    """Single examples by their number: a dictionary of `image` uint8 [h, w, c], `label`, perhaps `attribute` [m]."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Batch:
        """Read one example; called from several threads at once."""
        ...


@runtime_checkable
class BulkRecords(Records, Protocol):
    """Records that are read faster many at a time."""

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Batch]:
        """Read several examples."""
        ...


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """Examples read and decoded on demand by threads, in any order: what is read depends on the indices alone.

    Attributes:
        records: indexed through `grain.MapDataset`.
        indices: which records belong to the split, in its order.
        labels: int32 `[n]` where they are known without reading the images, else None.
    """

    records: Records
    indices: IndexArray
    labels: LabelArray | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.indices)

    def take(self, indices: IndexArray) -> Batch:
        """Read `image`, `label` and, where there is one, `attribute` of the examples at `indices`, in that order."""
        examples = list(_readers().map(self.records.__getitem__, self.indices[indices].tolist()))
        return {key: np.stack([example[key] for example in examples]) for key in examples[0]}

    def subset(self, indices: IndexArray) -> "StreamedSplit":
        """The examples at `indices`, in that order, as a split of their own; nothing is read."""
        labels = None if self.labels is None else self.labels[indices]
        return StreamedSplit(self.records, self.indices[indices], labels)


def open_splits(
    records: Mapping[str, BulkRecords],
    image_shape: ImageShape,
    memory_limit: int,
    labels: Mapping[str, LabelArray] | None = None,
) -> dict[str, Examples]:
    """Hold all splits in memory as uint8 if their pixels take at most `memory_limit` bytes, else stream them.

    Args:
        records: the splits by name.
        image_shape: height, width and channels of every image.
        memory_limit: in bytes, 0 or more.
        labels: of each split, where they are known without reading the images.

    Raises:
        ValueError: `memory_limit` is negative.
    """
    if memory_limit < 0:
        raise ValueError(f"memory_limit={memory_limit}; it is a number of bytes, 0 or more")
    if sum(map(len, records.values())) * math.prod(image_shape) <= memory_limit:
        return {name: _read_all(split, image_shape) for name, split in records.items()}
    return {name: _stream(split, None if labels is None else labels[name]) for name, split in records.items()}


def _stream(records: BulkRecords, labels: LabelArray | None) -> StreamedSplit:
    import grain

    return StreamedSplit(grain.MapDataset.source(records), np.arange(len(records)), labels)


def _read_all(records: BulkRecords, image_shape: ImageShape) -> Split:
    images = np.empty((len(records), *image_shape), np.uint8)
    labels, attributes = np.empty(len(records), np.int32), []
    for start in range(0, len(records), _CHUNK):
        chunk = range(start, min(start + _CHUNK, len(records)))
        for index, example in zip(chunk, records.__getitems__(chunk), strict=True):
            images[index], labels[index] = example["image"], example["label"]
            attributes.extend([example["attribute"]] if "attribute" in example else [])
    return Split(images, labels, np.stack(attributes) if attributes else None)


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(32, 2 * (os.cpu_count() or 1)), thread_name_prefix="read")
