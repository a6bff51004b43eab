"""Attacks that stop at an example once it is broken."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spa_jax.attacks.base import PureAttack
from spa_jax.attacks.combinators import Wrapped, require_per_example
from spa_jax.attacks.survivors import fitting, ladder_sizes, put_rows, take_rows
from spa_jax.trees import pytree, select, static
from spa_jax.types import Count, Example, Flags, Keys, Predict, Result
from spa_jax.validation import require_count
from spa_jax.victims.tracing import is_randomized


class StoppingState(NamedTuple):
    """The state between two steps.

    Attributes:
        step: int32 [], steps made.
        stopped: [b], which examples are left as they are.
        own: the state of the attack.
    """

    step: Any
    stopped: Any
    own: Any


@pytree
class UntilBroken(Wrapped):
    """An attack that stops at what it has broken; see `until_broken`."""

    attack: Any
    every: int = static()

    @property
    def num_steps(self) -> int:
        """Steps for an example that stands to the end."""
        return self.attack.num_steps

    @property
    def tells_broken(self) -> bool:
        return True

    @property
    def nearest_in(self) -> None:
        return None

    def broken(self, state: StoppingState) -> Flags:
        return state.stopped | self.attack.broken(state.own)

    def batch_sizes(self, size: int) -> set[int]:
        return ladder_sizes(self.attack, size)

    def begin(self, keys: Keys, predict: Predict, examples: Example) -> StoppingState:
        own = self.attack.begin(keys, predict, examples)
        batch = len(examples.image)
        if strange := [leaf.shape for leaf in jax.tree.leaves(own) if leaf.ndim and len(leaf) != batch]:
            raise ValueError(
                f"attack={type(self.attack).__name__} holds an array of shape {strange[0]!r} in its state, must be one "
                f"entry for each of {batch} examples: until_broken takes it apart by example"
            )
        return StoppingState(jnp.zeros((), jnp.int32), jnp.zeros(batch, bool), own)

    def move(self, state: StoppingState, predict: Predict, examples: Example) -> StoppingState:
        stopped = state.stopped
        if not is_randomized(predict):
            is_due = state.step % self.every == 0
            stopped = jnp.where(is_due, self.broken(state), stopped)
        moved = self.attack.move(state.own, predict, examples)
        own = jax.tree.map(lambda old, new: select(stopped, old, new) if old.ndim else new, state.own, moved)
        return StoppingState(state.step + 1, stopped, own)

    advance = move

    def end(self, state: StoppingState, predict: Predict, examples: Example) -> Result:
        return self.attack.end(state.own, predict, examples)

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        state = driver.call(self, "begin", keys, examples)
        shrinks = driver.is_hosted and not is_randomized(driver.predict) and keys.is_fully_addressable
        state = (self._shrink if shrinks else self._repeat)(driver, state, examples)
        return driver.call(self, "end", state, examples)

    def _repeat(self, driver: Any, state: StoppingState, examples: Example) -> StoppingState:
        return driver.repeat(self, self.num_steps, state, examples)

    def _shrink(self, driver: Any, whole: StoppingState, examples: Example) -> StoppingState:
        """All steps, for which broken examples leave the batch where the rest fits a smaller size."""
        rows, state = np.arange(len(examples.image)), whole
        for first in range(0, self.num_steps, self.every):
            standing = np.flatnonzero(~np.asarray(self.broken(state))[: len(rows)])
            if not len(standing):
                break
            size, batch = fitting(len(standing), examples.image), len(examples.image)
            if size < batch:
                whole, rows = put_rows(whole, rows, state), rows[standing]
                state, examples = take_rows((state, examples), standing, size, examples.image)
            state = driver.repeat(self, min(self.every, self.num_steps - first), state, examples)
        return put_rows(whole, rows, state)


def until_broken(attack: PureAttack, every: Count = 10) -> UntilBroken:
    """The attack, but an example that is broken is left as it is: what is reported is its best point by then.

    Every so many steps the broken examples are stopped. Called from Python on a CPU, they leave the batch too, which
    shrinks to one of few sizes (powers of two), so that a long attack spends its time on what still stands; inside a
    compiled program they stay and change nothing more. Which examples fall is what the attack alone finds, and so is
    the result of each that stands. A randomised victim is attacked to the end, since a success may be luck.

    Args:
        attack: with per-example variables, that keeps its best point.
        every: steps between two looks at what is broken, which wait for the steps before. 10 is our choice.

    Raises:
        ValueError: `every` below 1; an attack with shared variables, one whose state does not say what is broken (with
            `keep="last"`, or in chunks: say `in_chunks(until_broken(attack), size)`), or something that is not an
            attack.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import pgd, until_broken
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> attack = until_broken(pgd(radius=0.03, num_steps=50))  # 10 steps, then both are broken
        >>> print(attack(jax.random.key(0), model, images, labels).success)
        [ True  True]
    """
    require_per_example("until_broken stops per example", attack)
    if not attack.tells_broken:
        kind = type(attack).__name__
        raise ValueError(f"attack={kind} does not say in its state which examples are broken: until_broken needs that")
    return UntilBroken(attack, require_count("every", every))
