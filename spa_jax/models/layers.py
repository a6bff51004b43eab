"""Layers whose gradients are quick inside compiled loops on a CPU, with an explicit BatchNorm policy.

XLA's CPU backend folds the kernel flip of a convolution's input gradient into the convolution when it compiles the body
of a `scan` or `while_loop`, and then falls to a naive routine (jax-ml/jax#12868): an attack loop runs up to ten times
slower than its unrolled form. `convolution` states that gradient as a forward convolution. `max_pool` replaces XLA's
select-and-scatter, which is slow as well.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_NHWC = ("NHWC", "HWIO", "NHWC")
_Pads = tuple[tuple[int, int], tuple[int, int]]
_Pair = tuple[int, int]


# --- convolution ----------------------------------------------------------------------------------------------------


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
    groups or kernel dilation, takes the quick gradient where the program is compiled for a CPU; everything else, and
    every other platform, gets the stock one. It works under `jit`, `vmap`, `scan` and repeated reverse mode; its custom
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
        lhs.ndim == 4
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve(x: Array, kernel: Array, strides: _Pair, pads: _Pads, dilation: _Pair, precision: Any) -> Array:
    return _stock(x, kernel, strides, pads, dilation, precision)


def _convolve_forward(x: Array, kernel: Array, *settings: Any) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, *settings), (x, kernel)


def _convolve_backward(
    strides: _Pair, pads: _Pads, dilation: _Pair, precision: Any, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved

    def stated_as_forward(g: Array, kernel: Array) -> Array:
        # The barrier keeps XLA from folding the flip back into the convolution.
        flipped = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
        back = _transposed_pads(x.shape, g.shape, kernel.shape, strides, pads, dilation)
        return _convolve(g, flipped, dilation, back, strides, precision)

    def stock(g: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: _stock(x, kernel, strides, pads, dilation, precision), x)(g)[0]

    to_kernel = jax.linear_transpose(lambda k: _stock(x, k, strides, pads, dilation, precision), kernel)
    return lax.platform_dependent(g, kernel, cpu=stated_as_forward, default=stock), to_kernel(g)[0]


def _transposed_pads(
    x: Sequence[int], g: Sequence[int], kernel: Sequence[int], strides: _Pair, pads: _Pads, dilation: _Pair
) -> _Pads:
    back = []
    for axis in (0, 1):
        low = kernel[axis] - 1 - pads[axis][0]
        spread_x = (x[axis + 1] - 1) * dilation[axis] + 1
        spread_g = (g[axis + 1] - 1) * strides[axis] + 1
        back.append((low, spread_x - spread_g + kernel[axis] - 1 - low))
    return tuple(back)


_convolve.defvjp(_convolve_forward, _convolve_backward)


# --- max pooling ----------------------------------------------------------------------------------------------------


def max_pool(x: Float[Array, "*b h w c"], window: int = 2, stride: int | None = None) -> Float[Array, "*b p q c"]:
    """Largest value of each window; rows and columns that fill no window are left out.

    The gradient goes to the first largest value of a window in row-major order, as in PyTorch. Splitting it among ties,
    as a reshape with `max` does, changes the sign of up to a quarter of an image gradient on flat backgrounds.

    Args:
        x: images, or one image.
        window: side of the window in pixels, 1 or larger.
        stride: distance of windows in pixels, 1 or larger; None: the window.

    Raises:
        ValueError: the image is smaller than the window, or a number is below 1.
    """
    stride = window if stride is None else stride
    require_positive("window", window)
    require_positive("stride", stride)
    if min(x.shape[-3:-1]) < window:
        raise ValueError(f"image shape={x.shape[-3:]} is smaller than the pooling window={window}")
    return _max_pool(x, window, stride)


def _taps(x: Array, window: int, stride: int) -> list[Array]:
    rows, columns = ((size - window) // stride * stride + 1 for size in x.shape[-3:-1])
    offsets = [(i, j) for i in range(window) for j in range(window)]
    return [x[..., i : i + rows : stride, j : j + columns : stride, :] for i, j in offsets]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x: Array, window: int, stride: int) -> Array:
    return functools.reduce(jnp.maximum, _taps(x, window, stride))


def _max_pool_forward(x: Array, window: int, stride: int) -> tuple[Array, tuple[Array, Array]]:
    out = _max_pool(x, window, stride)
    return out, (x, out)


def _max_pool_backward(window: int, stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    x, out = saved
    zero, open_windows, total = jnp.zeros((), g.dtype), jnp.ones(g.shape, bool), None
    for index, tap in enumerate(_taps(x, window, stride)):
        first = open_windows & (tap == out)
        open_windows = open_windows & ~first
        pads = [(0, 0, 0)] * x.ndim
        for axis, offset in ((x.ndim - 3, index // window), (x.ndim - 2, index % window)):
            covered = offset + (g.shape[axis] - 1) * stride + 1
            pads[axis] = (offset, x.shape[axis] - covered, stride - 1)
        share = lax.pad(jnp.where(first, g, zero), zero, pads)
        total = share if total is None else total + share
    return (total,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


# --- building blocks of the networks --------------------------------------------------------------------------------


def conv(
    features: int,
    kernel_size: int = 3,
    stride: int = 1,
    *,
    use_bias: bool = False,
    padding: str = "SAME",
    dtype: Any = None,
    name: str | None = None,
) -> nn.Conv:
    """An `nn.Conv` with the quick gradient and He's normal initialisation (He et al. 2015, by fan-out as for ResNets).

    Args:
        features: output channels.
        kernel_size: side of the kernel in pixels.
        stride: distance of windows in pixels.
        use_bias: whether a bias is added; off where BatchNorm follows.
        padding: "SAME" is (k - 1) / 2 pixels on every side whatever the stride, as in PyTorch networks; or "VALID".
        dtype: of the computation; None: inferred from images and parameters. Parameters are float32.
        name: of the module's parameters; None: counted by Flax.
    """
    margin = (kernel_size - 1) // 2
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((margin, kernel_size - 1 - margin),) * 2 if padding == "SAME" else padding,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=convolution,
        name=name,
    )


def batch_norm(
    train: bool, *, dtype: Any = None, axis_name: str | None = None, name: str | None = None
) -> nn.BatchNorm:
    """BatchNorm with the policy of this library.

    `train=False` uses the running statistics, so that every example is treated by itself; attacks and evaluation run
    so. `train=True` normalises by the batch and updates the running statistics (`mutable=["batch_stats"]`) by
    `running = 0.9 * running + 0.1 * batch`, PyTorch's default momentum; epsilon is 1e-5, PyTorch's too. The running
    variance is the biased one of the batch (PyTorch: the unbiased one).

    Args:
        train: which statistics are used.
        dtype: of the result; statistics and parameters are float32.
        axis_name: under `pmap` or `shard_map`, the mapped axis over which statistics are averaged, which makes them
            those of the global batch. Under `jit` with sharded batches they are global already: None.
        name: of the module's parameters; None: counted by Flax.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name,
        use_fast_variance=False,
        name=name,
    )


def classify(x: Float[Array, "b d"], num_classes: int, dtype: Any) -> Float[Array, "b k"]:
    """Logits of a last dense layer (name "logits"), float32 or wider; call it inside a compact method."""
    logits = nn.Dense(num_classes, dtype=dtype, name="logits")(x)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


# --- checks ---------------------------------------------------------------------------------------------------------


def require_positive(name: str, value: Any) -> None:
    """Refuse a number that is no integer of 1 or larger.

    Raises:
        ValueError: naming `name=value` and the rule.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer, 1 or larger")


def require_images(network: str, shape: Sequence[int], minimum_size: int) -> None:
    """Refuse a batch that is not [b, h, w, c], or whose images are too small for the network's strides.

    Raises:
        ValueError: naming the network, the shape and the rule.
    """
    if len(shape) != 4:
        raise ValueError(f"images.shape={tuple(shape)}: {network} takes batches of images [b, h, w, c]")
    if min(shape[1:3]) < minimum_size:
        raise ValueError(
            f"images.shape={tuple(shape)}: {network} takes images of at least {minimum_size}x{minimum_size} pixels, "
            "smaller ones vanish in its pooling and strides"
        )
