import dataclasses

import jax
import numpy as np
import pytest

from spa_jax.data import AttributeInfo, Dataset, Split, load_dataset, rotate_dataset
from spa_jax.data.morphology import slant, stroke_width
from spa_jax.edits import rotate


def small(images):
    split = Split(images, np.arange(len(images), dtype=np.int32))
    names = tuple(map(str, range(len(images))))
    return Dataset("small", images.shape[1:], len(images), names, split, split, split)


def test_default_shows_every_digit_at_every_angle():
    plain, rotated = load_dataset("digits"), load_dataset("rotated_digits")
    assert rotated.split_sizes == {"train": 3600, "validation": 600, "test": 1191}
    assert rotated.image_shape == (12, 12, 1) and rotated.name == "rotated_digits"
    assert rotated.train.attribute.tolist() == [[-40], [0], [40]] * 1200
    assert rotated.attributes == (AttributeInfo("rotation", "degrees"),)
    assert np.array_equal(rotated.test.labels, np.repeat(plain.test.labels, 3))
    upright = rotated.test.images[1::3]
    assert np.array_equal(upright[:, 2:10, 2:10], plain.test.images)
    assert upright[:, :2].max() == upright[:, :, 10:].max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_rotation_is_that_of_the_library(channels):
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 8, channels), np.uint8)
    split = rotate_dataset(small(images), seed=0, angles=(-73.0, 12.5, 40.0), padded_size=16).test
    upright = rotate_dataset(small(images), seed=0, angles=(0.0,), padded_size=16).test.images
    expected = jax.vmap(rotate)(np.repeat(upright, 3, axis=0) / np.float32(255), split.attribute[:, 0])
    assert np.abs(split.images - 255 * np.asarray(expected)).max() <= 0.51


def test_quarter_turn_is_exact_and_counter_clockwise():
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1), np.uint8)
    turned = rotate_dataset(small(images), seed=0, angles=(90.0,), padded_size=8).train.images
    assert np.array_equal(turned, np.rot90(images, axes=(1, 2)))


def test_padding_holds_a_square_at_forty_degrees():
    images = np.full((1, 8, 8, 1), 255, np.uint8)
    whole = rotate_dataset(small(images), seed=0, angles=(0.0, 40.0), padded_size=12).train.images.astype(float)
    assert abs(whole[1].sum() / whole[0].sum() - 1) < 0.01


def test_angles_of_a_range_are_uniform_and_belong_to_the_seed():
    first, again, other = (load_dataset("rotated_digits", angle_range=(-30, 10), seed=s) for s in (0, 0, 1))
    angles = first.train.attribute
    assert first.split_sizes == {"train": 1200, "validation": 200, "test": 397} and angles.dtype == np.float32
    assert -30 <= angles.min() < -29 and 9 < angles.max() <= 10
    assert abs(angles.mean() + 10) < 4 * 40 / 12**0.5 / 1200**0.5
    assert np.array_equal(first.train.images, again.train.images)
    assert not np.array_equal(angles, other.train.attribute)
    assert np.array_equal(first.test.attribute, other.test.attribute)
    assert np.array_equal(first.test.images, other.test.images)
    assert not np.array_equal(first.validation.attribute, first.train.attribute[:200])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"angles": (0.0,), "angle_range": (0, 1)}, "exclude each other"),
        ({"angles": ()}, r"angles=\(\)"),
        ({"angle_range": (10, -10)}, r"angle_range=\(10, -10\)"),
        ({"padded_size": 7}, "padded_size=7; it must be at least 8"),
        ({"measured": ("slnt",)}, r"measured=\('slnt',\): 'slnt' cannot be measured; did you mean 'slant'\?"),
    ],
)
def test_wrong_arguments_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("rotated_digits", **options)


def test_measured_attributes_are_those_of_the_upright_image():
    plain = load_dataset("digits")
    rotated = load_dataset("rotated_digits", angles=(-40.0, 30.0), measured=("slant", "stroke_width"))
    assert rotated.attribute_names == ("rotation", "slant", "stroke_width")
    assert [attribute.unit for attribute in rotated.attributes] == ["degrees", "degrees", "pixels"]
    attribute = rotated.test.attribute
    assert np.array_equal(attribute[:, 0], [-40, 30] * 397)
    assert np.array_equal(attribute[::2, 1:], attribute[1::2, 1:])
    assert np.array_equal(attribute[::2, 1], slant(plain.test.images))
    assert np.array_equal(attribute[::2, 2], stroke_width(plain.test.images))
    only = load_dataset("rotated_digits", angles=(0.0,), measured=("stroke_width",))
    assert only.attribute_names == ("rotation", "stroke_width")
    assert np.array_equal(only.test.attribute[:, 1], attribute[::2, 2])


def test_colour_is_not_measured():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="only grey images are measured, these have 3 channels"):
        rotate_dataset(small(images), seed=0, padded_size=8, measured=("slant",))


@pytest.fixture
def mnist_of_digits(monkeypatch):
    """Puts scikit-learn's digits in the place of MNIST, padded to its size."""
    plain = load_dataset("digits", validation_size=0)
    pad = ((0, 0), (10, 10), (10, 10), (0, 0))
    splits = {
        name: Split(np.pad(getattr(plain, name).images, pad), getattr(plain, name).labels)
        for name in ("train", "validation", "test")
    }
    mnist = dataclasses.replace(plain, name="mnist", image_shape=(28, 28, 1), **splits)
    monkeypatch.setattr("spa_jax.data.tfds_source.load", lambda **options: mnist)
    return mnist


def test_small_runs_use_the_same_stratified_images_for_every_seed(mnist_of_digits):
    sizes = {"train_size": 50, "test_size": 20, "validation_size": 10, "angles": (0.0,)}
    first, second = (load_dataset("rotated_mnist", seed=seed, **sizes) for seed in (0, 1))
    assert first.split_sizes == {"train": 40, "validation": 10, "test": 20} and first.name == "rotated_mnist"
    assert np.array_equal(first.test.images, second.test.images)
    assert not np.array_equal(first.validation.images, second.validation.images)
    learning = [np.concatenate([one.train.images, one.validation.images]) for one in (first, second)]
    assert {image.tobytes() for image in learning[0]} == {image.tobytes() for image in learning[1]}
    shares = np.bincount(mnist_of_digits.test.labels) * 20 / 397
    assert np.abs(np.bincount(first.test.labels, minlength=10) - shares).max() < 1


def test_all_of_mnist_is_the_default(mnist_of_digits):
    everything = load_dataset("rotated_mnist", angles=(0.0, 10.0), validation_size=100)
    assert everything.split_sizes == {"train": 2600, "validation": 200, "test": 794}
    assert everything.image_shape == (32, 32, 1)


@pytest.mark.parametrize("sizes", [{"train_size": 1401}, {"train_size": 0}, {"test_size": 398}])
def test_wrong_sizes_are_errors(mnist_of_digits, sizes):
    ((name, size),) = sizes.items()
    with pytest.raises(ValueError, match=rf"{name}={size}; it must be in 1\.\."):
        load_dataset("rotated_mnist", **sizes)


def test_floats_are_not_rotated():
    with pytest.raises(ValueError, match="the train split of small must be held in memory as uint8 to be rotated"):
        rotate_dataset(small(np.ones((2, 8, 8, 1), np.float32)), seed=0, padded_size=12)
