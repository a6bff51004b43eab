import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from spa_jax.data import load_dataset


def test_sizes_and_facts():
    dataset = load_dataset("digits")
    assert dataset.split_sizes == {"train": 1200, "validation": 200, "test": 397}
    assert dataset.image_shape == (8, 8, 1) and dataset.num_classes == 10
    assert dataset.train.images.shape == (1200, 8, 8, 1) and dataset.train.images.dtype == np.uint8


def test_every_image_occurs_once_with_its_label_and_levels():
    dataset = load_dataset("digits")
    splits = (dataset.train, dataset.validation, dataset.test)
    levels = np.concatenate([split.images for split in splits]).reshape(-1, 64) * (16 / 255)
    labels = np.concatenate([split.labels for split in splits])
    assert np.abs(levels - np.rint(levels)).max() <= 0.5 * 16 / 255
    ours = {(row.tobytes(), label) for row, label in zip(np.rint(levels).astype(int), labels, strict=True)}
    source, source_labels = load_digits(return_X_y=True)
    theirs = {(row.tobytes(), label) for row, label in zip(source.astype(int), source_labels, strict=True)}
    assert len(labels) == 1797 and ours == theirs


def test_splits_are_stratified():
    dataset = load_dataset("digits")
    total = np.bincount(load_digits().target)
    for split in (dataset.train, dataset.validation, dataset.test):
        assert np.abs(np.bincount(split.labels) - total * len(split) / 1797).max() <= 2


def test_the_test_images_are_the_recorded_ones_for_every_seed():
    digests = {hashlib.sha256(load_dataset("digits", seed=seed).test.images).hexdigest()[:16] for seed in (0, 5)}
    assert digests == {"04e5068133ac4872"}


def test_the_seed_decides_the_validation_images():
    first, again, other = (load_dataset("digits", seed=seed).validation.images for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("size", [-1, 1400])
def test_validation_size_out_of_range(size):
    with pytest.raises(ValueError, match=f"validation_size={size}"):
        load_dataset("digits", validation_size=size)
