"""Several spaces applied to an image one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.numerics import Grid
from spa_jax.spaces.base import SpaceBase, require_space
from spa_jax.trees import pytree, static
from spa_jax.types import Example, Image, Space, Variables


@pytree
class Chain(SpaceBase):
    """Named spaces applied one after the other; see `chain`."""

    spaces: tuple[Any, ...]
    names: tuple[str, ...] = static()

    def members(self) -> dict[str, Any]:
        """The named spaces in the order in which they are applied."""
        return dict(zip(self.names, self.spaces, strict=True))

    @property
    def grid_axes(self) -> int:
        return sum(space.grid_axes for space in self.spaces)

    @property
    def penalises(self) -> bool:
        return any(space.penalises for space in self.spaces)

    def penalty(self, v: Variables, example: Example | None) -> Any:
        own = [space.penalty(v[name], example) for name, space in self.members().items() if space.penalises]
        return sum(own[1:], own[0]) if own else 0.0

    def without(self, *names: str) -> "Chain":
        """The chain with these links left out, which is the chain with their variables at the identity."""
        kept = {name: space for name, space in self.members().items() if name not in names}
        return Chain(tuple(kept.values()), tuple(kept))

    def ranks(self, v: Variables) -> Any:
        """The place of each link in the order in which they are applied, [n]."""
        return jnp.arange(len(self.names))

    def check_classes(self, count: int) -> None:
        for space in self.spaces:
            space.check_classes(count)

    def scaled(self, share: Any) -> "Chain":
        return Chain(tuple(space.scaled(share) for space in self.spaces), self.names)

    def init(self, key: Any, example: Example) -> Variables:
        keys = iter(jax.random.split(key, len(self.names)))
        return self._walk(example, lambda name, space, seen: space.init(next(keys), seen))

    def identity(self, example: Example) -> Variables:
        (first, space), *others = self.members().items()
        unprepared = example.replace_image(example.image)
        return {first: space.identity(example)} | {name: other.identity(unprepared) for name, other in others}

    def project(self, v: Variables, example: Example | None) -> Variables:
        if example is None:
            return {name: space.project(v[name], None) for name, space in self.members().items()}
        return self._walk(example, lambda name, space, seen: space.project(v[name], seen))

    def direction(self, g: Variables) -> Variables:
        return {name: space.direction(g[name]) for name, space in self.members().items()}

    def prepare(self, example: Example) -> Any:
        """What the first space computes of the image; those after it see images that change from step to step."""
        return self.spaces[0].prepare(example) if self.spaces else None

    def apply(self, v: Variables, example: Example) -> Image:
        for name, space in self.members().items():
            example = example.replace_image(space.apply(v[name], example))
        return example.image

    def apply_rounded(self, v: Variables, example: Example, grid: Grid) -> Image:
        if not self.spaces:
            return super().apply_rounded(v, example, grid)
        *others, (last, space) = self.members().items()
        for name, other in others:
            example = example.replace_image(other.apply(v[name], example))
        return space.apply_rounded(v[last], example, grid)

    def at_grid_point(self, v: Variables, index: Any, points: int) -> Variables:
        moved = {}
        for name, space in self.members().items():
            moved[name] = space.at_grid_point(v[name], index, points)
            index = index // points**space.grid_axes
        return moved

    def _walk(self, example: Example, make: Callable[[str, Any, Example], Variables]) -> Variables:
        """Variables made one space after the other, each seeing the image that the ones before have edited."""
        v = {}
        for name, space in self.members().items():
            v[name] = make(name, space, example)
            if name != self.names[-1]:
                example = example.replace_image(space.apply(v[name], example))
        return v


def chain(**spaces: Space) -> Chain:
    """Several spaces applied to an image in the order given; the variables are a dictionary keyed by name.

    Noise that comes last is bounded around the *edited* image: |x' - A(x, a)| <= radius, and x' in [0, 1].

    Raises:
        ValueError: no space was given, or one that is not a space.
    """
    if not spaces:
        raise ValueError(
            "chain() needs at least one space, such as chain(rotation=attribute('rotation'), noise=linf(0.1))"
        )
    for space in spaces.values():
        require_space(space)
    return Chain(tuple(spaces.values()), tuple(spaces))
