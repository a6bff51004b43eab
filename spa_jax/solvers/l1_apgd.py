"""Auto-PGD for the l1 ball: sparse steps whose number of pixels follows the perturbation that has been found."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spa_jax.solvers.base import Problem
from spa_jax.spaces.noise import L1
from spa_jax.trees import pytree, select, static
from spa_jax.types import Evaluation, Keys, Values, Variables

RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
_FIRST_SHARE = 0.2
_INTERVAL = 0.04
_SPARSER = 0.95
_REDUCTION = 1.5
_SMALLEST_STEP = 0.1


class _L1ApgdState(NamedTuple):
    """Per example (scalars where the variables are shared), but for the iteration.

    Attributes:
        iteration: int32 [], steps made.
        best, best_gradient, best_value: the largest loss within the current radius.
        entries: int32, how many entries of the noise a step moves.
        found: int32, how many entries of the best noise were not zero at the last checkpoint.
        step_share: length of a step in current radii.
    """

    iteration: Any
    best: Variables
    best_gradient: Variables
    best_value: Values
    entries: Any
    found: Any
    step_share: Values


class _Plan(NamedTuple):
    """For each step and the one after the last: the multiple of the radius, and what happens there."""

    scale: Any
    is_checkpoint: Any
    ends_radius: Any


@functools.lru_cache
def _plan(radii: tuple[tuple[float, float], ...], num_steps: int) -> _Plan:
    lengths = [int(share * num_steps + 1e-6) for _, share in radii[:-1]]
    scale, is_checkpoint, ends_radius = [], [], []
    for (multiple, _), length in zip(radii, [*lengths, num_steps - sum(lengths)], strict=True):
        interval = max(int(_INTERVAL * length + 1e-6), 1)
        scale += [multiple] * length
        is_checkpoint += [step > 0 and step % interval == 0 for step in range(length)]
        ends_radius += [step == length - 1 for step in range(length)]
    ends_radius[-1] = False
    return _Plan(*(np.array([*entries, entries[-1]]) for entries in (scale, is_checkpoint, ends_radius)))


@pytree
class L1Apgd:
    """Auto-PGD for the l1 ball; see `l1_apgd`."""

    leaves_space: ClassVar[bool] = True
    radii: tuple[tuple[float, float], ...] = static(default=RADII)

    def init(self, problem: Problem, v: Variables) -> _L1ApgdState:
        _require_l1(problem)
        return self._start(problem, v, jnp.zeros((), jnp.int32))

    def draw_start(self, problem: Problem, v: Variables, keys: Keys) -> Variables:
        """Normal noise projected onto the first ball and the box, which leaves few of its entries."""
        _require_l1(problem)
        noise = problem.space.map(lambda key, own: jax.random.normal(key, own.shape, own.dtype), keys, v)
        first = float(_plan(self.radii, problem.num_steps).scale[0])
        return problem.space.scaled(first).project(noise, problem.examples)

    def step(
        self, problem: Problem, v: Variables, state: _L1ApgdState, keys: Keys
    ) -> tuple[Variables, _L1ApgdState, Evaluation]:
        i, plan = state.iteration, _plan(self.radii, problem.num_steps)
        scale = jnp.asarray(plan.scale, problem.examples.image.dtype)
        ball, next_ball = (problem.space.scaled(scale[step]) for step in (i, i + 1))
        evaluation, gradient = dataclasses.replace(problem, space=ball).climb(v, keys)
        state = _record(state, v, gradient, problem.space.summarise(evaluation.value, problem.examples))
        restart, state = _check(problem, state, jnp.asarray(plan.is_checkpoint)[i])
        v, gradient = select(restart, (state.best, state.best_gradient), (v, gradient))

        def climb(v: Variables, gradient: Variables, share: Any, entries: Any) -> Variables:
            return v + share * ball.space.sparse_direction(gradient, entries)

        ends = jnp.asarray(plan.ends_radius)[i]
        moved = problem.space.map(climb, v, gradient, state.step_share, state.entries)
        moved = next_ball.project(select(ends, state.best, moved), problem.examples)
        state = select(ends, self._start(problem, moved, i), state)
        return moved, state._replace(iteration=i + 1), _within_radius(evaluation, scale[i] <= 1)

    def _start(self, problem: Problem, v: Variables, iteration: Any) -> _L1ApgdState:
        """The state at the first point of a radius: steps are as sparse as it is, and at most a fifth dense."""
        found = problem.space.map(_nonzero, v)
        size = np.size(v) if problem.space.shared else np.size(v) // len(v)
        entries = jnp.round(found.astype(jnp.float32) / _REDUCTION).astype(jnp.int32)
        most = round(_FIRST_SHARE * size)
        is_dense = (found == 0) | (entries > most)
        floor = jnp.full(found.shape, -jnp.inf, problem.examples.image.dtype)
        return _L1ApgdState(
            iteration,
            v,
            jnp.zeros_like(v),
            floor,
            jnp.where(is_dense, most, entries),
            jnp.where(is_dense, size, found),
            jnp.ones_like(floor),
        )


def _require_l1(problem: Problem) -> None:
    members = list(problem.space.members().values())
    if len(members) != 1 or not isinstance(members[0], L1):
        raise ValueError(f"space={problem.space.space!r}: l1_apgd searches spaces.l1 alone; apgd takes any space")


def _nonzero(v: Variables) -> Any:
    return jnp.sum(v != 0).astype(jnp.int32)


def _record(state: _L1ApgdState, v: Variables, gradient: Variables, value: Any) -> _L1ApgdState:
    value = value.astype(state.best_value.dtype)
    new = (v, gradient, value)
    best = select(value > state.best_value, new, (state.best, state.best_gradient, state.best_value))
    return state._replace(best=best[0], best_gradient=best[1], best_value=best[2])


def _check(problem: Problem, state: _L1ApgdState, is_checkpoint: Any) -> tuple[Any, _L1ApgdState]:
    """At a checkpoint, follow the sparsity of the best noise; where it has fallen, begin again from there."""
    found = problem.space.map(_nonzero, state.best)
    sparser = found.astype(jnp.float32) < _SPARSER * state.found.astype(jnp.float32)
    shorter = jnp.maximum(state.step_share / _REDUCTION, _SMALLEST_STEP)
    checked = state._replace(
        entries=jnp.round(found.astype(jnp.float32) / _REDUCTION).astype(jnp.int32),
        found=found,
        step_share=jnp.where(sparser, jnp.ones_like(shorter), shorter),
    )
    return is_checkpoint & sparser, select(is_checkpoint, checked, state)


def _within_radius(evaluation: Evaluation, counts: Any) -> Evaluation:
    """Points of a larger radius are a way to better ones; as results they do not count."""
    value = jnp.where(counts, evaluation.value, jnp.full_like(evaluation.value, -jnp.inf))
    return evaluation._replace(value=value, success=evaluation.success & counts)


def l1_apgd(radii: Sequence[tuple[float, float]] = RADII) -> L1Apgd:
    """Auto-PGD for the l1 ball (Croce & Hein 2021, "Mind the box", algorithm 1 and section 3.3), for `spaces.l1` alone.

    A step moves the entries with the largest gradients by the same amount, one radius in all at first, and is projected
    onto ball and box together. At first that is a fifth of the entries. At checkpoints, every 4 % of the steps of a
    radius, it is the number of entries that the best noise changes, divided by 1.5. Where that number has fallen below
    95 % of what it was at the checkpoint before, the step is one radius again and the search goes back to its best
    point; elsewhere the step is divided by 1.5, down to a tenth of a radius. There is no momentum.

    The search begins in larger balls, whose best point is projected onto the next smaller one. Points outside of the
    ball are never results. A random start is normal noise of standard deviation 1 projected onto the first ball, as in
    the authors' code, which leaves few entries: from points drawn evenly in the ball the attack is weaker.

    Args:
        radii: pairs (multiple of the radius, share of the steps), in this order, the last one with multiple 1. The
            default, 3, 2 and 1 with 30, 30 and 40 %, is the paper's, as are the numbers above.

    Raises:
        ValueError: multiples below 1, a last one that is not 1, or shares that do not sum to 1.
    """
    radii = tuple((float(multiple), float(share)) for multiple, share in radii)
    if not radii or radii[-1][0] != 1 or min(multiple for multiple, _ in radii) < 1:
        raise ValueError(f"radii={radii!r} must hold multiples of the radius of at least 1, the last one 1")
    if abs(sum(share for _, share in radii) - 1) > 1e-6 or min(share for _, share in radii) <= 0:
        raise ValueError(f"radii={radii!r} must hold positive shares of the steps that sum to 1")
    return L1Apgd(radii)
