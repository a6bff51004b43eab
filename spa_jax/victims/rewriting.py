"""A function rewritten for a CPU: its convolutions and max-poolings in forms that are quick there, all else untouched.

The function is traced, and its jaxpr is evaluated with other functions in the place of some equations.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

from spa_jax.victims.convolution import convolution
from spa_jax.victims.pooling import LARGEST_WINDOW, max_pool

Rule = Callable[[Any], Callable[..., list[Any]] | None]
"""From an equation to what computes its outputs from its inputs, or None to leave it as it is."""

_NESTING = ("jit", "pjit", "closed_call", "scan", "while", "cond")


def quick(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with quick convolutions and max-poolings where JAX runs on a CPU, and itself elsewhere.

    Replaced are 2-D convolutions of NHWC images with HWIO kernels without groups or kernel dilation, and max-poolings
    of tiles that do not overlap, of up to 16 values; in nested `jit`, `checkpoint`, `scan`, `while_loop` and `cond`
    too. Everything else stays, functions with derivatives of their own as a whole. Values and gradients are equal up to
    rounding. The replacements rule out forward mode (`jvp`, `linearize`, `jacfwd`) of the result; a function that uses
    it inside is fine.

    Args:
        function: of pytrees of arrays; it may close over traced arrays.
    """

    @functools.wraps(function)
    def rewritten(*args: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(*args)
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        values = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), quick_form)
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return rewritten


def evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], rule: Rule) -> list[Any]:
    """The outputs of a jaxpr, where `rule` replaces equations of it and of the jaxprs nested in it."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        form = rule(equation) or _within(equation, rule)
        with equation.ctx.manager:
            values.update(zip(equation.outvars, form(*map(read, equation.invars)), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def compute(equation: Any, *inputs: Any) -> list[Any]:
    """The outputs of an equation as it is."""
    return _bind(equation, equation.params, *inputs)


def _bind(equation: Any, params: Any, *inputs: Any) -> list[Any]:
    bound = equation.primitive.get_bind_params(params)
    subfunctions, params = bound if isinstance(bound, tuple) else ((), bound)
    outputs = equation.primitive.bind(*subfunctions, *inputs, **params)
    return outputs if equation.primitive.multiple_results else [outputs]


# --- nested jaxprs --------------------------------------------------------------------------------------------------


def nested_jaxprs(equation: Any) -> list[Any]:
    """The jaxprs, closed or open, among an equation's parameters."""
    return [
        jaxpr
        for value in equation.params.values()
        for jaxpr in (value if isinstance(value, tuple | list) else (value,))
        if isinstance(jaxpr, core.Jaxpr | core.ClosedJaxpr)
    ]


def _nests_replaced(equation: Any, rule: Rule) -> bool:
    is_remat = equation.primitive is primitives.remat_p and not equation.params["differentiated"]
    if not is_remat and equation.primitive.name not in _NESTING:
        return False
    inner = [nested for jaxpr in nested_jaxprs(equation) for nested in getattr(jaxpr, "jaxpr", jaxpr).eqns]
    return any(rule(nested) or _nests_replaced(nested, rule) for nested in inner)


def _within(equation: Any, rule: Rule) -> Callable[..., list[Any]]:
    if not _nests_replaced(equation, rule):
        return functools.partial(compute, equation)
    if equation.primitive is primitives.remat_p:
        return _checkpointed(equation, rule)
    params = {name: _rewritten(value, rule) for name, value in equation.params.items()}
    return functools.partial(_bind, equation, params)


def _rewritten(value: Any, rule: Rule) -> Any:
    if isinstance(value, tuple | list) and any(isinstance(part, core.ClosedJaxpr) for part in value):
        return type(value)(_rewritten(part, rule) for part in value)
    if not isinstance(value, core.ClosedJaxpr):
        return value
    return jax.make_jaxpr(lambda *args: evaluate(value.jaxpr, value.consts, args, rule))(*map(_like, value.in_avals))


def _like(aval: Any) -> Any:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=True) if getattr(aval, "weak_type", False) else aval


def _checkpointed(equation: Any, rule: Rule) -> Callable[..., list[Any]]:
    inner, settings = equation.params["jaxpr"], equation.params
    return jax.checkpoint(
        lambda *inputs: evaluate(inner, (), inputs, rule),
        prevent_cse=settings["prevent_cse"],
        policy=settings["policy"],
    )


# --- what is quick on a CPU -----------------------------------------------------------------------------------------


def quick_form(equation: Any) -> Callable[..., list[Any]] | None:
    """The rule of `quick`."""
    if equation.primitive is primitives.conv_general_dilated_p:
        return _quick_convolution(equation)
    if equation.primitive is primitives.reduce_window_max_p:
        return _quick_max_pool(equation)
    return None


def _quick_convolution(equation: Any) -> Callable[..., list[Any]] | None:
    params = dict(equation.params)
    settings = {
        "window_strides": params.pop("window_strides"),
        "padding": params.pop("padding"),
        "lhs_dilation": params.pop("lhs_dilation"),
        "dimension_numbers": params.pop("dimension_numbers"),
        "precision": params.pop("precision"),
    }
    x, kernel = (atom.aval for atom in equation.invars)
    nhwc = x.ndim == 4 and settings["dimension_numbers"] == jax.lax.conv_dimension_numbers(
        x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC")
    )
    is_real = jnp.issubdtype(x.dtype, jnp.floating) and params.pop("preferred_element_type") in (None, x.dtype)
    if not nhwc or not is_real or not all(_is_neutral(value) for value in params.values()):
        return None
    return lambda x, kernel: [convolution(x, kernel, **settings)]


def _is_neutral(value: Any) -> bool:
    return value is None or all(part == 1 for part in (value if isinstance(value, tuple | list) else (value,)))


def _quick_max_pool(equation: Any) -> Callable[..., list[Any]] | None:
    params = dict(equation.params)
    window, strides, padding = (params.pop(name) for name in ("window_dimensions", "window_strides", "padding"))
    (x,) = (atom.aval for atom in equation.invars)
    tiles = tuple(window) == tuple(strides) and all(tuple(pair) == (0, 0) for pair in padding)
    fits = 1 < math.prod(window) <= LARGEST_WINDOW and all(map(operator.le, window, x.shape))
    real = jnp.issubdtype(x.dtype, jnp.floating)
    if not (tiles and fits and real and all(_is_neutral(value) for value in params.values())):
        return None
    return lambda x: [max_pool(x, window)]
