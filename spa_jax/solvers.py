"""Solvers: how the variables of an attack climb. `solve` is the one loop that all of them share."""

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spa_jax.inputs import require_count, require_number
from spa_jax.spaces import at_grid_point, grid_axes
from spa_jax.trees import pytree, select, static
from spa_jax.types import Evaluation, Keys, Problem, Scalar, Solver, Values, Variables

_UNROLL_AT_MOST = 20


class Best(NamedTuple):
    """The strongest variables so far and their evaluation."""

    variables: Variables
    evaluation: Evaluation


def solve(
    problem: Problem, solver: Solver, v: Variables, keys: Keys, best: Best | None = None, unroll: int | None = 1
) -> Best:
    """Run `problem.num_steps` steps from `v` and return the best variables seen, or the last.

    Every step judges the variables that come in, so k steps cost k forward and backward passes, and one forward more
    judges the variables that the last step leaves.

    Args:
        problem: what to maximise.
        solver: how to move.
        v: the start.
        keys: [b] one key per example; step i uses them folded with i.
        best: a first candidate, such as the clean image; the result is at least as strong. None keeps the last
            variables instead of the best.
        unroll: how many steps a compiled iteration holds. None unrolls up to 20 steps on CPU, where stock convolutions
            are slow in a loop, and none elsewhere.
    """

    def advance(carry: tuple[Any, Any, Best | None], i: Any) -> tuple[tuple[Any, Any, Best | None], None]:
        v, state, best = carry
        moved, state, evaluation = solver.step(problem, v, state, fold_in(keys, i))
        best = None if best is None else better(problem, best, Best(v, evaluation))
        return (moved, state, best), None

    steps = jnp.arange(problem.num_steps)
    carry = (v, solver.init(problem, v), best)
    (v, _, best), _ = jax.lax.scan(advance, carry, steps, unroll=_unroll(unroll, problem.num_steps))
    last = Best(v, problem.value(v, fold_in(keys, problem.num_steps)))
    return last if best is None else better(problem, best, last)


def better(problem: Problem, old: Best, new: Best) -> Best:
    """The stronger of two candidates, per example: fooled before not fooled, then the larger loss; NaN never wins."""
    now, before = problem.space.summarise(new.evaluation), problem.space.summarise(old.evaluation)
    improves = is_stronger(now, before)
    return Best(
        select(improves, new.variables, old.variables),
        select(jnp.broadcast_to(improves, new.evaluation.value.shape), new.evaluation, old.evaluation),
    )


def is_stronger(new: Any, old: Any) -> Any:
    """Whether `new` beats `old`; both have `success` and `value`. NaN never beats a number, and a number always NaN."""
    beats = (new.success > old.success) | ((new.success == old.success) & (new.value > old.value))
    return ~jnp.isnan(new.value) & (beats | jnp.isnan(old.value))


def fold_in(keys: Keys, data: Any) -> Keys:
    """Each key folded with the same number."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def _unroll(unroll: int | None, num_steps: int) -> int:
    if unroll is not None:
        return unroll
    return num_steps if jax.default_backend() == "cpu" and num_steps <= _UNROLL_AT_MOST else 1


def _climb(problem: Problem, v: Variables, keys: Keys) -> tuple[Evaluation, Variables]:
    """The evaluation at `v` and the gradient of each example's loss there, by one backward pass."""

    def total(v: Variables) -> tuple[Any, Evaluation]:
        evaluation = problem.value(v, keys)
        return jnp.sum(evaluation.value), evaluation

    (_, evaluation), gradient = jax.value_and_grad(total, has_aux=True)(v)
    return evaluation, gradient


# --- projected gradient ---------------------------------------------------------------------------------------------

steepest = optax.sgd(1.0)
"""The plain rule: one step along the space's direction, `step_size` radii long."""


@pytree
class ProjectedGradient:
    """Projected gradient ascent around an optax rule; see `projected_gradient`."""

    step_size: Any
    rule: optax.GradientTransformation = static()
    gradient_rule: optax.GradientTransformation = static()

    def init(self, problem: Problem, v: Variables) -> Any:
        return problem.space.map(lambda v: (self.rule.init(v), self.gradient_rule.init(v)), v)

    def step(self, problem: Problem, v: Variables, state: Any, keys: Keys) -> tuple[Variables, Any, Evaluation]:
        evaluation, gradient = _climb(problem, v, keys)

        def move(v: Variables, gradient: Variables, state: Any) -> tuple[Variables, Any]:
            rule_state, gradient_state = state
            gradient, gradient_state = self.gradient_rule.update(gradient, gradient_state, v)
            descent = jax.tree.map(jnp.negative, problem.space.space.direction(gradient))
            updates, rule_state = self.rule.update(descent, rule_state, v)
            steps = jax.tree.map(lambda size, u: jax.tree.map(lambda leaf: size * leaf, u), self.step_size, updates)
            return jax.tree.map(jnp.add, v, steps), (rule_state, gradient_state)

        moved, state = problem.space.map(move, v, gradient, state)
        return problem.space.project(moved, problem.examples), state, evaluation


def projected_gradient(
    step_size: Scalar | Mapping[str, Scalar] = 1.0,
    rule: optax.GradientTransformation = steepest,
    gradient_rule: optax.GradientTransformation | None = None,
) -> ProjectedGradient:
    """Ascent on the variables, projected after every step.

    Args:
        step_size: multiplies the rule's step; with the plain rule, the step length in radii (0.25 moves a pixel by
            radius / 4 and an angle by a quarter of half its range); a mapping gives chained variables one each. A
            leaf: changing it does not recompile.
        rule: any optax transformation (momentum, Adam, schedules, `optax.partition` for rates by variable). It is fed
            the negated direction of the space, so that its descent climbs. Applied to each example on its own.
        gradient_rule: an optax transformation of the raw gradient before its direction is taken, such as the
            accumulation of MI-FGSM.

    Raises:
        ValueError: `step_size` is negative.
    """
    step_size = jax.tree.map(_step_size, step_size)
    return ProjectedGradient(step_size, rule, _unchanged if gradient_rule is None else gradient_rule)


_unchanged = optax.identity()


def _step_size(step_size: Any) -> Any:
    return require_number("step_size", step_size, "0 or larger, in radii", lambda s: s >= 0)


class _TurnState(NamedTuple):
    step: Any


@functools.lru_cache
def take_turns(*groups: tuple[str, ...]) -> optax.GradientTransformation:
    """An optax rule for chained variables that moves one group of names at a time, in the order given, round and round.

    `take_turns(("rotation",), ("noise",))` alternates between attribute and noise; several single names give the
    scheduled order of a composite attack (Hsiung et al. 2023). It only picks who moves: chain it with the rule that
    says how far, `optax.chain(take_turns(...), steepest)`. Every variable moves in exactly one group.

    Raises:
        ValueError: no group, or a variable that stands in no group.
    """
    if not groups:
        raise ValueError("groups=(): take_turns needs at least one group of variable names")
    turn_of = {name: turn for turn, group in enumerate(groups) for name in group}

    def update(updates: Any, state: _TurnState, params: Any = None) -> tuple[Any, _TurnState]:
        missing = set(updates) - set(turn_of)
        if missing:
            raise ValueError(f"groups={groups!r} leave out the variables {sorted(missing)}")
        turn = state.step % len(groups)
        moved = {name: jax.tree.map(lambda u, n=name: u * (turn == turn_of[n]), updates[name]) for name in updates}
        return moved, _TurnState(state.step + 1)

    return optax.GradientTransformation(lambda params: _TurnState(jnp.zeros((), jnp.int32)), update)


# --- auto-PGD -------------------------------------------------------------------------------------------------------


class _ApgdState(NamedTuple):
    """Per example (scalars where the variables are shared): the trajectory that APGD's decisions read."""

    iteration: Any
    previous: Variables
    best: Variables
    best_gradient: Variables
    best_value: Values
    last_value: Values
    value_at_checkpoint: Values
    step_size: Values
    rises: Any
    halved: Any


@pytree
class Apgd:
    """Auto-PGD; see `apgd`."""

    step_size: Any
    momentum: Any
    rise_share: Any

    def init(self, problem: Problem, v: Variables) -> _ApgdState:
        image = problem.examples.image
        shape = () if problem.space.shared else image.shape[:1]
        floor = jnp.full(shape, -jnp.inf, image.dtype)
        zeros = jax.tree.map(jnp.zeros_like, v)
        step_size = jnp.full(shape, self.step_size, image.dtype)
        count, never = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
        return _ApgdState(jnp.zeros((), jnp.int32), v, v, zeros, floor, floor, floor, step_size, count, never)

    def step(self, problem: Problem, v: Variables, state: _ApgdState, keys: Keys) -> tuple[Variables, Any, Evaluation]:
        evaluation, gradient = _climb(problem, v, keys)
        state = _record(state, v, gradient, problem.space.summarise(evaluation).value)
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
        oscillates = state.rises < self.rise_share * interval
        stalls = ~state.halved & (state.value_at_checkpoint >= state.best_value)
        restart = due & (oscillates | stalls)
        return restart, state._replace(
            step_size=jnp.where(restart, state.step_size / 2, state.step_size),
            value_at_checkpoint=jnp.where(due, state.best_value, state.value_at_checkpoint),
            halved=jnp.where(due, restart, state.halved),
            rises=jnp.where(due, 0, state.rises),
        )

    def _move(self, problem: Problem, v: Variables, gradient: Variables, previous: Variables, state: Any) -> Variables:
        """A projected step, then a projected mix of it with the movement so far (Croce & Hein 2020, eq. 4)."""
        momentum = jnp.where(state.iteration == 0, 1.0, self.momentum)

        def climb(v: Variables, gradient: Variables, step_size: Any) -> Variables:
            direction = problem.space.space.direction(gradient)
            return jax.tree.map(lambda v, d: v + step_size * d, v, direction)

        def mix(v: Any, climbed: Any, previous: Any) -> Any:
            return v + momentum * (climbed - v) + (1 - momentum) * (v - previous)

        climbed = problem.space.project(problem.space.map(climb, v, gradient, state.step_size), problem.examples)
        return problem.space.project(jax.tree.map(mix, v, climbed, previous), problem.examples)


def _record(state: _ApgdState, v: Variables, gradient: Variables, value: Any) -> _ApgdState:
    value = value.astype(state.best_value.dtype)
    improves = value > state.best_value
    best, best_gradient = select(improves, (v, gradient), (state.best, state.best_gradient))
    rises = state.rises + ((value > state.last_value) & (state.iteration > 0))
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


def apgd(step_size: Scalar = 2.0, momentum: Scalar = 0.75, rise_share: Scalar = 0.75) -> Apgd:
    """Auto-PGD (Croce & Hein 2020) on any space, a chain included; every example has a step size of its own.

    At checkpoints that grow denser, an example's step is halved and it restarts from its best point when fewer than
    `rise_share` of the steps since the last checkpoint raised its loss, or when neither step nor best loss has changed.
    A restart drops the momentum (our choice; the reference keeps the movement towards the abandoned point).

    Args:
        step_size: first step in radii; 2 is the paper's, as are the other defaults.
        momentum: weight of the new step, the paper's alpha.
        rise_share: the paper's rho.

    Raises:
        ValueError: a number out of range.
    """
    return Apgd(
        _step_size(step_size),
        require_number("momentum", momentum, "in [0, 1]", lambda m: 0 <= m <= 1),
        require_number("rise_share", rise_share, "in [0, 1]", lambda r: 0 <= r <= 1),
    )


# --- searches without a gradient ------------------------------------------------------------------------------------


@pytree
class RandomSearch:
    """Independent random points; see `random_search`."""

    def init(self, problem: Problem, v: Variables) -> tuple[()]:
        return ()

    def step(self, problem: Problem, v: Variables, state: Any, keys: Keys) -> tuple[Variables, Any, Evaluation]:
        return problem.space.init(fold_in(keys, 1), problem.examples), state, problem.value(v, keys)


def random_search() -> RandomSearch:
    """Every step judges a fresh random point of the space; no gradient is taken."""
    return RandomSearch()


@pytree
class Grid:
    """Exhaustive search over attributes; see `grid`."""

    points: int = static()

    def init(self, problem: Problem, v: Variables) -> Any:
        return jnp.zeros((), jnp.int32)

    def step(self, problem: Problem, v: Variables, state: Any, keys: Keys) -> tuple[Variables, Any, Evaluation]:
        def move(v: Variables) -> Variables:
            return at_grid_point(problem.space.space, v, state, self.points)

        return problem.space.map(move, v), state + 1, problem.value(v, keys)

    def num_steps(self, space: Any) -> int:
        """How many steps visit every point.

        Raises:
            ValueError: the space has no attribute to search.
        """
        axes = grid_axes(space)
        if axes == 0:
            raise ValueError(f"space={space!r} has no attribute: grid searches attributes and chains of them")
        return self.points**axes


def grid(points: int) -> Grid:
    """Every combination of `points` evenly spaced values of each attribute, bounds included; noise stays where it is.

    An attack that uses it takes `grid(points).num_steps(space)` steps.

    Raises:
        ValueError: `points` below 1.
    """
    require_count("points", points)
    return Grid(points)
