"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition") in its usual modern form."""

from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from spa_jax.models.layers import classify, conv, require_images, require_positive


class LeNet5(nn.Module):
    """5x5 convolutions of 6 and 16 channels, dense layers of 120 and 84: 61,706 parameters on 28x28x1 images.

    ReLU and max-pooling stand for the original's scaled tanh and trainable averages, as in most published baselines.
    The first convolution pads by two pixels, which makes 28x28 images what the paper's 32x32 were.

    Attributes:
        num_classes: number of logits.
        width: multiplies all channels and units; 1 is the paper's network.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters and logits are float32.
    """

    minimum_size: ClassVar[int] = 12

    num_classes: int = 10
    width: int = 1
    dtype: Any = None

    def __post_init__(self) -> None:
        for name in ("num_classes", "width"):
            require_positive(name, getattr(self, name))
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "..."], train: bool = False) -> Float[Array, "b k"]:
        """Logits of images [b, h, w, c] of at least 12x12 pixels; `train` changes nothing.

        Raises:
            ValueError: images are not [b, h, w, c] or too small.
        """
        require_images("LeNet5", images.shape, self.minimum_size)
        x = nn.relu(conv(6 * self.width, 5, use_bias=True, dtype=self.dtype)(images))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(conv(16 * self.width, 5, use_bias=True, padding="VALID", dtype=self.dtype)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for units in (120, 84):
            x = nn.relu(nn.Dense(units * self.width, dtype=self.dtype)(x))
        return classify(x, self.num_classes, self.dtype)
