"""A solver that keeps count of which wrong classes a universal perturbation leads to."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spa_jax.losses import off_label
from spa_jax.solvers.base import Problem
from spa_jax.trees import pytree
from spa_jax.types import Evaluation, Keys, Scalar, Solver, Variables
from spa_jax.validation import require_number


class LabelState(NamedTuple):
    """The state of `track_labels`.

    Attributes:
        inner: of the solver that climbs.
        off_label: [k], running mean over batches of the probability that images give to each class but their own.
        batches: int32 [], how many there were.
    """

    inner: Any
    off_label: Any
    batches: Any


@pytree
class TrackLabels:
    """See `track_labels`."""

    solver: Any
    decay: Any

    @property
    def takes_gradient(self) -> bool:
        return getattr(self.solver, "takes_gradient", True)

    def init(self, problem: Problem, v: Variables) -> LabelState:
        if not problem.space.shared:
            raise ValueError("track_labels counts over images that share their variables: use lift=universal")
        if not hasattr(problem.loss, "with_off_label"):
            raise ValueError(f"loss={problem.loss!r} does not read label shares; say solver without track_labels")
        logits = jax.eval_shape(lambda v: problem.logits(v, jax.random.key(0)), v)
        inner = self.solver.init(problem, v)
        return LabelState(inner, jnp.zeros(logits.shape[-1], logits.dtype), jnp.zeros((), jnp.int32))

    def step(
        self, problem: Problem, v: Variables, state: LabelState, keys: Keys
    ) -> tuple[Variables, LabelState, Evaluation]:
        loss: Any = problem.loss
        aware = dataclasses.replace(problem, loss=loss.with_off_label(state.off_label))
        v, inner, evaluation = self.solver.step(aware, v, state.inner, keys)
        mass = off_label(evaluation.logits, problem.examples.label)
        now = jax.vmap(lambda column: problem.space.summarise(column, problem.examples), in_axes=1)(mass)
        decay = jnp.where(state.batches == 0, 0, self.decay).astype(now.dtype)
        return v, LabelState(inner, decay * state.off_label + (1 - decay) * now, state.batches + 1), evaluation


def track_labels(solver: Solver, decay: Scalar = 0.9) -> TrackLabels:
    """A solver for losses that read which wrong classes the batches so far were given: `losses.class_balanced`.

    Its state carries a running mean over batches, which costs no further pass: it is taken from the logits of the step.

    Args:
        solver: how the shared variables climb.
        decay: of the running mean, in [0, 1); 0.9 is our choice.

    Raises:
        ValueError: `decay` outside [0, 1); when it starts, variables that are not shared or another loss.
    """
    return TrackLabels(solver, require_number("decay", decay, "in [0, 1)", lambda d: 0 <= d < 1))
