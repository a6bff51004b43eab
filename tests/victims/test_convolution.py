"""The quick convolution against the stock one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from spa_jax.victims import convolution as quick
from spa_jax.victims.convolution import convolution

pytestmark = pytest.mark.usefixtures("quick_compilation")

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = [
    # image, kernel, stride, padding
    ((9, 9), (3, 3), (1, 1), "SAME"),
    ((8, 8), (3, 3), (2, 2), "SAME"),
    ((9, 8), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((8, 8), (1, 1), (1, 1), "SAME"),
    ((8, 7), (1, 1), (2, 2), "SAME"),
    ((10, 10), (5, 5), (1, 1), "SAME"),
    ((11, 10), (5, 5), (2, 1), "SAME"),
    ((10, 10), (5, 5), (1, 1), "VALID"),
    ((9, 9), (2, 4), (3, 2), "SAME"),
    ((8, 8), (7, 7), (2, 2), ((3, 3), (3, 3))),
    ((6, 6), (3, 3), (1, 1), ((4, 0), (-1, 3))),
]


def stock(x, kernel, strides, padding, lhs_dilation=None):
    return lax.conv_general_dilated(x, kernel, strides, padding, lhs_dilation, dimension_numbers=NHWC)


def operands(size, kernel_size, dtype=jnp.float32, batch=2):
    random = np.random.default_rng(0)
    return tuple(jnp.asarray(random.normal(size=shape), dtype) for shape in ((batch, *size, 3), (*kernel_size, 3, 4)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def values_and_gradients(ours, theirs, x, kernel):
    def value_and_gradients(function):
        out, pull = jax.vjp(function, x, kernel)
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return out, *pull(weights.astype(out.dtype))

    return tuple(zip(value_and_gradients(ours), value_and_gradients(theirs), strict=True))


@pytest.mark.parametrize(("size", "kernel_size", "strides", "padding"), CASES)
def test_convolution_and_both_gradients_equal_the_stock_ones_in_float64(size, kernel_size, strides, padding):
    with jax.enable_x64(True):
        x, kernel = operands(size, kernel_size, jnp.float64)
        pairs = values_and_gradients(
            lambda x, k: convolution(x, k, strides, padding, dimension_numbers=NHWC),
            lambda x, k: stock(x, k, strides, padding),
            x,
            kernel,
        )
        for mine, other in pairs:
            assert mine.dtype == jnp.float64
            np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 4e-2)])
def test_convolution_keeps_its_type_and_gradient_in_low_precision(dtype, tolerance):
    pairs = values_and_gradients(
        lambda x, k: convolution(x, k, (2, 2), "SAME", dimension_numbers=NHWC),
        lambda x, k: stock(x, k, (2, 2), "SAME"),
        *operands((8, 8), (3, 3), dtype),
    )
    for mine, other in pairs:
        assert mine.dtype == dtype
        mine, other = mine.astype(jnp.float32), other.astype(jnp.float32)
        np.testing.assert_allclose(mine, other, atol=tolerance * float(jnp.abs(other).max()))


THIN_OR_WIDE = [
    # channels, features, kernel, columns, padding
    (32, 32, 3, 8, "SAME"),
    (32, 40, 3, 5, ((4, 2), (0, 2))),
    (40, 32, 3, 5, ((0, 6), (1, 0))),
    (32, 32, 3, 5, ((-1, 2), (1, 0))),
    (32, 32, 3, 5, "VALID"),
    (32, 32, 5, 5, "SAME"),
    (16, 16, 3, 8, "SAME"),
    (3, 16, 3, 8, "SAME"),
    (16, 3, 3, 8, "SAME"),
    (3, 5, 3, 6, "VALID"),
    (1, 32, 3, 7, "SAME"),
    (1, 6, 5, 8, "SAME"),
    (6, 16, 5, 9, "VALID"),
    (16, 40, 3, 4, "SAME"),
    (12, 8, 1, 5, "SAME"),
    (16, 3, 3, 8, ((3, 1), (-1, 2))),
    (16, 1, 3, 7, ((2, 0), (1, 3))),
    (6, 1, 5, 8, "VALID"),
]


@pytest.mark.parametrize(("channels", "features", "kernel_size", "columns", "padding"), THIN_OR_WIDE)
def test_thin_and_wide_convolutions_equal_the_stock_ones(
    channels, features, kernel_size, columns, padding, monkeypatch
):
    monkeypatch.setattr(quick, "_PRODUCTS_A_TAP", 0)
    random = np.random.default_rng(0)
    shapes = (12, 6, columns, channels), (kernel_size, kernel_size, channels, features)
    pairs = values_and_gradients(
        lambda x, k: convolution(x, k, (1, 1), padding, dimension_numbers=NHWC),
        lambda x, k: stock(x, k, (1, 1), padding),
        *(jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes),
    )
    for mine, other in pairs:
        np.testing.assert_allclose(mine, other, atol=1e-5 * float(jnp.abs(other).max()))


@pytest.mark.parametrize(
    ("batch", "channels", "form"),
    [
        (342, 32, "winograd"),
        (341, 32, "stock"),
        (400, 31, "stock"),
        (80, 512, "stock"),
        (2, 4, "groups"),
        (2, 16, "stock"),
    ],
)
def test_each_form_is_taken_where_it_pays(batch, channels, form):
    shapes = (batch, 6, 8, channels), (3, 3, channels, channels)
    trace = jax.make_jaxpr(lambda x, k: convolution(x, k, (1, 1), "SAME", dimension_numbers=NHWC))
    text = str(trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))
    assert text.count("conv_general_dilated[") == (6 if form == "winograd" else 1)
    assert ("window_strides=(1, 4)" in text) == (form == "groups")


FEW = [(16, 1, True), (16, 3, True), (32, 3, False), (1, 1, False)]


@pytest.mark.parametrize(("channels", "features", "taken"), FEW)
def test_few_features_are_summed_from_shifted_taps(channels, features, taken):
    shapes = (2, 6, 8, channels), (3, 3, channels, features)
    trace = jax.make_jaxpr(lambda x, k: convolution(x, k, (1, 1), "SAME", dimension_numbers=NHWC))
    text = str(trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))
    assert (f"f32[1,1,{channels},{9 * features}]" in text) == taken


@pytest.mark.parametrize("wrapped", ["scan", "vmap_restarts", "vmap_singles", "vmap_kernels"])
def test_gradients_of_convolution_under_transformations(wrapped):
    x, kernel = operands((8, 8), (3, 3), batch=4)
    ours = jax.grad(lambda x, k: (convolution(x, k, (2, 2), "SAME", dimension_numbers=NHWC) ** 2).sum(), (0, 1))
    plain = jax.jit(jax.grad(lambda x, k: (stock(x, k, (2, 2), "SAME") ** 2).sum(), (0, 1)))
    expected, tolerance = plain(x, kernel), {"rtol": 1e-5, "atol": 1e-4}
    if wrapped == "scan":
        step = lambda carry, _: (carry, ours(*carry))  # noqa: E731
        stacked = jax.jit(lambda x, k: lax.scan(step, (x, k), None, length=2)[1])(x, kernel)
        actual = jax.tree.map(lambda leaf: leaf[1], stacked)
    elif wrapped == "vmap_restarts":
        restarts = jax.jit(jax.vmap(ours, (0, None)))(jnp.stack([x, 2 * x]), kernel)
        actual = jax.tree.map(lambda leaf: leaf[0], restarts)
    elif wrapped == "vmap_singles":
        singles = jax.jit(jax.vmap(lambda image: ours(image[None], kernel)))(x)
        actual = (singles[0][:, 0], singles[1].sum(0))
    else:
        models = jax.jit(jax.vmap(ours, (None, 0)))(x, jnp.stack([kernel, 3 * kernel]))
        actual = jax.tree.map(lambda leaf: leaf[0], models)
    for mine, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(mine, other, **tolerance)


def test_second_reverse_gradient_of_convolution_equals_the_stock_one():
    with jax.enable_x64(True):
        x, kernel = operands((7, 7), (3, 3), jnp.float64)

        def penalty(apply):
            gradient = jax.grad(lambda x, k: jnp.tanh(apply(x, k)).sum(), (0, 1))
            return jax.jit(jax.grad(lambda x, k: sum((g**2).sum() for g in gradient(x, k)), (0, 1)))

        ours = penalty(lambda x, k: convolution(x, k, (2, 2), "SAME", dimension_numbers=NHWC))(x, kernel)
        theirs = penalty(lambda x, k: stock(x, k, (2, 2), "SAME"))(x, kernel)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-10)


def test_input_gradient_in_a_compiled_loop_keeps_the_flip_outside_of_the_convolution():
    x, kernel = operands((8, 8), (3, 3))

    def program(apply):
        gradient = jax.grad(lambda x: (apply(x) ** 2).sum())
        loop = jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, x: x - gradient(x), x))
        return loop.lower(x).compile().as_text()

    slow_form = "01oi"
    assert slow_form in program(lambda x: stock(x, kernel, (1, 1), "SAME"))
    assert slow_form not in program(lambda x: convolution(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC))


@pytest.mark.parametrize(
    "options",
    [{"feature_group_count": 3}, {"rhs_dilation": (2, 2)}, {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}],
)
def test_other_convolutions_fall_back_to_the_stock_one(options):
    options = {"dimension_numbers": NHWC, **options}
    shapes = {"feature_group_count": ((2, 8, 8, 3), (3, 3, 1, 6)), "rhs_dilation": ((2, 8, 8, 3), (3, 3, 3, 4))}
    x_shape, kernel_shape = shapes.get(next(reversed(options)), ((2, 3, 8, 8), (4, 3, 3, 3)))
    x, kernel = jnp.cos(jnp.arange(math.prod(x_shape))), jnp.sin(jnp.arange(math.prod(kernel_shape)))
    pairs = values_and_gradients(
        lambda x, k: convolution(x, k, (1, 1), "SAME", **options),
        lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", **options),
        x.reshape(x_shape),
        kernel.reshape(kernel_shape),
    )
    for mine, other in pairs:
        np.testing.assert_array_equal(mine, other)


def test_one_dimensional_convolutions_fall_back_to_the_stock_one():
    x, kernel = jnp.ones((2, 8, 3)), jnp.ones((3, 3, 4))
    numbers = ("NWC", "WIO", "NWC")
    ours = convolution(x, kernel, (1,), "SAME", dimension_numbers=numbers)
    np.testing.assert_array_equal(ours, lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=numbers))
