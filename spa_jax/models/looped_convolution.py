"""A convolution whose kernel is trained inside a compiled loop: its kernel gradient stays quick there on a CPU, too.

The kernel gradient of a convolution is a convolution with images as kernels, which XLA's CPU backend hands to a naive
routine in the body of a `scan`: 10 to 30 times slower than outside. Here it is one product of matrices a tap, which is
the other way round slower outside of loops; hence a function of its own.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from spa_jax.numerics import at_least_float32
from spa_jax.victims.convolution import convolution

_NHWC = ("NHWC", "HWIO", "NHWC")
_Pair = tuple[int, int]
_Pads = tuple[_Pair, _Pair]
_THIN = 8


def looped_convolution(
    lhs: Float[Array, "..."],
    rhs: Float[Array, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    **options: Any,
) -> Float[Array, "..."]:
    """`spa_jax.victims.convolution.convolution` for kernels that are trained inside a `scan`, for `nn.Conv` to inject.

    Value and gradients are those of `lax.conv_general_dilated`. 2-D convolutions of NHWC images with explicit padding,
    and stride or image dilation but not both, get the quick kernel gradient where the program is compiled for a CPU;
    all others, and other platforms, the stock one. Reverse mode only.

    Args:
        lhs: images [b, h, w, c].
        rhs: kernel [kh, kw, c, o] of the same type.
        window_strides: one for each spatial axis.
        padding: (low, high) pairs of pixels, or as in `convolution`.
        lhs_dilation: pixels of the image are set this far apart; None: 1.
        options: as in `convolution`.
    """
    strides, dilation = tuple(window_strides), tuple(lhs_dilation or (1,) * (lhs.ndim - 2))
    plain = all(
        value in (None, 1, (1, 1), _NHWC, lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC))
        for value in options.values()
    )
    if not plain or isinstance(padding, str) or (max(strides) > 1 and max(dilation) > 1) or lhs.ndim != 4:
        return convolution(lhs, rhs, strides, padding, lhs_dilation, **options)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _convolve(lhs, rhs, strides, pads, dilation)


def _apply(x: Array, kernel: Array, strides: _Pair, pads: _Pads, dilation: _Pair) -> Array:
    return convolution(x, kernel, strides, pads, dilation, dimension_numbers=_NHWC)


_convolve = jax.custom_vjp(_apply, nondiff_argnums=(2, 3, 4))


def _convolve_forward(x: Array, kernel: Array, *settings: Any) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, *settings), (x, kernel)


def _convolve_backward(
    strides: _Pair, pads: _Pads, dilation: _Pair, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    size = (kernel.shape[0], kernel.shape[1])
    to_image = jax.vjp(lambda x: _apply(x, kernel, strides, pads, dilation), x)[1]
    is_thin = g.shape[-1] <= _THIN and max(strides) == 1

    def stock(x: Array, g: Array) -> Array:
        return jax.vjp(lambda kernel: _apply(x, kernel, strides, pads, dilation), kernel)[1](g)[0]

    def quick(x: Array, g: Array) -> Array:
        by_outputs = is_thin or max(dilation) > 1
        taps = _dilated_taps(x, g, size, pads, dilation) if by_outputs else _strided_taps(x, g, size, strides, pads)
        return taps.astype(kernel.dtype)

    return to_image(g)[0], lax.platform_dependent(x, g, cpu=quick, default=stock)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _strided_taps(x: Array, g: Array, size: _Pair, strides: _Pair, pads: _Pads) -> Array:
    """Tap (i, j) is the product of the output's gradient and the pixels that this tap has seen."""
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))
    rows, columns = g.shape[1:3]
    taps = [_product(_every(x, (i, j), (rows, columns), strides), g) for i in range(size[0]) for j in range(size[1])]
    return jnp.stack(taps).reshape(*size, *taps[0].shape)


def _dilated_taps(x: Array, g: Array, size: _Pair, pads: _Pads, dilation: _Pair) -> Array:
    """As `_strided_taps`, but every pixel picks the places of the output's gradient that it has reached by the tap."""
    reach = [
        (kernel - 1 - low, dilation[axis] * (x.shape[1 + axis] - 1) + 1 + low - g.shape[1 + axis], 0)
        for axis, (kernel, (low, _)) in enumerate(zip(size, pads, strict=True))
    ]
    g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *reach, (0, 0, 0)))
    places = [(size[0] - 1 - i, size[1] - 1 - j) for i in range(size[0]) for j in range(size[1])]
    taps = [_every(g, place, (x.shape[1], x.shape[2]), dilation) for place in places]
    if g.shape[-1] > _THIN:
        products = jnp.stack([_product(x, tap) for tap in taps])
    else:
        products = _product(x, jnp.stack(taps, -2).reshape(*x.shape[:3], -1))
        products = products.reshape(x.shape[-1], len(taps), -1).swapaxes(0, 1)
    return products.reshape(*size, *products.shape[1:])


def _every(x: Array, start: _Pair, count: _Pair, step: _Pair) -> Array:
    stop = [first + (number - 1) * by + 1 for first, number, by in zip(start, count, step, strict=True)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[3]), (1, *step, 1))


def _product(x: Array, g: Array) -> Array:
    axes = (0, 1, 2)
    return lax.dot_general(x, g, ((axes, axes), ((), ())), preferred_element_type=at_least_float32(x.dtype))
