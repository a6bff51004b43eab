"""A search for the best of several starts, each of which is climbed from before they are compared."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from spa_jax.solvers.base import Problem, fold_in, require_solver
from spa_jax.solvers.search import grid
from spa_jax.trees import pytree, select, static
from spa_jax.types import Count, Evaluation, Keys, Solver, Variables
from spa_jax.validation import require_count

_FRESH = 1


class _ClimbedState(NamedTuple):
    iteration: Any
    climb: Any


@pytree
class Climbed:
    """See `climbed`."""

    solver: Any
    steps: int = static()
    points: int | None = static(default=None)
    moves: tuple[str, ...] | None = static(default=None)

    def num_steps(self, starts: int) -> int:
        """How many steps visit that many starts."""
        return 1 + starts * self.steps

    def init(self, problem: Problem, v: Variables) -> _ClimbedState:
        return _ClimbedState(jnp.zeros((), jnp.int32), self.solver.init(self._around(problem), v))

    def step(
        self, problem: Problem, v: Variables, state: _ClimbedState, keys: Keys
    ) -> tuple[Variables, Any, Evaluation]:
        around, i = self._around(problem), state.iteration
        moved, climb, evaluation = self.solver.step(around, v, state.climb, keys)
        start = self._start(problem, i // self.steps, keys)
        jumps = (i % self.steps == 0) & (i < problem.num_steps - 1)
        v, climb = select(jumps, (start, self.solver.init(around, start)), (moved, climb))
        return v, _ClimbedState(i + 1, climb), evaluation

    def _around(self, problem: Problem) -> Problem:
        """The problem of one start."""
        return dataclasses.replace(problem, num_steps=self.steps, moves=self.moves)

    def _start(self, problem: Problem, index: Any, keys: Keys) -> Variables:
        drawn = problem.space.init(fold_in(keys, _FRESH), problem.examples)
        if self.points is None:
            return drawn
        at_point = problem.space.map(lambda v: problem.space.space.at_grid_point(v, index, self.points), drawn)
        return problem.space.project(at_point, problem.examples)


def climbed(solver: Solver, steps: Count, points: Count | None = None, moves: tuple[str, ...] | None = None) -> Climbed:
    """Starts that are each climbed from by a few steps before they are compared.

    Without noise an attribute value is judged by its loss alone, which does not tell how much noise adds there. The
    first pass judges where the attack stands. Every start then takes `steps` passes, all but the last of which move it;
    the solver begins anew at each.

    An attack that uses it takes `num_steps(starts)` steps; `points ** axes` starts visit every point of the grid.

    Args:
        solver: how a start is climbed from; it sees `steps` as its number of steps.
        steps: passes forward and backward for each start.
        points: of each attribute; starts are the points of that grid, with random noise. Default: random points.
        moves: names of the variables that the solver moves. Default: all.

    Raises:
        ValueError: `steps` or `points` below 1, something that is not a solver.
    """
    require_solver(solver)
    points = None if points is None else grid(points).points
    return Climbed(solver, require_count("steps", steps), points, moves)
