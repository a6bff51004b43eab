"""A convolution that is quick on a CPU, inside compiled loops too.

XLA's CPU backend folds the kernel flip of a convolution's input gradient into the convolution when it compiles the body
of a `scan` or `while_loop`, and then falls to a naive routine (jax-ml/jax#12868): an attack loop runs up to ten times
slower than its unrolled form. `convolution` is the same function written so that this does not happen, with quicker
forms of wide and of thin convolutions; on other platforms it is the stock one.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_NHWC = ("NHWC", "HWIO", "NHWC")
_Pads = tuple[tuple[int, int], tuple[int, int]]
_Pair = tuple[int, int]

# Measured with XLA 0.10 on an AVX2 processor, on one and two devices. Winograd's form makes a step through a ResNet-20
# of 128 images up to a quarter quicker, but takes 0.1 s longer to compile, so it is taken where some 50 steps repay
# that, and where there are enough pixels to repay the transform of the kernels. Grouped pixels make a LeNet-5's step a
# quarter quicker and leave thicker networks as they are. The sum of shifted taps makes a convolution to few features,
# such as the image gradient of a network's first one, 2 to 4 times as quick; one of 32 channels to 3 features loses.
_WIDE = 32
_PIXELS_A_CHANNEL = 8
_PRODUCTS_A_TAP = 2**24
_NARROW = 16
_THIN = 12 * 16
_FEW = 64

# Winograd's minimal filtering F(4, 3) on the points 0, 1, -1, 2, -2 (Lavin and Gray 2016, section 4.3): 4 rows of a
# three-row convolution from 6 products instead of 12.
_TO_TILES = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
             (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))  # fmt: skip
_TO_KERNELS = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
               (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_TO_ROWS = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def convolution(
    lhs: Float[Array, "..."],
    rhs: Float[Array, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **options: Any,
) -> Float[Array, "..."]:
    """`lax.conv_general_dilated` with an input gradient that stays quick in compiled loops on a CPU.

    Value and gradients are those of the stock function. A 2-D convolution of NHWC images with an HWIO kernel, without
    groups or kernel dilation, takes the quick gradient where JAX's default backend is a CPU; everything else, and every
    other platform, gets the stock one. It works under `jit`, `vmap`, `scan` and repeated reverse mode; its custom
    gradient rules out forward mode (`jvp`, `linearize`).

    Args:
        lhs: images [b, h, w, c]; float32, bfloat16 or float64.
        rhs: kernel [kh, kw, c, o] of the same type.
        window_strides: one stride for each spatial axis, 1 or larger.
        padding: "SAME", "VALID" or (low, high) pairs of pixels.
        lhs_dilation: pixels of the image are set this far apart; None: 1.
        rhs_dilation: taps of the kernel are set this far apart; None: 1.
        dimension_numbers: as in `lax.conv_general_dilated`.
        feature_group_count: number of channel groups.
        precision: as in `lax.conv_general_dilated`.
        options: its other arguments (Flax NNX gives `out_sharding`); where one is set, the stock function computes.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    ordinary = (
        jax.default_backend() == "cpu"
        and lhs.ndim == 4
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
        and feature_group_count == 1
        and set(rhs_dilation or (1,)) == {1}
        and all(value is None for value in options.values())
    )
    strides, dilation = tuple(window_strides), tuple(lhs_dilation or (1,) * (lhs.ndim - 2))
    if not ordinary or (isinstance(padding, str) and set(dilation) != {1}):
        options |= {"feature_group_count": feature_group_count, "precision": precision}
        return lax.conv_general_dilated(lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, numbers, **options)
    pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding) if isinstance(padding, str) else padding
    return _convolve(lhs, rhs, strides, tuple((int(low), int(high)) for low, high in pads), dilation, precision)


def _stock(x: Array, kernel: Array, strides: _Pair, pads: _Pads, dilation: _Pair, precision: Any) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dilation, dimension_numbers=_NHWC, precision=precision)


def _repays_winograd(images: Sequence[int], kernel: Sequence[int], pads: _Pair) -> bool:
    pixels, (channels, features) = math.prod(images[:3]), kernel[2:]
    if tuple(kernel[:2]) != (3, 3) or min(channels, features) < _WIDE or not _fills_tiles(images[1] + sum(pads) - 2):
        return False
    return pixels >= _PIXELS_A_CHANNEL * max(channels, features) and pixels * channels * features >= _PRODUCTS_A_TAP


def _fills_tiles(rows: int) -> bool:
    return rows % 4 == 0 or rows > 5  # no more than a quarter of the last tiles is thrown away


def _convolve_winograd(x: Array, kernel: Array, pads: _Pads) -> Array:
    """The convolution by Winograd's F(4, 3) along the rows; the taps along the columns are summed directly.

    Rounding grows to a few times that of the direct form, some 1e-6 of the largest value.
    """
    (low, high), (batch, height) = pads[0], x.shape[:2]
    rows = height + low + high - 2
    tiles = -(-rows // 4)
    x = jnp.pad(x, ((0, 0), (low, high + 4 * tiles - rows), (0, 0), (0, 0)))
    taken = [lax.slice_in_dim(x, i, i + 4 * tiles - 3, 4, 1) for i in range(6)]
    # The barriers keep each transform a pass of its own: XLA would compute it anew in every loop that reads it.
    tiled, kernels = lax.optimization_barrier((_mix(_TO_TILES, taken), _mix(_TO_KERNELS, list(kernel))))
    products = [
        _stock(tile, taps[None], (1, 1), ((0, 0), pads[1]), (1, 1), None)
        for tile, taps in zip(tiled, kernels, strict=True)
    ]
    mixed = jnp.stack(_mix(_TO_ROWS, lax.optimization_barrier(products)), 2)
    return mixed.reshape(batch, 4 * tiles, *mixed.shape[3:])[:, :rows]


def _mix(matrix: Sequence[Sequence[int | float]], parts: Sequence[Array]) -> list[Array]:
    """The linear combinations of `parts` that the rows of `matrix` name."""
    terms = [[weight * part for weight, part in zip(row, parts, strict=True) if weight] for row in matrix]
    return [functools.reduce(jnp.add, row) for row in terms]


def _convolve_pixel_groups(x: Array, kernel: Array, pads: _Pads) -> Array:
    """The convolution with 2 or 4 neighbouring pixels of a row as the channels of one."""
    height, width, channels, features = kernel.shape
    columns = x.shape[2] + sum(pads[1]) - width + 1
    group = next(size for size in (4, 2, 1) if columns % size == 0 and size * features <= 2 * _NARROW)
    shifted = [jnp.pad(kernel, ((0, 0), (i, group - 1 - i), (0, 0), (0, 0))) for i in range(group)]
    # Without the barrier XLA would shift the kernels anew in every loop.
    wide = lax.optimization_barrier(jnp.stack(shifted, 3).reshape(height, -1, channels, group * features))
    grouped = _stock(x, wide, (1, group), pads, (1, 1), None)
    return grouped.reshape(*grouped.shape[:2], columns, features)


def _convolve_taps(x: Array, kernel: Array, pads: _Pads) -> Array:
    """The convolution as the sum of shifted taps, all of which one product with the pixels computes."""
    height, width, channels, features = kernel.shape
    taps = kernel.transpose(2, 0, 1, 3).reshape(1, 1, channels, -1)
    # The barrier keeps the product a pass of its own: XLA would compute it anew for every shift.
    products = lax.optimization_barrier(_stock(x, taps, (1, 1), ((0, 0), (0, 0)), (1, 1), None))
    padded = jnp.pad(products, ((0, 0), *pads, (0, 0)))
    rows, columns = padded.shape[1] - height + 1, padded.shape[2] - width + 1
    padded = padded.reshape(*padded.shape[:3], height, width, features)
    shifts = [padded[:, i : i + rows, j : j + columns, i, j] for i in range(height) for j in range(width)]
    return functools.reduce(jnp.add, shifts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve(x: Array, kernel: Array, strides: _Pair, pads: _Pads, dilation: _Pair, precision: Any) -> Array:
    plain = x.dtype == jnp.float32 and strides == (1, 1) and dilation == (1, 1) and precision is None
    if plain and min(*pads[0], *pads[1]) >= 0 and kernel.shape[:2] != (1, 1):
        if _repays_winograd(x.shape, kernel.shape, pads[0]):
            return _convolve_winograd(x, kernel, pads)
        channels, features = kernel.shape[2:]
        if channels <= features <= _NARROW and channels * features <= _THIN:
            return _convolve_pixel_groups(x, kernel, pads)
        if features < channels and channels * features <= _FEW:
            return _convolve_taps(x, kernel, pads)
    return _stock(x, kernel, strides, pads, dilation, precision)


def _convolve_forward(x: Array, kernel: Array, *settings: Any) -> tuple[Array, tuple[Array, Array]]:
    # JAX 0.10 loses saved values that are inputs themselves where a scan is differentiated twice, hence the barrier.
    return _convolve(x, kernel, *settings), lax.optimization_barrier((x, kernel))


def _convolve_backward(
    strides: _Pair, pads: _Pads, dilation: _Pair, precision: Any, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    # The barrier keeps XLA from folding the flip back into the convolution.
    flipped = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    back = _transposed_pads(x.shape, g.shape, kernel.shape, strides, pads, dilation)
    to_image = _convolve(g, flipped, dilation, back, strides, precision)
    to_kernel = jax.linear_transpose(lambda k: _stock(x, k, strides, pads, dilation, precision), kernel)
    return to_image, to_kernel(g)[0]


def _transposed_pads(
    x: Sequence[int], g: Sequence[int], kernel: Sequence[int], strides: _Pair, pads: _Pads, dilation: _Pair
) -> _Pads:
    back = []
    for axis in (0, 1):
        low = kernel[axis] - 1 - pads[axis][0]
        spread_x = (x[axis + 1] - 1) * dilation[axis] + 1
        spread_g = (g[axis + 1] - 1) * strides[axis] + 1
        back.append((low, spread_x - spread_g + kernel[axis] - 1 - low))
    return back[0], back[1]


_convolve.defvjp(_convolve_forward, _convolve_backward)
