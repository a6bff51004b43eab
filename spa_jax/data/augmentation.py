"""Random crops and flips on the device, one key an example: what happens to an image depends on its key alone."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Shaped

_PADDINGS = {"zero": "constant", "reflect": "reflect"}


@dataclass(frozen=True)
class Augmentation:
    """What `augment` does; hashable, so that it can be a static argument of `jit`.

    The defaults are those for CIFAR-10 of He et al., Deep residual learning for image recognition, section 4.2.

    Attributes:
        crop_padding: pixels added on each side before a window of the old size is cut out at random; 0: no crop.
        padding: what they are: `"zero"` or `"reflect"`.
        flip: whether an image is mirrored left to right with probability 1/2.

    Raises:
        ValueError: `crop_padding` is negative or `padding` unknown.
    """

    crop_padding: int = 4
    padding: str = "zero"
    flip: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding={self.crop_padding}; it must be 0 or more")
        if self.padding not in _PADDINGS:
            raise ValueError(f"padding={self.padding!r}; valid: {', '.join(_PADDINGS)}")


def augment(keys: Key[Array, " b"], images: Shaped[Array, "b h w c"], spec: Augmentation) -> Shaped[Array, "b h w c"]:
    """Crop and flip every image at random.

    Guarantees: shape and dtype stay; every value of the result is 0 or a value of its image; the same key and image
    give the same result in any batch, under `jit` or not.

    Args:
        keys: one key an image.
        images: of any dtype.
        spec: what to do; static.

    Raises:
        ValueError: the padding is to reflect, but is not smaller than the images.
    """
    height, width = images.shape[1:3]
    if spec.padding == "reflect" and spec.crop_padding >= min(height, width):
        raise ValueError(f"crop_padding={spec.crop_padding}; to reflect, it must be less than {min(height, width)}")
    return jax.vmap(functools.partial(_augment_image, spec=spec))(keys, images)


def _augment_image(key: Key[Array, ""], image: Shaped[Array, "h w c"], spec: Augmentation) -> Shaped[Array, "h w c"]:
    crop_key, flip_key = jax.random.split(key)
    if spec.crop_padding:
        image = _random_crop(crop_key, image, spec)
    if spec.flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    return image


def _random_crop(key: Key[Array, ""], image: Shaped[Array, "h w c"], spec: Augmentation) -> Shaped[Array, "h w c"]:
    margin = (spec.crop_padding, spec.crop_padding)
    padded = jnp.pad(image, (margin, margin, (0, 0)), mode=_PADDINGS[spec.padding])
    top, left = jax.random.randint(key, (2,), 0, 2 * spec.crop_padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)
