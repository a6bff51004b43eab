"""Spaces: what an attack may change about one image, and the lifts that take a space to a batch.

Every space is a frozen pytree dataclass written for ONE example; its numbers are leaves, so one compiled attack serves
every radius and range. The protocol stands in `spa_jax.types.Space`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spa_jax.attributes import get_edit
from spa_jax.inputs import is_traced, require_array, require_count, require_number
from spa_jax.numerics import clip_to_unit
from spa_jax.trees import as_pytree, pytree, select, static
from spa_jax.types import Evaluation, Example, Image, Scalar, Space, Variables

_TINY = 1e-12
_ROUNDING = 1e-6
_BISECTIONS = 40


def _radius(radius: Scalar) -> Scalar:
    return require_number("radius", radius, "a radius, 0 or larger", lambda r: r >= 0)


# --- noise around the image -----------------------------------------------------------------------------------------


def _within_image(noise: Any, example: Example | None) -> Any:
    if example is None:
        return noise
    return jnp.clip(noise, -example.image, 1 - example.image)


class _Noise:
    """What the norm balls share: additive noise, zero as the identity."""

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
        noise = jax.random.uniform(key, image.shape, image.dtype, -1.0, 1.0) * self.radius
        return self.project(noise, example)

    def project(self, v: Image, example: Example | None) -> Image:
        return _within_image(jnp.clip(v, -self.radius, self.radius), example)

    def direction(self, g: Image) -> Image:
        return self.radius * jnp.sign(g)


@pytree
class L2(_Noise):
    """Noise of Euclidean norm within `radius`; see `l2`."""

    radius: Any

    def init(self, key: Any, example: Example) -> Image:
        image = example.image
        direction_key, length_key = jax.random.split(key)
        noise = jax.random.normal(direction_key, image.shape, image.dtype)
        length = jax.random.uniform(length_key, (), image.dtype) ** (1 / image.size)
        return self.project(self.radius * length * noise / _l2_norm(noise), example)

    def project(self, v: Image, example: Example | None) -> Image:
        return _project_onto_ball(v, example, self.radius, _l2_norm, _l2_shrink, jnp.asarray(1.0, v.dtype))

    def direction(self, g: Image) -> Image:
        return self.radius * _unit(g)


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
        return self.project(self.radius * noise / (_l1_norm(noise) + slack), example)

    def project(self, v: Image, example: Example | None) -> Image:
        return _project_onto_ball(v, example, self.radius, _l1_norm, _l1_shrink, jnp.max(jnp.abs(v)))

    def direction(self, g: Image) -> Image:
        count = max(1, round((1 - self.sparsity) * g.size))
        magnitude = jnp.abs(g)
        threshold = jax.lax.top_k(magnitude.reshape(-1), count)[0][-1]
        chosen = jnp.where((magnitude >= threshold) & (magnitude > 0), jnp.sign(g), 0)
        return self.radius * chosen / (_l1_norm(chosen) + _TINY)

    def apply(self, v: Image, example: Example) -> Image:
        return _add_within_unit(example.image, v)


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


def _l2_norm(v: Any) -> Any:
    """The norm, with gradient 0 at 0 instead of NaN, for those who differentiate through an attack."""
    squared = jnp.sum(v**2)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def _unit(g: Any) -> Any:
    """`g` at L2 norm 1, however small a saturated victim has made it; zero stays zero."""
    largest = jnp.max(jnp.abs(g))
    scaled = g / jnp.where(largest > 0, largest, 1)
    return scaled / (_l2_norm(scaled) + _TINY)


def _l1_norm(v: Any) -> Any:
    return jnp.sum(jnp.abs(v))


def _l2_shrink(v: Any, amount: Any) -> Any:
    return v * (1 - amount)


def _l1_shrink(v: Any, amount: Any) -> Any:
    return jnp.sign(v) * jnp.maximum(jnp.abs(v) - amount, 0)


def _project_onto_ball(v: Any, example: Example | None, radius: Any, norm: Any, shrink: Any, most: Any) -> Any:
    """The Euclidean projection onto ball and image box at once.

    The multiplier of the norm constraint shrinks every pixel separately before the box cuts it, and the norm falls
    as it grows (KKT conditions; Croce & Hein 2021, section 2, for L1). Bisection finds it.
    """

    def at(amount: Any) -> Any:
        return _within_image(shrink(v, amount), example)

    def halve(_: Any, bounds: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = bounds
        middle = (low + high) / 2
        inside = norm(at(middle)) <= radius
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    boxed = at(jnp.zeros_like(most))
    _, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(most), most))
    found = jnp.where(norm(boxed) <= radius * (1 + 1e-6), boxed, at(high))
    return jnp.where(
        radius > 0, found, jnp.zeros_like(found)
    )  # squares of tiny noise vanish: a norm of 0 proves nothing


def linf(radius: Scalar) -> LInf:
    """Noise with every pixel within `radius` of the image, and the sum within [0, 1].

    Args:
        radius: largest change of a pixel, on the [0, 1] scale. A random start is uniform in the cube (Madry et al.
            2018, section 5).

    Raises:
        ValueError: `radius` is negative.
    """
    return LInf(_radius(radius))


def l2(radius: Scalar) -> L2:
    """Noise of Euclidean norm at most `radius` over all pixels of an image, and the sum within [0, 1].

    The projection is the exact one onto ball and box together. A random start is uniform in the ball.

    Raises:
        ValueError: `radius` is negative.
    """
    return L2(_radius(radius))


def l1(radius: Scalar, sparsity: float = 0.99) -> L1:
    """Noise of L1 norm at most `radius` over all pixels of an image, and the sum within [0, 1].

    The projection is the exact one onto ball and box together (Croce & Hein 2021). A step moves the share
    `1 - sparsity` of the pixels with the largest gradients (Tramer & Boneh 2019, SLIDE; 0.99 is their setting), out of
    those that are not on the bound they would move to.

    Raises:
        ValueError: `radius` is negative, or `sparsity` outside [0, 1).
    """
    sparsity = require_number("sparsity", sparsity, "in [0, 1)", lambda s: 0 <= s < 1)
    return L1(_radius(radius), sparsity)


# --- attributes and latents -----------------------------------------------------------------------------------------


@pytree
class Attribute:
    """The value of an image edit, a number or a vector of them, within a box; see `attribute`."""

    low: Any
    high: Any
    identity_value: Any
    edit: Any
    share: Any = 1.0

    def init(self, key: Any, example: Example) -> Float[Array, "*m"]:
        dtype, shape = example.image.dtype, jnp.shape(self.low)
        low, high = self._bounds(example)
        return low + (high - low) * jax.random.uniform(key, shape, dtype)

    def identity(self, example: Example) -> Float[Array, "*m"]:
        value = self.edit.read(*_seen(example)) if self._is_read else self.identity_value
        return jnp.broadcast_to(jnp.asarray(value, example.image.dtype), jnp.shape(self.low))

    def project(self, v: Any, example: Example | None) -> Any:
        low, high = self._bounds(example)
        if example is not None and self._is_read:
            own = self.identity(example)
            low, high = jnp.minimum(low, own), jnp.maximum(high, own)
        return jnp.clip(v, low, high)

    def direction(self, g: Any) -> Any:
        return self.share * (self.high - self.low) / 2 * jnp.sign(g)

    def apply(self, v: Any, example: Example) -> Image:
        if hasattr(self.edit, "prepare"):
            return clip_to_unit(self.edit(example.image, v, example.prepared))
        return clip_to_unit(self.edit(example.image, v))

    def prepare(self, example: Example) -> Example:
        if not hasattr(self.edit, "prepare"):
            return example
        return dataclasses.replace(example, prepared=self.edit.prepare(example.image))

    @property
    def _is_read(self) -> bool:
        return hasattr(self.edit, "read")

    def _bounds(self, example: Example | None) -> tuple[Any, Any]:
        """The box; of an edit that reads the image's own value, `share` of its size about that value."""
        if example is None or not self._is_read:
            return self.low, self.high
        away = (1 - self.share) * self.identity(example)
        return away + self.share * self.low, away + self.share * self.high


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
        ValueError: unknown name; `low > high`; the box leaves out the identity; bounds missing for a function, or of
            different lengths.
    """
    if isinstance(edit, str):
        named = get_edit(edit)
        low = named.low if low is None else low
        high = named.high if high is None else high
        identity = named.identity if identity is None else identity
        edit = named.function
    if low is None or high is None:
        raise ValueError(f"low={low!r}, high={high!r}: an edit given as a function needs both bounds")
    reads = hasattr(edit, "read")
    box = {"low": low, "high": high, "identity": (low if reads else 0.0) if identity is None else identity}
    box = {name: _checked_bound(name, value) for name, value in box.items()}
    _check_box(**box)
    return Attribute(box["low"], box["high"], box["identity"], as_pytree(edit))


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


@pytree
class Latent:
    """A latent vector within a ball that a decoder turns into an image; see `latent`."""

    radius: Any
    decode: Callable[[Any, Example], Any]
    dim: int = static()

    def init(self, key: Any, example: Example) -> Float[Array, " d"]:
        return self.project(jax.random.normal(key, (self.dim,), example.image.dtype), example)

    def identity(self, example: Example) -> Float[Array, " d"]:
        return jnp.zeros((self.dim,), example.image.dtype)

    def project(self, v: Any, example: Example | None) -> Any:
        return v * jnp.minimum(1, self.radius / jnp.maximum(_l2_norm(v), _TINY))

    def direction(self, g: Any) -> Any:
        return self.radius * _unit(g)

    def apply(self, v: Any, example: Example) -> Image:
        return clip_to_unit(self.decode(v, example))


def latent(decode: Callable[[Any, Example], Any], dim: int, radius: Scalar) -> Latent:
    """A latent vector in an L2 ball, decoded to an image.

    Args:
        decode: `(z [dim], example) -> image [h, w, c] in [0, 1]`; a pytree (`jax.tree_util.Partial`) keeps its
            weights leaves. It may read `example.label` and `example.gradient`.
        dim: number of latent dimensions.
        radius: radius of the ball. A random start is standard normal, shrunk onto the ball.

    Only a decoder that maps z = 0 to the image itself makes `identity` leave the image alone.

    Raises:
        ValueError: `radius` is negative or `dim` below 1.
    """
    require_count("dim", dim)
    return Latent(_radius(radius), as_pytree(decode), dim)


# --- composition ----------------------------------------------------------------------------------------------------


@pytree
class Chain:
    """Named spaces applied one after the other; see `chain`."""

    spaces: tuple[Any, ...]
    names: tuple[str, ...] = static()

    def items(self) -> list[tuple[str, Any]]:
        """The named spaces in the order in which they are applied."""
        return list(zip(self.names, self.spaces, strict=True))

    def init(self, key: Any, example: Example) -> Variables:
        keys = iter(jax.random.split(key, len(self.names)))
        return self._walk(example, lambda name, space, seen: space.init(next(keys), seen))

    def identity(self, example: Example) -> Variables:
        first, *others = self.items()
        v = {first[0]: first[1].identity(example)}
        return v | {name: space.identity(example.replace_image(example.image)) for name, space in others}

    def project(self, v: Variables, example: Example | None) -> Variables:
        if example is None:
            return {name: space.project(v[name], None) for name, space in self.items()}
        return self._walk(example, lambda name, space, seen: space.project(v[name], seen))

    def direction(self, g: Variables) -> Variables:
        return {name: space.direction(g[name]) for name, space in self.items()}

    def prepare(self, example: Example) -> Example:
        """What the first space computes of the image; those after it see images that change from step to step."""
        return _prepare(self.spaces[0], example)

    def apply(self, v: Variables, example: Example) -> Image:
        for name, space in self.items():
            example = example.replace_image(space.apply(v[name], example))
        return example.image

    def _walk(self, example: Example, make: Callable[[str, Any, Example], Variables]) -> Variables:
        """Variables made one space after the other, each seeing the image that the ones before have edited."""
        v = {}
        for name, space in self.items():
            v[name] = make(name, space, example)
            if name != self.names[-1]:
                example = example.replace_image(space.apply(v[name], example))
        return v


def _prepare(space: Space, example: Example) -> Example:
    return space.prepare(example) if hasattr(space, "prepare") else example


def chain(**spaces: Space) -> Chain:
    """Several spaces applied to an image in the order given; the variables are a dictionary keyed by name.

    Noise that comes last is bounded around the *edited* image: |x' - A(x, a)| <= radius, and x' in [0, 1].

    Raises:
        ValueError: no space was given.
    """
    if not spaces:
        raise ValueError(
            "chain() needs at least one space, such as chain(rotation=attribute('rotation'), noise=linf(0.1))"
        )
    return Chain(tuple(spaces.values()), tuple(spaces))


def shrink(space: Space, share: Any) -> Space:
    """The same kind of space, `share` of the size: every radius, and every box about its identity value."""
    if isinstance(space, Chain):
        return Chain(tuple(shrink(member, share) for member in space.spaces), space.names)
    if isinstance(space, Attribute) and hasattr(space.edit, "read"):
        return dataclasses.replace(space, share=share * space.share)
    if isinstance(space, Attribute):
        low, high = (space.identity_value + share * (bound - space.identity_value) for bound in (space.low, space.high))
        return dataclasses.replace(space, low=low, high=high)
    if isinstance(space, Latent) and hasattr(space.decode, "radius"):
        decode: Any = space.decode
        space = dataclasses.replace(space, decode=dataclasses.replace(decode, radius=share * decode.radius))
    if isinstance(space, LInf | L2 | L1 | Latent):
        return dataclasses.replace(space, radius=share * space.radius)
    raise ValueError(f"space={space!r} has no size that is known here")


def grid_axes(space: Space) -> int:
    """The number of attributes of a space that can be searched exhaustively."""
    if isinstance(space, Chain):
        return sum(grid_axes(member) for member in space.spaces)
    return int(np.size(space.low)) if isinstance(space, Attribute) else 0


def at_grid_point(space: Space, v: Variables, index: Any, points: int) -> Variables:
    """`v` with its attributes moved to point `index` of a grid of `points` values an attribute; noise stays."""
    if isinstance(space, Attribute):
        place = index // points ** np.arange(np.size(space.low)).reshape(np.shape(space.low))
        fraction = (place % points) / max(points - 1, 1)
        return space.project(jnp.asarray(space.low + (space.high - space.low) * fraction, v.dtype), None)
    if isinstance(space, Chain):
        moved = {}
        for name, member in space.items():
            moved[name] = at_grid_point(member, v[name], index, points)
            index = index // points ** grid_axes(member)
        return moved
    return v


# --- lifts to a batch -----------------------------------------------------------------------------------------------


@pytree
class Lifted:
    """A space over a batch: variables for each example, or one set of variables shared by all of them."""

    space: Any
    shared: bool = static()

    def init(self, keys: Any, examples: Example) -> Variables:
        """Random starts, [b, ...], or one shared start (from the first example's key)."""
        if self.shared:
            return self.space.init(keys[0], self._first(examples))
        return jax.vmap(self.space.init)(keys, examples)

    def identity(self, examples: Example) -> Variables:
        """The variables that leave every image alone."""
        if self.shared:
            return self.space.identity(self._first(examples))
        return jax.vmap(self.space.identity)(examples)

    def project(self, v: Variables, examples: Example) -> Variables:
        """The nearest allowed variables."""
        if self.shared:
            return self.space.project(v, None)
        return jax.vmap(self.space.project)(v, examples)

    def prepare(self, examples: Example) -> Example:
        """The examples with what the space computes of their images once for all steps."""
        return jax.vmap(functools.partial(_prepare, self.space))(examples)

    def apply(self, v: Variables, examples: Example) -> Any:
        """The changed images, [b, h, w, c]."""
        return jax.vmap(self.space.apply, in_axes=(None if self.shared else 0, 0))(v, examples)

    def map(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function`, written for one example's variables, over the batch (or once, where they are shared)."""
        return function(*arguments) if self.shared else jax.vmap(function)(*arguments)

    def summarise(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation that decides about a set of variables: per example, or the mean where they are shared."""
        if not self.shared:
            return evaluation
        return Evaluation(jnp.mean(evaluation.value), jnp.mean(evaluation.success.astype(evaluation.value.dtype)))

    def choose(self, mask: Any, new: Any, old: Any) -> Any:
        """`new` where `mask` holds, else `old`; the mask has the shape of `summarise`'s values."""
        return select(mask, new, old)

    def _first(self, examples: Example) -> Example:
        return jax.tree.map(lambda leaf: leaf[0], examples)


def per_example(space: Space) -> Lifted:
    """The lift of ordinary attacks: every image has variables of its own."""
    return Lifted(space, shared=False)


def universal(space: Space) -> Lifted:
    """The lift of universal perturbations: one set of variables changes all images.

    Shared noise is kept in its ball; each image's sum with it is cut to [0, 1] when it is applied.
    """
    return Lifted(space, shared=True)
