"""Attacks that look for the nearest image that fools: Carlini & Wagner's, with a binary search of its constant."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spa_jax.attacks.base import FINAL, JUDGE, STEP, PureAttack, stream
from spa_jax.goals import confident, is_answer, misclassified
from spa_jax.losses import margin
from spa_jax.numerics import Grid, finite_gradient, in_dtype_of, on_grid, with_gradient_of
from spa_jax.trees import branch, pytree, select, static
from spa_jax.types import Count, Example, Images, Keys, NonFinite, Predict, Result, Scalar, Values
from spa_jax.validation import require_count, require_number

_INSIDE_TANH = 0.999999
_NO_UPPER_BOUND = 1e10


class CarliniWagnerState(NamedTuple):
    """The state of the search between two steps of Adam.

    Attributes:
        step: int32 [], steps made over all constants.
        keys: [b].
        w, adam: the tanh variable and its optimiser's state.
        const, low, high: [b], the constant and the interval that it is searched in.
        reached: [b], whether the current constant has led to a success.
        nearest, distance: the nearest success so far, and its L2 distance [b] (infinite before the first success).
        nonfinite: [b], what was not finite so far.
    """

    step: Any
    keys: Any
    w: Any
    adam: Any
    const: Any
    low: Any
    high: Any
    reached: Any
    nearest: Any
    distance: Any
    nonfinite: NonFinite


@pytree
class CarliniWagner(PureAttack):
    """See `cw`."""

    radius: Any
    initial_const: Any
    learning_rate: Any
    confidence: Any
    steps_per_const: int = static()
    search_steps: int = static()
    grids: tuple[Grid, ...] = static(default=())

    @property
    def num_steps(self) -> int:
        """Steps of Adam over all constants."""
        return self.steps_per_const * self.search_steps

    def begin(self, keys: Keys, predict: Predict, examples: Example) -> CarliniWagnerState:
        x, const = examples.image, jnp.full_like(examples.image[:, 0, 0, 0], self.initial_const)
        fooled = misclassified(predict(stream(keys, JUDGE), x), examples)
        distance = jnp.where(fooled, 0.0, jnp.inf).astype(x.dtype)
        search = (const, jnp.zeros_like(const), jnp.full_like(const, _NO_UPPER_BOUND), jnp.zeros_like(fooled))
        zeros = jnp.zeros(x.shape[:1], jnp.int32)
        nothing = NonFinite(zeros, zeros)
        return CarliniWagnerState(jnp.zeros((), jnp.int32), keys, *self._start(x), *search, x, distance, nothing)

    def move(self, state: CarliniWagnerState, predict: Predict, examples: Example) -> CarliniWagnerState:
        state = self._next_const(state, examples.image)
        keys = stream(state.keys, STEP, state.step)

        def objective(w: Any, probe: Any) -> tuple[Any, Any]:
            images = self._image(w)
            squared = jnp.sum((images - examples.image) ** 2, axis=(1, 2, 3))
            logits = predict(keys, finite_gradient(images, probe))
            confidence = in_dtype_of(self.confidence, logits)
            shortfall = jnp.maximum(confidence - margin(logits, examples), 0)
            reached = confident(confidence)(logits, examples)
            unusable = ~is_answer(logits)
            return jnp.sum(squared + state.const * shortfall), (images, jnp.sqrt(squared), reached, unusable)

        probe = jnp.zeros_like(state.distance)
        differentiated = jax.grad(objective, (0, 1), has_aux=True)(state.w, probe)
        (gradient, count), (images, distance, reached, unusable) = differentiated
        counted = NonFinite(count, unusable)
        nearer = reached & (distance < state.distance)
        nearest, distance = select(nearer, (images, distance), (state.nearest, state.distance))
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            updates, adam = optax.scale_by_adam().update(gradient, state.adam)
        return state._replace(
            step=state.step + 1,
            w=state.w - in_dtype_of(self.learning_rate, updates) * updates,
            adam=adam,
            reached=state.reached | reached,
            nearest=nearest,
            distance=distance,
            nonfinite=jax.tree.map(lambda old, new: old + new.astype(jnp.int32), state.nonfinite, counted),
        )

    advance = move

    def end(self, state: CarliniWagnerState, predict: Predict, examples: Example) -> Result:
        is_near = state.distance <= in_dtype_of(self.radius, state.distance)
        found = select(is_near, state.nearest, examples.image)
        logits = predict(stream(state.keys, FINAL), found)
        success = misclassified(logits, examples) & is_near
        value = margin(logits, examples)
        return Result(found, found - examples.image, value, success, nonfinite=state.nonfinite)

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        state = driver.call(self, "begin", keys, examples)
        state = driver.repeat(self, self.num_steps, state, examples)
        return driver.call(self, "end", state, examples)

    def with_grid(self, grid: Grid) -> "CarliniWagner":
        return dataclasses.replace(self, grids=(*self.grids, grid))

    def _image(self, w: Any) -> Images:
        image = (jnp.tanh(w) + 1) / 2
        for grid in self.grids:
            image = with_gradient_of(on_grid(image, grid), image)
        return image

    def _start(self, x: Images) -> tuple[Any, Any]:
        w = jnp.arctanh((2 * x - 1) * _INSIDE_TANH)
        return w, optax.scale_by_adam().init(w)

    def _next_const(self, state: CarliniWagnerState, x: Images) -> CarliniWagnerState:
        """After the last step of a constant, the next one, from the start again; else the state as it is."""
        is_next = (state.step > 0) & (state.step % self.steps_per_const == 0)

        def start_again(state: CarliniWagnerState) -> CarliniWagnerState:
            const, low, high = _halved(state.const, state.low, state.high, state.reached)
            w, adam = self._start(x)
            reached = jnp.zeros_like(state.reached)
            return state._replace(w=w, adam=adam, const=const, low=low, high=high, reached=reached)

        return branch(is_next.astype(jnp.int32), [lambda state: state, start_again], state)


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
) -> CarliniWagner:
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
    return CarliniWagner(
        require_number("radius", radius, "0 or larger", lambda r: r >= 0),
        require_number("initial_const", initial_const, "larger than 0", lambda c: c > 0),
        require_number("learning_rate", learning_rate, "larger than 0", lambda r: r > 0),
        require_number("confidence", confidence, "0 or larger", lambda k: k >= 0),
        require_count("num_steps", num_steps),
        require_count("search_steps", search_steps),
    )
