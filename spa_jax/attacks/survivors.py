"""Parts of a batch: examples that an attack has broken leave it, so that its time goes to those that still stand.

The rest of a batch is padded with copies of its first example to one of few sizes, since every size is compiled once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from spa_jax.types import Images, Predict
from spa_jax.victims.tracing import is_randomized

SMALLEST_BATCH = 16
"""Below it a step takes hardly less time."""

Rows = Int[np.ndarray, " n"]


def batch_ladder(size: int, devices: int = 1) -> list[int]:
    """The sizes that a batch may shrink to, itself first: the powers of two below it, down to 16.

    On 3, 6 or 12 devices three times these powers, so that devices share them.
    """
    factor = 3 if devices % 3 == 0 else 1
    rungs = (factor * 2**exponent for exponent in reversed(range(size.bit_length())))
    return [size, *(rung for rung in rungs if SMALLEST_BATCH <= rung < size)]


def ladder_sizes(attack: Any, size: int) -> set[int]:
    """In which batches the victim sees a batch of that size, which `attack` may be given parts of."""
    rungs = {*batch_ladder(size), *(batch_ladder(size, 3) if size % 3 == 0 else ())}
    return set().union(*map(attack.batch_sizes, rungs))


def standing_rows(success: Any, predict: Predict) -> Rows:
    """Which examples are not broken; all of them where other processes hold some, or where the victim draws at random.

    A success against a randomised victim may be luck.
    """
    if is_randomized(predict) or not success.is_fully_addressable:
        return np.arange(len(success))
    return np.flatnonzero(~np.asarray(success))


def on_rows(rows: Rows, function: Callable[..., Any], old: Any, *given: Any) -> Any:
    """`function(old, *given)` of those rows alone, `old` elsewhere; where it saves nothing, of all rows.

    Args:
        rows: of the batch.
        function: works on batches of any size, and leaves as they are examples that are not among the rows.
        old: a tree like what the function returns.
        given: further per-example trees, the last of them the examples.
    """
    images = given[-1].image
    if not len(rows):
        return old
    size = fitting(len(rows), images)
    if size == len(images):
        return function(old, *given)
    return put_rows(old, rows, function(*take_rows((old, *given), rows, size, images)))


def fitting(count: int, images: Images) -> int:
    """The smallest size that this batch may shrink to and that holds `count` examples, shared evenly by its devices."""
    devices = len(images.sharding.device_set)
    whole, *smaller = batch_ladder(len(images), devices)
    return min([whole, *(rung for rung in smaller if rung >= count and rung % devices == 0)])


def take_rows(tree: Any, rows: Rows, size: int, images: Images) -> Any:
    """Those rows of every per-example leaf, padded to `size`, on the devices of the images; scalars stay."""
    padded = np.concatenate([rows, np.full(size - len(rows), rows[0])])

    def take(leaf: Any) -> Any:
        if leaf.ndim == 0:
            return leaf
        found = jax.device_put(np.asarray(_numbers(leaf))[padded], images.sharding)
        return _like(leaf, found)

    return jax.tree.map(take, tree)


def put_rows(whole: Any, rows: Rows, part: Any) -> Any:
    """The whole tree with those rows taken from a part, whose padding is dropped; scalars are those of the part."""

    def put(old: Any, new: Any) -> Any:
        if old.ndim == 0:
            return new
        joined = np.array(_numbers(old))
        joined[rows] = np.asarray(_numbers(new))[: len(rows)]
        return _like(old, jax.device_put(joined, _numbers(old).sharding))

    return jax.tree.map(put, whole, part)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(leaf: Any, numbers: Any) -> Any:
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else numbers
