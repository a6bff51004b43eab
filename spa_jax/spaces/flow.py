"""A displacement of every pixel: images that are bent, and not painted over."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.edits import displaced
from spa_jax.numerics import in_dtype_of, times
from spa_jax.spaces.base import SpaceBase
from spa_jax.trees import pytree
from spa_jax.types import Example, Image, Scalar
from spa_jax.validation import require_number

_Field = Float[Array, "h w 2"]


@pytree
class Flow(SpaceBase):
    """A field of displacements within a radius; see `flow`."""

    radius: Any
    smoothness: Any
    name: ClassVar[str] = "flow"
    penalises = True

    def scaled(self, share: Any) -> "Flow":
        return Flow(times(share, self.radius), self.smoothness)

    def init(self, key: Any, example: Example) -> _Field:
        shape = (*example.image.shape[:2], 2)
        field = jax.random.uniform(key, shape, example.image.dtype, -1.0, 1.0)
        return self.project(in_dtype_of(self.radius, field) * field, example)

    def identity(self, example: Example) -> _Field:
        return jnp.zeros((*example.image.shape[:2], 2), example.image.dtype)

    def project(self, v: _Field, example: Example | None) -> _Field:
        """Each number within the radius, and every sample within the image."""
        radius = in_dtype_of(self.radius, v)
        rows, columns = (jnp.arange(size, dtype=v.dtype) for size in v.shape[:2])
        place = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
        last = jnp.asarray(v.shape[:2], v.dtype).reshape(1, 1, 2) - 1
        return jnp.clip(jnp.clip(v, -radius, radius), -place, last - place)

    def direction(self, g: _Field) -> _Field:
        return in_dtype_of(self.radius, g) * jnp.sign(g)

    def apply(self, v: _Field, example: Example) -> Image:
        """The image read where the field points, its border pixels repeated beyond it for slopes there."""
        border = ((1, 1), (1, 1), (0, 0))
        wide, field = jnp.pad(example.image, border, mode="edge"), jnp.pad(v, border)
        return displaced(wide, field[..., 0], field[..., 1])[1:-1, 1:-1]

    def penalty(self, v: _Field, example: Example | None) -> Any:
        """`smoothness` times the flow loss of the paper."""
        return in_dtype_of(self.smoothness, v) * flow_loss(v)


def flow_loss(v: _Field) -> Float[Array, ""]:
    """How unevenly a field displaces neighbours: the sum of |v(p) - v(q)| over all pixels p and their neighbours q.

    Xiao et al. 2018, equation 4, in which every pair of neighbours above or beside each other counts twice. The
    gradient at equal neighbours, where it has none, is 0.
    """
    total = jnp.zeros((), v.dtype)
    for axis in (0, 1):
        squared = jnp.sum(jnp.diff(v, axis=axis) ** 2, axis=-1)
        moves = squared > 0
        total = total + 2 * jnp.sum(jnp.where(moves, jnp.sqrt(jnp.where(moves, squared, 1)), 0))
    return total


def flow(radius: Scalar, smoothness: Scalar = 0.0) -> Flow:
    """Every pixel is read from a place of its own nearby, bilinearly (StAdv, Xiao et al. 2018).

    The variables are displacements [h, w, 2] in pixels, down and to the right, as a pixel of the changed image looks
    for its value in the original. Its brightness is thus never new: it lies between those of four neighbours.

    Args:
        radius: the largest displacement along each axis, in pixels; no sample leaves the image. The paper bounds the
            field by its smoothness alone; the bound is ours, so that success at a radius means something. Laidlaw et
            al. 2021 bound it as well, by 0.05 of [-1, 1], which is 0.05 * (side - 1) / 2 pixels.
        smoothness: how much the paper's flow loss (`flow_loss`) is subtracted from the loss that the attacker
            maximises: its tau, 0.05 there. It is subtracted in the search alone: a solver weighs success against it,
            the attack's success stays that of its goal. Default: 0, our choice for the space; see `stadv`.

    Raises:
        ValueError: a negative number.
    """
    radius = require_number("radius", radius, "in pixels, 0 or larger", lambda value: value >= 0)
    return Flow(radius, require_number("smoothness", smoothness, "0 or larger", lambda value: value >= 0))
