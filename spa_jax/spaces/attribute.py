"""The values of image edits, each within a box: the attributes of an attack."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spa_jax.edits import get_edit
from spa_jax.numerics import clip_to_unit, in_dtype_of, times
from spa_jax.spaces.base import SpaceBase
from spa_jax.trees import as_pytree, pytree, static
from spa_jax.types import Example, Image, Variables
from spa_jax.validation import is_traced, require_array, require_number


@pytree
class Attribute(SpaceBase):
    """The value of an image edit, a number or a vector of them, within a box; see `attribute`."""

    low: Any
    high: Any
    identity_value: Any
    edit: Any
    share: Any = 1.0
    name: str = static(default="attribute")  # type: ignore[misc]

    @property
    def grid_axes(self) -> int:
        return int(np.size(self.low))

    def scaled(self, share: Any) -> "Attribute":
        if self._is_read:
            return dataclasses.replace(self, share=times(share, self.share))
        low, high = (self.identity_value + times(share, bound - self.identity_value) for bound in (self.low, self.high))
        return dataclasses.replace(self, low=low, high=high)

    def at_grid_point(self, v: Variables, index: Any, points: int) -> Variables:
        place = index // points ** np.arange(self.grid_axes, dtype=np.int32).reshape(np.shape(self.low))
        fraction = jnp.asarray(place % points).astype(v.dtype) / max(points - 1, 1)
        low, high = self._bounds(None, v)
        return self.project(low + (high - low) * fraction, None)

    def init(self, key: Any, example: Example) -> Float[Array, "*m"]:
        low, high = self._bounds(example, example.image)
        return low + (high - low) * jax.random.uniform(key, low.shape, low.dtype)

    def identity(self, example: Example) -> Float[Array, "*m"]:
        value = self.edit.read(*_seen(example)) if self._is_read else self.identity_value
        return jnp.broadcast_to(jnp.asarray(value, example.image.dtype), jnp.shape(self.low))

    def project(self, v: Any, example: Example | None) -> Any:
        low, high = self._bounds(example, v)
        if example is not None and self._is_read:
            own = self.identity(example)
            low, high = jnp.minimum(low, own), jnp.maximum(high, own)
        return jnp.clip(v, low, high)

    def direction(self, g: Any) -> Any:
        low, high = self._bounds(None, g)
        return in_dtype_of(self.share, g) * (high - low) / 2 * jnp.sign(g)

    def apply(self, v: Any, example: Example) -> Image:
        if hasattr(self.edit, "prepare"):
            return clip_to_unit(self.edit(example.image, v, example.prepared))
        return clip_to_unit(self.edit(example.image, v))

    def prepare(self, example: Example) -> Any:
        return self.edit.prepare(example.image) if hasattr(self.edit, "prepare") else None

    @property
    def _is_read(self) -> bool:
        return hasattr(self.edit, "read")

    def _bounds(self, example: Example | None, like: Any) -> tuple[Any, Any]:
        """The box; of an edit that reads the image's own value, `share` of its size about that value.

        They are in the dtype of `like`.
        """
        low, high, share = (in_dtype_of(number, like) for number in (self.low, self.high, self.share))
        if example is None or not self._is_read:
            return low, high
        away = (1 - share) * self.identity(example)
        return away + share * low, away + share * high


def _seen(example: Example) -> tuple[Any, Any]:
    return example.image, example.prepared


def attribute(
    edit: str | Callable[..., Any],
    low: Any = None,
    high: Any = None,
    identity: Any = None,
) -> Attribute:
    """A box over the value of an image edit: a number, or a vector of several attributes at once.

    A learned edit (`spa_jax.manipulator`) is a pytree, so its weights are leaves of the space. Beside the call it may
    have `read(image, prepared) -> value`, the value that the image itself has: it leaves the image alone, and the box
    of an image is widened to hold it; and `prepare(image) -> prepared`, which an attack computes once and gives back
    to every call `edit(image, value, prepared)`.

    Args:
        edit: a name of `spa_jax.EDITS` ("rotation", "hue", ...) or a differentiable function
            `(image [h, w, c], value) -> image`.
        low, high: bounds of the value, in the edit's unit: numbers, or one number for each of m attributes. Default:
            the documented range of the named edit.
        identity: the value that leaves the image alone. Default: that of the named edit, or 0; unused by an edit that
            reads it.

    Raises:
        ValueError: unknown name; a bound for which the named edit is undefined; `low > high`; the box leaves out the
            identity; bounds missing for a function, or of different lengths.
    """
    name = "attribute"
    if isinstance(edit, str):
        named = get_edit(edit)
        low = named.low if low is None else low
        high = named.high if high is None else high
        identity = named.identity if identity is None else identity
        for bound, value in (("low", low), ("high", high)):
            require_number(f"{edit}.{bound}", value, named.rule, named.holds)
        name, edit = edit, named.function
    if low is None or high is None:
        raise ValueError(f"low={low!r}, high={high!r}: an edit given as a function needs both bounds")
    reads = hasattr(edit, "read")
    box = {"low": low, "high": high, "identity": (low if reads else 0.0) if identity is None else identity}
    box = {name: _checked_bound(name, value) for name, value in box.items()}
    _check_box(**box)
    return Attribute(box["low"], box["high"], box["identity"], as_pytree(edit), name=name)


def _checked_bound(name: str, value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return np.asarray([require_number(name, entry, "finite numbers", math.isfinite) for entry in value], np.float32)
    if is_traced(value) or np.ndim(value) == 0:
        return require_number(name, value, "a finite number", math.isfinite)
    return require_array(name, value, "finite numbers", np.isfinite)


def _check_box(low: Any, high: Any, identity: Any) -> None:
    if np.shape(low) != np.shape(high) or np.ndim(low) > 1:
        raise ValueError(f"low={low!r}, high={high!r} must both be numbers, or vectors of one length")
    if is_traced(low, high, identity):
        return
    if np.any(np.asarray(low) > np.asarray(high)):
        raise ValueError(f"low={low!r} must not be larger than high={high!r}")
    if np.any((np.asarray(identity) < low) | (np.asarray(identity) > high)):
        raise ValueError(f"identity={identity!r} must lie within [low={low!r}, high={high!r}]")
