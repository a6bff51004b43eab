"""Small numerical functions whose gradients matter, each with its gradient documented and tested."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def clip_to_unit(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` clipped into [0, 1], with gradient 1 inside and AT the bounds and 0 strictly outside.

    This is PyTorch's rule. `jnp.clip` passes half of the gradient at an exact bound and `jax.lax.clamp` none, and both
    starve an attack on images whose background is exactly 0 or 1. NaN stays NaN.
    """
    return jnp.where(x < 0, 0, jnp.where(x > 1, 1, x))
