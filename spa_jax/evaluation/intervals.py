"""Interval bounds of a function of arrays, equation by equation of its jaxpr."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from spa_jax.errors import SpaError
from spa_jax.victims.rewriting import compute, nested_jaxprs


class MissingRuleError(SpaError):
    """A function holds a primitive whose bounds are not known."""


class Interval(NamedTuple):
    """Bounds of an array, entry by entry."""

    low: Any
    high: Any


def interval_bounds(function: Callable[[Any], Any], low: Any, high: Any) -> Interval:
    """Bounds of what a function of one array gives anywhere in a box (interval bound propagation, Gowal et al. 2018).

    They hold up to the rounding of the arrays' type, and grow looser with each layer: small boxes have useful ones.

    Args:
        function: from an array to an array, of sums, products with what is fixed, convolutions, poolings, maxima and
            increasing functions, also in nested `jit`.
        low, high: the corners of the box, of one shape.

    Raises:
        MissingRuleError: the function holds a primitive without a rule; the message names it.
    """
    _, _, out = passed_equations(function, low, high)
    return out if isinstance(out, Interval) else Interval(out, out)


class Passed(NamedTuple):
    """An equation that what moves has passed.

    Attributes:
        equation: of a jaxpr.
        inputs: intervals, and arrays that are fixed.
        outputs: intervals, each the same object where it is an input later.
    """

    equation: Any
    inputs: Sequence[Any]
    outputs: Sequence[Interval]


def passed_equations(function: Callable[[Any], Any], low: Any, high: Any) -> tuple[Interval, list[Passed], Any]:
    """The box, the equations from there to the result in their order, nested ones in their place, and the result.

    The result is an array where it does not depend on the box. Arguments and errors are those of `interval_bounds`.
    """
    closed, box, passed = jax.make_jaxpr(function)(low), Interval(low, high), list[Passed]()
    (out,) = _evaluate(closed.jaxpr, closed.consts, [box], passed)
    return box, passed, out


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], passed: list[Passed]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if any(isinstance(own, Interval) for own in inputs):
            outputs = _bounds(equation, inputs, passed)
        else:
            outputs = compute(equation, *inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bounds(equation: Any, inputs: Sequence[Any], passed: list[Passed]) -> list[Any]:
    name = equation.primitive.name
    if name in _NESTED:
        inner = nested_jaxprs(equation)[0]
        return _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs, passed)
    outputs = _ends(equation, inputs) if name in _INCREASING else [_ruled(equation, inputs)]
    passed.append(Passed(equation, inputs, outputs))
    return outputs


def _ends(equation: Any, inputs: Sequence[Any]) -> list[Interval]:
    low, high = ([_end(own, end) for own in inputs] for end in ("low", "high"))
    return [Interval(*each) for each in zip(compute(equation, *low), compute(equation, *high), strict=True)]


def _ruled(equation: Any, inputs: Sequence[Any]) -> Interval:
    name = equation.primitive.name
    if name in _RULES:
        return _RULES[name](equation, *inputs)
    known = ", ".join(sorted((*_NESTED, *_INCREASING, *_RULES)))
    raise MissingRuleError(f"primitive={name!r} has no interval rule; those with one are {known}")


def _end(value: Any, end: str) -> Any:
    return getattr(value, end) if isinstance(value, Interval) else value


def _subtract(equation: Any, a: Any, b: Any) -> Interval:
    return Interval(_end(a, "low") - _end(b, "high"), _end(a, "high") - _end(b, "low"))


def _negate(equation: Any, a: Interval) -> Interval:
    return Interval(-a.high, -a.low)


def _of_corners(equation: Any, a: Any, b: Any) -> Interval:
    """A product or quotient takes its extremes at corners; a divisor must be fixed."""
    if equation.primitive.name == "div" and isinstance(b, Interval):
        raise MissingRuleError("primitive='div' has an interval rule for divisors that are fixed alone")
    corners = [compute(equation, _end(a, i), _end(b, j))[0] for i in ("low", "high") for j in ("low", "high")]
    low, high = corners[0], corners[0]
    for corner in corners[1:]:
        low, high = jnp.minimum(low, corner), jnp.maximum(high, corner)
    return Interval(low, high)


def _linear(equation: Any, a: Any, b: Any) -> Interval:
    """A product of matrices or convolution with one fixed side: that of the middle, and of the half width in size."""
    if isinstance(a, Interval) and isinstance(b, Interval):
        raise MissingRuleError(f"primitive={equation.primitive.name!r} has an interval rule with one fixed side alone")
    middle = compute(equation, *((own.low + own.high) / 2 if isinstance(own, Interval) else own for own in (a, b)))[0]
    sizes = ((own.high - own.low) / 2 if isinstance(own, Interval) else jnp.abs(own) for own in (a, b))
    spread = compute(equation, *sizes)[0]
    return Interval(middle - spread, middle + spread)


_NESTED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")
ADDITIVE = (
    "add",
    "reduce_sum",
    "reduce_window_sum",
    "reshape",
    "transpose",
    "broadcast_in_dim",
    "squeeze",
    "slice",
    "stack",
    "rev",
    "concatenate",
    "pad",
    "convert_element_type",
    "copy",
)
"""They add entries, or only move them."""
_INCREASING = (
    *ADDITIVE,
    "max",
    "min",
    "exp",
    "log",
    "tanh",
    "logistic",
    "sqrt",
    "reduce_max",
    "reduce_min",
    "reduce_window_max",
    "stop_gradient",
)
"""They lower no output when an input rises."""
_RULES: dict[str, Callable[..., Interval]] = {
    "sub": _subtract,
    "neg": _negate,
    "mul": _of_corners,
    "div": _of_corners,
    "dot_general": _linear,
    "conv_general_dilated": _linear,
}
