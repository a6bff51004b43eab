"""Goals `(logits [b, k], examples) -> flags [b]`: when an attack has succeeded."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from spa_jax.losses import margin
from spa_jax.numerics import in_dtype_of
from spa_jax.trees import pytree
from spa_jax.types import Example, Flags, Logits, Scalar
from spa_jax.validation import require_number


def is_unusable(logits: Logits) -> Bool[Array, "b k"]:
    """Which logits are NaN or +infinity; -infinity rules a class out."""
    return jnp.isnan(logits) | jnp.isposinf(logits)


def misclassified(logits: Logits, examples: Example) -> Flags:
    """The prediction is not the label; with a target, it is the target. Logits with NaN or +infinity are neither."""
    usable = ~jnp.any(is_unusable(logits), axis=-1)
    prediction = jnp.argmax(logits, axis=-1)
    if examples.target is None:
        return usable & (prediction != examples.label.astype(prediction.dtype))
    return usable & (prediction == examples.target.astype(prediction.dtype))


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
