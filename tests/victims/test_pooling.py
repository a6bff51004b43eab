"""The quick max-pooling against an independent NumPy reference and the stock one."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from spa_jax.victims.pooling import max_pool

pytestmark = pytest.mark.usefixtures("quick_compilation")

TILE = (1, 2, 2, 1)


def reference_pool(x, g, window):
    """Largest values, and the gradient at the first of them in row-major order, by loops."""
    out = np.zeros([size // wide for size, wide in zip(x.shape, window, strict=True)], x.dtype)
    gradient = np.zeros_like(x)
    for place in itertools.product(*map(range, out.shape)):
        corner = [i * wide for i, wide in zip(place, window, strict=True)]
        patch = x[tuple(slice(i, i + wide) for i, wide in zip(corner, window, strict=True))]
        first = np.unravel_index(int(np.argmax(patch)), patch.shape)
        out[place] = patch[first]
        if g is not None:
            gradient[tuple(i + j for i, j in zip(corner, first, strict=True))] = g[place]
    return out, gradient


CASES = [
    ((6, 6, 6, 2), (1, 2, 2, 1)),
    ((6, 7, 5, 2), (1, 2, 2, 1)),
    ((6, 5, 7, 2), (1, 3, 3, 1)),
    ((6, 6, 6, 2), (1, 3, 2, 1)),
    ((6, 2, 6, 5), (1, 1, 2, 2)),
    ((6, 7, 3), (1, 2, 1)),
    ((3, 3, 4, 1), (1, 1, 1, 1)),
]


@pytest.mark.parametrize(("shape", "window"), CASES)
def test_value_and_gradient_follow_the_first_largest_value_rule(shape, window):
    random = np.random.default_rng(0)
    flat_tied_and_distinct = [random.integers(0, levels, (shape[0] // 3, *shape[1:])) for levels in (1, 3, 1000)]
    x = np.concatenate(flat_tied_and_distinct).astype(np.float32)
    g = random.integers(1, 9, reference_pool(x, None, window)[0].shape).astype(np.float32)

    @jax.jit
    def pooled(x, g):
        out, pull = jax.vjp(lambda x: max_pool(x, window), x)
        stock = lambda x: lax.reduce_window(x, -math.inf, lax.max, window, window, "VALID")  # noqa: E731
        return (out, pull(g)[0]), (stock(x), jax.vjp(stock, x)[1](g)[0])

    for form in pooled(x, g):
        for actual, expected in zip(form, reference_pool(x, g, window), strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_a_flat_image_sends_the_whole_gradient_to_the_first_pixel(dtype):
    with jax.enable_x64(True):
        gradient = jax.grad(lambda x: max_pool(x, TILE).sum())(jnp.zeros((1, 4, 4, 1), dtype))
    assert gradient.dtype == dtype
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(np.asarray(gradient)[0, :, :, 0].astype(np.float64), expected)


def test_under_jit_vmap_and_scan():
    x = jnp.round(jax.random.uniform(jax.random.key(0), (3, 5, 6, 2)) * 3)
    gradient = jax.grad(lambda x: (max_pool(x, TILE[-x.ndim :]) ** 2).sum())

    @jax.jit
    def all_forms(x):
        return gradient(x), jax.vmap(gradient)(x), lax.scan(lambda c, image: (c, gradient(image)), 0, x)[1]

    _, expected = reference_pool(np.asarray(x), 2 * reference_pool(np.asarray(x), None, TILE)[0], TILE)
    for form in all_forms(x):
        np.testing.assert_array_equal(form, expected)
