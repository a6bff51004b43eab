"""A latent vector that a decoder turns into an image."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.numerics import Grid, clip_to_unit, in_dtype_of, on_grid_within, times
from spa_jax.spaces.base import SpaceBase
from spa_jax.spaces.noise import TINY, checked_radius, l2_norm, unit_l2
from spa_jax.trees import as_pytree, pytree, static
from spa_jax.types import Example, Image, Scalar
from spa_jax.validation import require_count


@pytree
class Latent(SpaceBase):
    """A latent vector within a ball that a decoder turns into an image; see `latent`."""

    radius: Any
    decode: Callable[[Any, Example], Any]
    dim: int = static()
    name: ClassVar[str] = "latent"

    def scaled(self, share: Any) -> "Latent":
        decode: Any = self.decode
        if hasattr(decode, "radius"):
            decode = dataclasses.replace(decode, radius=times(share, decode.radius))
        return Latent(times(share, self.radius), decode, self.dim)

    def init(self, key: Any, example: Example) -> Float[Array, " d"]:
        return self.project(jax.random.normal(key, (self.dim,), example.image.dtype), example)

    def identity(self, example: Example) -> Float[Array, " d"]:
        return jnp.zeros((self.dim,), example.image.dtype)

    def project(self, v: Any, example: Example | None) -> Any:
        return v * jnp.minimum(1, in_dtype_of(self.radius, v) / jnp.maximum(l2_norm(v), TINY))

    def direction(self, g: Any) -> Any:
        return in_dtype_of(self.radius, g) * unit_l2(g)

    def apply(self, v: Any, example: Example) -> Image:
        return clip_to_unit(self.decode(v, example))

    def onto_grid(self, image: Image, example: Example, grid: Grid) -> Image:
        if not hasattr(self.decode, "radius"):
            return super().onto_grid(image, example, grid)
        return on_grid_within(image, example.image, in_dtype_of(self.decode.radius, image), grid)


def latent(decode: Callable[[Any, Example], Any], dim: int, radius: Scalar) -> Latent:
    """A latent vector in an L2 ball, decoded to an image.

    Args:
        decode: `(z [dim], example) -> image [h, w, c] in [0, 1]`; a pytree (`jax.tree_util.Partial`) keeps its
            weights leaves. It may read `example.label` and `spa_jax.spaces.victim_gradient(example, image)`.
        dim: number of latent dimensions.
        radius: radius of the ball. A random start is standard normal, shrunk onto the ball.

    Only a decoder that maps z = 0 to the image itself makes `identity` leave the image alone.

    Raises:
        ValueError: `radius` is negative or `dim` below 1.
    """
    require_count("dim", dim)
    return Latent(checked_radius(radius), as_pytree(decode), dim)
