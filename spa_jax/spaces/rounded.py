"""A space whose images are rounded to the values that a file or a floating type can hold."""

from collections.abc import Mapping
from typing import Any

from spa_jax.numerics import Grid
from spa_jax.spaces.base import SpaceBase, require_space
from spa_jax.trees import pytree, static
from spa_jax.types import Count, Example, Image, Space, Variables
from spa_jax.validation import require_count


@pytree
class Rounded(SpaceBase):
    """A space whose images are rounded; see `rounded`. Its variables are those of the space."""

    space: Any
    grid: Grid = static()

    @property
    def grid_axes(self) -> int:
        return self.space.grid_axes

    @property
    def penalises(self) -> bool:
        return self.space.penalises

    def penalty(self, v: Variables, example: Example | None) -> Any:
        return self.space.penalty(v, example)

    def members(self) -> Mapping[str, Any]:
        return self.space.members()

    def without(self, *names: str) -> "Rounded":
        """The rounded chain with these links left out."""
        return Rounded(self.space.without(*names), self.grid)

    def scaled(self, share: Any) -> "Rounded":
        return Rounded(self.space.scaled(share), self.grid)

    def init(self, key: Any, example: Example) -> Variables:
        return self.space.init(key, example)

    def identity(self, example: Example) -> Variables:
        return self.space.identity(example)

    def project(self, v: Variables, example: Example | None) -> Variables:
        return self.space.project(v, example)

    def direction(self, g: Variables) -> Variables:
        return self.space.direction(g)

    def sparse_direction(self, g: Variables, entries: Any) -> Variables:
        """That of `spaces.l1`."""
        return self.space.sparse_direction(g, entries)

    def prepare(self, example: Example) -> Any:
        return self.space.prepare(example)

    def at_grid_point(self, v: Variables, index: Any, points: int) -> Variables:
        return self.space.at_grid_point(v, index, points)

    def apply(self, v: Variables, example: Example) -> Image:
        return self.space.apply_rounded(v, example, self.grid)


def rounded(space: Space, levels: Count = 255) -> Rounded:
    """The same space, with images whose pixels are multiples of 1 / `levels`: 255 for what an 8-bit file can hold.

    The victim sees, and the attack judges, the rounded images. The gradient passes straight through the rounding.
    Noise stays in its ball where the image before it is a multiple of 1 / `levels` in every pixel: a pixel of
    l-infinity noise is rounded towards that image where it would leave the ball, l2 and l1 noise is shrunk until the
    rounded noise fits. Of a chain, only the image at its end is rounded. Clean images off the grid, and edited images
    with a radius below 1 / `levels`, may move by one level more.

    Args:
        space: what may change about an image.
        levels: of brightness above 0.

    Raises:
        ValueError: not a space, or `levels` below 1.
    """
    require_space(space)

    return Rounded(space, require_count("levels", levels))
