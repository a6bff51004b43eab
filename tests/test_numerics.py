import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.numerics import clip_to_unit

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
