"""PreActResNet-18 for CIFAR (He et al. 2016, "Identity mappings in deep residual networks")."""

from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from spa_jax.models.layers import batch_norm, classify, conv, require_images, require_positive


class PreActResNet18(nn.Module):
    """Four stages of two pre-activation blocks at 1, 2, 4, 8 times `width` channels.

    BatchNorm and ReLU stand before each convolution and, as in the paper, before the pooling at the end. Where the
    shape changes, the shortcut is a 1x1 convolution of the activated input. 11,172,170 parameters at 10 classes.

    Attributes:
        num_classes: number of logits.
        width: channels of the first stage; 64 is the standard.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters, statistics and logits are float32.
        axis_name: the mapped axis over which BatchNorm averages its statistics under `pmap`; None under `jit`.
    """

    minimum_size: ClassVar[int] = 8

    num_classes: int = 10
    width: int = 64
    dtype: Any = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_classes", "width"):
            require_positive(name, getattr(self, name))
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "..."], train: bool = False) -> Float[Array, "b k"]:
        """Logits of images [b, h, w, c] of at least 8x8 pixels.

        Args:
            images: [b, h, w, c], normalised.
            train: False uses BatchNorm's running statistics, True the batch's, with `mutable=["batch_stats"]`.

        Raises:
            ValueError: images are not [b, h, w, c] or too small.
        """
        require_images("PreActResNet18", images.shape, self.minimum_size)
        settings = {"train": train, "dtype": self.dtype, "axis_name": self.axis_name}
        x = conv(self.width, dtype=self.dtype)(images)
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                x = preactivation_block(x, self.width * 2**stage, stride, **settings)
        x = nn.relu(batch_norm(**settings)(x))
        return classify(x.mean((1, 2)), self.num_classes, self.dtype)


def preactivation_block(
    x: Float[Array, "b h w c"], features: int, stride: int, *, train: bool, dtype: Any, axis_name: str | None
) -> Float[Array, "b p q o"]:
    """Two activated 3x3 convolutions and a shortcut; call it inside a compact method."""
    active = nn.relu(batch_norm(train, dtype=dtype, axis_name=axis_name)(x))
    same_shape = stride == 1 and x.shape[-1] == features
    shortcut = x if same_shape else conv(features, 1, stride, dtype=dtype)(active)
    y = conv(features, stride=stride, dtype=dtype)(active)
    y = nn.relu(batch_norm(train, dtype=dtype, axis_name=axis_name)(y))
    return conv(features, dtype=dtype)(y) + shortcut
