"""Batches in an order that is a pure function of (seed, step): nothing has to be stored to resume exactly.

A batch is a dictionary of NumPy arrays: `image` [b, h, w, c], `label` int32 [b], `mask` bool [b], `index` int32 [b],
and `attribute` float32 [b, m] where the data have attributes.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from spa_jax.data.ordering import Stream, permutation
from spa_jax.data.types import Batch, Examples, IndexArray

_PREFETCHED_BATCHES = 2


def steps_per_epoch(split: Examples, batch_size: int) -> int:
    """Number of training batches in one epoch; the remainder of an epoch's permutation is dropped.

    Raises:
        ValueError: `batch_size` is not in 1..len(split).
    """
    if not 1 <= batch_size <= len(split):
        raise ValueError(f"batch_size={batch_size}; it must be 1 or more and at most {len(split)}, the training images")
    return len(split) // batch_size


def train_batch(
    split: Examples, batch_size: int, *, seed: int, step: int, process_index: int = 0, process_count: int = 1
) -> Batch:
    """Fetch this process's slice of the global training batch of one step.

    Epoch `step // steps_per_epoch` has the permutation of (seed, epoch); the batch is its next `batch_size` entries.
    `index` is the position within the global batch, so that randomness keyed by (step, index) does not depend on how
    many processes or devices share the work. `mask` is all True.

    Args:
        split: the examples.
        batch_size: number of examples in the global batch, over all processes.
        seed: in 0..2**32 - 1, names the order.
        step: >= 0, global step.
        process_index: which slice, 0..process_count - 1.
        process_count: number of slices; it divides `batch_size`.

    Raises:
        ValueError: an argument breaks its rule.
    """
    epoch, place = divmod(_checked_step(step), steps_per_epoch(split, batch_size))
    positions = _slice_of_process(batch_size, process_index, process_count)
    order = _epoch_order(len(split), seed, epoch)
    fetched = split.take(order[place * batch_size + positions])
    return {**fetched, "mask": np.ones(len(positions), bool), "index": positions.astype(np.int32)}


def train_batches(
    split: Examples,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Iterate without end over `train_batch` from `start_step` on, a thread fetching two batches ahead.

    Arguments and errors are those of `train_batch`; errors of the arguments are raised at once, not at the first batch.
    """
    _checked_step(start_step)
    steps_per_epoch(split, batch_size)
    _slice_of_process(batch_size, process_index, process_count)
    permutation(0, Stream.ORDER, seed)
    layout = {"process_index": process_index, "process_count": process_count}
    fetch = functools.partial(_fetch_train_batch, split, batch_size, seed, layout)
    return prefetch(fetch, itertools.count(start_step))


def eval_batches(
    split: Examples, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Iterate once over all examples in their order, in batches of one size; nothing is dropped.

    The last batch is filled up with copies of the last example whose `mask` is False. `index` is the example's index in
    `split`. Every process yields the same number of batches. An empty split yields none.

    Args:
        split: the examples.
        batch_size: number of examples in the global batch, over all processes; it may exceed len(split).
        process_index: which slice of each batch, 0..process_count - 1.
        process_count: number of slices; it divides `batch_size`.

    Raises:
        ValueError: an argument breaks its rule, at once.
    """
    positions = _slice_of_process(batch_size, process_index, process_count)
    return prefetch(functools.partial(_eval_batch, split, positions), range(0, len(split), batch_size))


def prefetch(fetch: Callable[[int], Batch], steps: Iterable[int]) -> Iterator[Batch]:
    """Yield `fetch(step)` for every step in turn, a thread working two batches ahead; its errors are raised here."""
    steps = iter(steps)
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        pending = deque(pool.submit(fetch, step) for step in itertools.islice(steps, _PREFETCHED_BATCHES))
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(fetch, step) for step in itertools.islice(steps, 1))
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def to_unit_float(images: Shaped[Array | np.ndarray, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """Convert images to float32 in [0, 1]: uint8 is divided by 255, floats in [0, 1] keep their values.

    Written for use under `jit`, so that uint8 crosses to the device and becomes float there.

    Raises:
        ValueError: the dtype is neither uint8 nor floating.
    """
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images.dtype={images.dtype}; it must be uint8 (0..255) or floating ([0, 1])")
    return images.astype(jnp.float32)


def arrays_of(split: Examples) -> tuple[np.ndarray, np.ndarray]:
    """All images [n, h, w, c] in [0, 1] and labels [n] of a split.

    Raises:
        ValueError: as `to_unit_float`.
    """
    batch = split.take(np.arange(len(split)))
    return np.asarray(to_unit_float(batch["image"])), np.asarray(batch["label"])


def _fetch_train_batch(split: Examples, batch_size: int, seed: int, layout: dict[str, int], step: int) -> Batch:
    return train_batch(split, batch_size, seed=seed, step=step, **layout)


def _eval_batch(split: Examples, positions: IndexArray, start: int) -> Batch:
    index = start + positions
    mask = index < len(split)
    index = np.minimum(index, len(split) - 1)
    return {**split.take(index), "mask": mask, "index": index.astype(np.int32)}


@functools.lru_cache(maxsize=4)
def _epoch_order(size: int, seed: int, epoch: int) -> IndexArray:
    order = permutation(size, Stream.ORDER, seed, epoch)
    order.flags.writeable = False
    return order


def _slice_of_process(batch_size: int, process_index: int, process_count: int) -> IndexArray:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; it must be 1 or more")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}; it must be in 0..process_count - 1 ({process_count=})")
    if batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} does not divide evenly among process_count={process_count}")
    local = batch_size // process_count
    return np.arange(process_index * local, (process_index + 1) * local)


def _checked_step(step: int) -> int:
    if step < 0:
        raise ValueError(f"step={step}; it must be 0 or more")
    return step
