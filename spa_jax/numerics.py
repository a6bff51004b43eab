"""Small numerical functions whose gradients matter, each with its gradient documented and tested."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_ROUNDING = 1e-6


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


def in_dtype_of(number: Any, like: Any) -> Array:
    """A number as an array of the dtype of `like`, so that it never widens what it meets."""
    return jnp.asarray(number).astype(like.dtype)


def times(share: Any, number: Any) -> Any:
    """`share * number`, in the dtype of the number where the share is an array."""
    return share.astype(jnp.result_type(number)) * number if hasattr(share, "dtype") else share * number


# --- rounding -------------------------------------------------------------------------------------------------------

Grid: TypeAlias = int | str
"""Values that a pixel may have: the multiples of 1 / n for an integer n, or the numbers of a floating type by name."""


def on_grid(x: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
    """The nearest value of a grid; halfway, the even one."""
    if isinstance(grid, int):
        return jnp.round(x * grid) / _divisor(grid, x)
    info = jnp.finfo(grid)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def _divisor(grid: int, like: Any) -> Array:
    """The number in a form that XLA does not multiply by the inverse of, and so misses what NumPy reads in a file."""
    return jnp.where(jnp.isnan(like), like, grid)


def on_grid_within(x: Float[Array, "..."], centre: Float[Array, "..."], bound: Any, grid: Grid) -> Float[Array, "..."]:
    """The nearest value of a grid, or the next one towards `centre` where that is farther away from it than `bound`.

    It holds up to 1e-6 wherever there is such a value, and so wherever `centre` is on the grid.
    """
    nearest = on_grid(x, grid)
    if isinstance(grid, int):
        inner = jnp.round(nearest * grid - jnp.sign(nearest - centre)) / _divisor(grid, x)
    else:
        inner = jnp.nextafter(nearest.astype(grid), centre.astype(grid)).astype(x.dtype)
    return jnp.where(jnp.abs(nearest - centre) > bound + _ROUNDING, inner, nearest)


@jax.custom_jvp
def with_gradient_of(value: Float[Array, "..."], source: Float[Array, "..."]) -> Float[Array, "..."]:
    """`value`, whose derivative is that of `source` (the straight-through estimator, Bengio et al. 2013)."""
    return value


@with_gradient_of.defjvp
def _with_gradient_of_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    return primals[0], tangents[1]


# --- gradients that are not finite ----------------------------------------------------------------------------------


def finite_or_zero(g: Float[Array, "..."]) -> Float[Array, "..."]:
    """`g` with 0 in the place of NaN and infinity."""
    return jnp.where(jnp.isfinite(g), g, 0)


@jax.custom_vjp
def finite_gradient(images: Float[Array, "b h w c"], probe: Float[Array, " b"]) -> Float[Array, "b h w c"]:
    """`images`, through which NaN and infinite entries of a gradient go back as 0.

    Args:
        images: what a function is differentiated at.
        probe: any numbers; the gradient in them is how many entries of each image's gradient were not finite.
    """
    return images


def _finite_forward(images: Any, probe: Any) -> tuple[Any, Any]:
    return images, probe


def _finite_backward(probe: Any, cotangent: Any) -> tuple[Any, Any]:
    count = jnp.sum(~jnp.isfinite(cotangent), axis=(1, 2, 3)).astype(probe.dtype)
    return finite_or_zero(cotangent), count


finite_gradient.defvjp(_finite_forward, _finite_backward)


# --- searches -------------------------------------------------------------------------------------------------------


def time_to_reach(needed: Any, rates: Float[Array, "..."], most: Float[Array, "..."]) -> Any:
    """The least time at which `sum(min(rates * time, most))` reaches `needed`; infinite where it never does.

    The sum is concave and piecewise linear in the time: Newton's method from time 0 never passes the solution, and
    reaches it as soon as no further entry meets its bound, in practice after a few passes.

    Args:
        needed: a number, 0 or larger.
        rates: 0 or larger.
        most: 0 or larger, infinity included.
    """
    most = jnp.where(rates > 0, most, 0)
    until = most / jnp.where(rates > 0, rates, 1)

    def approach(times: tuple[Any, Any]) -> tuple[Any, Any]:
        _, time = times
        runs = until > time
        missing = needed - jnp.sum(jnp.where(runs, 0, most))
        rate = jnp.sum(jnp.where(runs, rates, 0))
        never = jnp.where(missing > 0, jnp.inf, 0)
        return time, jnp.maximum(time, jnp.where(rate > 0, missing / jnp.where(rate > 0, rate, 1), never))

    start = jnp.zeros_like(rates, shape=())
    _, time = jax.lax.while_loop(lambda times: times[0] < times[1], approach, approach((start, start)))
    return time


def last_and_next(holds: Callable[[Any], Any], highest: Any) -> tuple[Any, Any]:
    """The last float in [0, highest] at which `holds`, and the float after it, by bisection over their bits.

    Args:
        holds: true up to some float and false above it.
        highest: finite, 0 or larger; where it holds there too, the float after it is given beside it.

    Returns:
        Where it holds nowhere, NaN and 0.
    """
    kind = jnp.dtype(f"int{8 * highest.dtype.itemsize}")

    def as_float(bits: Any) -> Any:
        return jax.lax.bitcast_convert_type(bits, highest.dtype)

    def halve(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = low + (high - low) // 2
        is_low = holds(as_float(middle)) | (middle == low)
        return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

    above = jax.lax.bitcast_convert_type(highest, kind) + 1
    low, high = jax.lax.fori_loop(0, jnp.iinfo(kind).bits, halve, (jnp.full_like(above, -1), above))
    return as_float(low), as_float(high)
