"""Several spaces applied to an image one after the other, in an order that is a variable too."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spa_jax.numerics import Grid, with_gradient_of
from spa_jax.spaces.base import require_space
from spa_jax.spaces.chain import Chain
from spa_jax.trees import pytree, repeat, select, static
from spa_jax.types import Example, Image, Space, Variables

ORDER = "order"
MOST_LINKS = 7
_SINKHORN_STEPS = 20

_Show = Callable[[Any, Variables, Example], Image]


@pytree
class Ordered(Chain):
    """Named spaces applied in an order that is a variable of its own; see `ordered`."""

    left_out: tuple[str, ...] = static(default=())

    def without(self, *names: str) -> "Ordered":
        """The same with these links at their identity, wherever they stand."""
        return Ordered(self.spaces, self.names, (*self.left_out, *names))

    def scaled(self, share: Any) -> "Ordered":
        return Ordered(super().scaled(share).spaces, self.names, self.left_out)

    def ranks(self, v: Variables) -> Int[Array, " n"]:
        return jnp.argsort(order_of(v[ORDER]))

    def prepare(self, example: Example) -> Any:
        """Nothing: no link knows which image it will see."""
        return None

    def draw_order(self, key: Any, dtype: Any) -> Float[Array, "n n"]:
        """Scores whose order is any of the n! with the same probability."""
        return jax.random.uniform(key, (len(self.names),) * 2, dtype, -1, 1)

    def init(self, key: Any, example: Example) -> Variables:
        key, *own = jax.random.split(key, 1 + len(self.names))
        order = self.draw_order(key, example.image.dtype)
        keys = dict(zip(self.names, own, strict=True))
        v = super().identity(example) | {ORDER: order}
        return self._go(v, example, lambda name, space, old, seen: space.init(keys[name], seen))[0]

    def identity(self, example: Example) -> Variables:
        natural = 2 * jnp.eye(len(self.names), dtype=example.image.dtype) - 1
        return super().identity(example) | {ORDER: natural}

    def project(self, v: Variables, example: Example | None) -> Variables:
        inside = v | {ORDER: jnp.clip(v[ORDER], -1, 1)}
        if example is None:
            return inside | super().project(v, None)
        return self._go(inside, example, lambda name, space, old, seen: space.project(old, seen))[0]

    def direction(self, g: Variables) -> Variables:
        largest = jnp.max(jnp.abs(g[ORDER]))
        order = g[ORDER] / jnp.where(largest > 0, largest, 1)
        return super().direction(g) | {ORDER: order}

    def apply(self, v: Variables, example: Example) -> Image:
        return self._go(v, example)[1]

    def apply_rounded(self, v: Variables, example: Example, grid: Grid) -> Image:
        _, image = self._go(v, example, places=len(self.names) - 1)

        def rounded(space: Any, v: Variables, seen: Example) -> Image:
            return space.apply_rounded(v, seen, grid)

        row = choices(v[ORDER])[-1]
        return self._place(row, v, example.replace_image(image), _unmoved, rounded)[1]

    def at_grid_point(self, v: Variables, index: Any, points: int) -> Variables:
        return super().at_grid_point(v, index, points) | {ORDER: v[ORDER]}

    def _go(
        self, v: Variables, example: Example, make: Callable[..., Variables] | None = None, places: int | None = None
    ) -> tuple[Variables, Image]:
        """The variables that `make` gives each link at its place, and the image after the first of the places."""
        rows = choices(v[ORDER])

        def go(carry: tuple[Any, Variables, Image]) -> tuple[Any, Variables, Image]:
            place, v, image = carry
            v, image = self._place(rows[place], v, example.replace_image(image), make or _unmoved, _show)
            return place + 1, v, image

        start = jnp.zeros((), jnp.int32), v, example.image
        return repeat(go, start, len(self.names) if places is None else places)[1:]

    def _place(
        self, row: Any, v: Variables, seen: Example, make: Callable[..., Variables], show: _Show
    ) -> tuple[Variables, Image]:
        """One place of the order: its link's new variables, and the image that it makes of the one that it sees.

        All links are computed, as `vmap` would do with a switch; so the choice of the link has a gradient.
        """
        found, image = {}, jnp.zeros_like(seen.image)
        for share, (name, space) in zip(row, self.members().items(), strict=True):
            is_left_out = name in self.left_out
            own = None if is_left_out else make(name, space, v[name], seen)
            image = image + share * (seen.image if is_left_out else show(space, own, seen))
            if not is_left_out:
                found[name] = select(jax.lax.stop_gradient(share) > 0, own, v[name])
        return v | found, image


def _unmoved(name: str, space: Any, old: Variables, seen: Example) -> Variables:
    return old


def _show(space: Any, v: Variables, seen: Example) -> Image:
    return space.apply(v, seen)


def ordered(**spaces: Space) -> Ordered:
    """Several spaces applied to an image in an order that each image has of its own, as in composite attacks (CAA).

    The variables are those of `chain` and `order`, scores [n, n] in [-1, 1] of each link (columns, in the order given
    here) at each place (rows). The order is the assignment of links to places with the largest sum of scores
    (`order_of`); at the identity it is the one given here, and random starts draw any order with the same probability.
    The gradient in the scores is straight through the choice: that of the doubly stochastic matrix to which Sinkhorn's
    iteration brings their exponentials, as if each place showed the mean of all links' images by its weights
    (Gumbel-Sinkhorn, Mena et al. 2018, without its noise).

    Noise is bounded around the image that it sees at its place; what follows may amplify it. Every link is computed at
    every place, n * n edits an image.

    Raises:
        ValueError: no space, more than seven, one named `order`, or something that is not a space.
    """
    if not 1 <= len(spaces) <= MOST_LINKS:
        raise ValueError(f"ordered() got {len(spaces)} spaces, must be 1 to {MOST_LINKS}: it tries all their orders")
    if ORDER in spaces:
        raise ValueError(f"ordered() has a variable {ORDER!r} of its own: give the space another name")
    for space in spaces.values():
        require_space(space)
    return Ordered(tuple(spaces.values()), tuple(spaces))


def order_of(scores: Float[Array, "*b n n"]) -> Int[Array, "*b n"]:
    """Which link stands at each place: the assignment with the largest sum of scores, the first one of equals.

    Args:
        scores: `variables["order"]` of a state or result.
    """
    orders = _orders(scores.shape[-1])
    sums = sum(scores[..., place, orders[:, place]] for place in range(orders.shape[1]))
    return jnp.asarray(orders)[jnp.argmax(sums, axis=-1)]


@functools.lru_cache
def _orders(links: int) -> np.ndarray:
    return np.asarray(list(itertools.permutations(range(links))), np.int32)


def choices(scores: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The permutation matrix of the order, places by links, with the gradient of the doubly stochastic matrix."""
    chosen = jax.nn.one_hot(order_of(jax.lax.stop_gradient(scores)), len(scores), dtype=scores.dtype)
    return with_gradient_of(chosen, jnp.exp(_sinkhorn(scores)))


def _sinkhorn(scores: Any) -> Any:
    """The logarithm of a matrix whose rows and columns sum to 1, from any scores (Sinkhorn & Knopp 1967)."""

    def scale(scores: Any) -> Any:
        scores = scores - jax.nn.logsumexp(scores, axis=0, keepdims=True)
        return scores - jax.nn.logsumexp(scores, axis=1, keepdims=True)

    return repeat(scale, scores, _SINKHORN_STEPS)
