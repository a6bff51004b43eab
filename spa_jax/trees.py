"""Pytree tools: dataclasses whose numbers are leaves, callables that cross `jit`, selection by mask."""

import dataclasses
from collections.abc import Callable
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp


def static(**kwargs: Any) -> Any:
    """A dataclass field that is structure, not a number."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True)
def pytree(cls: type) -> type:
    """A frozen dataclass registered as a pytree."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def select(mask: Any, new: Any, old: Any) -> Any:
    """Tree-wise `new` where the leading axes' `mask` holds, else `old`."""

    def pick(a: Any, b: Any) -> Any:
        return jnp.where(jnp.reshape(mask, jnp.shape(mask) + (1,) * (jnp.ndim(a) - jnp.ndim(mask))), a, b)

    return jax.tree.map(pick, new, old)


def as_pytree(function: Callable[..., Any]) -> Any:
    """A callable that may cross a `jit` boundary: pytrees stay as they are, plain functions become static."""
    is_leaf = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if is_leaf else function
