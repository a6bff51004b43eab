"""Square attack: random changes of one square of the noise at a time, kept where the loss rises."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spa_jax.numerics import in_dtype_of
from spa_jax.solvers.base import Problem, fold_in
from spa_jax.spaces.noise import L1, L2, TINY, LInf
from spa_jax.trees import branch, pytree, select, static
from spa_jax.types import Evaluation, Image, Keys, Values, Variables
from spa_jax.validation import require_number

_DRAW = 1
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Of 10,000 queries, those after which the share of pixels is halved once more (Andriushchenko et al. 2020)."""
_TILES = 5
_SMALLEST_TILE = 3


class _SquareState(NamedTuple):
    """Per example: the best noise since the start and its loss."""

    iteration: Any
    best: Variables
    best_value: Values


@pytree
class Square:
    """Square attack; see `square`."""

    takes_gradient: ClassVar[bool] = False
    share: float = static(default=0.8)

    def init(self, problem: Problem, v: Variables) -> _SquareState:
        _ball(problem)
        floor = jnp.full(problem.examples.image.shape[:1], -jnp.inf, problem.examples.image.dtype)
        return _SquareState(jnp.zeros((), jnp.int32), v, floor)

    def step(
        self, problem: Problem, v: Variables, state: _SquareState, keys: Keys
    ) -> tuple[Variables, _SquareState, Evaluation]:
        evaluation = problem.evaluate(v, keys)
        value = evaluation.value.astype(state.best_value.dtype)
        is_first = state.iteration == 0  # the variables that the attack begins with are left, whatever their loss is
        best, best_value = select(value > state.best_value, (v, value), (state.best, state.best_value))
        best_value = jnp.where(is_first, state.best_value, best_value)
        ball, image = _ball(problem), problem.examples.image
        squares = _squares(ball, self.share, problem.num_steps, image.shape[1:]).at(state.iteration - 1)

        def start(_: Variables, draws: Keys) -> Variables:
            return _within(jax.vmap(lambda key, image: _start(ball, key, image))(draws, image), image)

        def change(best: Variables, draws: Keys) -> Variables:
            return (_recolour if isinstance(ball, LInf) else _exchange)(ball, squares, best, image, draws)

        moved = _either(is_first, start, change, best, fold_in(keys, _DRAW))
        return moved, _SquareState(state.iteration + 1, best, best_value), evaluation


def square(share: float = 0.8) -> Square:
    """Square attack (Andriushchenko et al. 2020) on noise in linf, l2 or l1; a step is one query, without a gradient.

    The search begins with vertical stripes (linf), or with five by five bumps of random sign. Every query changes a
    square at a random place and keeps the change where the loss rises: in linf the square gets one random sign for each
    channel, the opposite one where that would change nothing; in l2 a bump is added to one square, with the noise that
    a second square gives up and what was unused of the radius (algorithms 2 and 3). l1 does the same with the l1 norm,
    as in AutoAttack. The squares shrink by the schedule of the paper, stretched to the number of steps.

    The first step judges the variables that it is given, which it then leaves.

    Args:
        share: of the pixels in the first square, the paper's p; AutoAttack's 0.8 (the paper has 0.05 to 0.8).

    Raises:
        ValueError: `share` outside (0, 1]; when it starts, another space than `linf`, `l2`, `l1`, or shared variables.
    """
    return Square(float(require_number("share", share, "in (0, 1], of the pixels", lambda p: 0 < p <= 1)))


def _ball(problem: Problem) -> Any:
    members = list(problem.space.members().values())
    if problem.space.shared or len(members) != 1 or not isinstance(members[0], LInf | L2 | L1):
        raise ValueError(f"space={problem.space.space!r}: square searches linf, l2 or l1 alone, for each example")
    return members[0]


def _either(flag: Any, function: Callable[..., Any], other: Callable[..., Any], v: Any, draws: Keys) -> Any:
    """`function(v, draws)` where the flag holds, else `other(v, draws)`; only that one is computed."""
    moves: list[Any] = [lambda state, move=move: (move(*state), state[1]) for move in (other, function)]
    return branch(flag.astype(jnp.int32), moves, (v, draws))[0]


def _within(v: Any, image: Any) -> Any:
    return jnp.clip(v, -image, 1 - image)


# --- squares and their places ---------------------------------------------------------------------------------------


class _Squares(NamedTuple):
    """The squares of all queries.

    Attributes:
        side: [queries].
        bumps: [sides, 2, h, w], for l2 and l1 what is added, in the upper left corner, upright or not.
        which: [queries], the bump of each query.
    """

    side: Any
    bumps: Any = None
    which: Any = None

    def at(self, query: Any) -> "_Squares":
        """Those of one query: side [], bumps [2, h, w]."""
        side = jnp.asarray(self.side)[query]
        if self.bumps is None:
            return _Squares(side)
        return _Squares(side, jnp.asarray(self.bumps)[jnp.asarray(self.which)[query]])


def _squares(ball: Any, share: float, queries: int, shape: tuple[int, ...]) -> _Squares:
    height, width = shape[:2]
    shares = share * 0.5 ** np.searchsorted(_HALVED_AFTER, np.arange(queries) * 10_000 // queries)
    side = np.round(np.sqrt(shares * height * width)).astype(np.int32)
    if isinstance(ball, LInf):
        return _Squares(np.clip(side, 1, min(height, width)))
    side = np.minimum(np.maximum(side, _SMALLEST_TILE) // 2 * 2 + 1, min(height, width))
    sides, which = np.unique(side, return_inverse=True)
    return _Squares(side, np.stack([_placed(_bump(int(s), _order(ball)), height, width) for s in sides]), which)


def _placed(bump: Any, height: int, width: int) -> Any:
    room = [(0, height - len(bump)), (0, width - len(bump))]
    return np.stack([np.pad(bump, room), np.pad(bump.T, room)])


def _order(ball: Any) -> int:
    return 2 if isinstance(ball, L2) else 1


def _bump(side: int, order: int) -> np.ndarray:
    """Two pyramids of opposite signs side by side, with norm 1 (eq. 2)."""
    left = side // 2
    both = np.concatenate([_pyramid(side, left), -_pyramid(side, side - left)], axis=1)
    return both / np.linalg.norm(both.ravel(), order)


def _pyramid(rows: int, columns: int) -> np.ndarray:
    half = rows // 2
    away = np.abs(np.arange(rows) - half)[:, None], np.abs(np.arange(columns) - columns // 2)[None]
    return np.cumsum(1 / (half + 1 - np.arange(half + 1)) ** 2)[half - np.maximum(*away)]


def _place(bits: Any, side: Any, image: Image) -> Any:
    """The corner of a square somewhere in the image, [2], by two random words, and which pixels it covers [h, w, 1]."""
    room = jnp.asarray(image.shape[:2]) - side + 1
    corner = (bits % room.astype(bits.dtype)).astype(room.dtype)
    rows, columns = (_covered(corner[axis], side, image.shape[axis]) for axis in (0, 1))
    return corner, (rows[:, None] & columns[None])[..., None]


def _covered(first: Any, count: Any, length: int) -> Any:
    pixels = jnp.arange(length)
    return (pixels >= first) & (pixels < first + count)


def _signs(bits: Any, like: Any) -> Any:
    return jnp.where(bits % 2 == 0, 1, -1).astype(like.dtype)


def _words(key: Any, count: int) -> Any:
    """All random words of a query at once: on a CPU a draw takes as long for one word as for many."""
    return jax.random.bits(key, (count,), jnp.uint32)


# --- starts and changes of one example ------------------------------------------------------------------------------


def _start(ball: Any, key: Any, image: Image) -> Image:
    """Stripes in linf; elsewhere bumps in tiles."""
    height, width, channels = image.shape
    radius = in_dtype_of(ball.radius, image)
    if isinstance(ball, LInf):
        return jnp.broadcast_to(radius * _signs(jax.random.bits(key, (1, width, channels)), image), image.shape)
    side = max(1, min(height, width) // _TILES)
    rows, columns = min(_TILES, height // side), min(_TILES, width // side)
    tile = jnp.asarray(_bump(side, _order(ball)), image.dtype)
    signs = _signs(jax.random.bits(key, (rows, 1, columns, 1, channels)), image)
    tiles = (signs * tile[None, :, None, :, None]).reshape(rows * side, columns * side, channels)
    missing = height - rows * side, width - columns * side
    noise = jnp.pad(tiles, [*((gap // 2, gap - gap // 2) for gap in missing), (0, 0)])
    return radius * noise / _size(noise, _order(ball), axis=None)


def _recolour(ball: LInf, squares: _Squares, best: Any, images: Any, keys: Keys) -> Any:
    """The noise with one sign for each channel in a square, [b, h, w, c]."""
    radius = in_dtype_of(ball.radius, images)

    def recolour(v: Image, image: Image, key: Any) -> Image:
        words = _words(key, 2 + image.shape[-1])
        _, covered = _place(words[:2], squares.side, image)
        colour = radius * _signs(words[None, None, 2:], image)
        drawn, opposite = (_within(jnp.where(covered, sign * colour, v), image) for sign in (1, -1))
        return jnp.where(jnp.all(drawn == v), opposite, drawn)

    return jax.vmap(recolour)(best, images, keys)


def _exchange(ball: Any, squares: _Squares, best: Any, images: Any, keys: Keys) -> Any:
    """The noise with a bump added to one square, from what a second one gives up, [b, h, w, c] (algorithm 3)."""
    order, radius = _order(ball), in_dtype_of(ball.radius, images)

    def exchange(v: Image, image: Image, key: Any) -> Image:
        words = _words(key, 5 + image.shape[-1])
        corner, first = _place(words[:2], squares.side, image)
        _, second = _place(words[2:4], squares.side, image)
        upright = words[4] % 2
        bump = jnp.roll(squares.bumps[upright].astype(v.dtype), corner, (0, 1))[..., None]
        unused = jnp.maximum(radius**order - _size(v, order, axis=None) ** order, 0) / image.shape[-1]
        room = (_size(jnp.where(first | second, v, 0), order) ** order + unused) ** (1 / order)
        mixed = _signs(words[None, None, 5:], image) * bump + _unit(jnp.where(first, v, 0), order)
        moved = jnp.where(first, room * _unit(mixed, order), jnp.where(second, 0, v))
        longest = jnp.maximum(_size(moved, order, axis=None), TINY)
        return _within(moved * jnp.minimum(1, radius / longest), image)

    return jax.vmap(exchange)(best, images, keys)


def _size(v: Float[Array, "h w c"], order: int, axis: Any = (0, 1)) -> Any:
    """The norm of each channel, [1, 1, c], or of the whole, [1, 1, 1]."""
    if order == 1:
        return jnp.sum(jnp.abs(v), axis=axis, keepdims=True)
    return jnp.sqrt(jnp.sum(v**2, axis=axis, keepdims=True))


def _unit(v: Any, order: int) -> Any:
    return v / jnp.maximum(_size(v, order), TINY)
