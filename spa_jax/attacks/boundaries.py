"""Linearised decision boundaries: which one is nearest, and the shortest way onto it, with or without the image's box.

All functions are written for ONE image. A boundary is a `gap`, by how much another class's logit lies above (or below)
the label's, and its `slope`, the gradient of the gap [h, w, c]: the other class wins where the gap is positive.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.numerics import last_and_next, time_to_reach
from spa_jax.spaces.noise import TINY, l1_norm, l2_norm
from spa_jax.types import Image

_FLATTEST = 1e-12
"""The smallest slope of a pixel that counts, in units of the largest one."""


def linf_norm(v: Any) -> Any:
    """The largest magnitude."""
    return jnp.max(jnp.abs(v))


VECTOR_NORMS: Mapping[str, Callable[[Any], Any]] = {"linf": linf_norm, "l2": l2_norm, "l1": l1_norm}
"""The norms of one image by name."""
_DUAL = {"linf": l1_norm, "l2": l2_norm, "l1": linf_norm}


def distance_to(gap: Any, slope: Image, norm: str) -> Any:
    """How far the linearised boundary lies from the image, the box ignored (Hoelder's inequality)."""
    return jnp.abs(gap) / (_DUAL[norm](slope) + TINY)


def nearest(gaps: Any, slopes: Any, norm: str) -> tuple[Any, Image]:
    """The gap and the slope of the nearest of several boundaries [m]."""
    distances = jax.vmap(lambda gap, slope: distance_to(gap, slope, norm))(gaps, slopes)
    chosen = jnp.argmin(distances)
    return gaps[chosen], slopes[chosen]


def onto(gap: Any, slope: Image, norm: str) -> Image:
    """The shortest change, in linf or l2, whose linearised gain is `gap`, the box ignored (Moosavi-Dezfooli et al.)."""
    dual = _DUAL[norm](slope) + TINY
    along = jnp.sign(slope) if norm == "linf" else slope / dual
    return gap / dual * along


def onto_within_image(image: Image, gap: Any, slope: Image, norm: str) -> Image:
    """The shortest change d with `slope . d = gap` and `image + d` in [0, 1]; where there is none, the largest gain.

    The projections of Croce & Hein 2020 (section 3.1 and appendix A): in linf and l2 every pixel moves in proportion to
    a speed until it meets its bound, so the gain is piecewise linear in the time; in l1 the pixels of the steepest
    slopes are used up one after the other. The paper sorts the pixels, which takes most of a step on a CPU; here what
    separates the pixels that reach their bounds from the others is searched, exactly too.

    Args:
        image: [h, w, c] in [0, 1].
        gap: what is to be gained; negative: to be lost.
        slope: [h, w, c].
        norm: "linf", "l2" or "l1".
    """
    largest = linf_norm(slope)
    largest = jnp.where(largest > 0, largest, 1)
    slope, needed = jnp.where(gap < 0, -slope, slope) / largest, jnp.abs(gap) / largest
    needed = jnp.where(jnp.isnan(needed), jnp.inf, needed)
    steepness = jnp.abs(slope)
    room = jnp.where(steepness > _FLATTEST, jnp.where(slope > 0, 1 - image, image), 0)
    if norm == "l1":
        size = _greedily(needed, steepness, room)
    else:
        size = _at_speed(jnp.ones_like(slope) if norm == "linf" else steepness, needed, steepness, room)
    return jnp.sign(slope) * size


def _at_speed(speed: Image, needed: Any, steepness: Image, room: Image) -> Image:
    """How far each pixel moves when all go at their speeds, up to their room, until the gain is reached."""
    time = time_to_reach(needed, steepness * speed, steepness * room)
    return jnp.where(room > 0, jnp.clip(time * speed, 0, room), 0)


def _greedily(needed: Any, steepness: Image, room: Image) -> Image:
    """How far each pixel moves when the steepest are used up first, until the gain is reached; equal ones share."""
    gains = steepness * room
    _, least = last_and_next(
        lambda bound: jnp.sum(jnp.where(steepness > bound, gains, 0)) > needed, jnp.ones_like(needed)
    )
    first, last = steepness > least, steepness == least
    left = needed - jnp.sum(jnp.where(first, gains, 0))
    share = jnp.clip(left / (jnp.sum(jnp.where(last, gains, 0)) + TINY), 0, 1)
    return jnp.where(first, room, jnp.where(last, share * room, 0))
