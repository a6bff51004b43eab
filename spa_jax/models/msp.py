"""A variational autoencoder with a subspace for attributes: matrix subspace projection (MSP, Li et al. 2020)."""

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.manipulators import attributes_of, set_attributes
from spa_jax.models.layers import (
    channels_to_pixels,
    conv,
    group_norm,
    pixels_to_channels,
    require_images,
    require_positive,
    widened,
)

_SMALLEST_SIDE = 4
_WIDEST = 8
_Size = tuple[int, int]


class MSP(nn.Module):
    """A convolutional variational autoencoder whose latent vector h holds the attributes in a linear subspace.

    A trained matrix M [m, D] reads them, v = M h, in units of the attributes' scale around their centre (Li et al.
    2019, "Latent Space Factorisation and Manipulation via Matrix Subspace Projection"). Centre and scale are facts of
    the data that belong to the weights: they lie in "batch_stats" and are never trained.

    Images are halved until a side has 4 pixels or less, with twice the channels each time, up to 8 times `width`.
    Pixels are rearranged into channels and back, which is quicker on a CPU than strided and transposed convolutions.
    Dense layers beside h move content about the whole image, which convolutions do not. GroupNorm (Wu & He 2018)
    treats every example by itself. Neither encoder nor decoder sees a label; the logits that h without its attributes
    gives are there for training alone. Sizes are our choice.

    Attributes:
        num_attributes: m, 1 or larger.
        num_classes: of `classify`.
        image_shape: (h, w, c) of the images it decodes.
        width: channels of the first stage.
        latent_dim: D, larger than m.
        hidden: units of the dense layers beside h.
        attribute_names: m names, or () for none.
        attribute_centre, attribute_scale: m numbers each to start with, or () for 0 and 1.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters, h and images are float32 or wider.
    """

    minimum_size: ClassVar[int] = 4

    num_attributes: int = 1
    num_classes: int = 10
    image_shape: tuple[int, int, int] = (32, 32, 1)
    width: int = 16
    latent_dim: int = 64
    hidden: int = 512
    attribute_names: tuple[str, ...] = ()
    attribute_centre: tuple[float, ...] = ()
    attribute_scale: tuple[float, ...] = ()
    dtype: Any = None

    def __post_init__(self) -> None:
        for name in ("num_attributes", "num_classes", "width", "latent_dim", "hidden"):
            require_positive(name, getattr(self, name))
        if self.latent_dim <= self.num_attributes:
            raise ValueError(f"latent_dim={self.latent_dim} must be larger than num_attributes={self.num_attributes}")
        for name in ("attribute_names", "attribute_centre", "attribute_scale"):
            if len(getattr(self, name)) not in (0, self.num_attributes):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must hold num_attributes={self.num_attributes} or none"
                )
        super().__post_init__()

    def setup(self) -> None:
        sizes = _sizes(self.image_shape)
        self.encoder = _Encoder(len(sizes) - 1, self.width, self.hidden, self.latent_dim, self.dtype)
        self.decoder = _Decoder(sizes, self.image_shape[2], self.width, self.hidden, self.dtype)
        self.class_logits = nn.Dense(self.num_classes)
        shape = (self.num_attributes, self.latent_dim)
        self.subspace = self.param("subspace", nn.initializers.orthogonal(), shape, jnp.float32)
        self.centre = self._constant("attribute_centre", self.attribute_centre, 0.0)
        self.scale = self._constant("attribute_scale", self.attribute_scale, 1.0)

    def _constant(self, name: str, values: tuple[float, ...], default: float) -> Any:
        values = values or (default,) * self.num_attributes
        return self.variable("batch_stats", name, lambda: jnp.asarray(values, jnp.float32))

    def __call__(self, images: Float[Array, "..."], train: bool = False) -> Float[Array, "b h w c"]:
        """The images decoded from the means of their latent vectors; `train` changes nothing.

        Raises:
            ValueError: images are not [b, h, w, c] of the model's shape.
        """
        h = self.encode(images)[0]
        if self.is_initializing():
            self.classify(h)
        return self.decode(h)

    def encode(self, images: Float[Array, "..."]) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Mean and log-variance [b, D] of the latent vectors of images [b, h, w, c] in [0, 1].

        Raises:
            ValueError: images are not [b, h, w, c] of the model's shape.
        """
        require_images("MSP", images.shape, self.minimum_size)
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images.shape={images.shape}: this MSP has image_shape={self.image_shape}")
        moments = self.encoder(images - 0.5)
        return moments[:, : self.latent_dim], moments[:, self.latent_dim :]

    def decode(self, h: Float[Array, "b d"]) -> Float[Array, "b h w c"]:
        """Images in [0, 1] of latent vectors [b, D]."""
        return self.decoder(h)

    def classify(self, h: Float[Array, "b d"]) -> Float[Array, "b k"]:
        """Logits that are linear in what h holds beside the attributes."""
        return self.class_logits(set_attributes(h, self.subspace, jnp.zeros_like(attributes_of(h, self.subspace))))


def _sizes(image_shape: tuple[int, int, int]) -> tuple[_Size, ...]:
    """Height and width at every stage, from the image's own to the smallest."""
    sizes = [(image_shape[0], image_shape[1])]
    while min(sizes[-1]) > _SMALLEST_SIDE:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return tuple(sizes)


def _channels(width: int, stage: int) -> int:
    return width * min(2**stage, _WIDEST)


class _Encoder(nn.Module):
    """Images to mean and log-variance side by side."""

    stages: int
    width: int
    hidden: int
    latent_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b twice_d"]:
        for stage in range(self.stages):
            x = conv(_channels(self.width, stage), use_bias=True, dtype=self.dtype)(pixels_to_channels(x))
            x = nn.relu(group_norm(x, self.dtype) if stage else x)
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
        return widened(nn.Dense(2 * self.latent_dim, dtype=self.dtype)(x))


class _Decoder(nn.Module):
    """Latent vectors to images; the mirror of the encoder."""

    sizes: tuple[_Size, ...]
    channels: int
    width: int
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, h: Float[Array, "b d"]) -> Float[Array, "b h w c"]:
        last = max(len(self.sizes) - 2, 0)
        grid = (*self.sizes[-1], _channels(self.width, last))
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(h))
        x = nn.relu(nn.Dense(math.prod(grid), dtype=self.dtype)(x).reshape(-1, *grid))
        for stage in range(last, 0, -1):
            x = conv(4 * _channels(self.width, stage - 1), use_bias=True, dtype=self.dtype)(x)
            x = nn.relu(group_norm(channels_to_pixels(x, self.sizes[stage]), self.dtype))
        x = conv(4 * self.channels, use_bias=True, dtype=self.dtype)(x)
        return nn.sigmoid(widened(channels_to_pixels(x, self.sizes[0])))
