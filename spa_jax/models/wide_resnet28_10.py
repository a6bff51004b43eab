"""WideResNet-28-10 for CIFAR, and its relatives (Zagoruyko and Komodakis 2016, "Wide residual networks")."""

from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from spa_jax.models.layers import batch_norm, classify, conv, require_images, require_positive
from spa_jax.models.preact_resnet18 import preactivation_block


class WideResNet28x10(nn.Module):
    """Three stages of (depth - 4) / 6 pre-activation blocks; 36,479,194 parameters at 10 classes. No dropout.

    Attributes:
        num_classes: number of logits.
        depth: number of convolutions on the way, 6 n + 4; 28 is the paper's.
        widen_factor: stages have 16, 32 and 64 times this many channels; 10 is the paper's.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters, statistics and logits are float32.
        axis_name: the mapped axis over which BatchNorm averages its statistics under `pmap`; None under `jit`.
    """

    minimum_size: ClassVar[int] = 4

    num_classes: int = 10
    depth: int = 28
    widen_factor: int = 10
    dtype: Any = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_classes", "depth", "widen_factor"):
            require_positive(name, getattr(self, name))
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"depth={self.depth} must be 6 n + 4 with n >= 1: 10, 16, 22, 28, 34, 40 ...")
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
        require_images("WideResNet28x10", images.shape, self.minimum_size)
        settings = {"train": train, "dtype": self.dtype, "axis_name": self.axis_name}
        x = conv(16, dtype=self.dtype)(images)
        for stage in range(3):
            for block in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                x = preactivation_block(x, 16 * self.widen_factor * 2**stage, stride, **settings)
        x = nn.relu(batch_norm(**settings)(x))
        return classify(x.mean((1, 2)), self.num_classes, self.dtype)
