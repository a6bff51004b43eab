"""A solver that moves one link of a chain after the other, and the order in which the links are applied."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from spa_jax.solvers.base import Problem, fold_in
from spa_jax.solvers.gradient import checked_step, scaled_by
from spa_jax.spaces.chain import Chain
from spa_jax.spaces.ordered import ORDER, Ordered, order_of
from spa_jax.trees import pytree, select, static
from spa_jax.types import Count, Evaluation, Keys, Scalar, Variables
from spa_jax.validation import require_choice, require_count

Schedule = Literal["scheduled", "random"]
_DRAW = 1


class _RoundState(NamedTuple):
    """How many passes were made, and the values of all links, also of those that the next image is made without."""

    iteration: Any
    values: Variables


@pytree
class ComponentWise:
    """See `component_wise`."""

    rel_step_size: Any
    num_steps: int = static()
    schedule: str = static(default="scheduled")

    def passes(self, links: int) -> int:
        """Of a round: one for the order, and `num_steps` for each link."""
        return 1 + links * self.num_steps

    def init(self, problem: Problem, v: Variables) -> _RoundState:
        if not isinstance(problem.space.space, Chain):
            raise ValueError(f"space={problem.space.space!r}: component_wise moves the links of a chain or of ordered")
        return _RoundState(jnp.zeros((), jnp.int32), v)

    def step(self, problem: Problem, v: Variables, state: _RoundState, keys: Keys) -> tuple[Variables, Any, Evaluation]:
        space = problem.space.space
        number = state.iteration % self.passes(len(space.names))
        evaluation, gradient = problem.climb(v, keys)
        clean = problem.space.identity(problem.examples)

        def move(values: Variables, gradient: Variables, clean: Variables, key: Any) -> tuple[Variables, Variables]:
            ascent = problem.direction(gradient)
            turned = _begun(space, values, clean) | self._reordered(space, values, ascent, key)
            moved = select(number == 0, turned, self._climbed(space, values, ascent, (number - 1) // self.num_steps))
            return moved, _applied(space, moved, clean, number // self.num_steps)

        values, applied = problem.space.map(move, state.values, gradient, clean, fold_in(keys, _DRAW))
        applied = problem.space.project(applied, problem.examples)
        kept = problem.space.map(lambda v, old: _applied(space, v, old, number // self.num_steps), applied, values)
        return applied, _RoundState(state.iteration + 1, kept), evaluation

    def _climbed(self, space: Chain, values: Variables, ascent: Variables, place: Any) -> Variables:
        """A step of the link at one place."""
        steps = scaled_by(self.rel_step_size, {name: ascent[name] for name in space.names})
        moved = {name: jax.tree.map(jnp.add, values[name], steps[name]) for name in space.names}
        return _where(space, values, lambda rank: rank == place, moved, values)

    def _reordered(self, space: Chain, values: Variables, ascent: Variables, key: Any) -> Variables:
        """The next order: along the gradient, and drawn where that would be the same one again."""
        if not isinstance(space, Ordered):
            return {}
        old = values[ORDER]
        drawn = space.draw_order(key, old.dtype)
        if self.schedule == "random":
            return {ORDER: drawn}
        moved = jnp.clip(old + ascent[ORDER], -1, 1)
        return {ORDER: jnp.where(jnp.all(order_of(moved) == order_of(old)), drawn, moved)}


def _begun(space: Chain, values: Variables, clean: Variables) -> Variables:
    """Where a round begins: attributes where they are, noise at 0."""
    return values | {name: clean[name] for name, link in space.members().items() if not link.grid_axes}


def _applied(space: Chain, values: Variables, others: Variables, place: Any) -> Variables:
    """The values of the links up to a place of the order, and those of `others` for the links after it."""
    return _where(space, values, lambda rank: rank <= place, values, others)


def _where(space: Chain, order: Variables, holds: Any, values: Variables, others: Variables) -> Variables:
    """The values of the links whose place fulfils a condition, and `others`."""
    ranks = space.ranks(order)
    return order | {name: select(holds(ranks[i]), values[name], others[name]) for i, name in enumerate(space.names)}


def component_wise(
    rel_step_size: Scalar | None = None, num_steps: Count = 10, schedule: Schedule = "scheduled"
) -> ComponentWise:
    """Component-wise PGD of composite attacks (Hsiung et al. 2023, section 3.2 and algorithm 1), in rounds.

    A round begins with a pass at the composition as it is, which decides the next order. Then each link in this order
    is moved by `num_steps` steps, while those after it are not applied yet. Attributes go on from round to round, noise
    begins at 0 in each, as in the authors' code.

    The order of `spaces.ordered` is different for every image: "random" draws it anew for each round; "scheduled"
    takes a step along its gradient, whose largest entry is half of the scores' range, and draws it anew where it would
    stay the same. The authors' code has one order a batch and takes the gradient at a mixture of images that costs
    three steps of each link at each place, 3 n * n passes a round; here it is that at the composition, straight through
    the choice, at no further pass (our choice). Links of `chain` keep their order.

    An attack that uses it takes `passes(number of links)` steps for each round.

    Args:
        rel_step_size: of every link, in radii. Default: 2.5 / num_steps, at most 1, as in the authors' code.
        num_steps: of each link in a round; the default is that of the authors' code.
        schedule: "scheduled" or "random".

    Raises:
        ValueError: a number out of range, another schedule; when it starts, a space that is not a chain.
    """
    num_steps = require_count("num_steps", num_steps)
    size = min(1.0, 2.5 / num_steps) if rel_step_size is None else checked_step(rel_step_size)
    require_choice("schedule", schedule, ("scheduled", "random"))
    return ComponentWise(size, num_steps, schedule)
