"""A network of gated convolutions that fills in hidden pixels, to be trained against a discriminator.

Yu et al. 2019, "Free-Form Image Inpainting with Gated Convolution"; AToP's code takes their generator.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.models.layers import image_and_mask, require_positive, seen_with_mask, widened

_DILATIONS = (1, 2, 4)


class Inpainter(nn.Module):
    """Two passes, coarse and fine, of convolutions that are halved twice, dilated and grown back; a purifier's network.

    As in AToP's code the network sees the image, a channel of ones (which shows the border) and the mask, the second
    pass sees the first one's answer where pixels are hidden, and the whole answer counts. Of our choice: sizes,
    dilations up to 4 instead of 16, and no contextual attention. The coarse image is sown as "coarse" into
    "intermediates", so that training can compare it too.

    Attributes:
        width: channels at full resolution; AToP's code has 48.
        gated: whether half of each convolution's output is a gate, sigmoid(b) * elu(a), with twice the weights.
        refined: whether there is a second pass.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters and images are float32 or wider.
    """

    minimum_size: ClassVar[int] = 4

    width: int = 24
    gated: bool = True
    refined: bool = True
    dtype: Any = None

    def __post_init__(self) -> None:
        require_positive("width", self.width)
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
        x = seen_with_mask("Inpainter", images, masks, self.minimum_size)
        coarse = self._pass("coarse_pass")(x)
        if not self.refined:
            return coarse
        self.sow("intermediates", "coarse", coarse)
        filled = jnp.where(masks == 1, coarse.astype(images.dtype), images)
        return self._pass("fine_pass")(seen_with_mask("Inpainter", filled, masks, self.minimum_size))

    def _pass(self, name: str) -> "_Pass":
        return _Pass(self.width, self.gated, self.dtype, name=name)


class _Pass(nn.Module):
    """From an image with its mask to an image."""

    width: int
    gated: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w c"]:
        channels, sizes = x.shape[-1] - 1, []
        x = self._conv(jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1), self.width, 5)
        for level in (1, 2):
            sizes.append(x.shape[1:3])
            x = self._conv(self._conv(x, self.width * 2**level, stride=2), self.width * 2**level)
        for dilation in _DILATIONS:
            x = self._conv(x, 4 * self.width, dilation=dilation)
        for level in (1, 0):
            x = self._conv(_doubled(x, sizes[level]), self.width * 2**level)
        return nn.sigmoid(widened(self._plain(x, channels)))

    def _conv(self, x: Any, features: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> Any:
        if not self.gated:
            return nn.elu(self._plain(x, features, kernel, stride, dilation))
        both = self._plain(x, 2 * features, kernel, stride, dilation)
        return nn.elu(both[..., :features]) * nn.sigmoid(both[..., features:])

    def _plain(self, x: Any, features: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> Any:
        margin = dilation * (kernel // 2)
        return nn.Conv(
            features,
            (kernel, kernel),
            strides=stride,
            padding=margin,
            kernel_dilation=dilation,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
        )(x)


def _doubled(x: Float[Array, "b p q c"], size: tuple[int, ...]) -> Float[Array, "b h w c"]:
    """Every pixel four times, cut to `size`."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, : size[0], : size[1]]
