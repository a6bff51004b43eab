import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_jax.numerics import (
    at_least_float32,
    clip_to_signed_unit,
    clip_to_unit,
    finite_gradient,
    finite_or_zero,
    in_dtype_of,
    last_and_next,
    on_grid,
    on_grid_within,
    time_to_reach,
    times,
    unit_per_channel,
    with_gradient_of,
)

POINTS = jnp.array([-0.5, -1e-7, 0.0, 1e-7, 0.5, 1 - 1e-7, 1.0, 1 + 2e-7, 3.0])


def test_clip_to_unit_clips():
    np.testing.assert_array_equal(clip_to_unit(POINTS), np.clip(np.asarray(POINTS), 0, 1))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_clip_to_unit_passes_the_gradient_inside_and_at_the_bounds_only(transform):
    gradient = transform(jax.grad(lambda x: jnp.sum(clip_to_unit(x))))(POINTS)
    np.testing.assert_array_equal(gradient, [0, 0, 1, 1, 1, 1, 1, 0, 0])


def test_clip_to_unit_has_the_same_gradient_forwards():
    _, tangent = jax.jvp(clip_to_unit, (POINTS,), (jnp.full_like(POINTS, 2.0),))
    np.testing.assert_array_equal(tangent, [0, 0, 2, 2, 2, 2, 2, 0, 0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_clip_to_unit_keeps_dtype_and_nan(dtype):
    clipped = clip_to_unit(jnp.array([jnp.nan, 2.0], dtype))
    assert clipped.dtype == dtype
    assert jnp.isnan(clipped[0])


def test_clip_to_signed_unit_passes_the_gradient_inside_and_at_the_bounds_only():
    points = 2 * POINTS - 1
    np.testing.assert_array_equal(clip_to_signed_unit(points), np.clip(np.asarray(points), -1, 1))
    gradient = jax.grad(lambda x: jnp.sum(clip_to_signed_unit(x)))(points)
    np.testing.assert_array_equal(gradient, (np.abs(np.asarray(points)) <= 1).astype(np.float32))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_unit_per_channel_has_norm_one_however_small_it_is(scale):
    g = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    expected = g / np.linalg.norm(g.astype(np.float64), axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(unit_per_channel(jnp.asarray(g) * scale), expected, rtol=1e-5, atol=1e-7)


def test_unit_per_channel_leaves_zeros_with_a_finite_gradient():
    g = jnp.zeros((4, 4, 2)).at[..., 1].set(1.0)
    np.testing.assert_allclose(unit_per_channel(g)[..., 1], 0.25)
    np.testing.assert_array_equal(unit_per_channel(g)[..., 0], 0)
    assert bool(jnp.isfinite(jax.grad(lambda g: unit_per_channel(g)[0, 0].sum())(g)).all())


def test_the_gradient_of_unit_per_channel_is_that_of_the_quotient():
    g, w = (jax.random.normal(jax.random.key(i), (3, 4, 2)) for i in (0, 1))
    plain = jax.grad(lambda g: jnp.sum(w * g / jnp.sqrt(jnp.sum(g**2, (0, 1), keepdims=True))))(g)
    np.testing.assert_allclose(jax.grad(lambda g: jnp.sum(w * unit_per_channel(g)))(g), plain, rtol=1e-4, atol=1e-6)


def test_no_type_is_narrower_than_float32():
    widened = [at_least_float32(jnp.dtype(kind)) for kind in (jnp.bfloat16, jnp.float16, jnp.float32)]
    assert widened == [jnp.float32] * 3
    with jax.enable_x64(True):
        assert at_least_float32(jnp.dtype(jnp.float64)) == jnp.float64


def test_a_number_takes_the_type_of_what_it_meets():
    with jax.enable_x64(True):
        like = jnp.ones(3, jnp.float32)
        for number in (0.5, np.float64(0.5), jnp.float64(0.5)):
            assert in_dtype_of(number, like).dtype == jnp.float32
        assert times(jnp.float64(0.5), jnp.float32(3)).dtype == jnp.float32
        assert times(jnp.float32(0.5), jnp.float64(3)).dtype == jnp.float64
        assert times(0.5, 3.0) == 1.5 and times(jnp.float32(0.5), 3.0) == 1.5


# --- rounding -------------------------------------------------------------------------------------------------------

UNIT = np.random.default_rng(0).uniform(size=2000).astype(np.float32)


def test_eight_bits_are_those_of_a_file_exactly():
    levels = np.arange(256, dtype=np.uint8)
    files = levels / np.float32(255)
    np.testing.assert_array_equal(jax.jit(on_grid, static_argnums=1)(files, 255), files)
    expected = np.round(UNIT.astype(np.float64) * 255).astype(np.uint8) / np.float32(255)
    np.testing.assert_array_equal(jax.jit(on_grid, static_argnums=1)(UNIT, 255), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_nearest_number_of_a_type_is_what_a_cast_gives(dtype):
    rounded = jax.jit(on_grid, static_argnums=1)(UNIT, dtype)
    assert rounded.dtype == jnp.float32
    np.testing.assert_array_equal(rounded, UNIT.astype(jnp.dtype(dtype)).astype(np.float32))


@pytest.mark.parametrize("grid", [255, "bfloat16", "float16"])
def test_rounding_within_a_bound_stays_on_the_grid_and_in_the_bound(grid):
    rng = np.random.default_rng(1)
    centre = np.asarray(on_grid(jnp.asarray(UNIT), grid))
    x = np.clip(centre + 0.0305 * rng.choice([-1, 1, 0.3], UNIT.shape), 0, 1).astype(np.float32)
    found = np.asarray(jax.jit(on_grid_within, static_argnums=3)(x, centre, 0.0305, grid))
    np.testing.assert_array_equal(on_grid(jnp.asarray(found), grid), found)
    assert np.max(np.abs(found.astype(np.float64) - centre)) <= 0.0305 + 1.1e-6
    nearest = np.asarray(on_grid(jnp.asarray(x), grid))
    outside = np.abs(nearest.astype(np.float64) - centre) > 0.0305 + 1e-6
    assert 0 < np.mean(outside) < 1
    np.testing.assert_array_equal(found[~outside], nearest[~outside])
    spacing = 1 / 255 if isinstance(grid, int) else 2.0 ** -(jnp.finfo(grid).nmant + 1)
    assert np.max(np.abs(found - x)) <= spacing * (1 + 1e-5)


def test_a_value_with_the_gradient_of_another():
    value, slope = jax.value_and_grad(lambda x: with_gradient_of(jnp.round(x), x**2).sum())(jnp.float32(1.3))
    assert value == 1 and slope == jnp.float32(2.6)


# --- gradients that are not finite ----------------------------------------------------------------------------------


def test_entries_that_are_not_finite_go_back_as_zero_and_are_counted_for_each_image():
    images, bad = jnp.ones((2, 2, 2, 1)), jnp.array([jnp.nan, 1.0, jnp.inf, -2.0, 3.0, 4.0, 5.0, -jnp.inf])

    def loss(images, probe):
        return jnp.sum(finite_gradient(images, probe) * bad.reshape(images.shape))

    gradient, count = jax.jit(jax.grad(loss, (0, 1)))(images, jnp.zeros(2))
    np.testing.assert_array_equal(np.ravel(gradient), [0, 1, 0, -2, 3, 4, 5, 0])
    np.testing.assert_array_equal(count, [2, 1])
    np.testing.assert_array_equal(finite_gradient(images, jnp.zeros(2)), images)
    np.testing.assert_array_equal(finite_or_zero(bad), np.ravel(gradient))


@settings(max_examples=80)
@given(
    st.floats(0, 20, width=32),
    hnp.arrays(np.float32, 6, elements=st.floats(0, 4, width=32)),
    hnp.arrays(np.float32, 6, elements=st.one_of(st.floats(0, 4, width=32), st.just(np.inf))),
)
def test_the_time_at_which_a_sum_of_bounded_entries_reaches_a_number(needed, rates, most):
    """The sum is there at that time, and not a little earlier; at all times it is less where the time is infinite."""
    rates, most = (np.where(values < 1e-3, 0, values) for values in (rates, most))
    time = float(time_to_reach(jnp.asarray(needed), jnp.asarray(rates), jnp.asarray(most)))
    wide_rates, wide_most = rates.astype(np.float64), most.astype(np.float64)

    def reached(when):
        return np.sum(np.where(wide_rates > 0, np.minimum(wide_rates * when, wide_most), 0))

    if np.isinf(time):
        assert reached(1e9) <= needed * (1 + 1e-6) and needed > 0
    else:
        assert reached(time * (1 + 1e-5)) >= needed * (1 - 1e-6)
        assert reached(time * (1 - 1e-5)) <= needed * (1 + 1e-6)


@settings(max_examples=80)
@given(hnp.arrays(np.float32, 12, elements=st.floats(0, 2.0**100, width=32)), st.integers(1, 12))
def test_the_last_float_at_which_something_holds_is_found_by_bits(values, count):
    """The last one that at least `count` values reach is the `count`th largest; denormal numbers are left out."""
    values = np.where(values < np.finfo(np.float32).tiny, 0, values)
    last, following = last_and_next(lambda least: jnp.sum(values >= least) >= count, jnp.max(jnp.asarray(values)))
    assert last == np.sort(values)[-count]
    assert following == np.nextafter(last, np.float32(np.inf), dtype=np.float32) or last == 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_ends_of_the_range_of_a_bisection(dtype):
    highest = jnp.asarray(0.75, dtype)
    last, following = last_and_next(lambda _: jnp.asarray(True), highest)
    assert last == highest < following and last.dtype == dtype
    nowhere, first = last_and_next(lambda _: jnp.asarray(False), highest)
    assert jnp.isnan(nowhere) and first == 0
