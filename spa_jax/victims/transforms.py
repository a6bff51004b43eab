"""Random transforms of images before a purifier: Gaussian noise and blocks hidden at random (AToP's RT1 to RT3).

Lin et al. 2024, "Adversarial Training on Purification (AToP): Advancing Both Robustness and Generalization". What an
image meets is a function of its key and itself: it does not depend on how a batch is laid out.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from spa_jax.configuration import build
from spa_jax.numerics import clip_to_unit, in_dtype_of
from spa_jax.trees import pytree, static
from spa_jax.types import Count, Image, Images, Scalar
from spa_jax.validation import require_count, require_number

_GREY = 0.5


class Drawn(NamedTuple):
    """What a purifier's network is shown: `parts` views of each image side by side.

    Attributes:
        images: [parts * b, h, w, c] in [0, 1], hidden pixels 0.5.
        masks: [parts * b, h, w, 1]: 1 where pixels are hidden, 0 elsewhere.
    """

    images: Any
    masks: Any


@pytree
class RandomTransform:
    """Noise, then hidden blocks; see `rt1`, `rt2` and `rt3`.

    As it is, it is a randomised function of keys [b] and images [b, h, w, c] to images, a defence without a network.

    Attributes:
        sigma: standard deviation of the noise; 0 for none.
        grid: blocks along each side of an image.
        hidden: blocks that a mask hides, where there is one mask.
        parts: masks that together hide every pixel once, or 1.
    """

    sigma: Any
    grid: int = static()
    hidden: int = static()
    parts: int = static(default=1)

    is_randomized = True

    def __call__(self, keys: Key[Array, " b"], images: Images) -> Images:
        """The transformed images.

        Raises:
            ValueError: several masks hide every pixel, or the images are smaller than the grid.
        """
        if self.parts > 1:
            raise ValueError(f"masks={self.parts} hide every pixel once: rt3 needs a network, see purifier")
        return self.draw(keys, images).images

    def purification_stages(self, keys: Key[Array, " b"], images: Images) -> dict[str, Any]:
        """The transformed images, of several views the first; see `spa_jax.victims.purification_stages`."""
        return {"transformed": self.draw(keys, images).images[:: self.parts]}

    def draw(self, keys: Key[Array, " b"], images: Images) -> Drawn:
        """The views of images [b, h, w, c] in [0, 1], each a function of its key and image.

        Raises:
            ValueError: the images are smaller than the grid.
        """
        height, width = images.shape[1:3]
        if min(height, width) < self.grid:
            raise ValueError(f"grid={self.grid} must not exceed the sides of images.shape={images.shape}")
        views = jax.vmap(self._draw)(keys, images)
        return Drawn(*(array.reshape(-1, *array.shape[2:]) for array in views))

    def combine(self, filled: Float[Array, "n h w c"], masks: Float[Array, "n h w 1"]) -> Float[Array, "b h w c"]:
        """One image for each from what a network made of its views: all of it, or of each view what was hidden."""
        if self.parts == 1:
            return filled
        own = filled * masks.astype(filled.dtype)
        return jnp.sum(own.reshape(-1, self.parts, *own.shape[1:]), axis=1)

    def completed(self, complete: Callable[[Any, Any], Any], keys: Key[Array, " b"], images: Images) -> Images:
        """Images drawn, completed by a network `(images, masks) -> images`, and combined."""
        drawn = self.draw(keys, images)
        return self.combine(complete(*drawn), drawn.masks)

    def _draw(self, key: Key[Array, ""], image: Image) -> tuple[Any, Any]:
        """The views of one image, [parts, h, w, c], and their masks, [parts, h, w, 1]."""
        noise_key, mask_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, image.shape, image.dtype)
        noisy = clip_to_unit(image + in_dtype_of(self.sigma, image) * noise)
        masks = self._masks(mask_key, image.shape[0], image.shape[1])
        return jnp.where(masks, jnp.full((1, 1, 1, 1), _GREY, image.dtype), noisy[None]), masks.astype(image.dtype)

    def _masks(self, key: Key[Array, ""], height: int, width: int) -> Bool[Array, "parts h w 1"]:
        """Blocks dealt out at random; where the grid does not divide a side, its blocks differ by a pixel."""
        order = jax.random.permutation(key, self.grid**2)[None]
        numbers = jnp.arange(self.parts)[:, None]
        is_hidden = order < self.hidden if self.parts == 1 else order % self.parts == numbers
        blocks = is_hidden.reshape(-1, self.grid, self.grid)
        rows, columns = (np.arange(side) * self.grid // side for side in (height, width))
        return blocks[:, rows][:, :, columns][..., None]


def rt1(grid: Count = 8, share: float = 0.25) -> RandomTransform:
    """RT1: a random share of an image's blocks is hidden.

    Args:
        grid: blocks along each side, so their size is relative to the image. AToP's code has 8x8 on 256x256 pixels.
        share: of the blocks, exactly so many of each image up to rounding; in [0, 1). AToP's code hides 16 of 64.

    Raises:
        ValueError: a number out of range.
    """
    return rt2(0.0, grid, share)


def rt2(sigma: Scalar = 0.25, grid: Count = 8, share: float = 0.25) -> RandomTransform:
    """RT2: Gaussian noise, clipped to [0, 1], then RT1.

    Args:
        sigma: standard deviation on the [0, 1] scale, 0 or larger; AToP's code has 0.25.
        grid, share: as in `rt1`; a share of 0 leaves the noise alone.

    Raises:
        ValueError: a number out of range.
    """
    sigma = require_number("sigma", sigma, "0 or larger", lambda value: value >= 0)
    grid = require_count("grid", grid)
    share = require_number("share", share, "in [0, 1)", lambda value: 0 <= value < 1)
    return RandomTransform(sigma, grid, round(share * grid**2))


def rt3(sigma: Scalar = 0.25, grid: Count = 8, masks: Count = 4) -> RandomTransform:
    """RT3: noise, then disjoint masks that together hide every pixel once; each hidden block is kept as filled in.

    So every pixel is made by the network, and every image costs `masks` passes through it.

    Args:
        sigma, grid: as in `rt2`.
        masks: how many, at least 2; they share out the blocks evenly. AToP's evaluation has 4 masks of 16 blocks.

    Raises:
        ValueError: a number out of range, or more masks than blocks.
    """
    base = rt2(sigma, grid, 0.0)
    masks = require_count("masks", masks)
    if not 2 <= masks <= base.grid**2:
        raise ValueError(f"masks={masks!r} must be at least 2, and at most the {base.grid**2} blocks of grid={grid!r}")
    return RandomTransform(base.sigma, base.grid, 0, masks)


TRANSFORMS: Mapping[str, Callable[..., RandomTransform]] = {"rt1": rt1, "rt2": rt2, "rt3": rt3}
"""The transforms that a config may name: `{"name": "rt2", "sigma": 0.25}`."""


def transform_from_config(spec: Any, path: str = "transform") -> RandomTransform | None:
    """A transform from plain data; None is no transform.

    Args:
        spec: `{"name": "rt2", ...}` or None.
        path: where it stands, for messages.

    Raises:
        ConfigError: an unknown name or option.
        ValueError: a number out of range.
    """
    return None if spec is None else build(TRANSFORMS, spec, "transform", path)
