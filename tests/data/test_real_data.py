"""The published sets themselves; run where the environment variable SPA_JAX_DATA_DIR names their directory."""

import os
from pathlib import Path

import numpy as np
import pytest

from spa_jax.data import load_dataset, rotate_dataset, train_batch

DATA_DIR = os.environ.get("SPA_JAX_DATA_DIR")
MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DATA_DIR is None, reason="SPA_JAX_DATA_DIR is not set: real data sets were not tested"),
]


@pytest.fixture(scope="module")
def load():
    def load(name, directory=None, **options):
        if not (Path(DATA_DIR) / (directory or name)).is_dir():
            pytest.skip(f"SPA_JAX_DATA_DIR={DATA_DIR} holds no {directory or name}: it was not tested")
        return load_dataset(name, data_dir=DATA_DIR, **options)

    return load


@pytest.fixture(scope="module")
def mnist(load):
    return load("mnist")


def learning_labels(dataset):
    return np.bincount(np.concatenate([dataset.train.labels, dataset.validation.labels]))


def test_mnist_has_the_published_label_counts(mnist):
    assert mnist.split_sizes == {"train": 54000, "validation": 6000, "test": 10000}
    assert mnist.image_shape == (28, 28, 1) and mnist.train.images.dtype == np.uint8
    assert learning_labels(mnist).tolist() == MNIST_TRAIN
    assert np.bincount(mnist.test.labels).tolist() == MNIST_TEST
    assert np.abs(np.bincount(mnist.validation.labels) - np.asarray(MNIST_TRAIN) / 10).max() < 1


def test_mnist_has_the_published_mean_and_deviation(mnist):
    pixels = np.concatenate([mnist.train.images, mnist.validation.images]) / np.float32(255)
    assert pixels.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert pixels.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)


def test_mnist_streamed_equals_mnist_in_memory(mnist, load):
    streamed = load("mnist", memory_limit=0)
    indices = np.asarray([9999, 0, 1234])
    for key, value in mnist.test.take(indices).items():
        np.testing.assert_array_equal(streamed.test.take(indices)[key], value, strict=True)
    assert train_batch(streamed.train, 64, seed=0, step=10**6)["image"].shape == (64, 28, 28, 1)


def test_rotated_mnist(mnist):
    rotated = rotate_dataset(mnist, seed=0, angle_range=(-45, 45), padded_size=32)
    assert rotated.image_shape == (32, 32, 1) and rotated.split_sizes == mnist.split_sizes
    assert np.array_equal(rotated.test.labels, mnist.test.labels)
    assert np.abs(rotated.test.attribute).max() <= 45
    ink = rotated.test.images.sum(axis=(1, 2, 3), dtype=float) / mnist.test.images.sum(axis=(1, 2, 3), dtype=float)
    assert np.abs(ink - 1).max() < 0.1


def test_handwriting_is_measured(load):
    sizes = {"train_size": 3000, "test_size": 2000, "validation_size": 0}
    options = {"angles": (0.0, 30.0), "measured": ("slant", "stroke_width")}
    measured = load("rotated_mnist", "mnist", **sizes, **options)
    assert measured.split_sizes == {"train": 6000, "validation": 0, "test": 4000}
    _, slant, stroke_width = measured.train.attribute[::2].T
    assert slant.mean() == pytest.approx(5.8, abs=1) and slant.std() == pytest.approx(14.6, abs=1)
    assert stroke_width.mean() == pytest.approx(2.6, abs=0.1) and stroke_width.std() == pytest.approx(0.69, abs=0.05)


def test_cifar10_is_balanced(load):
    cifar10 = load("cifar10")
    assert cifar10.split_sizes == {"train": 45000, "validation": 5000, "test": 10000}
    assert cifar10.image_shape == (32, 32, 3) and cifar10.class_names[:2] == ("airplane", "automobile")
    assert learning_labels(cifar10).tolist() == [5000] * 10
    assert np.bincount(cifar10.test.labels).tolist() == [1000] * 10
