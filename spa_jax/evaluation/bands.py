"""Bounds of a function of arrays around lines in one number, equation by equation of its jaxpr."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from spa_jax.errors import SpaError
from spa_jax.victims.rewriting import compute, nested_jaxprs


class MissingRuleError(SpaError):
    """A function holds a primitive whose bounds are not known."""


_WIDE = 4
"""Bytes of the narrowest whole numbers that have rules."""


class Band(NamedTuple):
    """Bounds of an array while a number t goes from -1 to 1, entry by entry: `below + slope t` and `above + slope t`.

    All entries share t, so that what moves together adds up as it moves, where plain intervals add up sizes. A band
    with a slope of 0 is a plain interval.
    """

    below: Any
    above: Any
    slope: Any

    @classmethod
    def between(cls, low: Any, high: Any) -> "Band":
        """A plain interval."""
        return cls(low, high, jnp.zeros_like(low))

    @classmethod
    def around(cls, middle: Any, slope: Any, spread: Any) -> "Band":
        """All that is no farther than a spread from a line."""
        return cls(middle - spread, middle + spread, slope)

    @property
    def middle(self) -> Any:
        """The line in the middle at t = 0."""
        return (self.below + self.above) / 2

    @property
    def spread(self) -> Any:
        """How far values may lie from the line in the middle."""
        return (self.above - self.below) / 2

    @property
    def low(self) -> Any:
        """The least value."""
        return self.below - jnp.abs(self.slope)

    @property
    def high(self) -> Any:
        """The largest value."""
        return self.above + jnp.abs(self.slope)


def narrower(a: Band, b: Band) -> Band:
    """Of each entry the band with less spread."""
    return Band(*(jnp.where(a.spread <= b.spread, own, other) for own, other in zip(a, b, strict=True)))


def output_bounds(function: Callable[[Any], Any], band: Band) -> Band:
    """Bounds of what a function of one array gives anywhere in a band.

    Without slopes it is interval bound propagation (Gowal et al. 2018). With them it is a zonotope with one generator
    and a box around it (after Gehr et al. 2018, "AI2", and Singh et al. 2018, "Fast and Effective Robustness
    Certification", for ReLU). Bounds hold up to the rounding of the arrays' type, and grow looser with each layer.

    Args:
        function: from an array to an array, of sums, products with what is fixed, convolutions, poolings, maxima and
            increasing functions, also in nested `jit`.
        band: of the array.

    Raises:
        MissingRuleError: the function holds a primitive without a rule; the message names it.
    """
    _, out = passed_equations(function, band)
    return out if isinstance(out, Band) else Band.between(out, out)


class Passed(NamedTuple):
    """An equation that what moves has passed.

    Attributes:
        equation: of a jaxpr.
        inputs: bands, and arrays that are fixed.
        outputs: bands, each the same object where it is an input later.
    """

    equation: Any
    inputs: Sequence[Any]
    outputs: Sequence[Band]

    @property
    def name(self) -> str:
        """Of the primitive."""
        return self.equation.primitive.name

    @property
    def moving(self) -> list[Band]:
        """The inputs that are bands."""
        return [own for own in self.inputs if isinstance(own, Band)]

    @property
    def fixed(self) -> list[Any]:
        """The inputs that are arrays."""
        return [own for own in self.inputs if not isinstance(own, Band)]

    @property
    def is_linear(self) -> bool:
        """Whether it is linear in what moves; whole numbers have no derivative."""
        types = [own.below.dtype for own in self.moving] + [own.aval.dtype for own in self.equation.outvars]
        if not all(jnp.issubdtype(own, jnp.floating) for own in types):
            return False
        divides = self.name == "div" and isinstance(self.inputs[1], Band)
        return self.name in _LINEAR or (self.name in _BILINEAR and len(self.moving) == 1 and not divides)

    @property
    def is_rectifier(self) -> bool:
        """Whether it is the maximum of what moves and what is fixed, as ReLU."""
        (output, *_), shapes = self.equation.outvars, [own.below.shape for own in self.moving]
        return self.name == "max" and shapes == [output.aval.shape]

    def results(self, values: Sequence[Any]) -> list[Any]:
        """What it gives for other values of what moves."""
        left = iter(values)
        return compute(self.equation, *(next(left) if isinstance(own, Band) else own for own in self.inputs))


def passed_equations(function: Callable[[Any], Any], band: Band) -> tuple[list[Passed], Any]:
    """The equations from a band to a function's result in their order, nested ones in their place, and the result.

    The result is an array where it does not depend on the band. Arguments and errors are those of `output_bounds`.
    """
    closed, passed = jax.make_jaxpr(function)(band.middle), list[Passed]()
    (out,) = _evaluate(closed.jaxpr, closed.consts, [band], passed)
    return passed, out


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], passed: list[Passed]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if any(isinstance(own, Band) for own in inputs):
            outputs = _bounds(equation, inputs, passed)
        else:
            outputs = compute(equation, *inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bounds(equation: Any, inputs: Sequence[Any], passed: list[Passed]) -> list[Any]:
    if equation.primitive.name in _NESTED:
        inner = nested_jaxprs(equation)[0]
        return _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs, passed)
    step = Passed(equation, inputs, ())
    outputs = _linear(step) if step.is_linear else [_ruled(step)]
    passed.append(step._replace(outputs=outputs))
    return outputs


def _linear(step: Passed) -> list[Band]:
    """Lines stay lines; what is around them is added up by its size."""
    middles, slopes, spreads = zip(*((own.middle, own.slope, own.spread) for own in step.moving), strict=True)
    middle, slope = jax.jvp(step.results, (middles,), (slopes,))
    return [Band.around(*each) for each in zip(middle, slope, _sizes(step, middles, spreads), strict=True)]


def _sizes(step: Passed, middles: Any, spreads: Any) -> list[Any]:
    if step.name == "sub":
        return [sum(spreads)]
    if step.name in _PRODUCTS:
        sizes = iter(spreads)
        return compute(step.equation, *(next(sizes) if isinstance(own, Band) else jnp.abs(own) for own in step.inputs))
    return [jnp.abs(own) for own in jax.jvp(step.results, (middles,), (spreads,))[1]]


def _ruled(step: Passed) -> Band:
    if step.name in _INCREASING:
        kind = step.equation.outvars[0].aval.dtype
        if not jnp.issubdtype(kind, jnp.floating) and kind.itemsize < _WIDE:
            raise MissingRuleError(
                f"primitive={step.name!r} has no interval rule for {kind}, whose numbers wrap around"
            )
        low, high = (step.results([getattr(own, end) for own in step.moving])[0] for end in ("low", "high"))
        by_ends = Band.between(low, high)
        if not jnp.issubdtype(low.dtype, jnp.floating):
            return by_ends
        if step.is_rectifier:
            return narrower(_rectified(step), by_ends)
        return narrower(_chosen(step), by_ends) if step.name in MAXIMA else by_ends
    if step.name == "mul":
        return _of_corners(step)
    if step.name in (*_LINEAR, *_BILINEAR):
        raise MissingRuleError(
            f"primitive={step.name!r} has an interval rule for floats alone; of a product one side, of a quotient the "
            "divisor, must be fixed"
        )
    known = ", ".join(sorted((*_NESTED, *_LINEAR, *_INCREASING, *_BILINEAR)))
    raise MissingRuleError(f"primitive={step.name!r} has no interval rule; those with one are {known}")


def _of_corners(step: Passed) -> Band:
    """A product takes its extremes at corners."""
    ends = [(own.low, own.high) for own in step.moving]
    corners = jnp.stack([step.results(corner)[0] for corner in itertools.product(*ends)])
    return Band.between(jnp.min(corners, axis=0), jnp.max(corners, axis=0))


class Chord(NamedTuple):
    """Of max(x, c) the line above it, through its values at both ends.

    Attributes:
        crosses: where both sides of c are reached.
        slope: of the chord; 0 or 1 where it does not cross.
        low, middle, high: of x - c.
    """

    crosses: Any
    slope: Any
    low: Any
    middle: Any
    high: Any


def chord_above(step: Passed, middle: Any) -> Chord:
    """The chord of a maximum with what is fixed; `middle` is a value of what moves."""
    (moving,), (fixed,) = step.moving, step.fixed
    low, middle, high = (own - fixed for own in (moving.low, middle, moving.high))
    crosses = (low < 0) & (high > 0)
    slope = jnp.where(crosses, high / jnp.where(crosses, high - low, 1), (low >= 0).astype(low.dtype))
    return Chord(crosses, slope, low, middle, high)


def _rectified(step: Passed) -> Band:
    """max(x, c) lies between its chord and the parallel line through (c, c)."""
    (moving,), (fixed,) = step.moving, step.fixed
    chord = chord_above(step, moving.middle)
    half = jnp.where(chord.crosses, -chord.slope * chord.low / 2, 0)
    middle = fixed + chord.slope * chord.middle + half
    return Band.around(middle, chord.slope * moving.slope, chord.slope * moving.spread + half)


def _chosen(step: Passed) -> Band:
    """A maximum is the entry that is largest in the middle where that stays ahead; else its spread is infinite."""
    (moving,) = step.moving
    stays = leader_stays(step, moving.middle)
    middle, picked = jax.linearize(lambda value: step.results([value])[0], moving.middle)
    return Band.around(middle, picked(moving.slope), jnp.where(stays, picked(moving.spread), jnp.inf))


def leader_stays(step: Passed, middle: Any) -> Any:
    """Whether the entry of a maximum that is largest at a value of what moves is so everywhere."""
    (moving,) = step.moving
    largest, pull = jax.vjp(lambda value: step.results([value])[0], middle)
    (picked,) = pull(jnp.ones_like(largest))
    others = step.results([jnp.where(picked >= 1, -jnp.inf, moving.high)])[0]
    lowest = -step.results([jnp.where(picked >= 1, -moving.low, -jnp.inf)])[0]
    return _are_apart(step.equation) & jnp.isfinite(lowest) & (others <= lowest)


def _are_apart(equation: Any) -> bool:
    """Whether no entry is in two windows."""
    params = equation.params
    if "window_dimensions" not in params:
        return True
    is_dense = math.prod((*params["base_dilation"], *params["window_dilation"])) == 1
    return is_dense and all(map(int.__le__, params["window_dimensions"], params["window_strides"]))


_NESTED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")
_ADDITIVE = (
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
_LINEAR = (*_ADDITIVE, "sub", "neg")
_PRODUCTS = ("dot_general", "conv_general_dilated")
_BILINEAR = ("mul", "div", *_PRODUCTS)
"""Linear where one input alone moves; a divisor must not."""
MAXIMA = ("reduce_max", "reduce_window_max")
"""Maxima of several entries, by the names of their primitives."""
_INCREASING = (
    *_ADDITIVE,
    *MAXIMA,
    "max",
    "min",
    "exp",
    "log",
    "tanh",
    "logistic",
    "sqrt",
    "reduce_min",
    "stop_gradient",
)
"""They lower no output when an input rises."""
