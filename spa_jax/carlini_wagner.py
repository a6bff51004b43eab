"""The L2 attack of Carlini & Wagner: the nearest image that fools, with a binary search of the constant per example."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spa_jax.engine import PureAttack, judge
from spa_jax.losses import margin, targeted_margin
from spa_jax.solvers import fold_in
from spa_jax.trees import pytree, select, static
from spa_jax.types import Images, Keys, Predict, Result, Values

_INSIDE_TANH = 0.999999
_NO_UPPER_BOUND = 1e10


class _Nearest(NamedTuple):
    """The nearest image that fools so far, and its L2 distance (infinite while there is none)."""

    x: Images
    distance: Values


@pytree
class CarliniWagner(PureAttack):
    """See `spa_jax.cw`."""

    radius: Any
    initial_const: Any
    learning_rate: Any
    confidence: Any
    num_steps: int = static()
    search_steps: int = static()
    is_targeted: bool = static(default=False)

    def search(self, keys: Keys, predict: Predict, x: Any, y: Any) -> Result:
        evaluate = self._judge(keys, predict, y)
        clean = evaluate(x, self.num_steps)
        nearest = _Nearest(x, jnp.where(clean.success, 0.0, jnp.inf).astype(x.dtype))

        def round_of_search(carry: Any, _: Any) -> tuple[Any, None]:
            const, low, high, nearest = carry
            nearest, reached = self._descend(evaluate, x, const, nearest)
            return (*_next_const(const, low, high, reached), nearest), None

        const = jnp.full(y.shape, self.initial_const, x.dtype)
        low, high = jnp.zeros_like(const), jnp.full_like(const, _NO_UPPER_BOUND)
        carry = (const, low, high, nearest)
        (_, _, _, nearest), _ = jax.lax.scan(round_of_search, carry, None, length=self.search_steps)
        found = select(nearest.distance <= self.radius, nearest.x, x)
        value, success = evaluate(found, self.num_steps + 1)
        return Result(found, found - x, value, success & (nearest.distance <= self.radius))

    def _judge(self, keys: Keys, predict: Predict, y: Any) -> Any:
        loss = targeted_margin if self.is_targeted else margin

        def evaluate(images: Images, i: Any) -> Any:
            return judge(loss, predict(fold_in(keys, i), images), y, self.is_targeted)

        return evaluate

    def _descend(self, evaluate: Any, x: Images, const: Values, nearest: _Nearest) -> tuple[_Nearest, Any]:
        """Adam on the tanh variable for one constant: the nearest image so far, and who was reached with it."""
        optimiser = optax.scale_by_adam()

        def objective(w: Any, i: Any) -> tuple[Any, Any]:
            images = _image(w)
            squared = jnp.sum((images - x) ** 2, axis=(1, 2, 3))
            evaluation = evaluate(images, i)
            shortfall = jnp.maximum(self.confidence - evaluation.value, 0)
            reached = evaluation.success & (evaluation.value >= self.confidence)
            return jnp.sum(squared + const * shortfall), (images, jnp.sqrt(squared), reached)

        def step(carry: Any, i: Any) -> tuple[Any, None]:
            w, state, nearest, reached_before = carry
            (_, (images, distance, reached)), gradient = jax.value_and_grad(objective, has_aux=True)(w, i)
            nearest = select(reached & (distance < nearest.distance), _Nearest(images, distance), nearest)
            updates, state = optimiser.update(gradient, state)
            return (w - self.learning_rate * updates, state, nearest, reached_before | reached), None

        w = jnp.arctanh((2 * x - 1) * _INSIDE_TANH)
        carry = (w, optimiser.init(w), nearest, jnp.zeros(const.shape, bool))
        (_, _, nearest, reached), _ = jax.lax.scan(step, carry, jnp.arange(self.num_steps))
        return nearest, reached


def _image(w: Any) -> Images:
    return (jnp.tanh(w) + 1) / 2


def _next_const(const: Values, low: Values, high: Values, reached: Any) -> tuple[Values, Values, Values]:
    """Halve the interval of the constant, or grow it tenfold while nothing was reached yet."""
    high = jnp.where(reached, jnp.minimum(high, const), high)
    low = jnp.where(reached, low, jnp.maximum(low, const))
    const = jnp.where(high < _NO_UPPER_BOUND, (low + high) / 2, const * 10)
    return const, low, high
