"""The network behind diverse learned noise, after L2L-DA.

Jang et al. 2019, "Adversarial Defense via Learning to Generate Diverse Attacks": an encoder and a decoder that read the
image, the victim's gradient, the noise so far, a label and z.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spa_jax.models.layers import require_images, require_positive
from spa_jax.models.looped_convolution import looped_convolution
from spa_jax.numerics import at_least_float32

_SMALL = nn.initializers.normal(0.02)


class ConditionalBatchNorm(nn.Module):
    """BatchNorm whose scale and bias depend on the class: a row of the class and a row shared by all, added up.

    Statistics do not depend on the class. Class rows of the scale start as N(0, 0.02), the shared one as N(1, 0.02),
    biases as 0 (L2L-DA's code). Momentum and epsilon are those of `spa_jax.models.layers.batch_norm`; L2L-DA's epsilon
    of 1e-10 blows up channels that hardly vary.

    Attributes:
        num_classes: number of class rows.
        dtype: of the result; statistics and parameters are float32.
        axis_name: the mapped axis over which statistics are averaged under `pmap`; None under `jit`.
    """

    num_classes: int
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], labels: Int[Array, " b"], train: bool) -> Float[Array, "b h w c"]:
        """`x` normalised (`train=False`: by the running statistics), then scaled and shifted by class."""
        normalised = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            use_bias=False,
            use_scale=False,
            dtype=self.dtype,
            axis_name=self.axis_name,
            use_fast_variance=False,
            name="statistics",
        )(x)
        shape = (self.num_classes + 1, x.shape[-1])
        scale, bias = self.param("scale", _scale_rows, shape), self.param("bias", nn.initializers.zeros, shape)
        scale, bias = (_row(table, labels).astype(normalised.dtype) for table in (scale, bias))
        return normalised * scale + bias


def _scale_rows(key: Any, shape: tuple[int, int], dtype: Any = jnp.float32) -> Float[Array, "rows c"]:
    return _SMALL(key, shape, dtype).at[-1].add(1)


def _row(table: Float[Array, "rows c"], labels: Int[Array, " b"]) -> Float[Array, "b 1 1 c"]:
    return (table[labels] + table[-1:])[:, None, None]


class NoiseGenerator(nn.Module):
    """One mini-step of generated noise: a direction in (-1, 1) for every pixel.

    Layers (b = `width`): conv 3x3 to b; conv 4x4 of stride 2 to b and to 2b (and to 4b if `deep`), the inner ones with
    class-conditional BatchNorm; as many transposed convolutions back, all with it; conv 3x3 and tanh. z passes two
    dense layers of its own size and joins the input of every layer on the way down (L2L-DA, appendix). Of our choice:
    the gradient is rescaled to mean square 1, so that its size does not depend on the image's; images of any size are
    padded with zeros to whole tiles of the strides, and the result is cut back.

    Attributes:
        num_classes: number of labels.
        width: b; L2L-DA's is 64.
        deep: a third halving of the image.
        skips: U-Net connections, each layer's output joining its mirror's input (L2L-DA has them).
        latent_dim: numbers in z; L2L-DA's is 8.
        dtype: of the computation (e.g. bfloat16); None: inferred. Parameters, statistics and the result are float32.
        axis_name: the mapped axis over which BatchNorm averages its statistics under `pmap`; None under `jit`.
    """

    minimum_size: ClassVar[int] = 1

    num_classes: int = 10
    width: int = 32
    deep: bool = False
    skips: bool = True
    latent_dim: int = 8
    dtype: Any = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_classes", "width", "latent_dim"):
            require_positive(name, getattr(self, name))
        super().__post_init__()

    def example_inputs(self, image_shape: tuple[int, int, int]) -> tuple[Any, ...]:
        """Inputs of batch 1, to initialise the network for images (h, w, c)."""
        image = jnp.zeros((1, *image_shape), jnp.float32)
        return image, image, image, jnp.zeros(1, jnp.int32), jnp.zeros((1, self.latent_dim), jnp.float32)

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "..."],
        gradient: Float[Array, "..."],
        noise: Float[Array, "..."],
        labels: Int[Array, " b"],
        z: Float[Array, "b d"],
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """The direction of the next mini-step.

        Args:
            images: [b, h, w, c] in [0, 1], the images that the noise is added to.
            gradient: [b, h, w, c], the victim's loss gradient at the noisy images, of unit norm per channel.
            noise: [b, h, w, c] in [-1, 1], the noise so far in radii.
            labels: [b].
            z: [b, latent_dim], which of the many noises.
            train: False uses BatchNorm's running statistics, True the batch's, with `mutable=["batch_stats"]`.

        Raises:
            ValueError: images are not [b, h, w, c], or gradient, noise or z do not fit them.
        """
        require_images("NoiseGenerator", images.shape, self.minimum_size)
        self._require_fitting(images.shape, gradient.shape, noise.shape, z.shape)
        height, width, channels = images.shape[1:]
        seen = jnp.concatenate([images, gradient * (height * width) ** 0.5, noise], -1)
        pads = [_to_tiles(size, 8 if self.deep else 4) for size in (height, width)]
        x = self._paint(jnp.pad(seen, ((0, 0), *pads, (0, 0))), labels, self._style(z), train, channels)
        (top, _), (left, _) = pads
        return jnp.tanh(x[:, top : top + height, left : left + width].astype(at_least_float32(x.dtype)))

    def _require_fitting(self, images: Any, gradient: Any, noise: Any, z: Any) -> None:
        for name, shape, wanted in (
            ("gradient", gradient, images),
            ("noise", noise, images),
            ("z", z, (images[0], self.latent_dim)),
        ):
            if tuple(shape) != tuple(wanted):
                raise ValueError(
                    f"{name}.shape={tuple(shape)} must be {tuple(wanted)} for images.shape={tuple(images)}"
                )

    def _style(self, z: Float[Array, "b d"]) -> Float[Array, "b 1 1 d"]:
        for _ in range(2):
            z = nn.relu(nn.Dense(self.latent_dim, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())(z))
        return z[:, None, None]

    def _paint(self, x: Any, labels: Any, style: Any, train: bool, channels: int) -> Float[Array, "b h w c"]:
        b = self.width
        down = [(b, False), (b, True), (2 * b, self.deep), *([(4 * b, False)] if self.deep else [])]
        seen = []
        for level, (features, is_normalised) in enumerate(down):
            x = self._conv(features, 3 if level == 0 else 4, f"down{level}")(_joined(x, style))
            x = self._normalise(x, labels, train, f"down{level}_norm") if is_normalised else x
            x = nn.leaky_relu(x, 0.2)
            seen.append(x)
        for level in range(len(down) - 1, 0, -1):
            x = self._grow(2 * b if level == 3 else b, f"up{level}")(x)
            x = nn.relu(self._normalise(x, labels, train, f"up{level}_norm"))
            x = _joined(x, seen[level - 1]) if self.skips else x
        return self._conv(channels, 3, "out")(x)

    def _normalise(self, x: Any, labels: Any, train: bool, name: str) -> Float[Array, "b h w c"]:
        return ConditionalBatchNorm(self.num_classes, self.dtype, self.axis_name, name=name)(x, labels, train)

    def _conv(self, features: int, kernel_size: int, name: str) -> nn.Conv:
        return nn.Conv(
            features,
            (kernel_size, kernel_size),
            strides=1 if kernel_size == 3 else 2,
            padding=1,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_SMALL,
            conv_general_dilated=looped_convolution,
            name=name,
        )

    def _grow(self, features: int, name: str) -> nn.Conv:
        return nn.Conv(
            features,
            (4, 4),
            padding=2,
            input_dilation=2,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=_SMALL,
            conv_general_dilated=looped_convolution,
            name=name,
        )


def _joined(x: Float[Array, "b h w c"], more: Float[Array, "b _ _ d"]) -> Float[Array, "b h w e"]:
    return jnp.concatenate([x, jnp.broadcast_to(more, (*x.shape[:3], more.shape[-1])).astype(x.dtype)], -1)


def _to_tiles(size: int, tile: int) -> tuple[int, int]:
    missing = -size % tile
    return missing // 2, missing - missing // 2
