"""What attacks that look for the nearest image that fools have in common: a search, and the nearest success so far."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from spa_jax import distances
from spa_jax.attacks.base import JUDGE, START, STEP, PureAttack, stream
from spa_jax.goals import is_answer, misclassified
from spa_jax.numerics import Grid, clip_to_unit, finite_gradient, in_dtype_of, on_grid, with_gradient_of
from spa_jax.spaces.noise import checked_radius
from spa_jax.trees import as_pytree, branch, pytree, select, static
from spa_jax.types import (
    Count,
    Example,
    Flags,
    Goal,
    Images,
    Keys,
    Labels,
    Logits,
    NonFinite,
    Predict,
    Result,
    Scalar,
    Values,
)
from spa_jax.validation import is_traced, require_choice, require_count

DISTANCES = {"linf": distances.linf, "l2": distances.l2, "l1": distances.l1}
"""How far images lie apart, [b], by the name of the norm."""


class Visit(NamedTuple):
    """Images that the victim has answered.

    Attributes:
        images: [b, h, w, c].
        success: [b], whether they fool.
        nonfinite: [b], what was not finite.
    """

    images: Images
    success: Flags
    nonfinite: NonFinite


class NormProblem(NamedTuple):
    """What a search sees: the victim `(keys, images) -> logits`, the examples, the goal, the norm, and grids of pixels.

    With a target the search moves towards it, whether or not the goal asks for it.
    """

    predict: Predict
    examples: Example
    norm: str
    goal: Goal = misclassified
    grids: tuple[Grid, ...] = ()

    def shown(self, images: Images) -> Images:
        """The images in [0, 1] and on the grids; a gradient passes as if they were not moved onto these."""
        images = clip_to_unit(images)
        for grid in self.grids:
            images = with_gradient_of(on_grid(images, grid), images)
        return images

    def distance(self, images: Images) -> Values:
        """How far the images lie from the examples, [b]."""
        return DISTANCES[self.norm](images, self.examples.image)

    def visit(self, images: Images, logits: Logits, gradients: Any = 0) -> Visit:
        """The images with the victim's answer; `gradients` [b] counts entries of gradients that were not finite."""
        unusable = (~is_answer(logits)).astype(jnp.int32)
        counted = NonFinite(jnp.zeros_like(unusable) + gradients, unusable)
        return Visit(images, self.goal(logits, self.examples) & (unusable == 0), counted)

    def climb(
        self, loss: Callable[[Logits, Example], Values], images: Images, keys: Keys
    ) -> tuple[Values, Images, Visit]:
        """The loss [b] of images and its gradient, by one forward and one backward pass.

        Entries of the gradient that are NaN or infinite are 0; the visit counts them.
        """

        def objective(images: Images, probe: Any) -> Any:
            logits = self.predict(keys, finite_gradient(images, probe))
            values = loss(logits, self.examples)
            return jnp.sum(values), (values, logits)

        probe = jnp.zeros_like(images[:, 0, 0, 0])
        (gradient, count), (values, logits) = jax.grad(objective, (0, 1), has_aux=True)(images, probe)
        return values, gradient, self.visit(images, logits, count.astype(jnp.int32))

    def boundaries(
        self, images: Images, keys: Keys, classes: Int[Any, "b m"] | None
    ) -> tuple[Float[Any, "b m"], Float[Any, "b m h w c"], Visit]:
        """By how much other classes' logits lie above the label's, and the gradients of that.

        It takes one forward and m backward passes. With a target there is one boundary, that between the target and the
        best other class.

        Args:
            images: of `shown`.
            keys: [b].
            classes: of `likely_classes`.
        """
        logits, pull = jax.vjp(
            lambda images, probe: self.predict(keys, finite_gradient(images, probe)),
            images,
            jnp.zeros_like(images[:, 0, 0, 0]),
        )
        one_hot = functools.partial(jax.nn.one_hot, num_classes=logits.shape[-1], dtype=logits.dtype)
        above, below = self._rivals(logits, classes)
        slopes, counts = jax.vmap(pull)(jnp.swapaxes(one_hot(above) - one_hot(below), 0, 1))
        gaps = jnp.take_along_axis(logits, above, axis=-1) - jnp.take_along_axis(logits, below, axis=-1)
        visit = self.visit(images, logits, jnp.sum(counts, axis=0).astype(jnp.int32))
        return gaps, jnp.swapaxes(slopes, 0, 1), visit

    def _rivals(self, logits: Logits, classes: Any) -> tuple[Int[Any, "b m"], Int[Any, "b m"]]:
        """The classes that are to rise, and those that they are compared with."""
        if classes is not None:
            return classes, self.examples.label[:, None] + jnp.zeros_like(classes)
        target = self.examples.target
        return target[:, None], likely_classes(logits, target, 2)

    def likely(self, logits: Logits, count: int) -> Int[Any, "b m"] | None:
        """The classes whose boundaries with the label are looked at; None where there is a target."""
        return None if self.examples.target is not None else likely_classes(logits, self.examples.label, count)


def likely_classes(logits: Logits, own: Labels, count: int) -> Int[Any, "b m"]:
    """The most likely classes but one's own: `count - 1` of them, or as many as there are.

    A logit of minus infinity, of a class that is impossible, still comes before one's own.
    """
    is_own = jax.nn.one_hot(own, logits.shape[-1], dtype=bool)
    ranked = jnp.where(is_own, -jnp.inf, jnp.nan_to_num(logits))
    return jax.lax.top_k(ranked, min(count, logits.shape[-1]) - 1)[1]


class MinimalNormState(NamedTuple):
    """The state between two steps.

    Attributes:
        step: int32 [], steps made.
        keys: [b].
        own: the state of the search.
        nearest: the nearest success so far, and the clean image before the first one.
        distance: [b], how far it lies; infinite before the first success.
        nonfinite: [b], what was not finite so far.
    """

    step: Any
    keys: Any
    own: Any
    nearest: Any
    distance: Any
    nonfinite: NonFinite


@runtime_checkable
class Search(Protocol):
    """How the nearest image that fools is looked for; a class under `spa_jax.trees.pytree`.

    One that says `stops = True` leaves an image alone once it fools.
    """

    def init(self, problem: NormProblem, keys: Keys, logits: Logits) -> Any:
        """The search's state before the first step; `logits` are those of the clean images."""

    def step(self, problem: NormProblem, state: MinimalNormState, keys: Keys) -> tuple[Any, Visit]:
        """One step: the new `state.own`, and the images that it has shown to the victim."""

    def last(self, problem: NormProblem, own: Any) -> Images | None:
        """The images where the search stands, if it has not shown them to the victim yet."""


@pytree
class MinimalNorm(PureAttack):
    """A search, and the nearest of the images that it has shown to the victim and that fool; see `cw` and `fmn`.

    The result's `value` is minus the distance, and minus infinity where no success lies within the radius.
    """

    search: Any
    radius: Any
    goal: Any
    norm: str = static()
    num_steps: int = static()
    grids: tuple[Grid, ...] = static(default=())

    @property
    def tells_broken(self) -> bool:
        return True

    @property
    def nearest_in(self) -> str | None:
        return self.norm if not is_traced(self.radius) and np.isinf(self.radius) else None

    def broken(self, state: MinimalNormState) -> Flags:
        return self._is_near(state.distance)

    def begin(self, keys: Keys, predict: Predict, examples: Example) -> MinimalNormState:
        x, problem = examples.image, self._problem(predict, examples)
        logits = predict(stream(keys, JUDGE), x)
        clean = problem.visit(x, logits)
        distance = jnp.where(clean.success, 0, jnp.inf).astype(x.dtype)
        own = self.search.init(problem, stream(keys, START), logits)
        return MinimalNormState(jnp.zeros((), jnp.int32), keys, own, x, distance, clean.nonfinite)

    def move(self, state: MinimalNormState, predict: Predict, examples: Example) -> MinimalNormState:
        if not getattr(self.search, "stops", False):
            return self._go(state, predict, examples)

        def go(state: MinimalNormState) -> MinimalNormState:
            after = self._go(state, predict, examples)
            shared: Any = {"step": None, "keys": None}
            own = select(jnp.isinf(state.distance), after._replace(**shared), state._replace(**shared))
            return own._replace(step=after.step, keys=after.keys)

        wanted = jnp.any(jnp.isinf(state.distance)).astype(jnp.int32)
        return branch(wanted, [lambda state: state._replace(step=state.step + 1), go], state)

    advance = move

    def _go(self, state: MinimalNormState, predict: Predict, examples: Example) -> MinimalNormState:
        problem = self._problem(predict, examples)
        own, visit = self.search.step(problem, state, stream(state.keys, STEP, state.step))
        return self._seen(state._replace(step=state.step + 1, own=own), problem, visit)

    def _seen(self, state: MinimalNormState, problem: NormProblem, visit: Visit) -> MinimalNormState:
        """The state with a visit as a further candidate for the nearest success."""
        distance = problem.distance(visit.images)
        nearer = visit.success & (distance < state.distance)
        nearest, distance = select(nearer, (visit.images, distance), (state.nearest, state.distance))
        nonfinite = jax.tree.map(jnp.add, state.nonfinite, visit.nonfinite)
        return state._replace(nearest=nearest, distance=distance, nonfinite=nonfinite)

    def end(self, state: MinimalNormState, predict: Predict, examples: Example) -> Result:
        problem = self._problem(predict, examples)
        last = self.search.last(problem, state.own)
        if last is not None:
            logits = predict(stream(state.keys, JUDGE, state.step), last)
            state = self._seen(state, problem, problem.visit(last, logits))
        success = self._is_near(state.distance)
        found = select(success, state.nearest, examples.image)
        value = jnp.where(success, -state.distance, -jnp.inf)
        result = Result(found, found - examples.image, value, success, nonfinite=state.nonfinite)
        return self.conclude(state.keys, result, predict, examples)

    def judged(self, result: Result, keys: Keys, predict: Predict, examples: Example) -> Result:
        distance = DISTANCES[self.norm](result.x, examples.image)
        logits = predict(keys, result.x)
        success = self.goal(logits, examples) & is_answer(logits) & self._is_near(distance)
        value = jnp.where(success, -distance, -jnp.inf)
        return dataclasses.replace(result, value=value, success=success)

    def _is_near(self, distance: Values) -> Flags:
        return jnp.isfinite(distance) & (distance <= in_dtype_of(self.radius, distance))

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        state = driver.call(self, "begin", keys, examples)
        state = driver.repeat(self, self.num_steps, state, examples)
        return driver.call(self, "end", state, examples)

    def with_grid(self, grid: Grid) -> "MinimalNorm":
        return dataclasses.replace(self, grids=(*self.grids, grid))

    def _problem(self, predict: Predict, examples: Example) -> NormProblem:
        return NormProblem(predict, examples, self.norm, self.goal, self.grids)


def minimal_norm(search: Search, radius: Scalar, norm: str, num_steps: Count) -> MinimalNorm:
    """An attack that looks for the nearest image that fools.

    Args:
        search: how it does so.
        radius: a success farther away than this does not count; infinite: any distance counts.
        norm: "linf", "l2" or "l1", which the radius and the result's value are measured in.
        num_steps: steps of the search.

    Raises:
        ValueError: a negative radius, an unknown norm, `num_steps` below 1.
    """
    require_choice("norm", norm, tuple(DISTANCES))
    num_steps = require_count("num_steps", num_steps)
    return MinimalNorm(search, checked_radius(radius), as_pytree(misclassified), norm, num_steps)


def require_candidates(count: Count) -> int:
    """How many of the most likely classes a search looks at, the label among them.

    Raises:
        ValueError: fewer than 2.
    """
    if require_count("candidates", count) < 2:
        raise ValueError(f"candidates={count!r} must be at least 2: the label and another class")
    return int(count)
