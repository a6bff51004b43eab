"""The base class of spaces, with the defaults of their optional methods."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from spa_jax.numerics import Grid, on_grid, with_gradient_of
from spa_jax.types import Example, Image, Space, Variables


class SpaceBase:
    """Defaults of the methods and attributes that attacks, grids and reports use.

    Attributes:
        name: of its variables where the space is not part of a chain.
        grid_axes: over how many numbers a grid searches: those of an attribute, 0 for noise.
        penalises: whether `penalty` may be other than 0.
    """

    name: ClassVar[str] = "noise"
    grid_axes: Any = 0
    penalises: Any = False

    def members(self) -> Mapping[str, Any]:
        """The space itself; a chain has its links."""
        return {self.name: self}

    def prepare(self, example: Example) -> Any:
        """What does not depend on the variables, computed once for all steps: `Example.prepared`."""
        return None

    def penalty(self, v: Variables, example: Example | None) -> Any:
        """What a search subtracts from the loss at these variables, a number."""
        return 0.0

    def check_classes(self, count: int) -> None:
        """Check that the space fits a victim with that many classes.

        Raises:
            ValueError: it does not.
        """

    def at_grid_point(self, v: Variables, index: Any, points: int) -> Variables:
        """`v` with its attributes at point `index` of the grid of `points` values for each axis."""
        return v

    def apply_rounded(self: Any, v: Variables, example: Example, grid: Grid) -> Image:
        """What `apply` makes, with every pixel rounded to a grid; the gradient is that of `apply`."""
        image = self.apply(v, example)
        return with_gradient_of(self.onto_grid(*jax.lax.stop_gradient((image, example)), grid), image)

    def onto_grid(self, image: Image, example: Example, grid: Grid) -> Image:
        """An image that `apply` has made, rounded to a grid; balls of noise stay in their radius."""
        return on_grid(image, grid)


def require_space(space: Any) -> None:
    """Check that something has the methods of a space.

    Raises:
        ValueError: it has not.
    """
    if not (isinstance(space, Space) and hasattr(space, "grid_axes")) or isinstance(space, type):
        raise ValueError(f"space={space!r} must be a space, such as spa_jax.spaces.linf(8/255), or inherit SpaceBase")
