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


def test_attributes_show_and_are_independent_of_the_class():
    names = ("Smiling", "Male", "Young")
    options = {"like": "celeb_a_64", "train_size": 400, "test_size": 100, "validation_size": 0}
    dataset = load_dataset("synthetic", attributes=names, **options)
    assert dataset.attribute_names == names and dataset.image_shape == (64, 64, 3)
    signs, labels = dataset.train.attribute, dataset.train.labels
    assert signs.shape == (400, 3) and set(np.unique(signs)) == {-1, 1}
    correlations = np.corrcoef(np.column_stack([signs, labels]).T) - np.eye(4)
    assert np.abs(correlations).max() < 4 / 400**0.5
    train, test = (split.images.reshape(len(split), -1) / 255 for split in (dataset.train, dataset.test))
    for index in range(3):
        towards = train[signs[:, index] > 0].mean(axis=0) - train[signs[:, index] < 0].mean(axis=0)
        found = np.sign((test - train.mean(axis=0)) @ towards)
        assert np.mean(found == dataset.test.attribute[:, index]) > 0.9


def test_no_attributes_are_the_default():
    dataset = load_dataset("synthetic", like="digits", train_size=20, test_size=5)
    assert dataset.attributes == () and dataset.train.attribute is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"like": "mnists"}, "like='mnists' is not a known format; valid: .*cifar10"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"train_size": 0}, "train_size=0"),
        ({"attributes": ("5_o_Clock",)}, "name='5_o_Clock'"),
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
