"""Layers that are quick inside compiled loops on a CPU, with an explicit BatchNorm policy.

XLA's CPU backend computes activations anew wherever a gradient reads them, and pools backwards by select-and-scatter.
`relu`, `leaky_relu` and `max_pool` are the same functions written so that it does not; on other platforms they are the
stock ones.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from spa_jax.models.convolution import convolution

_Pair = tuple[int, int]
_SLOPE = 0.2


# --- activation and pooling ------------------------------------------------------------------------------------------


def _kept(x: Any) -> Any:
    """`x` itself, computed once: on a CPU XLA would rather compute it anew in each loop that reads it."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


@jax.custom_vjp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The larger of `x` and 0; its gradient at 0 is 0. Reverse mode only."""
    return _kept(jnp.maximum(x, 0))


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: Array, g: Array) -> tuple[Array]:
    return (jnp.where(y > 0, g, jnp.zeros((), g.dtype)),)


relu.defvjp(_relu_forward, _relu_backward)


@jax.custom_vjp
def leaky_relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` where it is positive, elsewhere a fifth of it (slope 0.2); the gradient at 0 is 0.2. Reverse mode only."""
    return _kept(jnp.where(x > 0, x, x * jnp.asarray(_SLOPE, x.dtype)))


def _leaky_relu_forward(x: Array) -> tuple[Array, Array]:
    y = leaky_relu(x)
    return y, y


def _leaky_relu_backward(y: Array, g: Array) -> tuple[Array]:
    return (jnp.where(y > 0, g, g * jnp.asarray(_SLOPE, g.dtype)),)


leaky_relu.defvjp(_leaky_relu_forward, _leaky_relu_backward)


def max_pool(x: Float[Array, "*b h w c"], window: int = 2) -> Float[Array, "*b p q c"]:
    """Largest value of each `window` x `window` tile; rows and columns that fill no tile are left out.

    The gradient goes to the first largest value of a tile in row-major order, as in PyTorch. Splitting it among ties,
    as a reshape with `max` does, changes the sign of up to a quarter of an image gradient on flat backgrounds. Reverse
    mode only.

    Args:
        x: images, or one image.
        window: side of a tile in pixels, 1 or larger.

    Raises:
        ValueError: the image is smaller than a tile, or `window` is below 1.
    """
    require_positive("window", window)
    if min(x.shape[-3:-1]) < window:
        raise ValueError(f"image shape={x.shape[-3:]} is smaller than the pooling window={window}")
    return _max_pool(x, window, x.shape[-3:-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x: Array, window: int, size: _Pair) -> Array:
    return _largest_and_where(x, window)[0]


def _largest_and_where(x: Array, window: int) -> tuple[Array, Array]:
    rows, columns = (size // window * window for size in x.shape[-3:-1])
    largest, where = x[..., :rows:window, :columns:window, :], jnp.zeros((), jnp.int32)
    for index in range(1, window**2):
        i, j = divmod(index, window)
        pixel = x[..., i:rows:window, j:columns:window, :]
        where = jnp.where(pixel > largest, index, where)
        largest = jnp.maximum(pixel, largest)
    return largest, jnp.broadcast_to(where, largest.shape)


def _max_pool_forward(x: Array, window: int, size: _Pair) -> tuple[Array, Array]:
    return _kept(_largest_and_where(x, window))


def _max_pool_backward(window: int, size: _Pair, where: Array, g: Array) -> tuple[Array]:
    batch, (rows, columns, channels) = g.shape[:-3], g.shape[-3:]
    pixel_of_tile = jnp.arange(window**2, dtype=jnp.int32).reshape(window, 1, window, 1)
    tiles = (..., slice(None), None, slice(None), None, slice(None))
    spread = jnp.where(where[tiles] == pixel_of_tile, g[tiles], jnp.zeros((), g.dtype))
    covered = spread.reshape(*batch, rows * window, columns * window, channels)
    left_out = [(0, whole - part) for whole, part in zip(size, covered.shape[-3:-1], strict=True)]
    return (jnp.pad(covered, [(0, 0)] * len(batch) + [*left_out, (0, 0)]),)


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
