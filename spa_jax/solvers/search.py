"""Searches without a gradient: independent random points, and every point of a grid over the attributes."""

from typing import Any, ClassVar

import jax.numpy as jnp

from spa_jax.solvers.base import Problem, fold_in
from spa_jax.trees import pytree, static
from spa_jax.types import Count, Evaluation, Keys, Variables
from spa_jax.validation import require_count

_DRAW = 1
MOST_GRID_POINTS = 100_000


@pytree
class RandomSearch:
    """Independent random points; see `random_search`."""

    takes_gradient: ClassVar[bool] = False

    def init(self, problem: Problem, v: Variables) -> tuple[()]:
        return ()

    def step(self, problem: Problem, v: Variables, state: Any, keys: Keys) -> tuple[Variables, Any, Evaluation]:
        drawn = problem.space.init(fold_in(keys, _DRAW), problem.examples)
        return (drawn if problem.moves is None else problem.hold(v, drawn)), state, problem.evaluate(v, keys)


def random_search() -> RandomSearch:
    """Every step judges a fresh random point of the space; no gradient is taken."""
    return RandomSearch()


@pytree
class Grid:
    """Exhaustive search over attributes; see `grid`."""

    takes_gradient: ClassVar[bool] = False
    points: int = static()

    def init(self, problem: Problem, v: Variables) -> Any:
        return jnp.zeros((), jnp.int32)

    def step(self, problem: Problem, v: Variables, state: Any, keys: Keys) -> tuple[Variables, Any, Evaluation]:
        def move(v: Variables) -> Variables:
            return problem.space.space.at_grid_point(v, state, self.points)

        return problem.hold(v, problem.space.map(move, v)), state + 1, problem.evaluate(v, keys)

    def num_steps(self, space: Any) -> int:
        """How many steps visit every point.

        Raises:
            ValueError: the space has no attribute to search, or the grid has more than 100,000 points.
        """
        if space.grid_axes == 0:
            raise ValueError(f"space={space!r} has no attribute: grid searches attributes and chains of them")
        steps = self.points**space.grid_axes
        if steps > MOST_GRID_POINTS:
            raise ValueError(
                f"grid(points={self.points}) over {space.grid_axes} attributes has {steps:,} points, one forward pass "
                f"each, which is more than {MOST_GRID_POINTS:,}: take fewer points, or random_search"
            )
        return steps


def grid(points: Count) -> Grid:
    """Every combination of `points` evenly spaced values of each attribute, bounds included; noise stays where it is.

    An attack that uses it takes `grid(points).num_steps(space)` steps.

    Raises:
        ValueError: `points` below 1.
    """
    return Grid(require_count("points", points))
