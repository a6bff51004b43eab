"""The attack of Carlini & Wagner: Adam on a penalised distance, with a binary search of the penalty's constant."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spa_jax.attacks.minimal_norm import MinimalNorm, MinimalNormState, NormProblem, Visit, minimal_norm
from spa_jax.losses import margin
from spa_jax.numerics import in_dtype_of
from spa_jax.trees import branch, pytree, static
from spa_jax.types import Count, Example, Flags, Images, Keys, Logits, Scalar, Values
from spa_jax.validation import require_count, require_number

_INSIDE_TANH = 0.999999
_NO_UPPER_BOUND = 1e10


class CarliniWagnerState(NamedTuple):
    """The state of the search between two steps of Adam.

    Attributes:
        w, adam: the tanh variable and its optimiser's state.
        const, low, high: [b], the constant and the interval that it is searched in.
        reached: [b], whether the current constant has led to a success.
    """

    w: Any
    adam: Any
    const: Values
    low: Values
    high: Values
    reached: Flags


@pytree
class CarliniWagner:
    """See `cw`."""

    initial_const: Any
    learning_rate: Any
    confidence: Any
    steps_per_const: int = static()

    def init(self, problem: NormProblem, keys: Keys, logits: Logits) -> CarliniWagnerState:
        x = problem.examples.image
        const = jnp.full_like(x[:, 0, 0, 0], self.initial_const)
        nothing = jnp.zeros(const.shape, bool)
        highest = jnp.full_like(const, _NO_UPPER_BOUND)
        return CarliniWagnerState(*_start(x), const, jnp.zeros_like(const), highest, nothing)

    def step(self, problem: NormProblem, state: MinimalNormState, keys: Keys) -> tuple[CarliniWagnerState, Visit]:
        own = self._next_const(state, problem.examples.image)
        images, pull = jax.vjp(lambda w: problem.shown((jnp.tanh(w) + 1) / 2), own.w)

        def shortfall(logits: Logits, examples: Example) -> Values:
            return jnp.maximum(in_dtype_of(self.confidence, logits) - margin(logits, examples), 0)

        lacking, gradient, visit = problem.climb(shortfall, images, keys)
        reached = visit.success & (lacking <= 0)
        const = own.const[:, None, None, None]
        (gradient,) = pull(2 * (images - problem.examples.image) + const * gradient)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            updates, adam = optax.scale_by_adam().update(gradient, own.adam)
        w = own.w - in_dtype_of(self.learning_rate, updates) * updates
        return own._replace(w=w, adam=adam, reached=own.reached | reached), visit._replace(success=reached)

    def last(self, problem: NormProblem, own: CarliniWagnerState) -> None:
        return None

    def _next_const(self, state: MinimalNormState, x: Images) -> CarliniWagnerState:
        """After the last step of a constant, the next one, from the start again; else the state as it is."""
        is_next = (state.step > 0) & (state.step % self.steps_per_const == 0)

        def start_again(own: CarliniWagnerState) -> CarliniWagnerState:
            search = _halved(own.const, own.low, own.high, own.reached)
            return CarliniWagnerState(*_start(x), *search, jnp.zeros_like(own.reached))

        return branch(is_next.astype(jnp.int32), [lambda own: own, start_again], state.own)


def _start(x: Images) -> tuple[Any, Any]:
    w = jnp.arctanh((2 * x - 1) * _INSIDE_TANH)
    return w, optax.scale_by_adam().init(w)


def _halved(const: Values, low: Values, high: Values, reached: Any) -> tuple[Values, Values, Values]:
    """Halve the interval of the constant, or grow it tenfold while nothing was reached yet."""
    high = jnp.where(reached, jnp.minimum(high, const), high)
    low = jnp.where(reached, low, jnp.maximum(low, const))
    const = jnp.where(high < _NO_UPPER_BOUND, (low + high) / 2, const * 10)
    return const, low, high


def cw(
    radius: Scalar = math.inf,
    num_steps: Count = 1000,
    search_steps: Count = 9,
    initial_const: Scalar = 1e-3,
    learning_rate: Scalar = 0.01,
    confidence: Scalar = 0.0,
) -> MinimalNorm:
    """The L2 attack of Carlini & Wagner (2017, section VI.A): the smallest noise that fools, by a search of a constant.

    Args:
        radius: a success farther away than this in L2 does not count. Default: any distance counts.
        num_steps: Adam steps for each constant.
        search_steps: binary search steps of the constant, per example.
        initial_const: first constant.
        learning_rate: of Adam, on the tanh variable.
        confidence: margin by which the victim must err, the paper's kappa.

    The defaults are those of the authors' code (with 1000 of its 10000 iterations, as in common re-implementations).

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import cw
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> attack = cw(num_steps=20, search_steps=2, initial_const=10.0)
        >>> result = attack(jax.random.key(0), model, images, labels)
        >>> print(result.success, jnp.linalg.norm(result.x - images, axis=(1, 2)).max() < 0.2)
        [ True  True] True
    """
    search = CarliniWagner(
        require_number("initial_const", initial_const, "larger than 0", lambda c: c > 0),
        require_number("learning_rate", learning_rate, "larger than 0", lambda r: r > 0),
        require_number("confidence", confidence, "0 or larger", lambda k: k >= 0),
        require_count("num_steps", num_steps),
    )
    total = search.steps_per_const * require_count("search_steps", search_steps)
    return minimal_norm(search, radius, "l2", total)
