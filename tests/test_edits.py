import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_jax.edits import (
    EDITS,
    brightness,
    contrast,
    gaussian_blur,
    get_edit,
    hue,
    rotate,
    saturation,
    scale,
    shear,
    translate_x,
    translate_y,
)

ALL = pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
COLOR = pytest.mark.parametrize("edit", [EDITS["hue"], EDITS["saturation"]], ids=["hue", "saturation"])
SHAPE = (8, 7, 3)
SHAPES = [SHAPE, (9, 9, 1)]


@functools.cache
def compiled(function):
    return jax.jit(function)


@functools.cache
def compiled_batch(function):
    """Edited images, and the gradient of the sum of their squares with respect to the values."""

    def edit_and_pull_back(images, values):
        edited, pull_back = jax.vjp(lambda values: jax.vmap(function)(images, values), values)
        return edited, pull_back(2 * edited)[0]

    return jax.jit(edit_and_pull_back)


@functools.cache
def compiled_objective(function):
    """A weighted sum of squared pixels, with its gradients with respect to image and value."""

    def objective(image, value):
        weights = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, SHAPE))
        return jnp.sum(weights * function(image, value) ** 2)

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))


def random_image(shape, seed=0, low=0.0, high=1.0):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, shape))


def saturated_image(shape, seed=0):
    """A third of the pixels exactly 0, a third exactly 1."""
    return jnp.clip(random_image(shape, seed) * 3 - 1, 0, 1)


# --- identity -------------------------------------------------------------------------------------------------------


@ALL
def test_identity_value_returns_the_image_bit_for_bit(edit):
    image = saturated_image(SHAPE)
    np.testing.assert_array_equal(edit.function(image, edit.identity), image)
    np.testing.assert_array_equal(compiled(edit.function)(image, edit.identity), image)


@ALL
def test_identity_value_returns_a_batch_bit_for_bit_under_jit_vmap_and_grad(edit):
    images = jnp.stack([saturated_image(SHAPE, seed) for seed in range(4)])
    edited, gradient = compiled_batch(edit.function)(images, np.full(4, edit.identity, np.float32))
    np.testing.assert_array_equal(edited, images)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("name", ["rotation", "scale", "hue", "contrast"])
def test_half_precision_images_keep_their_dtype_and_identity(name):
    edit, image = EDITS[name], random_image(SHAPE).astype(jnp.bfloat16)
    edited = compiled(edit.function)(image, edit.identity)
    assert edited.dtype == jnp.bfloat16
    np.testing.assert_array_equal(edited, image)


# --- geometry against scipy -----------------------------------------------------------------------------------------


def resample(image, matrix, shift=(0.0, 0.0)):
    """scipy's bilinear reading of `image` at centre + matrix @ offset - shift, zero outside, in float64."""
    image = np.asarray(image, np.float64)
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset = centre - matrix @ centre - np.asarray(shift)
    planes = [
        scipy.ndimage.affine_transform(plane, matrix, offset, order=1, mode="grid-constant", cval=0.0)
        for plane in np.moveaxis(image, -1, 0)
    ]
    return np.stack(planes, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degrees", [-170.0, -40.0, -3.3, 0.01, 10.0, 45.0, 90.0, 123.0])
def test_rotate_agrees_with_scipy(shape, degrees):
    image, angle = random_image(shape), math.radians(degrees)
    matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    np.testing.assert_allclose(compiled(rotate)(image, degrees), resample(image, matrix), atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degrees", [-30.0, -3.3, 10.0, 45.0, 80.0])
def test_shear_agrees_with_scipy(shape, degrees):
    image = random_image(shape)
    matrix = np.array([[1.0, 0.0], [math.tan(math.radians(degrees)), 1.0]])
    np.testing.assert_allclose(compiled(shear)(image, degrees), resample(image, matrix), atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [0.05, 0.5, 0.83, 1.1, 3.0])
def test_scale_agrees_with_scipy(shape, factor):
    image = random_image(shape)
    np.testing.assert_allclose(compiled(scale)(image, factor), resample(image, np.eye(2) / factor), atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [-1.5, -0.31, 0.07, 0.5, 0.99])
def test_translations_agree_with_scipy(shape, fraction):
    image = random_image(shape)
    down, right = (fraction * shape[0], 0.0), (0.0, fraction * shape[1])
    np.testing.assert_allclose(compiled(translate_y)(image, fraction), resample(image, np.eye(2), down), atol=2e-5)
    np.testing.assert_allclose(compiled(translate_x)(image, fraction), resample(image, np.eye(2), right), atol=2e-5)


def test_rotate_is_counter_clockwise_as_displayed():
    image = random_image((6, 6, 1))
    np.testing.assert_allclose(compiled(rotate)(image, 90.0), np.rot90(image), atol=1e-5)


def test_positive_translations_move_right_and_down_and_leave_zeros():
    image = random_image((4, 8, 3))
    moved = np.zeros_like(image)
    moved[:, 2:] = image[:, :-2]
    np.testing.assert_array_equal(compiled(translate_x)(image, 0.25), moved)
    moved = np.zeros_like(image)
    moved[1:] = image[:-1]
    np.testing.assert_array_equal(compiled(translate_y)(image, 0.25), moved)


def test_positive_shear_moves_the_upper_half_right():
    image = jnp.zeros((5, 5, 1)).at[:, 2].set(1.0)
    sheared = compiled(shear)(image, 45.0)[..., 0]
    np.testing.assert_allclose(sheared, np.eye(5)[::-1], atol=1e-5)


def test_a_geometric_edit_that_moves_everything_out_leaves_black():
    image = jnp.ones((6, 6, 1))
    np.testing.assert_array_equal(compiled(translate_x)(image, 1.0), jnp.zeros_like(image))
    np.testing.assert_array_equal(compiled(translate_y)(image, -40.0), jnp.zeros_like(image))


# --- colour, light and blur against references ----------------------------------------------------------------------


@pytest.mark.parametrize("radians", [-3.0, -0.5, 0.2, 1.0, math.pi])
def test_hue_is_the_rotation_about_the_grey_axis(radians):
    image = random_image(SHAPE)
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turned = np.asarray(image, np.float64) @ scipy.linalg.expm(radians * axis).T
    np.testing.assert_allclose(compiled(hue)(image, radians), np.clip(turned, 0, 1), atol=2e-6)


def test_a_third_of_the_hue_circle_turns_red_to_green_to_blue():
    image = random_image(SHAPE)
    np.testing.assert_allclose(compiled(hue)(image, 2 * math.pi / 3), np.roll(image, 1, axis=-1), atol=1e-6)


@pytest.mark.parametrize("value", [0.3, 1.4])
def test_color_edits_leave_grey_pixels_alone(value):
    image = jnp.repeat(random_image((*SHAPE[:2], 1)), 3, axis=-1)
    np.testing.assert_allclose(compiled(hue)(image, value), image, atol=1e-6)
    np.testing.assert_allclose(compiled(saturation)(image, value), image, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.3, 4.0])
def test_saturation_scales_the_distance_from_luma(factor):
    image = random_image(SHAPE)
    grey = (np.asarray(image, np.float64) @ [0.299, 0.587, 0.114])[..., None]
    np.testing.assert_allclose(
        compiled(saturation)(image, factor), np.clip(grey + factor * (image - grey), 0, 1), atol=1e-6
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.0, 0.7, 1.3, 4.0])
def test_contrast_scales_the_distance_from_the_mean(channels, factor):
    image = random_image((*SHAPE[:2], channels))
    mean = np.asarray(image, np.float64).mean()
    np.testing.assert_allclose(
        compiled(contrast)(image, factor), np.clip(mean + factor * (image - mean), 0, 1), atol=1e-6
    )


@pytest.mark.parametrize("shift", [-0.4, 0.2])
def test_brightness_adds(shift):
    image = random_image((6, 5, 1))
    np.testing.assert_allclose(compiled(brightness)(image, shift), np.clip(image + np.float32(shift), 0, 1), atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0, 2.5, 20.0])
def test_blur_is_scipys_with_weights_normalised_inside_the_image(shape, sigma):
    def smooth(values):
        return scipy.ndimage.gaussian_filter(values, (sigma, sigma, 0), mode="constant", radius=(40, 40, 0))

    image = random_image(shape)
    reference = smooth(np.asarray(image, np.float64)) / smooth(np.ones(shape))
    np.testing.assert_allclose(compiled(gaussian_blur)(image, sigma), reference, atol=2e-6)


def test_blur_of_a_negative_sigma_is_the_identity():
    image = random_image(SHAPE)
    np.testing.assert_array_equal(compiled(gaussian_blur)(image, -1.0), image)


# --- gradients ------------------------------------------------------------------------------------------------------


def interior_image(shape, seed=0):
    """Far enough from 0 and 1 that small colour edits do not clip."""
    return random_image(shape, seed, 0.35, 0.65)


def values_inside(edit):
    """Values off the kinks of bilinear reading."""
    return [edit.low + fraction * (edit.high - edit.low) for fraction in (0.137, 0.463, 0.871)]


def central_difference(function, value, step=1e-6):
    return (function(value + step) - function(value - step)) / (2 * step)


@ALL
def test_gradient_of_the_value_agrees_with_central_differences(edit):
    with jax.enable_x64(True):
        image, objective = interior_image(SHAPE), compiled_objective(edit.function)
        for value in values_inside(edit):
            slope = central_difference(lambda value: objective(image, value)[0], value)
            np.testing.assert_allclose(objective(image, value)[1][1], slope, rtol=1e-5, atol=1e-7)


@ALL
def test_gradient_at_the_identity_is_the_mean_of_both_sides(edit):
    with jax.enable_x64(True):
        image, objective = interior_image(SHAPE), compiled_objective(edit.function)
        gradient = objective(image, edit.identity)[1][1]
        slope = central_difference(lambda value: objective(image, value)[0], edit.identity)
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
        assert (gradient != 0) == (edit.name != "blur")


@ALL
def test_gradient_of_the_image_agrees_with_central_differences(edit):
    with jax.enable_x64(True):
        image, direction = interior_image(SHAPE), random_image(SHAPE, 2, -1.0)
        objective = compiled_objective(edit.function)
        for value in [edit.identity, *values_inside(edit)]:
            slope = central_difference(lambda step, v=value: objective(image + step * direction, v)[0], 0.0)
            gradient = objective(image, value)[1][0]
            np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("function", [rotate, scale])
def test_forward_and_reverse_mode_agree(function):
    image, value, rate = interior_image(SHAPE), jnp.float32(1.2), jnp.float32(0.7)
    image_dot, cotangent = random_image(SHAPE, 1, -1.0), random_image(SHAPE, 2, -1.0)

    @jax.jit
    def both_products():
        _, tangent = jax.jvp(function, (image, value), (image_dot, rate))
        image_bar, value_bar = jax.vjp(function, image, value)[1](cotangent)
        return jnp.sum(tangent * cotangent), jnp.sum(image_bar * image_dot) + value_bar * rate

    forward, reverse = both_products()
    np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-4)


def test_gradients_pass_through_a_composition():
    with jax.enable_x64(True):
        image, weights = interior_image(SHAPE), random_image(SHAPE, 1, -1.0)

        @jax.jit
        @jax.value_and_grad
        def objective(v):
            return jnp.sum(weights * rotate(contrast(hue(image, v[0]), 1 + v[1]), 10 * v[2]))

        v, direction = jnp.array([0.11, 0.07, 0.33]), jnp.array([0.4, -0.7, 0.2])
        slope = central_difference(lambda step: objective(v + step * direction)[0], 0.0)
        np.testing.assert_allclose(objective(v)[1] @ direction, slope, rtol=1e-6)


def test_gradient_passes_where_pixels_sit_exactly_on_a_bound():
    image = jnp.array([0.0, 0.5, 1.0]).reshape(1, 3, 1)
    gradient = jax.grad(lambda v: jnp.sum(brightness(image, v)))
    assert gradient(0.0) == 3
    assert gradient(0.1) == 2


def test_gradient_of_blur_is_finite_everywhere():
    image = saturated_image(SHAPE)
    sigmas = jnp.array([-1.0, 0.0, 1e-30, 1e-3, 0.02, 0.05, 1.0, 1e3])
    gradient = jax.jit(jax.vmap(jax.grad(lambda sigma: jnp.sum(gaussian_blur(image, sigma) ** 2))))(sigmas)
    assert jnp.all(jnp.isfinite(gradient))


# --- range ----------------------------------------------------------------------------------------------------------


@ALL
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), fraction=st.floats(-1.0, 2.0), saturated=st.booleans())
def test_result_is_a_valid_image(edit, seed, fraction, saturated):
    """Also for values up to one range's width outside of the default range."""
    image = (saturated_image if saturated else random_image)(SHAPE, seed)
    value = edit.low + fraction * (edit.high - edit.low)
    edited = compiled(edit.function)(image, value)
    assert edited.shape == image.shape
    assert edited.dtype == image.dtype
    assert jnp.min(edited) >= 0
    assert jnp.max(edited) <= 1


@ALL
def test_a_batch_equals_its_singles(edit):
    images = jnp.stack([random_image(SHAPE, seed) for seed in range(4)])
    values = np.linspace(edit.low, edit.high, 4)
    singles = [compiled(edit.function)(image, float(value)) for image, value in zip(images, values, strict=True)]
    edited, _ = compiled_batch(edit.function)(images, np.asarray(values, np.float32))
    np.testing.assert_allclose(edited, jnp.stack(singles), atol=2e-6)


# --- errors ---------------------------------------------------------------------------------------------------------


@COLOR
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_color_edits_refuse_images_without_three_channels(edit, transform):
    for channels in (1, 4):
        with pytest.raises(ValueError, match=rf"{edit.name}: image.shape=\(4, 5, {channels}\) must be \[h, w, 3\]"):
            transform(edit.function)(jnp.zeros((4, 5, channels)), edit.identity)


@ALL
def test_edits_refuse_a_batch_integers_and_several_values(edit):
    with pytest.raises(ValueError, match=r"image.shape=\(2, 4, 5, 3\) must be \[h, w, c\]"):
        edit.function(jnp.zeros((2, 4, 5, 3)), edit.identity)
    with pytest.raises(ValueError, match=r"image.dtype=uint8 must be floating"):
        edit.function(jnp.zeros((4, 5, 3), jnp.uint8), edit.identity)
    with pytest.raises(ValueError, match=r"value.shape=\(2,\) must be \(\)"):
        edit.function(jnp.zeros((4, 5, 3)), jnp.zeros(2))


def test_get_edit_lists_the_names_and_suggests_one():
    with pytest.raises(ValueError, match=r"name='rotate' is not an edit; did you mean 'rotation'\? valid: blur, "):
        get_edit("rotate")


# --- the table ------------------------------------------------------------------------------------------------------


@ALL
def test_table_is_complete(edit):
    assert get_edit(edit.name) is edit
    assert edit.low <= edit.identity <= edit.high
    assert edit.low < edit.high
    assert "CAA" in edit.source or "our choice" in edit.source
    assert edit.function.__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.low = 0.0


def test_ranges_of_composite_adversarial_attacks():
    ranges = {name: (EDITS[name].low, EDITS[name].high) for name in EDITS if "CAA" in EDITS[name].source}
    assert ranges == {
        "hue": (-math.pi, math.pi),
        "saturation": (0.7, 1.3),
        "contrast": (0.7, 1.3),
        "rotation": (-10.0, 10.0),
        "brightness": (-0.2, 0.2),
    }


@ALL
def test_edits_that_need_no_color_take_grey_images(edit):
    if not edit.needs_color:
        assert jax.eval_shape(edit.function, random_image((7, 6, 1)), edit.high).shape == (7, 6, 1)
