"""Attacks that read the victim's decision alone, not its scores: RayS, and random points of any space."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from spa_jax.attacks.iterative import IterativeAttack, Keep, make_attack
from spa_jax.attacks.minimal_norm import MinimalNorm, MinimalNormState, NormProblem, Visit, minimal_norm
from spa_jax.attacks.spa import attribute_spaces
from spa_jax.numerics import in_dtype_of
from spa_jax.solvers import random_search
from spa_jax.spaces.chain import chain
from spa_jax.spaces.noise import noise_ball
from spa_jax.trees import pytree, select
from spa_jax.types import Count, Flags, Images, Keys, Logits, Scalar, Values
from spa_jax.validation import require_number


class RaysState(NamedTuple):
    """The state of the search between two queries, each entry per example.

    Attributes:
        signs: [b, h, w, c], the best direction so far, entries -1 and 1.
        low, high: [b], the interval that holds the decision boundary along the candidate direction, while `bisects`.
        bisects: [b], whether the candidate direction is being bisected; else it is asked once, at `distance`.
        level, block: int32 [b]; the candidate is the best direction with the signs of this block turned, of the image
            cut into 2 ** level blocks.
        distance: [b], how far the boundary is along the best direction; 1 before one was found.
    """

    signs: Any
    low: Any
    high: Any
    bisects: Any
    level: Any
    block: Any
    distance: Any


@pytree
class Rays:
    """See `rays`."""

    tolerance: Any

    def init(self, problem: NormProblem, keys: Keys, logits: Logits) -> RaysState:
        x = problem.examples.image
        one = jnp.ones_like(x[:, 0, 0, 0])
        zeros, never = jnp.zeros(x.shape[:1], jnp.int32), jnp.zeros(x.shape[:1], bool)
        distance = jnp.where(problem.visit(x, logits).success, 0, one)
        return RaysState(jnp.ones_like(x), jnp.zeros_like(one), one, never, zeros, zeros, distance)

    def step(self, problem: NormProblem, state: MinimalNormState, keys: Keys) -> tuple[RaysState, Visit]:
        x, own = problem.examples.image, state.own
        turned = jnp.where(_in_block(x, own.level, own.block), -own.signs, own.signs)
        asked = jnp.where(own.bisects, (own.low + own.high) / 2, own.distance)
        images = problem.shown(x + asked[:, None, None, None] * turned)
        visit = problem.visit(images, problem.predict(keys, images))
        return self._told(own, visit.success, asked, turned), visit

    def _told(self, own: RaysState, fools: Flags, asked: Values, turned: Images) -> RaysState:
        """After the answer: the interval is halved, or begins, or the next block is asked."""
        low = jnp.where(own.bisects & ~fools, asked, jnp.where(own.bisects, own.low, 0))
        high = jnp.where(fools, asked, own.high)
        bisects = own.bisects | fools
        ends = bisects & (high - low <= in_dtype_of(self.tolerance, high))
        level, block = _next_block(own.level, own.block, own.signs[0].size)
        goes_on = ends | ~bisects
        return RaysState(
            select(ends, turned, own.signs),
            low,
            high,
            bisects & ~ends,
            jnp.where(goes_on, level, own.level),
            jnp.where(goes_on, block, own.block),
            jnp.where(ends, high, own.distance),
        )

    def last(self, problem: NormProblem, own: RaysState) -> None:
        return None


def _in_block(x: Images, level: Any, block: Any) -> Any:
    """Which pixels of each image are in its block of its level: runs of the image as it lies in memory."""
    size = _block_size(level, x[0].size)
    index = jnp.arange(x[0].size, dtype=jnp.int32)[None]
    return (index // size[:, None] == block[:, None]).reshape(x.shape)


def _block_size(level: Any, pixels: int) -> Any:
    count = jnp.left_shift(jnp.ones_like(level), level)
    return (pixels + count - 1) // count


def _next_block(level: Any, block: Any, pixels: int) -> tuple[Any, Any]:
    """The next block of a level, or the first one of the next; after single pixels, of the whole image again."""
    size = _block_size(level, pixels)
    is_last = (block + 1) * size >= pixels
    finer = jnp.where(size == 1, 0, level + 1)
    return jnp.where(is_last, finer, level), jnp.where(is_last, 0, block + 1)


def rays(radius: Scalar = math.inf, num_steps: Count = 10_000, tolerance: Scalar = 1e-3) -> MinimalNorm:
    """RayS (Chen & Gu 2020, algorithms 2 and 3): the nearest image in l-infinity that fools, by the victim's labels.

    All directions are signs. One is better than another if the decision boundary is nearer along it. The candidates are
    the best one so far with the signs of a block turned, the whole image first, then its halves, quarters and so on
    down to single pixels, and again. A candidate is asked once at the distance of the best one; where it fools there, a
    bisection finds its own. Every step is one query for each image. No score is read, so an image that it breaks and
    attacks by gradients do not is a sign of gradient masking.

    Args:
        radius: a success farther away than this does not count. Default: any distance counts, and `evaluate` measures
            it, as of `fmn`.
        num_steps: queries; 10,000 in the paper.
        tolerance: how exactly a distance is bisected, 1e-3 in the paper.

    With a target only the target is a success. Blocks are runs of the image as it lies in memory, rows with their
    channels; in the authors' code, which has channels first, rows of one channel.

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import rays
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jax.nn.one_hot((light(images) > 0).astype(int), 2)  # class 1: a bright image
        >>> result = rays(num_steps=30)(jax.random.key(0), model, images, labels)
        >>> print(result.success, f"{jnp.abs(result.variables).max():.2f}")  # 0.02 is the nearest
        [ True  True] 0.02
    """
    search = Rays(require_number("tolerance", tolerance, "larger than 0", lambda t: t > 0))
    return minimal_norm(search, radius, "linf", num_steps)


def random_attack(
    radius: Scalar | None = None,
    attributes: Any = None,
    num_steps: Count = 100,
    norm: str = "linf",
    loss: Any = "margin",
    keep: Keep = "best",
) -> IterativeAttack:
    """Independent random points of noise, of attributes, or of both one after the other; a query each, no gradient.

    Args:
        radius: of the noise, on the [0, 1] scale. Default: no noise.
        attributes: as for `spa`. Default: none.
        num_steps: random points; the default is our choice.
        norm: of the noise, "linf", "l2" or "l1".
        loss, keep: as for `make_attack`.

    Raises:
        ValueError: neither radius nor attributes, or a broken rule, naming the value.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import random_attack
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> attack = random_attack(0.01, {"brightness": (-0.05, 0.05)})
        >>> print(attack(jax.random.key(0), model, images, labels).success)
        [ True  True]
    """
    if radius is None and attributes is None:
        raise ValueError("radius=None with attributes=None: random_attack() has nothing to draw")
    links = {} if attributes is None else attribute_spaces(attributes)
    if radius is not None:
        links = links | {"noise": noise_ball(norm, radius)}
    return make_attack(chain(**links), loss, random_search(), num_steps, keep=keep)
