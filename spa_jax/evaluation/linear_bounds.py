"""Lower bounds of a classifier's margins in a band of images, by lines from the logits back to the pixels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spa_jax.evaluation.bands import MAXIMA, Band, Passed, chord_above, leader_stays, passed_equations

Known = Mapping[int, Any]
"""An array for each band, by its identity."""


def lowest_margins(function: Callable[[Any], Any], band: Band, label: Int[Array, ""]) -> Float[Array, " k"]:
    """By how much the label's logit is ahead of each other one at least, anywhere in a band of images.

    Every equation between image and logits has a line below and a line above what it gives in the band, and differences
    of logits are carried back along them to the pixels (CROWN: Zhang et al. 2018, "Efficient Neural Network Robustness
    Certification with General Activation Functions"). Narrow bands then cost about their width times the gradient,
    where intervals cost it times the sizes of all weights. There are lines for what is linear, ReLU and maxima; the
    rest counts with its interval. The bounds hold up to the rounding of the arrays' type.

    Args:
        function: from an image to logits [k], as for `spa_jax.evaluation.bands.output_bounds`.
        band: of the image.
        label: the class.

    Returns:
        [k], infinity at the label.

    Raises:
        MissingRuleError: the function holds a primitive without an interval rule; the message names it.
    """
    passed, bounds = passed_equations(function, band)
    if not isinstance(bounds, Band):
        return jnp.subtract(bounds[label], bounds).at[label].set(jnp.inf)
    middles = _middles(passed, {id(band): band.middle})
    logits, classes = middles[id(bounds)], jnp.arange(bounds.below.shape[-1])

    def lowest(other: Any) -> Any:
        differences = jax.nn.one_hot(label, len(classes)) - jax.nn.one_hot(other, len(classes))
        slopes, lost = _carried_back(passed, middles, {id(bounds): differences})
        slope = slopes.get(id(band), jnp.zeros_like(band.slope))
        reach = jnp.abs(jnp.sum(slope * band.slope)) + jnp.sum(jnp.abs(slope) * band.spread)
        return logits[label] - logits[other] + lost - reach

    forwards = bounds.below[label] - bounds.above - jnp.abs(bounds.slope[label] - bounds.slope)
    return jnp.maximum(forwards, jax.vmap(lowest)(classes)).at[label].set(jnp.inf)


def _middles(passed: Sequence[Passed], known: Known) -> Known:
    """What every equation gives for the image in the middle of the band."""
    known = dict(known)
    for step in passed:
        found = step.results([known[id(own)] for own in step.moving])
        known.update(zip(map(id, step.outputs), found, strict=True))
    return known


def _carried_back(passed: Sequence[Passed], middles: Known, weights: Known) -> tuple[Known, Any]:
    """Slopes and a constant: the weighted results move by no less than slopes times what the band moves, plus it.

    All that moves is told from where it is in the middle of the band.
    """
    weights, constant = dict(weights), jnp.zeros(())
    for step in reversed(passed):
        if (own := weights.pop(id(step.outputs[0]), None)) is None:
            continue
        slopes, lost = _line(step, middles, own)
        constant = constant + lost
        for moving, slope in zip(step.moving, slopes, strict=False):
            weights[id(moving)] = weights.get(id(moving), 0.0) + slope
    return weights, constant


def _line(step: Passed, middles: Known, weights: Any) -> tuple[Sequence[Any], Any]:
    """A line below a weighted sum of one equation's results: slopes of the moving inputs, none if 0, and a constant."""
    if step.is_linear:
        return _pulled(step, middles)(weights), 0.0
    if step.is_rectifier:
        return _rectified(step, middles, weights)
    if step.name in MAXIMA:
        return _chosen(step, middles, weights)
    return (), _gap(step, middles, weights)


def _pulled(step: Passed, middles: Known) -> Callable[[Any], Sequence[Any]]:
    """From weights of an equation's results to those of its moving inputs, by its derivative in the middle."""
    return jax.vjp(lambda *values: step.results(values)[0], *(middles[id(own)] for own in step.moving))[1]


def _gap(step: Passed, middles: Known, weights: Any) -> Any:
    """The least that weighted results within their bounds are above those in the middle."""
    (bounds,), middle = step.outputs, middles[id(step.outputs[0])]
    return jnp.sum(jnp.where(weights > 0, weights * (bounds.low - middle), weights * (bounds.high - middle)))


def _rectified(step: Passed, middles: Known, weights: Any) -> tuple[Sequence[Any], Any]:
    """max(x, c): the chord is above it, and one of its two parts below, the one that leaves less between them."""
    chord = chord_above(step, middles[id(step.moving[0])])
    part = jnp.where(chord.crosses, (chord.high > -chord.low).astype(chord.low.dtype), chord.slope)
    line = jnp.where(weights > 0, part * chord.middle, chord.slope * (chord.middle - chord.low))
    lost = jnp.where(chord.crosses, line - jnp.maximum(chord.middle, 0), 0)
    return (weights * jnp.where(weights > 0, part, chord.slope),), jnp.sum(weights * lost)


def _chosen(step: Passed, middles: Known, weights: Any) -> tuple[Sequence[Any], Any]:
    """A maximum is no less than the entry that is largest in the middle, and no more where that stays ahead."""
    follows = (weights > 0) | leader_stays(step, middles[id(step.moving[0])])
    return _pulled(step, middles)(jnp.where(follows, weights, 0)), _gap(step, middles, jnp.where(follows, 0, weights))
