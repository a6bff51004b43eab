"""Projected gradient ascent around an optax rule."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spa_jax.numerics import in_dtype_of
from spa_jax.solvers.base import Problem
from spa_jax.trees import pytree, static
from spa_jax.types import Evaluation, Keys, Scalar, Variables
from spa_jax.validation import require_number


class Rule(optax.GradientTransformation):
    """An optax rule that is plain data: equal to another that was made alike, and picklable; see `rule`."""

    make: Callable[..., optax.GradientTransformation]
    arguments: tuple[Any, ...]

    def __new__(cls, make: Callable[..., optax.GradientTransformation], *arguments: Any) -> "Rule":
        made = super().__new__(cls, *make(*arguments))
        made.make, made.arguments = make, arguments
        return made

    def __reduce__(self) -> Any:
        return type(self), (self.make, *self.arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and (self.make, self.arguments) == (other.make, other.arguments)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.make, self.arguments))


def rule(make: Callable[..., optax.GradientTransformation], *arguments: Any) -> Rule:
    """The optax rule `make(*arguments)` as plain data, such as `rule(optax.adam, 0.1)`.

    optax makes its rules of closures: they cannot be pickled, and no two are equal, so that each one compiles anew.

    Args:
        make: a function that a module holds by its name.
        arguments: hashable, and picklable if the rule is to be.
    """
    return Rule(make, *arguments)


steepest = rule(optax.sgd, 1.0)
"""The plain rule: one step along the space's direction, `rel_step_size` radii long."""


@pytree
class ProjectedGradient:
    """Projected gradient ascent around an optax rule; see `projected_gradient`."""

    counts_steps: ClassVar[bool] = False

    rel_step_size: Any
    rule: optax.GradientTransformation = static(default=steepest)
    gradient_rule: optax.GradientTransformation | None = static(default=None)
    steepest_direction: bool = static(default=True)

    def init(self, problem: Problem, v: Variables) -> Any:
        return problem.space.map(lambda v: tuple(rule.init(v) for rule in self._rules), v)

    @property
    def _rules(self) -> tuple[optax.GradientTransformation, ...]:
        return (self.rule,) if self.gradient_rule is None else (self.rule, self.gradient_rule)

    def step(self, problem: Problem, v: Variables, state: Any, keys: Keys) -> tuple[Variables, Any, Evaluation]:
        evaluation, gradient = problem.climb(v, keys)

        def move(v: Variables, gradient: Variables, state: Any) -> tuple[Variables, Any]:
            rule_state, *gradient_state = state
            if self.gradient_rule is not None:
                gradient, gradient_state[0] = self.gradient_rule.update(gradient, gradient_state[0], v)
            ascent = problem.direction(gradient) if self.steepest_direction else gradient
            with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
                updates, rule_state = self.rule.update(jax.tree.map(jnp.negative, ascent), rule_state, v)
            if not self.steepest_direction:
                one_radius = problem.direction(jax.tree.map(jnp.ones_like, v))
                updates = jax.tree.map(lambda update, unit: update * unit, updates, one_radius)
            steps = scaled_by(self.rel_step_size, updates)
            return jax.tree.map(lambda v, step: v + step.astype(v.dtype), v, steps), (rule_state, *gradient_state)

        moved, state = problem.space.map(move, v, gradient, state)
        return problem.space.project(moved, problem.examples), state, evaluation


def projected_gradient(
    rel_step_size: Scalar | Mapping[str, Scalar] = 1.0,
    rule: optax.GradientTransformation = steepest,
    gradient_rule: optax.GradientTransformation | None = None,
    steepest_direction: bool = True,
) -> ProjectedGradient:
    """Ascent on the variables, projected after every step.

    Args:
        rel_step_size: multiplies the rule's step; with the plain rule, the step length in radii (0.25 moves a pixel by
            radius / 4 and an angle by a quarter of half its range); a mapping gives chained variables one each. A
            leaf: changing it does not recompile.
        rule: any optax transformation (momentum, Adam, schedules, `optax.partition` for rates by variable). It is fed
            the negated direction of the space, so that its descent climbs. Applied to each example on its own.
        gradient_rule: an optax transformation of the raw gradient before its direction is taken, such as the
            accumulation of MI-FGSM.
        steepest_direction: whether the rule is fed the space's steepest direction (a sign, for l-infinity). False: the
            negated gradient itself, for rules that scale it, such as Adam; their updates are in radii.

    Raises:
        ValueError: `rel_step_size` is negative.
    """
    return ProjectedGradient(jax.tree.map(checked_step, rel_step_size), rule, gradient_rule, steepest_direction)


def scaled_by(sizes: Any, direction: Variables) -> Variables:
    """A direction times one size, or times one for each chained variable."""

    def scale(size: Any, part: Any) -> Any:
        return jax.tree.map(lambda leaf: in_dtype_of(size, leaf) * leaf, part)

    return jax.tree.map(scale, sizes, direction)


def checked_step(rel_step_size: Any) -> Any:
    """A step size in radii.

    Raises:
        ValueError: it is negative, or not a number.
    """
    return require_number("rel_step_size", rel_step_size, "0 or larger, in radii", lambda s: s >= 0)


class _TurnState(NamedTuple):
    step: Any


def take_turns(*groups: tuple[str, ...]) -> Rule:
    """An optax rule for chained variables that updates one group of names per step and sets all other updates to zero.

    `take_turns(("rotation",), ("noise",))` updates the attribute at even steps and the noise at odd ones. The order of
    the groups is fixed and repeats; it is not searched. Chain it with a rule that says how far to move:
    `optax.chain(take_turns(...), steepest)`. Every variable stands in exactly one group.

    Raises:
        ValueError: no group, or a variable that stands in no group.
    """
    return rule(_take_turns, *groups)


def _take_turns(*groups: tuple[str, ...]) -> optax.GradientTransformation:
    if not groups:
        raise ValueError("groups=(): take_turns needs at least one group of variable names")
    turn_of = {name: turn for turn, group in enumerate(groups) for name in group}

    def update(updates: Any, state: _TurnState, params: Any = None) -> tuple[Any, _TurnState]:
        missing = set(updates) - set(turn_of)
        if missing:
            raise ValueError(f"groups={groups!r} leave out the variables {sorted(missing)}")
        turn = state.step % len(groups)

        def update_of(name: str) -> Any:
            return jax.tree.map(lambda u: jnp.where(turn == turn_of[name], u, jnp.zeros_like(u)), updates[name])

        return {name: update_of(name) for name in updates}, _TurnState(state.step + 1)

    return optax.GradientTransformation(lambda params: _TurnState(jnp.zeros((), jnp.int32)), update)
