"""Small numerical functions whose gradients matter, each with its gradient documented and tested."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def clip_to_unit(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` clipped into [0, 1], with gradient 1 inside and AT the bounds and 0 strictly outside.

    This is PyTorch's rule. `jnp.clip` passes half of the gradient at an exact bound and `jax.lax.clamp` none, and both
    starve an attack on images whose background is exactly 0 or 1. NaN stays NaN.
    """
    return jnp.where(x < 0, 0, jnp.where(x > 1, 1, x))


def clip_to_signed_unit(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` clipped into [-1, 1], with the gradient of `clip_to_unit`: 1 inside and AT the bounds, 0 strictly outside.

    Noise that rests at its bound still learns from the step that may leave it.
    """
    return jnp.where(x < -1, -1, jnp.where(x > 1, 1, x))


def at_least_float32(dtype: Any) -> Any:
    """float32, or the floating type itself where it is wider; `jnp.promote_types` would refuse in strict programs."""
    return jax.dtypes.canonicalize_dtype(np.promote_types(dtype, np.float32))


def unit_per_channel(g: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """`g` with L2 norm 1 over height and width in every channel, however small it is; a channel of zeros stays zero.

    The gradient is finite everywhere, and 0 for a channel of zeros.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(g), axis=(-3, -2), keepdims=True))
    is_zero = largest == 0
    scaled = g / jnp.where(is_zero, 1, largest)
    squared = jnp.sum(scaled**2, axis=(-3, -2), keepdims=True)
    return jnp.where(is_zero, 0, scaled / jnp.sqrt(jnp.where(is_zero, 1, squared)))
