import numpy as np
import pytest

from spa_jax.data import load_dataset
from spa_jax.data.synthetic import FORMATS


def test_takes_the_format_asked_for():
    dataset = load_dataset("synthetic", like="cifar100", train_size=250, test_size=100)
    assert dataset.image_shape == (32, 32, 3) and dataset.num_classes == 100
    assert dataset.split_sizes == {"train": 225, "validation": 25, "test": 100}
    assert dataset.train.images.dtype == np.uint8 and dataset.name == "synthetic_cifar100"
    assert np.bincount(dataset.test.labels).tolist() == [1] * 100


def test_shape_and_classes_can_be_given():
    dataset = load_dataset("synthetic", image_shape=(5, 7, 1), num_classes=3, train_size=9, test_size=3)
    assert dataset.train.images.shape[1:] == (5, 7, 1) and len(dataset.class_names) == 3


def test_content_belongs_to_its_seed_and_validation_to_the_other():
    first, again, content, split = (
        load_dataset("synthetic", like="digits", **seeds) for seeds in ({}, {}, {"content_seed": 1}, {"seed": 1})
    )
    assert np.array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.test.images, content.test.images)
    assert np.array_equal(first.test.images, split.test.images)
    assert not np.array_equal(first.validation.images, split.validation.images)


@pytest.mark.parametrize("like", ["digits", "cifar10"])
def test_classes_can_be_learnt_and_noise_is_no_label(like):
    dataset = load_dataset("synthetic", like=like)
    images, labels = dataset.train.images.reshape(len(dataset.train), -1).astype(float), dataset.train.labels
    means = np.stack([images[labels == label].mean(axis=0) for label in range(10)])
    test = dataset.test.images.reshape(len(dataset.test), 1, -1)
    predicted = np.argmin(np.square(test - means).sum(axis=2), axis=1)
    assert np.mean(predicted == dataset.test.labels) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"like": "mnists"}, "like='mnists' is no known format; valid: .*cifar10"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"train_size": 0}, "train_size=0"),
        ({"image_shape": (0, 4, 1)}, r"image_shape=\(0, 4, 1\)"),
    ],
)
def test_wrong_arguments_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("synthetic", **options)


@pytest.mark.parametrize("like", FORMATS)
def test_every_format_is_made(like):
    dataset = load_dataset("synthetic", like=like, train_size=4, test_size=2, validation_size=0)
    assert dataset.train.images.shape == (4, *FORMATS[like][0])
