"""Random draws, permutations and stratified choices: pure functions of their seeds in every version of NumPy."""

from enum import IntEnum

import numpy as np
from jaxtyping import Float, Int, UInt64

from spa_jax.data.types import IndexArray, LabelArray

_SEED_LIMIT = 2**32


class Stream(IntEnum):
    """What random bits are drawn for; each use has its own stream, so that equal seeds do not correlate two uses."""

    ORDER = 0
    TEST = 1
    VALIDATION = 2
    ANGLE = 3
    PATTERN = 4
    PIXEL = 5
    SUBSET = 6
    FACTOR = 7
    BACKGROUND = 8
    ATTRIBUTE = 9


def random_bits(size: int, stream: Stream, *seeds: int) -> UInt64[np.ndarray, " size"]:
    """Draw `size` random words of 64 bits, keyed by `stream` and `seeds`.

    Only the raw output of the Philox generator is used: NumPy promises it never to change, unlike that of its
    `Generator.permutation` and other distributions.

    Args:
        size: number of words.
        stream: what they are for.
        seeds: one to three integers in 0..2**32 - 1; every combination names an independent stream.

    Raises:
        ValueError: a seed is out of range.
    """
    for seed in seeds:
        if not 0 <= seed < _SEED_LIMIT:
            raise ValueError(f"seed={seed}; it must be an integer in 0..2**32 - 1")
    return np.random.Philox(np.random.SeedSequence([stream, *seeds])).random_raw(size)


def uniform(size: int, stream: Stream, *seeds: int) -> Float[np.ndarray, " size"]:
    """Draw `size` float64 numbers from [0, 1); arguments and errors as in `random_bits`."""
    return (random_bits(size, stream, *seeds) >> np.uint64(11)) * 2.0**-53


def permutation(size: int, stream: Stream, *seeds: int) -> IndexArray:
    """Return a random permutation of 0..size - 1; arguments and errors as in `random_bits`."""
    return np.argsort(random_bits(size, stream, *seeds), kind="stable")


def stratified_choice(labels: LabelArray, size: int, stream: Stream, *seeds: int) -> IndexArray:
    """Choose `size` examples so that each class keeps its share, to within one example.

    A class gets `size * share` places rounded down; the places left go to the largest remainders (ties: lower label).

    Args:
        labels: class of every example, `[n]`.
        size: number of examples to choose, 0..n.
        stream: as in `random_bits`.
        seeds: as in `random_bits`.

    Returns:
        Indices of the chosen examples, ascending, `[size]`.
    """
    order = permutation(len(labels), stream, *seeds)
    classes, counts = np.unique(labels, return_counts=True)
    quotas = _shares(counts, size)
    chosen = [order[labels[order] == label][:quota] for label, quota in zip(classes, quotas, strict=True)]
    return np.sort(np.concatenate(chosen)) if chosen else order


def _shares(counts: Int[np.ndarray, " k"], size: int) -> Int[np.ndarray, " k"]:
    quotas, remainders = np.divmod(counts * size, max(counts.sum(), 1))
    largest_first = np.argsort(-remainders, kind="stable")
    quotas[largest_first[: size - quotas.sum()]] += 1
    return quotas
