"""Goals `(logits [b, k], examples) -> flags [b]`: when an attack has succeeded."""

from typing import Any

import jax.numpy as jnp

from spa_jax.losses import margin
from spa_jax.numerics import in_dtype_of
from spa_jax.trees import as_pytree, pytree
from spa_jax.types import Example, Flags, Logits, Scalar
from spa_jax.validation import require_number


def is_answer(logits: Logits) -> Flags:
    """Whether no logit is NaN and the largest is a number: -infinity rules a class out, +infinity answers nothing."""
    return ~jnp.any(jnp.isnan(logits), axis=-1) & jnp.isfinite(jnp.max(logits, axis=-1))


def misclassified(logits: Logits, examples: Example) -> Flags:
    """The prediction is not the label; with a target, it is the target. What `is_answer` refuses is neither."""
    prediction = jnp.argmax(logits, axis=-1)
    if examples.target is None:
        return is_answer(logits) & (prediction != examples.label.astype(prediction.dtype))
    return is_answer(logits) & (prediction == examples.target.astype(prediction.dtype))


@pytree
class Confident:
    """Misclassified by a margin; see `confident`."""

    bound: Any

    def __call__(self, logits: Logits, examples: Example) -> Flags:
        return misclassified(logits, examples) & (margin(logits, examples) >= in_dtype_of(self.bound, logits))


def confident(bound: Scalar) -> Confident:
    """Misclassified, or at the target, by a margin of logits of at least `bound` (Carlini & Wagner 2017, their kappa).

    Raises:
        ValueError: `bound` is negative.
    """
    return Confident(require_number("bound", bound, "0 or larger", lambda b: b >= 0))


@pytree
class Untargeted:
    """A goal that does not see targets; see `untargeted`."""

    goal: Any

    def __call__(self, logits: Logits, examples: Example) -> Flags:
        return self.goal(logits, examples.replace(target=None))


def untargeted(goal: Any = misclassified) -> Untargeted:
    """The goal as it is without a target: any wrong class counts, whichever the attack aims at."""
    return Untargeted(as_pytree(goal))
