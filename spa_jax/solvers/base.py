"""What every solver works on: the problem of an attack, the best point so far, and streams of keys."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spa_jax.errors import shown
from spa_jax.goals import is_answer
from spa_jax.numerics import finite_gradient
from spa_jax.spaces.lift import Lifted
from spa_jax.trees import repeat, select
from spa_jax.types import Evaluation, Example, Goal, Keys, Logits, Loss, NonFinite, Predict, Solver, Variables
from spa_jax.victims.tracing import is_randomized


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a solver sees.

    Attributes:
        space: lifted to the batch.
        examples: what it acts on.
        predict: the victim as the engine calls it, `(keys [b], images) -> logits`.
        loss: what is maximised.
        goal: what counts as success.
        num_steps: how many steps there will be.
        moves: names of the chained variables that may move; None: all.
        known: the evaluation and gradient at the variables, where a training step has computed them already.
        draws: of a randomised victim that every evaluation and every gradient is the mean of.
    """

    space: Lifted
    examples: Example
    predict: Predict
    loss: Loss
    goal: Goal
    num_steps: int
    moves: tuple[str, ...] | None = None
    known: tuple[Evaluation, Variables] | None = None
    draws: int = 1

    def logits(self, v: Variables, keys: Keys) -> Logits:
        """The victim's logits of the images that the variables make; differentiable."""
        images = self.space.apply(v, self.examples)
        return self.predict(self.space.example_keys(keys, len(images)), images)

    def evaluate(self, v: Variables, keys: Keys) -> Evaluation:
        """Loss, less the penalty of the space, success and logits of each example.

        An image that is not finite, and logits without an answer (`spa_jax.goals.is_answer`), are not a success. Over
        several draws the loss and the logits are means, and success is that of the mean logits.

        Args:
            v: the variables.
            keys: one for each example, or a single one where the variables are shared.
        """
        return self._averaged(lambda keys: self._evaluate(v, keys), keys)

    def _evaluate(self, v: Variables, keys: Keys, probe: Any = None) -> Evaluation:
        """The evaluation in one draw; `probe` is that of `spa_jax.numerics.finite_gradient`."""
        images = self.space.apply(v, self.examples)
        seen = images if probe is None else finite_gradient(images, probe)
        logits = self.predict(self.space.example_keys(keys, len(images)), seen)
        broken = jnp.sum(~jnp.isfinite(images), axis=(1, 2, 3))
        nonfinite = broken.astype(jnp.int32) + (~is_answer(logits)).astype(jnp.int32)
        success = self.goal(logits, self.examples) & (nonfinite == 0)
        counted = NonFinite(jnp.zeros_like(nonfinite), nonfinite)
        value = self.loss(logits, self.examples)
        if self.space.penalises:
            value = value - self.space.penalty(v, self.examples).astype(value.dtype)
        return Evaluation(value, success, logits, counted)

    def climb(self, v: Variables, keys: Keys) -> tuple[Evaluation, Variables]:
        """The evaluation at `v` and the gradient of the loss there, by one forward and one backward pass a draw.

        Entries of the gradient that are NaN or infinite are 0; the evaluation counts them.
        """
        return self._averaged(lambda keys: self._climb(v, keys), keys) if self.known is None else self.known

    def _climb(self, v: Variables, keys: Keys) -> tuple[Evaluation, Variables]:
        def objective(v: Variables, probe: Any) -> tuple[Any, Evaluation]:
            evaluation = self._evaluate(v, keys, probe)
            return evaluation.value, evaluation

        evaluation, gradient, count = self.space.gradient(objective, v, self.examples)
        counted = evaluation.nonfinite._replace(gradients=count.astype(jnp.int32))
        return evaluation._replace(nonfinite=counted), gradient

    def _averaged(self, once: Callable[[Keys], Any], keys: Keys) -> Any:
        """What `once` gives, averaged over the draws of a randomised victim; what it counts is summed.

        The draws are made one after the other, and hold the memory of one.
        """
        if self.draws == 1 or not is_randomized(self.predict):
            return once(keys)

        def add(carry: tuple[Any, Any]) -> tuple[Any, Any]:
            total, i = carry
            found = once(fold_in(keys, i))
            return jax.tree.map(lambda sums, own: sums + own.astype(sums.dtype), total, found), i + 1

        zeros = jax.tree.map(_zeros, jax.eval_shape(once, keys))
        total, _ = repeat(add, (zeros, jnp.zeros((), jnp.int32)), self.draws)
        mean = jax.tree.map(lambda sums: sums / self.draws if jnp.issubdtype(sums.dtype, jnp.floating) else sums, total)
        return jax.tree.map(self._judged, mean, is_leaf=lambda tree: isinstance(tree, Evaluation))

    def _judged(self, mean: Any) -> Any:
        """A mean evaluation, successful where its logits are; anything else as it is."""
        if not isinstance(mean, Evaluation):
            return mean
        return mean._replace(success=self.goal(mean.logits, self.examples) & (mean.nonfinite.answers == 0))

    def direction(self, gradient: Variables) -> Variables:
        """Steepest ascent of ONE set of variables, one radius long; 0 for those that may not move."""
        direction = self.space.space.direction(gradient)
        if self.moves is None:
            return direction
        return {name: d if name in self.moves else jax.tree.map(jnp.zeros_like, d) for name, d in direction.items()}

    def hold(self, v: Variables, proposed: Variables) -> Variables:
        """The proposed variables, with those that may not move as they were, projected."""
        if self.moves is not None:
            proposed = {name: new if name in self.moves else v[name] for name, new in proposed.items()}
        return self.space.project(proposed, self.examples)

    def candidate(self, v: Variables, evaluation: Evaluation) -> "Best":
        """Variables with what decides about them: per example, or weighted means where they are shared."""
        summary = [self.space.summarise(values, self.examples) for values in (evaluation.value, evaluation.success)]
        return Best(v, *summary)


def _zeros(like: Any) -> Any:
    """What a sum begins with; flags are counted."""
    return jnp.zeros(like.shape, jnp.int32 if like.dtype == jnp.bool_ else like.dtype)


def require_solver(solver: Any) -> None:
    """Check that something has the methods of a solver.

    Raises:
        ValueError: it has not.
    """
    if isinstance(solver, Solver) and not isinstance(solver, type):
        return
    called = f"call it, as {solver.__name__}()" if hasattr(solver, "__name__") else "such as spa_jax.solvers.apgd()"
    raise ValueError(f"solver={shown(solver)} must be a solver: {called}")


class Best(NamedTuple):
    """The strongest variables so far, their loss and their success: [b], or [] where the variables are shared."""

    variables: Variables
    value: Any
    success: Any


def better(old: Any, new: Any) -> Any:
    """The stronger of two candidates or results, per example; see `is_stronger`."""
    return select(is_stronger(new, old), new, old)


def is_stronger(new: Any, old: Any) -> Any:
    """Whether `new` beats `old`; both have `success` and `value`.

    Success counts before the loss. NaN never beats a number, and a number always NaN.
    """
    beats = (new.success > old.success) | ((new.success == old.success) & (new.value > old.value))
    return ~jnp.isnan(new.value) & (beats | jnp.isnan(old.value))


def fold_in(keys: Keys, data: Any) -> Keys:
    """Each key, or the single one, folded with the same number."""
    return jax.random.fold_in(keys, data) if keys.ndim == 0 else jax.vmap(jax.random.fold_in, (0, None))(keys, data)
