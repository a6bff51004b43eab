"""A discriminator that judges patches of an image (PatchGAN, Isola et al. 2017)."""

from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from spa_jax.models.layers import conv, require_images, require_positive
from spa_jax.numerics import at_least_float32


class PatchDiscriminator(nn.Module):
    """Scores of overlapping patches: 4x4 convolutions of stride 2, then 3x3 ones, with LeakyReLU 0.2.

    No normalisation, so every example is treated by itself; spectral normalisation of the kernels (Miyato et al. 2018)
    takes its place. Its vectors are in "batch_stats" and updated with `train=True`.

    Attributes:
        width: channels of the first layer, doubled by each of the next; Isola et al.'s is 64.
        depth: layers of stride 2; 2 of them judge patches of 26x26 pixels, 3 of 54x54.
        spectral: whether kernels are divided by their spectral norm.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters and scores are float32 or wider.
    """

    minimum_size: ClassVar[int] = 4

    width: int = 16
    depth: int = 2
    spectral: bool = True
    dtype: Any = None

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            require_positive(name, getattr(self, name))
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "..."], train: bool = False) -> Float[Array, "b p q"]:
        """Scores [b, p, q] of images [b, h, w, c] in [0, 1]; larger looks more real.

        Raises:
            ValueError: images are not [b, h, w, c] or too small.
        """
        require_images("PatchDiscriminator", images.shape, self.minimum_size)
        x = images - 0.5
        for layer in range(self.depth):
            x = nn.leaky_relu(self._conv(x, self.width * 2**layer, 4, 2, train), 0.2)
        x = nn.leaky_relu(self._conv(x, self.width * 2**self.depth, 3, 1, train), 0.2)
        scores = self._conv(x, 1, 3, 1, train)[..., 0]
        return scores.astype(at_least_float32(scores.dtype))

    def _conv(self, x: Any, features: int, kernel_size: int, stride: int, train: bool) -> Any:
        layer = conv(features, kernel_size, stride, use_bias=True, dtype=self.dtype)
        return nn.SpectralNorm(layer)(x, update_stats=train) if self.spectral else layer(x)
