"""Train, validation and test from the splits that a source has."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from spa_jax.data.ordering import Stream, permutation, stratified_choice
from spa_jax.data.types import Examples, IndexArray
from spa_jax.validation import is_integer

_FIXED_SEED = 0


class Splits(TypedDict):
    """The three splits of a `Dataset`."""

    train: Examples
    validation: Examples
    test: Examples


def complete_splits(
    found: Mapping[str, Examples], *, validation_size: int | None, seed: int, test_size: int | None = None
) -> Splits:
    """`train`, `validation` and `test` from the splits that a source has; missing ones are held out of `train`.

    Held-out examples are chosen stratified where the labels are at hand, else at random. A source without `test` gives
    up `test_size` (default: one fifth of its `train`), always the same ones. One without `validation` then gives up
    `validation_size` (default: one tenth of what is left), chosen by `seed`. The fractions are our choice.

    Args:
        found: `train`, and `validation` and `test` where the source has them.
        validation_size: 0 or more; None: the default, or the source's own validation split.
        seed: in 0..2**32 - 1.
        test_size: 1 or more; None: the default, or the source's own test split.

    Raises:
        ValueError: a size breaks its rule, leaves nothing to train on, or is given where the source has that split.
    """
    for name, size in (("test", test_size), ("validation", validation_size)):
        if size is not None and name in found:
            raise ValueError(f"{name}_size={size}, but this set has a {name} split of its own; leave it None")
    train, test, validation = found["train"], found.get("test"), found.get("validation")
    if test is None:
        train, test = hold_out("test_size", train, test_size, len(train) // 5, Stream.TEST, _FIXED_SEED)
    if validation is None:
        train, validation = hold_out(
            "validation_size", train, validation_size, len(train) // 10, Stream.VALIDATION, seed
        )
    return {"train": train, "validation": validation, "test": test}


def hold_out(
    argument: str, examples: Examples, size: int | None, default: int, stream: Stream, seed: int
) -> tuple[Examples, Examples]:
    """Split into the examples kept and `size` (None: `default`) held out, both in their old order.

    Raises:
        ValueError: `size` is not an integer, negative, or leaves nothing; the message names `argument`.
    """
    size = default if size is None else size
    total = len(examples)
    if not is_integer(size) or not 0 <= size < total:
        raise ValueError(
            f"{argument}={size}; it must be in 0..{total - 1}, a number of examples out of the {total} that there are"
        )
    held_out = _chosen(examples, size, stream, seed)
    kept = np.setdiff1d(np.arange(total), held_out, assume_unique=True)
    return examples.subset(kept), examples.subset(held_out)


def choose(argument: str, examples: Examples, size: int | None) -> Examples:
    """Choose `size` examples (None: all), in their old order: always the same ones, stratified as in `hold_out`.

    Raises:
        ValueError: there are not as many, or `size` is not an integer of 1 or more; the message names `argument`.
    """
    if size is None:
        return examples
    if not is_integer(size) or not 1 <= size <= len(examples):
        raise ValueError(f"{argument}={size}; it must be in 1..{len(examples)}, the examples there are")
    return examples.subset(_chosen(examples, size, Stream.SUBSET, _FIXED_SEED))


def _chosen(examples: Examples, size: int, stream: Stream, seed: int) -> IndexArray:
    if examples.labels is None:
        return np.sort(permutation(len(examples), stream, seed)[:size])
    return stratified_choice(examples.labels, size, stream, seed)
