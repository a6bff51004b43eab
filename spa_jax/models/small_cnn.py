"""A small convolutional network for digits, MNIST and CIFAR: two stages of 3x3 convolutions, each pooled by two."""

from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from spa_jax.models.layers import classify, conv, require_images, require_positive


class SmallCNN(nn.Module):
    """Stages of `width` and `2 * width` channels, a hidden dense layer, logits; no BatchNorm. Sizes are our choice.

    With `convs_per_stage=1` on 28x28x1 images it is the usual MNIST network of 421,642 parameters.

    Attributes:
        num_classes: number of logits.
        width: channels of the first stage.
        hidden: units of the dense layer.
        convs_per_stage: 3x3 convolutions before each pooling.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters and logits are float32.
    """

    minimum_size: ClassVar[int] = 4

    num_classes: int = 10
    width: int = 32
    hidden: int = 128
    convs_per_stage: int = 2
    dtype: Any = None

    def __post_init__(self) -> None:
        for name in ("num_classes", "width", "hidden", "convs_per_stage"):
            require_positive(name, getattr(self, name))
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "..."], train: bool = False) -> Float[Array, "b k"]:
        """Logits of images [b, h, w, c] of at least 4x4 pixels; `train` changes nothing.

        Raises:
            ValueError: images are not [b, h, w, c] or too small.
        """
        require_images("SmallCNN", images.shape, self.minimum_size)
        x = images
        for features in (self.width, 2 * self.width):
            for _ in range(self.convs_per_stage):
                x = nn.relu(conv(features, use_bias=True, dtype=self.dtype)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
        return classify(x, self.num_classes, self.dtype)
