"""A masked autoencoder over patches (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners")."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from spa_jax.models.layers import image_and_mask, require_positive, seen_with_mask, widened

_SLOWEST = 10_000.0
_EXPANSION = 4


class MaskedAutoencoder(nn.Module):
    """A transformer that encodes the patches that show something, and decodes all of them; a purifier's network.

    Patches that are hidden whole are no keys of the encoder's attention, so that the others are encoded as if they were
    alone, and are replaced by one learned token before the decoder (section 3 of the paper). Of our choice: a patch
    that is hidden in part is encoded with its mask, since blocks need not be patches; all patches are decoded into the
    answer; images are padded to whole patches; sizes.

    Attributes:
        patch_size: side of a patch in pixels.
        width: of a token, a multiple of 4 (fixed sine and cosine positions of rows and columns) and of `heads`.
        depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        heads: of the attention.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters and images are float32 or wider.

    Raises:
        ValueError: a number below 1, or a width that is not such a multiple.
    """

    minimum_size: ClassVar[int] = 1

    patch_size: int = 4
    width: int = 96
    depth: int = 4
    decoder_depth: int = 2
    heads: int = 4
    dtype: Any = None

    def __post_init__(self) -> None:
        for name in ("patch_size", "width", "depth", "decoder_depth", "heads"):
            require_positive(name, getattr(self, name))
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of 4 and of heads={self.heads}")
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
            ValueError: images are not [b, h, w, c], or masks do not fit them.
        """
        x = seen_with_mask("MaskedAutoencoder", images, masks, self.minimum_size)
        patches, grid = _patches(x, self.patch_size)
        channels = images.shape[-1]
        is_seen = jnp.any(patches.reshape(*patches.shape[:2], -1, channels + 1)[..., -1] < 1, axis=-1)
        places = jnp.asarray(_places(grid, self.width), x.dtype)[None]
        x = nn.Dense(self.width, dtype=self.dtype, name="embed")(patches)
        x = self._blocks(x + places.astype(x.dtype), self.depth, "encoder", is_seen[:, None, None])
        token = self.param("hidden_token", nn.initializers.normal(0.02), (1, 1, self.width))
        x = nn.Dense(self.width, dtype=self.dtype, name="to_decoder")(x)
        x = jnp.where(is_seen[..., None], x, token.astype(x.dtype)) + places.astype(x.dtype)
        x = self._blocks(x, self.decoder_depth, "decoder", None)
        x = nn.Dense(self.patch_size**2 * channels, dtype=self.dtype, name="pixels")(x)
        return nn.sigmoid(widened(_image(x, grid, self.patch_size, images.shape)))

    def _blocks(self, x: Any, count: int, name: str, seen: Any) -> Float[Array, "b n d"]:
        for i in range(count):
            x = _Block(self.width, self.heads, self.dtype, name=f"{name}{i}")(x, seen)
        return nn.LayerNorm(dtype=self.dtype, name=f"{name}_norm")(x)


class _Block(nn.Module):
    """Attention and two dense layers, each normalised before and added to what came in (Dosovitskiy et al. 2021)."""

    width: int
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], seen: Bool[Array, "b 1 1 n"] | None) -> Float[Array, "b n d"]:
        own = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(own, mask=seen)
        y = nn.Dense(_EXPANSION * self.width, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
        return x + nn.Dense(self.width, dtype=self.dtype)(nn.gelu(y))


def _patches(x: Float[Array, "b h w c"], size: int) -> tuple[Float[Array, "b n d"], tuple[int, int]]:
    """Patches row by row, and how many rows and columns of them; images are padded with zeros, masks with ones."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // size), -(-width // size)
    margins = ((0, 0), (0, rows * size - height), (0, columns * size - width), (0, 0))
    padded = [jnp.pad(part, margins, constant_values=fill) for part, fill in ((x[..., :-1], 0), (x[..., -1:], 1))]
    tiles = jnp.concatenate(padded, -1).reshape(batch, rows, size, columns, size, channels)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1), (rows, columns)


def _image(x: Float[Array, "b n d"], grid: tuple[int, int], size: int, shape: Any) -> Float[Array, "b h w c"]:
    """The way back, cut to the image's shape."""
    (rows, columns), channels = grid, shape[-1]
    tiles = x.reshape(-1, rows, columns, size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(-1, rows * size, columns * size, channels)[:, : shape[1], : shape[2]]


def _places(grid: tuple[int, int], width: int) -> np.ndarray:
    """Sines and cosines of each patch's row and column, [n, width], of frequencies from 1 to 1 / 10,000."""
    quarter = width // 4
    rates = _SLOWEST ** -(np.arange(quarter) / quarter)
    row, column = (index.reshape(-1, 1) * rates for index in np.indices(grid))
    return np.concatenate([function(angle) for angle in (row, column) for function in (np.sin, np.cos)], -1)
