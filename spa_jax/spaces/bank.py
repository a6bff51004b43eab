"""Several sets of variables of one space, of which each example's class picks one, for class-wise perturbations."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.spaces.base import SpaceBase, require_space
from spa_jax.trees import pytree, static
from spa_jax.types import Example, Image, Space, Variables
from spa_jax.validation import require_choice, require_count


@pytree
class Bank(SpaceBase):
    """Sets of variables that examples pick by their class; see `bank`."""

    space: Any
    size: int = static()
    by: str = static(default="label")

    @property
    def grid_axes(self) -> int:
        return self.size * self.space.grid_axes

    @property
    def penalises(self) -> bool:
        return self.space.penalises

    def penalty(self, v: Variables, example: Example | None) -> Any:
        """That of the set which the example picks."""
        return self.space.penalty(self._own(v, example), example)

    def members(self) -> Mapping[str, Any]:
        return self.space.members()

    def scaled(self, share: Any) -> "Bank":
        return Bank(self.space.scaled(share), self.size, self.by)

    def without(self, *names: str) -> "Bank":
        """The bank of the chain with some links left out."""
        return Bank(self.space.without(*names), self.size, self.by)

    def check_classes(self, count: int) -> None:
        if self.size != count:
            raise ValueError(
                f"bank of size={self.size} by {self.by!r}: the victim has {count} classes, one set for each"
            )

    def init(self, key: Any, example: Example) -> Variables:
        return jax.vmap(self.space.init, (0, None))(jax.random.split(key, self.size), example)

    def identity(self, example: Example) -> Variables:
        one = self.space.identity(example)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.size, *jnp.shape(leaf))), one)

    def project(self, v: Variables, example: Example | None) -> Variables:
        return jax.vmap(self.space.project, (0, None))(v, example)

    def direction(self, g: Variables) -> Variables:
        return jax.vmap(self.space.direction)(g)

    def apply(self, v: Variables, example: Example) -> Image:
        return self.space.apply(self._own(v, example), example)

    def _own(self, v: Variables, example: Any) -> Variables:
        index = example.label if self.by == "label" else example.target
        if index is None:
            raise ValueError(f"bank by {self.by!r}: the examples have no {self.by}")
        return jax.tree.map(lambda leaf: leaf[index], v)


def bank(space: Space, size: int, by: str = "label") -> Bank:
    """One set of variables for each class: class-wise universal perturbations (Benz et al. 2021).

    The variables have a first axis of length `size`. Use it with the lift `universal`.

    Args:
        space: what one set of variables may change about an image.
        size: the number of classes of the victim.
        by: what picks the set, the true "label" (which an attacker of unlabelled images does not know) or the "target".

    Raises:
        ValueError: `size` below 1, another `by`, not a space; when called, a victim of another number of classes, or
            examples without targets.
    """
    require_space(space)
    require_count("size", size)
    require_choice("by", by, ("label", "target"))
    return Bank(space, size, by)
