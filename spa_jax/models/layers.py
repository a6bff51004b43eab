"""What the networks share: initialisation and padding of convolutions, an explicit BatchNorm policy, checks."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.numerics import at_least_float32

_GROUPS = 8

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
    """An `nn.Conv` with He's normal initialisation (He et al. 2015, by fan-out as for ResNets).

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
    return logits.astype(at_least_float32(logits.dtype))


def group_norm(x: Float[Array, "b h w c"], dtype: Any) -> Float[Array, "b h w c"]:
    """GroupNorm (Wu & He 2018) in at most 8 groups, which treats every example by itself; call it compactly."""
    return nn.GroupNorm(num_groups=math.gcd(_GROUPS, x.shape[-1]), dtype=dtype)(x)


def widened(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` in float32 or wider."""
    return x.astype(at_least_float32(x.dtype))


# --- pixels as channels ---------------------------------------------------------------------------------------------


def pixels_to_channels(x: Float[Array, "b h w c"]) -> Float[Array, "b p q four_c"]:
    """Every 2x2 tile as the channels of one pixel; an odd side gets a line of zeros."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = -(-height // 2), -(-width // 2)
    tiles = x.reshape(batch, rows, 2, columns, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(batch, rows, columns, 4 * channels)


def channels_to_pixels(x: Float[Array, "b p q four_c"], size: Sequence[int]) -> Float[Array, "b h w c"]:
    """The way back, cut to `size`."""
    batch, rows, columns, channels = x.shape
    tiles = x.reshape(batch, rows, columns, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(batch, 2 * rows, 2 * columns, channels // 4)[:, : size[0], : size[1]]


# --- networks that complete images ----------------------------------------------------------------------------------


def image_and_mask(image_shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """Inputs of batch 1, to initialise a network that completes images (h, w, c)."""
    return jnp.zeros((1, *image_shape), jnp.float32), jnp.zeros((1, *image_shape[:2], 1), jnp.float32)


def seen_with_mask(
    network: str, images: Float[Array, "..."], masks: Float[Array, "..."], minimum_size: int
) -> Float[Array, "b h w c_plus_1"]:
    """Images about 0, and their masks as a further channel.

    Raises:
        ValueError: images are not [b, h, w, c] or too small, or masks are not [b, h, w, 1].
    """
    require_images(network, images.shape, minimum_size)
    wanted = (*images.shape[:3], 1)
    if masks.shape != wanted:
        raise ValueError(f"masks.shape={masks.shape} must be {wanted} for images.shape={images.shape}")
    return jnp.concatenate([images - 0.5, masks.astype(images.dtype)], axis=-1)


# --- checks ---------------------------------------------------------------------------------------------------------


def require_positive(name: str, value: Any) -> None:
    """Refuse a number that is not an integer of 1 or larger.

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
