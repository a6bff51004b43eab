"""Auto-PGD: projected gradient steps whose size halves where they stop to help."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spa_jax.numerics import in_dtype_of
from spa_jax.solvers.base import Problem
from spa_jax.solvers.gradient import checked_step, scaled_by
from spa_jax.trees import pytree, select
from spa_jax.types import Evaluation, Keys, Scalar, Values, Variables
from spa_jax.validation import require_number


class _ApgdState(NamedTuple):
    """Per example (scalars where the variables are shared): the trajectory that APGD's decisions read."""

    iteration: Any
    previous: Variables
    best: Variables
    best_gradient: Variables
    best_value: Values
    last_value: Values
    value_at_checkpoint: Values
    step_share: Values
    rises: Any
    halved: Any


@pytree
class Apgd:
    """Auto-PGD; see `apgd`."""

    rel_step_size: Any
    momentum: Any
    rise_share: Any

    def init(self, problem: Problem, v: Variables) -> _ApgdState:
        image = problem.examples.image
        shape = () if problem.space.shared else image.shape[:1]
        floor = jnp.full(shape, -jnp.inf, image.dtype)
        zeros = jax.tree.map(jnp.zeros_like, v)
        whole = jnp.ones(shape, image.dtype)
        count, never = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
        return _ApgdState(jnp.zeros((), jnp.int32), v, v, zeros, floor, floor, floor, whole, count, never)

    def step(self, problem: Problem, v: Variables, state: _ApgdState, keys: Keys) -> tuple[Variables, Any, Evaluation]:
        evaluation, gradient = problem.climb(v, keys)
        state = _record(state, v, gradient, problem.space.summarise(evaluation.value, problem.examples))
        restart, state = self._check(state, problem.num_steps)
        v, gradient, previous = select(
            restart, (state.best, state.best_gradient, state.best), (v, gradient, state.previous)
        )
        moved = self._move(problem, v, gradient, previous, state)
        return moved, state._replace(previous=v, iteration=state.iteration + 1), evaluation

    def _check(self, state: _ApgdState, num_steps: int) -> tuple[Any, _ApgdState]:
        """At a checkpoint, halve the step of examples that oscillate or stall, and send them to their best point."""
        interval = jnp.asarray(_apgd_intervals(num_steps))[state.iteration]
        due = interval > 0
        dtype = state.best_value.dtype
        rises, whole = state.rises.astype(dtype), interval.astype(dtype)
        oscillates = rises < in_dtype_of(self.rise_share, whole) * whole
        stalls = ~state.halved & (state.value_at_checkpoint >= state.best_value)
        restart = due & (oscillates | stalls)
        return restart, state._replace(
            step_share=jnp.where(restart, state.step_share / 2, state.step_share),
            value_at_checkpoint=jnp.where(due, state.best_value, state.value_at_checkpoint),
            halved=jnp.where(due, restart, state.halved),
            rises=jnp.where(due, 0, state.rises),
        )

    def _move(self, problem: Problem, v: Variables, gradient: Variables, previous: Variables, state: Any) -> Variables:
        """A projected step, then a projected mix of it with the movement so far (Croce & Hein 2020, eq. 4)."""
        momentum = jnp.where(state.iteration == 0, 1.0, self.momentum)

        def climb(v: Variables, gradient: Variables, share: Any) -> Variables:
            direction = problem.direction(gradient)
            steps = scaled_by(self.rel_step_size, direction)
            return jax.tree.map(lambda v, d: v + share * d, v, steps)

        def mix(v: Any, climbed: Any, previous: Any) -> Any:
            alpha = in_dtype_of(momentum, v)
            return v + alpha * (climbed - v) + (1 - alpha) * (v - previous)

        climbed = problem.space.project(problem.space.map(climb, v, gradient, state.step_share), problem.examples)
        return problem.space.project(jax.tree.map(mix, v, climbed, previous), problem.examples)


def _record(state: _ApgdState, v: Variables, gradient: Variables, value: Any) -> _ApgdState:
    value = value.astype(state.best_value.dtype)
    improves = value > state.best_value
    best, best_gradient = select(improves, (v, gradient), (state.best, state.best_gradient))
    rises = state.rises + ((value > state.last_value) & (state.iteration > 0)).astype(jnp.int32)
    best_value = jnp.where(improves, value, state.best_value)
    first = state.iteration == 0
    at_checkpoint = jnp.where(first, value, state.value_at_checkpoint)
    return state._replace(
        best=best,
        best_gradient=best_gradient,
        best_value=best_value,
        last_value=value,
        rises=rises,
        value_at_checkpoint=at_checkpoint,
    )


def _apgd_intervals(num_steps: int) -> np.ndarray:
    """For each step, the length of the interval that a checkpoint ends there, or 0 (Croce & Hein 2020, section 3.1)."""
    percents = [0, 22]
    while percents[-1] < 100:
        percents.append(percents[-1] + max(percents[-1] - percents[-2] - 3, 6))
    checkpoints = np.unique([-(-percent * num_steps // 100) for percent in percents])
    intervals = np.zeros(num_steps + 1, np.int32)
    for start, end in itertools.pairwise(checkpoints[checkpoints <= num_steps]):
        intervals[end] = end - start
    return intervals


def apgd(
    rel_step_size: Scalar | Mapping[str, Scalar] = 2.0, momentum: Scalar = 0.75, rise_share: Scalar = 0.75
) -> Apgd:
    """Auto-PGD (Croce & Hein 2020) on any space, a chain included; every example has a step size of its own.

    At checkpoints that grow denser, an example's step is halved and it restarts from its best point when fewer than
    `rise_share` of the steps since the last checkpoint raised its loss, or when neither step nor best loss has changed.
    A restart drops the momentum (our choice; the reference keeps the movement towards the abandoned point).

    Args:
        rel_step_size: first step in radii; 2 is the paper's, as are the other defaults. A mapping gives chained
            variables one each.
        momentum: weight of the new step, the paper's alpha.
        rise_share: the paper's rho.

    Raises:
        ValueError: a number out of range.
    """
    return Apgd(
        jax.tree.map(checked_step, rel_step_size),
        require_number("momentum", momentum, "in [0, 1]", lambda m: 0 <= m <= 1),
        require_number("rise_share", rise_share, "in [0, 1]", lambda r: 0 <= r <= 1),
    )
