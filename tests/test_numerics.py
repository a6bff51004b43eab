import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.numerics import at_least_float32, clip_to_signed_unit, clip_to_unit, unit_per_channel

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
