"""Lower bounds of a classifier's margins in a box of images, by lines from the logits back to the pixels."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spa_jax.evaluation.intervals import ADDITIVE, Interval, Passed, passed_equations
from spa_jax.victims.rewriting import compute

Known = Mapping[int, Any]
"""An array for each interval, by its identity."""


def lowest_margins(function: Callable[[Any], Any], box: Interval, label: Int[Array, ""]) -> Float[Array, " k"]:
    """By how much the label's logit is ahead of each other one at least, anywhere in a box of images.

    Every equation between image and logits has a line below and a line above what it gives in the box, and differences
    of logits are carried back along them to the pixels (CROWN: Zhang et al. 2018, "Efficient Neural Network Robustness
    Certification with General Activation Functions"). Small boxes then cost about their width times the gradient, where
    intervals cost it times the sizes of all weights. There are lines for what is linear, ReLU and maxima; the rest
    counts with its interval. The bounds hold up to the rounding of the arrays' type.

    Args:
        function: from an image to logits [k], as for `spa_jax.evaluation.intervals.interval_bounds`.
        box: its corners have the image's shape.
        label: the class.

    Returns:
        [k], infinity at the label.

    Raises:
        MissingRuleError: the function holds a primitive without an interval rule; the message names it.
    """
    root, passed, bounds = passed_equations(function, *box)
    if not isinstance(bounds, Interval):
        return jnp.subtract(bounds[label], bounds).at[label].set(jnp.inf)
    middles = _middles(passed, {id(root): (box.low + box.high) / 2})
    logits, classes = middles[id(bounds)], jnp.arange(bounds.low.shape[-1])

    def lowest(other: Any) -> Any:
        differences = jax.nn.one_hot(label, len(classes)) - jax.nn.one_hot(other, len(classes))
        slopes, lost = _carried_back(passed, middles, {id(bounds): differences})
        reach = jnp.sum(jnp.abs(slopes.get(id(root), 0.0)) * (box.high - box.low) / 2)
        return logits[label] - logits[other] + lost - reach

    by_intervals = bounds.low[label] - bounds.high
    return jnp.maximum(by_intervals, jax.vmap(lowest)(classes)).at[label].set(jnp.inf)


def _middles(passed: Sequence[Passed], known: Known) -> Known:
    """What every equation gives for the image in the middle of the box."""
    known = dict(known)
    for equation, inputs, outputs in passed:
        found = compute(equation, *(known[id(own)] if isinstance(own, Interval) else own for own in inputs))
        known.update(zip(map(id, outputs), found, strict=True))
    return known


def _carried_back(passed: Sequence[Passed], middles: Known, weights: Known) -> tuple[Known, Any]:
    """Slopes and a constant: the weighted results move by no less than slopes times what the box moves, plus it.

    All that moves is told from where it is in the middle of the box.
    """
    weights, constant = dict(weights), jnp.zeros(())
    for step in reversed(passed):
        if (own := weights.pop(id(step.outputs[0]), None)) is None:
            continue
        slopes, lost = _line(step, middles, own)
        constant = constant + lost
        for moving, slope in zip(_moving(step), slopes, strict=False):
            weights[id(moving)] = weights.get(id(moving), 0.0) + slope
    return weights, constant


def _line(step: Passed, middles: Known, weights: Any) -> tuple[Sequence[Any], Any]:
    """A line below a weighted sum of one equation's results: slopes of the moving inputs, none if 0, and a constant."""
    name, moving = step.equation.primitive.name, _moving(step)
    if not all(jnp.issubdtype(own.low.dtype, jnp.floating) for own in moving):  # whole numbers have no derivative
        return (), _gap(step, middles, weights, step.outputs[0])
    if name in _LINEAR or (name in _BILINEAR and len(moving) == 1):
        return _pulled(step, middles)(weights), 0.0
    if name == "max" and len(moving) == 1 and moving[0].low.shape == weights.shape:
        return _rectified(step, middles, weights)
    if name in _MAXIMA:
        return _chosen(step, middles, weights)
    return (), _gap(step, middles, weights, step.outputs[0])


def _moving(step: Passed) -> list[Interval]:
    return [own for own in step.inputs if isinstance(own, Interval)]


def _pulled(step: Passed, middles: Known) -> Callable[[Any], Sequence[Any]]:
    """From weights of an equation's results to those of its moving inputs, by its derivative in the middle."""

    def result(*values: Any) -> Any:
        left = iter(values)
        return compute(step.equation, *(next(left) if isinstance(own, Interval) else own for own in step.inputs))[0]

    return jax.vjp(result, *(middles[id(own)] for own in _moving(step)))[1]


def _gap(step: Passed, middles: Known, weights: Any, bounds: Interval) -> Any:
    """The least that weighted results within bounds are above those in the middle."""
    middle = middles[id(step.outputs[0])]
    return jnp.sum(jnp.where(weights > 0, weights * (bounds.low - middle), weights * (bounds.high - middle)))


def _rectified(step: Passed, middles: Known, weights: Any) -> tuple[Sequence[Any], Any]:
    """max(x, c): the chord is above it, and one of its two parts below, the one that leaves less between them."""
    (moving,), (fixed,) = _moving(step), [own for own in step.inputs if not isinstance(own, Interval)]
    low, high, middle = (own - fixed for own in (*moving, middles[id(moving)]))
    crosses = (low < 0) & (high > 0)
    chord = jnp.where(crosses, high / jnp.where(crosses, high - low, 1), (low >= 0).astype(low.dtype))
    part = jnp.where(crosses, (high > -low).astype(low.dtype), chord)
    lost = jnp.where(crosses, jnp.where(weights > 0, part * middle, chord * (middle - low)) - jnp.maximum(middle, 0), 0)
    return (weights * jnp.where(weights > 0, part, chord),), jnp.sum(weights * lost)


def _chosen(step: Passed, middles: Known, weights: Any) -> tuple[Sequence[Any], Any]:
    """A maximum is no less than the entry that is largest in the middle, and no more where that stays ahead."""
    (moving,), equation = _moving(step), step.equation
    pull = _pulled(step, middles)
    (picked,) = pull(jnp.ones_like(weights))
    others = compute(equation, jnp.where(picked >= 1, -jnp.inf, moving.high))[0]
    lowest = -compute(equation, jnp.where(picked >= 1, -moving.low, -jnp.inf))[0]
    stays = _are_apart(equation) & jnp.isfinite(lowest) & (others <= lowest)
    follows = (weights > 0) | stays
    return pull(jnp.where(follows, weights, 0)), _gap(step, middles, jnp.where(follows, 0, weights), step.outputs[0])


def _are_apart(equation: Any) -> bool:
    """Whether no entry is in two windows."""
    params = equation.params
    if "window_dimensions" not in params:
        return True
    is_dense = math.prod((*params["base_dilation"], *params["window_dilation"])) == 1
    return is_dense and all(map(int.__le__, params["window_dimensions"], params["window_strides"]))


_LINEAR = (*ADDITIVE, "sub", "neg")
_BILINEAR = ("mul", "div", "dot_general", "conv_general_dilated")
"""Linear where one input alone moves."""
_MAXIMA = ("reduce_max", "reduce_window_max")
