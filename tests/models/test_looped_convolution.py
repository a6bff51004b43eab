"""The convolution for kernels trained in loops: value and gradients of the stock one, without its slow form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from spa_jax.models.looped_convolution import looped_convolution

pytestmark = pytest.mark.usefixtures("quick_compilation")

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = [
    # height, width, channels, features, kernel, stride, padding, dilation
    (8, 6, 5, 9, 3, 1, ((1, 1), (1, 1)), 1),
    (8, 6, 5, 2, 3, 1, ((1, 1), (1, 1)), 1),
    (8, 6, 5, 9, 4, 2, ((1, 1), (1, 1)), 1),
    (7, 9, 3, 2, 4, 2, ((1, 1), (1, 1)), 1),
    (4, 3, 6, 9, 4, 1, ((2, 2), (2, 2)), 2),
    (4, 3, 6, 2, 4, 1, ((2, 2), (2, 2)), 2),
    (7, 5, 2, 10, 3, 3, ((0, 2), (1, 0)), 1),
    (5, 4, 2, 10, 3, 1, ((0, 1), (2, 0)), 2),
    (5, 6, 2, 3, 2, 2, ((1, 1), (1, 1)), 2),
]


def stock(x, kernel, stride, padding, dilation):
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, (dilation,) * 2, dimension_numbers=NHWC)


def looped(x, kernel, stride, padding, dilation):
    return looped_convolution(x, kernel, (stride,) * 2, padding, (dilation,) * 2, dimension_numbers=NHWC)


def operands(height, width, channels, features, kernel, dtype=jnp.float64, batch=3):
    random = np.random.default_rng(0)
    shapes = (batch, height, width, channels), (kernel, kernel, channels, features)
    return tuple(jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)


def value_and_gradients(function, x, kernel):
    out, pull = jax.vjp(function, x, kernel)
    return out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype))


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_the_stock_ones(case):
    *shape, stride, padding, dilation = case
    with jax.enable_x64(True):
        x, kernel = operands(*shape)
        ours, theirs = (
            value_and_gradients(lambda x, k, f=f: f(x, k, stride, padding, dilation), x, kernel)
            for f in (looped, stock)
        )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == jnp.float64
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)


def test_low_precision_keeps_its_type():
    *shape, stride, padding, dilation = CASES[2]
    x, kernel = operands(*shape, dtype=jnp.bfloat16)
    ours, theirs = (
        value_and_gradients(lambda x, k, f=f: f(x, k, stride, padding, dilation), x, kernel) for f in (looped, stock)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == jnp.bfloat16
        mine, other = mine.astype(jnp.float32), other.astype(jnp.float32)
        np.testing.assert_allclose(mine, other, atol=0.04 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[4]])
def test_its_kernel_gradient_is_no_convolution_on_a_cpu(case):
    *shape, stride, padding, dilation = case
    x, kernel = operands(*shape, dtype=jnp.float32)

    def convolutions(function):
        def kernel_gradient(x, kernel):
            out, pull = jax.vjp(lambda k: function(x, k, stride, padding, dilation), kernel)
            return pull(out)

        return jax.jit(kernel_gradient).lower(x, kernel).as_text().count("stablehlo.convolution")

    assert convolutions(stock) == 2
    assert convolutions(looped) == 1


def test_named_padding_and_grouped_kernels_fall_back_to_the_stock_one():
    x, kernel = operands(6, 6, 4, 8, 3, jnp.float32)
    named = looped_convolution(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)
    np.testing.assert_allclose(named, stock(x, kernel, 1, "SAME", 1), rtol=1e-5, atol=1e-5)
    options = {"dimension_numbers": NHWC, "feature_group_count": 2}
    grouped = looped_convolution(x, kernel[:, :, :2], (1, 1), ((1, 1), (1, 1)), **options)
    expected = lax.conv_general_dilated(x, kernel[:, :, :2], (1, 1), ((1, 1), (1, 1)), **options)
    np.testing.assert_array_equal(grouped, expected)
