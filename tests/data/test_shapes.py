import colorsys

import numpy as np
import pytest

from spa_jax.data import load_dataset
from spa_jax.data.shapes import FACTORS, SHAPES, render

BLACK = (0.0, 0.0, 0.0)
NAMES = tuple(SHAPES)
MIDDLE = np.asarray([0.35, 0.55, 0.0, 0.0, 0.0])
LOW, HIGH = (np.asarray(column) for column in zip(*((low, high) for _, low, high in FACTORS.values()), strict=True))


def with_factor(name, value):
    factors = MIDDLE.copy()
    factors[list(FACTORS).index(name)] = value
    return factors


def coverage(shape, factors, size=64):
    """The share of every pixel that is covered, of a shape on black: white where it is whole."""
    image = render(NAMES.index(shape), factors, size=size, background=BLACK)
    return image.max(axis=-1) / 0.9


def centroid(share):
    """(right, down) of the image's centre, in sides."""
    offsets = (np.arange(len(share)) + 0.5) / len(share) - 0.5
    return share.sum(axis=0) @ offsets / share.sum(), share.sum(axis=1) @ offsets / share.sum()


def test_data_set():
    dataset = load_dataset("coloured_shapes", train_size=100, test_size=25)
    assert dataset.split_sizes == {"train": 90, "validation": 10, "test": 25}
    assert dataset.image_shape == (32, 32, 3) and dataset.train.images.dtype == np.uint8
    assert dataset.class_names == NAMES and np.bincount(dataset.test.labels).tolist() == [5] * 5
    assert dataset.attribute_names == ("hue", "scale", "position_x", "position_y", "rotation")
    assert [attribute.unit for attribute in dataset.attributes] == ["turns", "sides", "sides", "sides", "degrees"]
    assert load_dataset("coloured_shapes", size=48, train_size=10, test_size=1).train.images.shape[1:] == (48, 48, 3)


def test_content_belongs_to_its_seed_and_validation_to_the_other():
    sizes = {"train_size": 50, "test_size": 10}
    first, again, content, split = (
        load_dataset("coloured_shapes", **sizes, **seeds) for seeds in ({}, {}, {"content_seed": 1}, {"seed": 1})
    )
    assert np.array_equal(first.train.images, again.train.images)
    assert np.array_equal(first.test.images, split.test.images)
    assert not np.array_equal(first.test.images, content.test.images)
    assert not np.array_equal(first.validation.images, split.validation.images)
    assert not np.array_equal(first.test.attribute, first.train.attribute[:10])


def test_factors_are_uniform_and_independent_of_each_other_and_of_the_class():
    train = load_dataset("coloured_shapes", size=8, train_size=4000, test_size=1, validation_size=0).train
    shares = (train.attribute - LOW) / (HIGH - LOW)
    assert shares.min() > -1e-6 and shares.max() < 1 + 1e-6
    for column in shares.T:
        assert np.abs(np.sort(column) - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / 4000**0.5
    correlations = np.corrcoef(np.column_stack([shares, train.labels]).T) - np.eye(6)
    assert np.abs(correlations).max() < 4 / 4000**0.5


@pytest.mark.parametrize("index", range(10))
def test_images_are_rendered_from_their_attributes(index):
    test = load_dataset("coloured_shapes", train_size=10, test_size=10).test
    image, factors = test.images[index] / 255, test.attribute[index]
    on_black = render(int(test.labels[index]), factors, background=BLACK)
    whole, empty = on_black.max(axis=-1) > 0.899, on_black.max(axis=-1) == 0
    np.testing.assert_allclose(image[whole], on_black[whole], atol=0.5 / 255 + 1e-6)
    ground = image[empty]
    assert ground.min() > 0.08 and ground.max() < 0.32 and np.ptp(ground, axis=1).max() == 0
    assert whole.sum() > 30 and empty.sum() > 300


@pytest.mark.parametrize("hue", [0.0, 0.1, 1 / 3, 0.5, 0.7])
def test_hue_is_that_of_hsv(hue):
    image = render(NAMES.index("square"), with_factor("hue", hue))
    np.testing.assert_allclose(image[16, 16], colorsys.hsv_to_rgb(hue, 0.85, 0.9), atol=1e-6)


@pytest.mark.parametrize("shape", ["ellipse", "square"])
def test_position_is_that_of_the_centre_to_the_right_and_down(shape):
    for x, y in ((0.0, 0.0), (0.15, -0.1), (-0.07, 0.15)):
        share = coverage(shape, np.asarray([0.2, 0.6, x, y, 12.0]))
        np.testing.assert_allclose(centroid(share), (x, y), atol=1e-3)


@pytest.mark.parametrize("scale", [0.4, 0.53, 0.7])
def test_areas_are_those_of_the_shapes_in_a_circle_of_diameter_scale(scale):
    corner = np.sin(2 * np.pi / 10)
    areas = {
        "ellipse": np.pi * 0.55,
        "square": 2.0,
        "star": 10 * 0.45 * corner / 2,
        "triangle": 3 * 3**0.5 / 4,
    }
    for shape, area in areas.items():
        covered = coverage(shape, with_factor("scale", scale), size=128).mean()
        assert covered == pytest.approx(area * (scale / 2) ** 2, rel=0.01), shape


@pytest.mark.parametrize("degrees", [-30.0, 10.0, 25.0])
def test_rotation_is_counter_clockwise_in_degrees(degrees):
    share = coverage("ellipse", with_factor("rotation", degrees))
    offsets = np.arange(64) - 31.5
    moments = share.sum(axis=0) @ offsets**2, share.sum(axis=1) @ offsets**2, offsets @ share @ offsets
    axis = 0.5 * np.degrees(np.arctan2(-2 * moments[2], moments[0] - moments[1]))
    assert axis == pytest.approx(degrees, abs=0.2)


def test_edges_are_antialiased_as_by_supersampling():
    factors, samples, size = np.asarray([0.0, 0.6, 0.03, -0.05, 20.0]), 16, 32
    points = (np.arange(size * samples) + 0.5) / (size * samples) - 0.5
    right, up = points - 0.03, -(points[:, None] + 0.05)
    angle, half_side = np.radians(20), 0.3 / 2**0.5
    along = np.cos(angle) * right + np.sin(angle) * up, np.cos(angle) * up - np.sin(angle) * right
    inside = np.maximum(abs(along[0]), abs(along[1])) <= half_side
    reference = inside.reshape(size, samples, size, samples).mean(axis=(1, 3))
    assert np.abs(coverage("square", factors, size) - reference).max() < 0.2  # at its corners
    assert np.abs(coverage("square", factors, size) - reference).mean() < 0.005


@pytest.mark.parametrize("shape", NAMES)
def test_a_shape_fills_the_unit_circle(shape):
    angles = np.radians(np.arange(0, 360, 0.5))
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    assert SHAPES[shape](1.001 * circle).min() > 0
    assert SHAPES[shape](0.98 * circle).min() < 0
    assert SHAPES[shape](np.zeros((1, 2))) < -0.2


@pytest.mark.parametrize("shape", NAMES)
def test_shapes_stay_inside_the_image_over_all_ranges(shape):
    for x in (-0.15, 0.15):
        for degrees in (-30.0, 0.0, 30.0):
            share = coverage(shape, np.asarray([0.0, 0.7, x, -x, degrees]), size=100)
            inner = coverage(shape, np.asarray([0.0, 0.7, 0.0, 0.0, degrees]), size=100)
            assert share.sum() == pytest.approx(inner.sum(), rel=2e-3)


@pytest.mark.parametrize("shape", NAMES)
def test_rotations_over_the_range_look_different(shape):
    turned = [coverage(shape, with_factor("rotation", degrees)) for degrees in np.linspace(-30, 30, 11)]
    nearest = np.abs(turned[5] - turned[6]).mean()
    for first in range(11):
        for second in range(first + 1, 11):
            assert np.abs(turned[first] - turned[second]).mean() > 0.7 * nearest


def test_shapes_differ():
    for first in NAMES:
        for second in NAMES[: NAMES.index(first)]:
            assert np.abs(coverage(first, MIDDLE) - coverage(second, MIDDLE)).mean() > 0.03


def test_the_ground_slopes_as_asked():
    image = render(0, MIDDLE, size=32, background=(0.2, 0.1, -0.06))
    np.testing.assert_allclose(image[0, -1], 0.2 + (0.1 + 0.06) * 15.5 / 32, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 4}, "size=4"), ({"train_size": 0}, "train_size=0"), ({"test_size": 0}, "test_size=0")],
)
def test_wrong_arguments_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("coloured_shapes", **options)


def test_wrong_shapes_are_errors():
    with pytest.raises(ValueError, match="shape_index=5"):
        render(5, MIDDLE)
    with pytest.raises(ValueError, match="size=2"):
        render(0, MIDDLE, size=2)
