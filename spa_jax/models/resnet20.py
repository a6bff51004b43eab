"""ResNet-20 for CIFAR (He et al. 2016, "Deep residual learning for image recognition", section 4.2)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.models.layers import batch_norm, classify, conv, require_images, require_positive


class ResNet20(nn.Module):
    """Three stages of three residual blocks of `width`, `2 * width`, `4 * width` channels; 269,722 parameters.

    The shortcuts have no parameters (the paper's option A, its choice for CIFAR): where a stage halves the image, every
    second pixel is taken and the new channels are zero, half of them before the old ones and half behind.

    Attributes:
        num_classes: number of logits.
        width: channels of the first stage; the paper's is 16.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters, statistics and logits are float32.
        axis_name: the mapped axis over which BatchNorm averages its statistics under `pmap`; None under `jit`.
    """

    minimum_size: ClassVar[int] = 4

    num_classes: int = 10
    width: int = 16
    dtype: Any = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_classes", "width"):
            require_positive(name, getattr(self, name))
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "..."], train: bool = False) -> Float[Array, "b k"]:
        """Logits of images [b, h, w, c] of at least 4x4 pixels.

        Args:
            images: [b, h, w, c], normalised.
            train: False uses BatchNorm's running statistics, True the batch's, with `mutable=["batch_stats"]`.

        Raises:
            ValueError: images are not [b, h, w, c] or too small.
        """
        require_images("ResNet20", images.shape, self.minimum_size)
        x = nn.relu(self._normalise(conv(self.width, dtype=self.dtype)(images), train))
        for features in (self.width, 2 * self.width, 4 * self.width):
            for _ in range(3):
                x = self._block(x, features, train)
        return classify(x.mean((1, 2)), self.num_classes, self.dtype)

    def _block(self, x: Float[Array, "b h w c"], features: int, train: bool) -> Float[Array, "b p q o"]:
        stride = 1 if x.shape[-1] == features else 2
        y = nn.relu(self._normalise(conv(features, stride=stride, dtype=self.dtype)(x), train))
        y = self._normalise(conv(features, dtype=self.dtype)(y), train)
        return nn.relu(y + _shortcut(x, features, stride))

    def _normalise(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        return batch_norm(train, dtype=self.dtype, axis_name=self.axis_name)(x)


def _shortcut(x: Float[Array, "b h w c"], features: int, stride: int) -> Float[Array, "b p q o"]:
    new = features - x.shape[-1]
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
