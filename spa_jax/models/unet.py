"""A small U-Net that completes and denoises images (after Ronneberger et al. 2015)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.models.layers import (
    channels_to_pixels,
    conv,
    group_norm,
    image_and_mask,
    pixels_to_channels,
    require_positive,
    seen_with_mask,
    widened,
)


class UNet(nn.Module):
    """Stages of two 3x3 convolutions at 1, 2, 4... times `width` channels, down and up again; a purifier's network.

    Pixels are rearranged into channels on the way down and back on the way up; sides need not be even. GroupNorm treats
    every example by itself. Without `skips` it is a convolutional autoencoder. Sizes are our choice.

    Attributes:
        width: channels at full resolution.
        depth: halvings of the image.
        skips: whether each stage on the way down joins its mirror on the way up.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters and images are float32 or wider.
    """

    minimum_size: ClassVar[int] = 4

    width: int = 32
    depth: int = 2
    skips: bool = True
    dtype: Any = None

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            require_positive(name, getattr(self, name))
        super().__post_init__()

    example_inputs = staticmethod(image_and_mask)

    @nn.compact
    def __call__(
        self, images: Float[Array, "..."], masks: Float[Array, "..."], train: bool = False
    ) -> Float[Array, "b h w c"]:
        """Images completed, in [0, 1]; `train` changes nothing.

        Args:
            images: [b, h, w, c] in [0, 1].
            masks: [b, h, w, 1], 1 where pixels are hidden.
            train: for the sake of other networks.

        Raises:
            ValueError: images are not [b, h, w, c] or too small, or masks do not fit them.
        """
        x = seen_with_mask("UNet", images, masks, self.minimum_size)
        x, seen = self._stage(x, 0), []
        for level in range(1, self.depth + 1):
            seen.append(x)
            x = self._stage(pixels_to_channels(x), level)
        for level in reversed(range(self.depth)):
            x = conv(4 * self._channels(level), 1, use_bias=True, dtype=self.dtype)(x)
            x = channels_to_pixels(x, seen[level].shape[1:3])
            x = self._stage(jnp.concatenate([x, seen[level]], -1) if self.skips else x, level)
        return nn.sigmoid(widened(conv(images.shape[-1], use_bias=True, dtype=self.dtype)(x)))

    def _channels(self, level: int) -> int:
        return self.width * 2**level

    def _stage(self, x: Float[Array, "b h w c"], level: int) -> Float[Array, "b h w d"]:
        for _ in range(2):
            x = conv(self._channels(level), dtype=self.dtype)(x)
            x = nn.relu(group_norm(x, self.dtype))
        return x
