import inspect

import numpy as np
import pytest

from spa_jax.data.ordering import Stream
from spa_jax.data.splitting import choose, complete_splits, hold_out
from spa_jax.data.streaming import StreamedSplit
from spa_jax.data.types import Split


def numbered(size, classes=2):
    images = np.arange(size, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Split(images, (np.arange(size) % classes).astype(np.int32))


def numbers(split):
    return set(split.images.ravel().tolist())


def test_what_is_missing_is_held_out_of_train():
    splits = complete_splits({"train": numbered(100)}, validation_size=None, seed=0)
    assert {name: len(split) for name, split in splits.items()} == {"train": 72, "validation": 8, "test": 20}
    assert set.union(*map(numbers, splits.values())) == set(range(100))
    assert np.bincount(splits["test"].labels).tolist() == [10, 10]


def test_the_seed_moves_validation_and_never_test():
    first, again, other = (
        complete_splits({"train": numbered(100)}, validation_size=10, seed=seed, test_size=30) for seed in (1, 1, 2)
    )
    assert numbers(first["test"]) == numbers(other["test"])
    assert numbers(first["validation"]) == numbers(again["validation"]) != numbers(other["validation"])


def test_own_splits_are_kept():
    found = {"train": numbered(10), "validation": numbered(4), "test": numbered(6)}
    assert complete_splits(found, validation_size=None, seed=0) == found


def test_unknown_labels_are_split_at_random():
    streamed = StreamedSplit(range(50), np.arange(50))
    splits = complete_splits({"train": streamed}, validation_size=5, seed=0, test_size=5)
    indices = np.concatenate([split.indices for split in splits.values()])
    assert np.array_equal(np.sort(indices), np.arange(50))


@pytest.mark.parametrize("name", ["test", "validation"])
def test_a_size_for_an_own_split_is_an_error(name):
    found = {"train": numbered(10), "validation": numbered(4), "test": numbered(6)}
    sizes = {"validation_size": None, "test_size": None, f"{name}_size": 3}
    with pytest.raises(ValueError, match=f"{name}_size=3"):
        complete_splits(found, seed=0, **sizes)


@pytest.mark.parametrize("size", [-1, 10, 11])
def test_a_size_that_leaves_nothing_is_an_error(size):
    with pytest.raises(ValueError, match=rf"validation_size={size}; it must be in 0\.\.9"):
        complete_splits({"train": numbered(10), "test": numbered(2)}, validation_size=size, seed=0)


def test_no_validation_is_allowed():
    splits = complete_splits({"train": numbered(10), "test": numbered(2)}, validation_size=0, seed=0)
    assert len(splits["validation"]) == 0 and len(splits["train"]) == 10


@pytest.mark.parametrize("size", [0.1, 3.0, True, "3"])
def test_a_size_is_a_number_of_examples(size):
    with pytest.raises(ValueError, match=rf"validation_size={size}; it must be in 0\.\.9, a number of examples"):
        inspect.unwrap(hold_out)("validation_size", numbered(10), size, 1, Stream.VALIDATION, 0)
    with pytest.raises(ValueError, match=rf"train_size={size}; it must be in 1\.\.10"):
        inspect.unwrap(choose)("train_size", numbered(10), size)
