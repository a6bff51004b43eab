"""What an attack is made of, as plain data for a report."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

_LONGEST_ARRAY = 16


def describe(value: Any) -> Any:
    """The attack, or a part of it, as nested dictionaries of numbers, strings, booleans and None, ready for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, jax.tree_util.Partial):
        return _described_partial(value)
    if isinstance(value, Mapping):
        numbers = _count_of_weights(value)
        return (
            f"{numbers} numbers"
            if numbers > _LONGEST_ARRAY
            else {str(name): describe(part) for name, part in value.items()}
        )
    if isinstance(value, tuple | list):
        return _described_sequence(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _described_array(value)
    return _described_atom(value)


def _described_partial(value: jax.tree_util.Partial) -> Any:
    bound = {str(i): part for i, part in enumerate(value.args)} | value.keywords
    parts = {name: describe(part) for name, part in bound.items()}
    return {"type": describe(value.func), **parts} if bound else describe(value.func)


def _count_of_weights(value: Mapping[str, Any]) -> int:
    """How many numbers a tree of arrays holds, such as a network's variables; 0 for any other mapping."""
    leaves = jax.tree.leaves(value)
    if not all(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves):
        return 0
    return sum(leaf.size for leaf in leaves)


def _described_sequence(value: Any) -> Any:
    """A list; of an optax rule, which is a tuple of functions, the name of what made it."""
    if value and all(callable(part) and not dataclasses.is_dataclass(part) for part in value):
        return describe(value[0])
    return [describe(part) for part in value]


def _described_array(value: Any) -> Any:
    value = np.asarray(value)
    if value.size > _LONGEST_ARRAY:
        return f"{value.dtype}{list(value.shape)}"
    return jax.tree.map(_described_atom, value.tolist())


def _described_atom(value: Any) -> Any:
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__).split(".<locals>")[0]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)


_SILENT = ("type", "shared", "rule", "gradient_rule")
_WRAPPED = ("attack", "space", "solver")


def summarise(description: Any) -> str:
    """A description on one line, such as `Restarts(IterativeAttack(Lifted(LInf(radius=0.1)), ...), n=3)`.

    What says little is left out: flags that are False, empty lists, and optax rules, which have no readable parameters.
    """
    if isinstance(description, list):
        return f"[{', '.join(map(summarise, description))}]"
    if not isinstance(description, Mapping):
        return f"{description:.6g}" if isinstance(description, float) else str(description)
    parts = []
    for name, part in description.items():
        if name not in _SILENT and part is not None and part is not False and part != []:
            is_wrapped = isinstance(part, Mapping) and name in _WRAPPED
            parts.append(summarise(part) if is_wrapped else f"{name}={summarise(part)}")
    return f"{description.get('type', '')}({', '.join(parts)})"


def flatten(description: Any, path: str = "") -> dict[str, Any]:
    """A description as one level: `{"space.radius": 0.1, ...}`, a part's type standing under its own path."""
    if isinstance(description, list):
        description = {str(i): part for i, part in enumerate(description)}
    if not isinstance(description, Mapping):
        return {path: description}
    flat: dict[str, Any] = {}
    for name, part in description.items():
        flat |= flatten(part, path if name == "type" and path else f"{path}.{name}" if path else name)
    return flat
