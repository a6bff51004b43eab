"""Bounded noise around the image: balls of the norms l-infinity, l2 and l1, each within the image's [0, 1]."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.numerics import (
    Grid,
    clip_to_unit,
    in_dtype_of,
    last_and_next,
    on_grid,
    on_grid_within,
    time_to_reach,
    times,
)
from spa_jax.spaces.base import SpaceBase
from spa_jax.trees import pytree, repeat, static
from spa_jax.types import Example, Image, Scalar, Space
from spa_jax.validation import is_traced, require_choice, require_number

TINY = 1e-12
_ROUNDING = 1e-6
_BISECTIONS_ON_GRID = 12


def checked_radius(radius: Scalar) -> Scalar:
    """A radius of 0 or larger.

    Raises:
        ValueError: it is negative, or not a number.
    """
    return require_number("radius", radius, "a radius, 0 or larger", lambda r: r >= 0)


def _within_image(noise: Any, example: Example | None) -> Any:
    if example is None:
        return noise
    return jnp.clip(noise, -example.image, 1 - example.image)


class _Noise(SpaceBase):
    """What the norm balls share: additive noise, zero as the identity."""

    radius: Any

    def scaled(self, share: Any) -> Any:
        return dataclasses.replace(self, radius=times(share, self.radius))  # type: ignore[type-var]

    def identity(self, example: Example) -> Image:
        return jnp.zeros_like(example.image)

    def apply(self, v: Image, example: Example) -> Image:
        return _clip_rounding(example.image + v)


@jax.custom_jvp
def _clip_rounding(x: Any) -> Any:
    """`clip_to_unit` with gradient 1 also a rounding error outside.

    Projection and application compute an edited image separately, so noise that ends at a bound may overshoot by 1e-8.
    """
    return clip_to_unit(x)


@_clip_rounding.defjvp
def _clip_rounding_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (x,), (dot,) = primals, tangents
    return clip_to_unit(x), jnp.where(_is_outside(x), 0, dot)


def _is_outside(x: Any) -> Any:
    return (x < -_ROUNDING) | (x > 1 + _ROUNDING)


@pytree
class LInf(_Noise):
    """Noise with every pixel within `radius`; see `linf`."""

    radius: Any

    def init(self, key: Any, example: Example) -> Image:
        image = example.image
        noise = jax.random.uniform(key, image.shape, image.dtype, -1.0, 1.0) * in_dtype_of(self.radius, image)
        return self.project(noise, example)

    def project(self, v: Image, example: Example | None) -> Image:
        radius = in_dtype_of(self.radius, v)
        return _within_image(jnp.clip(v, -radius, radius), example)

    def direction(self, g: Image) -> Image:
        return in_dtype_of(self.radius, g) * jnp.sign(g)

    def onto_grid(self, image: Image, example: Example, grid: Grid) -> Image:
        return on_grid_within(image, example.image, in_dtype_of(self.radius, image), grid)


@pytree
class L2(_Noise):
    """Noise of Euclidean norm within `radius`; see `l2`."""

    radius: Any

    def init(self, key: Any, example: Example) -> Image:
        image = example.image
        direction_key, length_key = jax.random.split(key)
        noise = jax.random.normal(direction_key, image.shape, image.dtype)
        length = jax.random.uniform(length_key, (), image.dtype) ** (1 / image.size)
        return self.project(in_dtype_of(self.radius, image) * length * noise / l2_norm(noise), example)

    def project(self, v: Image, example: Example | None) -> Image:
        radius = in_dtype_of(self.radius, v)
        return _project_onto_ball(v, example, radius, l2_norm, _l2_shrunk)

    def direction(self, g: Image) -> Image:
        return in_dtype_of(self.radius, g) * unit_l2(g)

    def onto_grid(self, image: Image, example: Example, grid: Grid) -> Image:
        return _ball_onto_grid(image, example, in_dtype_of(self.radius, image), l2_norm, grid)


@pytree
class L1(_Noise):
    """Noise of L1 norm within `radius`; see `l1`."""

    radius: Any
    sparsity: float = static(default=0.99)

    def init(self, key: Any, example: Example) -> Image:
        image = example.image
        noise_key, slack_key = jax.random.split(key)
        noise = jax.random.laplace(noise_key, image.shape, image.dtype)
        slack = jax.random.exponential(slack_key, (), image.dtype)
        return self.project(in_dtype_of(self.radius, image) * noise / (l1_norm(noise) + slack), example)

    def project(self, v: Image, example: Example | None) -> Image:
        radius = in_dtype_of(self.radius, v)
        return _project_onto_ball(v, example, radius, l1_norm, _l1_shrunk)

    def direction(self, g: Image) -> Image:
        return self.sparse_direction(g, round((1 - self.sparsity) * g.size))

    def sparse_direction(self, g: Image, entries: Any) -> Image:
        """A step, one radius long, that moves by one amount the `entries` (at least 1) with the largest gradients."""
        magnitude = jnp.abs(g)
        count = jnp.clip(entries, 1, g.size)
        smallest, _ = last_and_next(
            lambda least: jnp.sum(magnitude >= least, dtype=jnp.int32) >= count, jnp.max(magnitude)
        )
        chosen = jnp.where((magnitude >= smallest) & (magnitude > 0), jnp.sign(g), 0)
        return in_dtype_of(self.radius, g) * chosen / (l1_norm(chosen) + TINY)

    def apply(self, v: Image, example: Example) -> Image:
        return _add_within_unit(example.image, v)

    def onto_grid(self, image: Image, example: Example, grid: Grid) -> Image:
        return _ball_onto_grid(image, example, in_dtype_of(self.radius, image), l1_norm, grid)


@jax.custom_vjp
def _add_within_unit(image: Image, v: Image) -> Image:
    """The clipped sum, whose gradient in `v` is 0 at a pixel that already lies on the bound it points to.

    A sparse step would otherwise be spent on pixels that cannot move, again and again.
    """
    return clip_to_unit(image + v)


def _add_forward(image: Image, v: Image) -> tuple[Image, tuple[Image, Image]]:
    return _add_within_unit(image, v), (image, v)


def _add_backward(inputs: tuple[Image, Image], cotangent: Image) -> tuple[Image, Image]:
    total = inputs[0] + inputs[1]
    stuck = ((total >= 1 - _ROUNDING) & (cotangent > 0)) | ((total <= _ROUNDING) & (cotangent < 0))
    inside = jnp.where(_is_outside(total), 0, cotangent)
    return inside, jnp.where(stuck, 0, inside)


_add_within_unit.defvjp(_add_forward, _add_backward)


def l2_norm(v: Any) -> Any:
    """The norm, with gradient 0 at 0 instead of NaN, for those who differentiate through an attack."""
    squared = jnp.sum(v**2)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def unit_l2(g: Any) -> Any:
    """`g` at L2 norm 1, however small a saturated victim has made it; zero stays zero."""
    largest = jnp.max(jnp.abs(g))
    scaled = g / jnp.where(largest > 0, largest, 1)
    return scaled / (l2_norm(scaled) + TINY)


def l1_norm(v: Any) -> Any:
    """The sum of magnitudes."""
    return jnp.sum(jnp.abs(v))


def _project_onto_ball(v: Any, example: Example | None, radius: Any, norm: Any, shrunk: Any) -> Any:
    """The Euclidean projection onto ball and image box at once.

    The multiplier of the norm constraint shrinks every pixel separately before the box cuts it, and the norm falls
    as it grows (KKT conditions; Croce & Hein 2021, section 2, for L1). `shrunk` finds it from each pixel and its room
    within the box, and gives the noise before it is cut; the multiplier counts as a constant in gradients.
    """
    boxed = _within_image(v, example)
    room = jnp.full_like(v, jnp.inf) if example is None else jnp.where(v > 0, 1 - example.image, example.image)
    cut = _within_image(shrunk(v, *jax.lax.stop_gradient((room, radius))), example)
    length = norm(cut)
    cut *= jax.lax.stop_gradient(jnp.where(length > radius, radius / length, 1))  # what rounding has left
    found = jnp.where(norm(boxed) <= radius * (1 + _ROUNDING), boxed, cut)
    # Squares of tiny noise vanish, so a norm of 0 may come from nonzero noise.
    return jnp.where(radius > 0, found, jnp.zeros_like(found))


def _l2_shrunk(v: Any, room: Any, radius: Any) -> Any:
    """`v` scaled down: a pixel's square grows with the square of the scale, up to that of its room."""
    magnitude = jax.lax.stop_gradient(jnp.abs(v))
    most = jnp.max(magnitude)
    unit = jnp.where(most > 0, most, 1)
    steepness, bounds = magnitude / unit, jnp.minimum(room, magnitude)
    scale = jnp.minimum(jnp.sqrt(time_to_reach(radius**2, steepness**2, bounds**2)), most)
    return v * (scale / unit)


def _l1_shrunk(v: Any, room: Any, radius: Any) -> Any:
    """`v` with every magnitude less by one amount: by Newton's method, or bisection where that leaves the bracket."""
    magnitude = jax.lax.stop_gradient(jnp.abs(v))
    rounding = 4 * jnp.finfo(v.dtype).eps

    def narrow(state: tuple[Any, ...]) -> tuple[Any, ...]:
        low, high, amount, _ = state
        left = magnitude - amount
        above = jnp.sum(jnp.clip(left, 0, room)) - radius
        moving = jnp.sum((left > 0) & (left < room), dtype=v.dtype)
        low, high = jnp.where(above > 0, amount, low), jnp.where(above > 0, high, amount)
        newton = amount + above / jnp.maximum(moving, 1)
        is_there = (jnp.abs(above) <= rounding * radius) | ((moving > 0) & (newton == amount))
        trusted = (moving > 0) & (newton > low) & (newton < high)
        following = jnp.where(trusted, newton, low + (high - low) / 2)
        return low, high, jnp.where(is_there, amount, following), ~is_there & (following != amount)

    start = jnp.zeros_like(jnp.max(magnitude))
    first = narrow((start, jnp.max(magnitude), start, start > 0))
    _, _, amount, _ = jax.lax.while_loop(lambda state: state[-1], narrow, first)
    return jnp.sign(v) * jnp.maximum(jnp.abs(v) - amount, 0)


def _ball_onto_grid(image: Any, example: Example, radius: Any, norm: Any, grid: Grid) -> Any:
    return onto_grid_inside(image, example, lambda x: norm(x - example.image) <= radius * (1 + _ROUNDING), grid)


def onto_grid_inside(image: Any, example: Example, inside: Callable[[Any], Any], grid: Grid) -> Any:
    """The largest share of the noise, found by bisection, whose image is `inside` when each pixel is rounded."""
    noise = image - example.image

    def at(share: Any) -> Any:
        return on_grid(example.image + share * noise, grid)

    def is_inside(share: Any) -> Any:
        return inside(at(share))

    def halve(bounds: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = bounds
        middle = (low + high) / 2
        is_low = is_inside(middle)
        return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

    nothing, all_of_it = jnp.zeros((), image.dtype), jnp.ones((), image.dtype)
    low, _ = repeat(halve, (nothing, all_of_it), _BISECTIONS_ON_GRID)
    return at(jnp.where(is_inside(all_of_it), all_of_it, low))


def linf(radius: Scalar) -> LInf:
    """Noise with every pixel within `radius` of the image, and the sum within [0, 1].

    Args:
        radius: largest change of a pixel, on the [0, 1] scale. A random start is uniform in the cube (Madry et al.
            2018, section 5).

    Warns:
        UserWarning: `radius` is larger than 1, the range of pixels: probably it is one of 0..255.

    Raises:
        ValueError: `radius` is negative.
    """
    radius = checked_radius(radius)
    if not is_traced(radius) and (given := float(radius)) > 1:
        warnings.warn(
            f"radius={given:g} is larger than the range of pixels, [0, 1]: did you mean {given:g}/255?", stacklevel=3
        )
    return LInf(radius)


def l2(radius: Scalar) -> L2:
    """Noise of Euclidean norm at most `radius` over all pixels of an image, and the sum within [0, 1].

    The projection is the exact one onto ball and box together. A random start is uniform in the ball.

    Raises:
        ValueError: `radius` is negative.
    """
    return L2(checked_radius(radius))


def l1(radius: Scalar, sparsity: float = 0.99) -> L1:
    """Noise of L1 norm at most `radius` over all pixels of an image, and the sum within [0, 1].

    The projection is the exact one onto ball and box together (Croce & Hein 2021). A step moves the share
    `1 - sparsity` of the pixels with the largest gradients (Tramer & Boneh 2019, SLIDE; 0.99 is their setting), out of
    those that are not on the bound they would move to.

    Raises:
        ValueError: `radius` is negative, or `sparsity` outside [0, 1).
    """
    sparsity = require_number("sparsity", sparsity, "in [0, 1)", lambda s: 0 <= s < 1)
    return L1(checked_radius(radius), sparsity)


NORMS: Mapping[str, Callable[[Any], Space]] = {"linf": linf, "l2": l2, "l1": l1}
"""The balls of noise by the name of their norm."""


def noise_ball(norm: str, radius: Scalar) -> Space:
    """The ball of noise of a norm by name.

    Raises:
        ValueError: unknown norm, or a negative radius.
    """
    require_choice("norm", norm, tuple(NORMS))
    return NORMS[norm](radius)
