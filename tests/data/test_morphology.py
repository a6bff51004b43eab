import numpy as np
import pytest

from spa_jax.data import load_dataset
from spa_jax.data.morphology import measure, measured_attributes, slant, stroke_width

SIDE, SAMPLES = 28, 8
ANGLES = (-40, -25, 0, 10, 30)


def drawn(inside, shift):
    """An antialiased image of the points (up, right) from the shifted centre for which `inside` holds."""
    points = (np.arange(SIDE * SAMPLES) + 0.5) / SAMPLES - SIDE / 2
    covered = inside(-(points[:, None] - shift[0]), points - shift[1])
    shares = covered.reshape(SIDE, SAMPLES, SIDE, SAMPLES).mean(axis=(1, 3))
    return np.rint(255 * shares).astype(np.uint8)[..., None]


def sheared_bar(degrees, width, shift):
    """An upright bar of 18 pixels, sheared to the right by an angle."""
    shear = np.tan(np.radians(degrees))
    return drawn(lambda up, right: (abs(right - shear * up) <= width / 2) & (abs(up) <= 9), shift)


def round_stroke(degrees, width, shift):
    """A straight stroke with round ends, leaning to the right by an angle, of known width."""
    along_up, along_right = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))

    def inside(up, right):
        along = np.clip(up * along_up + right * along_right, -8, 8)
        return np.hypot(up - along * along_up, right - along * along_right) <= width / 2

    return drawn(inside, shift)


def images(shape, degrees, width, count=8):
    shifts = np.random.default_rng(0).uniform(-1, 1, (count, 2))
    return np.stack([shape(degrees, width, shift) for shift in shifts])


@pytest.mark.parametrize("width", [1.5, 3, 5])
@pytest.mark.parametrize("degrees", ANGLES)
def test_slant_of_a_sheared_bar_is_its_angle(degrees, width):
    np.testing.assert_allclose(slant(images(sheared_bar, degrees, width)), degrees, atol=0.25)


@pytest.mark.parametrize("width", [1.5, 2, 3, 4, 6])
@pytest.mark.parametrize("degrees", ANGLES)
def test_stroke_width_is_the_width_drawn(degrees, width):
    tolerance = 0.3 if degrees else 0.51
    np.testing.assert_allclose(stroke_width(images(round_stroke, degrees, width)), width, atol=tolerance)


def test_slant_of_real_digits_is_the_angle_that_unshears_them():
    digits = load_dataset("digits").test.images
    ink = digits[..., 0].astype(np.float64)
    rows, columns = np.mgrid[:8, :8]
    for image, angle in zip(ink[:50], slant(digits[:50]), strict=True):
        unsheared = columns + np.tan(np.radians(angle)) * rows
        covariance = np.cov(np.stack([rows.ravel(), unsheared.ravel()]), aweights=image.ravel() / image.sum())
        assert abs(covariance[0, 1]) < 1e-4


def test_measures_do_not_depend_on_brightness_or_dtype():
    digits = images(round_stroke, 20, 3, count=3)
    faint = digits.astype(np.float32) / 1000
    for function in (slant, stroke_width):
        np.testing.assert_allclose(function(faint), function(digits), rtol=1e-5)
        assert function(digits).dtype == np.float32


def test_images_are_measured_one_by_one():
    digits = load_dataset("digits").test.images[:10]
    together = measure(digits, ("stroke_width", "slant"))
    alone = np.concatenate([measure(digits[i : i + 1], ("stroke_width", "slant")) for i in range(10)])
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    assert np.array_equal(together[:, 1], slant(digits))


def test_an_image_without_ink_measures_nothing():
    assert measure(np.zeros((1, 8, 8, 1), np.uint8), ("slant", "stroke_width")).tolist() == [[0, 0]]


def test_one_pixel_has_a_width():
    dot = np.zeros((1, 8, 8, 1), np.uint8)
    dot[0, 3, 3] = 1
    assert 0.5 < stroke_width(dot)[0] < 1.5


def test_ink_in_one_row_does_not_lean():
    line = np.zeros((1, 8, 8, 1), np.uint8)
    line[0, 3, 2:7] = 255
    assert slant(line).tolist() == [0]


def test_a_stroke_ends_at_the_edge_of_the_image():
    edge = np.zeros((1, 12, 12, 1), np.uint8)
    edge[0, :, :4] = 255
    assert stroke_width(edge)[0] == pytest.approx(4, abs=0.6)


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match=r"'width' cannot be measured.*valid: slant, stroke_width"):
        measured_attributes(("width",))
