"""A CNN and a ResNet-20 as a user writes them with flax.linen, with no thought of this library."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class CNN(nn.Module):
    """The usual MNIST network, 421,642 parameters on 28x28x1 images."""

    num_classes: int = 10
    width: int = 32

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        """Logits [b, k] of images [b, h, w, c]."""
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(128)(x.reshape((x.shape[0], -1))))
        return nn.Dense(self.num_classes)(x)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR (He et al. 2016, section 4.2) with shortcuts that are padded with zeros."""

    num_classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        """Logits [b, k] of images [b, h, w, c]; `train` takes the batch's statistics."""
        x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        for stage in range(3):
            for block in range(3):
                x = self._block(x, self.width * 2**stage, 2 if stage and not block else 1, train)
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))

    def _block(self, x: Any, features: int, stride: int, train: bool) -> Any:
        y = nn.Conv(features, (3, 3), strides=(stride, stride), use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
        y = nn.Conv(features, (3, 3), use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=not train)(y)
        if stride == 2:
            new = (features - x.shape[-1]) // 2
            x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (new, new)))
        return nn.relu(x + y)


STOCK = {"cnn": CNN, "resnet20": ResNet20}
"""The networks by the name that a config gives them."""
