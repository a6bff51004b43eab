"""Attacks at several targets: a targeted attack at each of the most likely other classes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from spa_jax.attacks.base import JUDGE, RUN, PureAttack, stream
from spa_jax.attacks.combinators import Wrapped, beaten, first_success, require_per_example, stronger
from spa_jax.attacks.minimal_norm import likely_classes
from spa_jax.attacks.survivors import ladder_sizes, on_rows, standing_rows
from spa_jax.trees import branch, pytree, static
from spa_jax.types import Count, Example, Flags, Keys, Predict, Result
from spa_jax.validation import require_count
from spa_jax.victims.tracing import is_randomized

Targets = Int[Array, "b k"]
"""For each image the classes that are aimed at, in their order."""


class MultiTargetedState(NamedTuple):
    """The state between two steps.

    Attributes:
        step: int32 [], steps made over all targets.
        keys: [b].
        targets: int32 [b, k], the classes in the order in which they are attacked.
        run: the state of the attack at the present target.
        best: the result of the targets before.
    """

    step: Any
    keys: Any
    targets: Any
    run: Any
    best: Result


@pytree
class MultiTargeted(Wrapped):
    """A targeted attack at several classes; see `multi_targeted`."""

    attack: Any
    k: int = static()
    all_targets: bool = static(default=False)

    @property
    def num_steps(self) -> int:
        """Steps at all targets; where the victim has fewer classes, the last ones change nothing."""
        return self.k * self.attack.num_steps

    @property
    def tells_broken(self) -> bool:
        return self.attack.tells_broken

    def broken(self, state: MultiTargetedState) -> Flags:
        return state.best.success | self.attack.broken(state.run)

    @property
    def nearest_in(self) -> str | None:
        return self.attack.nearest_in if self.all_targets else None

    def batch_sizes(self, size: int) -> set[int]:
        return ladder_sizes(self.attack, size)

    def begin(self, keys: Keys, predict: Predict, examples: Example) -> MultiTargetedState:
        targets = self.targets(keys, predict, examples)
        run = self._start(0, keys, targets, predict, examples)
        first = self.attack.end(run, predict, _aimed(0, targets, examples))
        best = beaten(self.judged(first, keys, predict, examples))
        return MultiTargetedState(jnp.zeros((), jnp.int32), keys, targets, run, best)

    def move(self, state: MultiTargetedState, predict: Predict, examples: Example) -> MultiTargetedState:
        length, count = self.attack.num_steps, state.targets.shape[1]

        def start_next(state: MultiTargetedState) -> MultiTargetedState:
            run = self._start(state.step // length, state.keys, state.targets, predict, examples)
            return state._replace(best=self._found(state, predict, examples), run=run)

        def go(state: MultiTargetedState) -> MultiTargetedState:
            is_next = (state.step > 0) & (state.step % length == 0)
            state = branch(is_next.astype(jnp.int32), [lambda state: state, start_next], state)
            aimed = _aimed(state.step // length, state.targets, examples)
            return state._replace(run=self.attack.move(state.run, predict, aimed))

        if count < self.k:
            is_over = state.step >= count * length
            state = branch(is_over.astype(jnp.int32), [go, lambda state: state], state)
        else:
            state = go(state)
        return state._replace(step=state.step + 1)

    def end(self, state: MultiTargetedState, predict: Predict, examples: Example) -> Result:
        return self.conclude(state.keys, self._found(state, predict, examples), predict, examples)

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        targets = driver.call(self, "targets", keys, examples)
        count = targets.shape[1]
        if driver.is_hosted:
            best: Any = self._aim(driver, 0, None, keys, targets, examples)
            for i in range(1, count):
                aim = functools.partial(self._aim, driver, i)
                rows = np.arange(len(targets)) if self.all_targets else standing_rows(best.success, driver.predict)
                best = on_rows(rows, aim, best, keys, targets, examples)
        else:
            found = driver.each(lambda i: self._attacked(driver, i, keys, targets, examples), jnp.arange(count))
            best = None
            for i in range(count):
                best = driver.call(self, "merge", keys, best, jax.tree.map(lambda leaf, i=i: leaf[i], found), examples)
        return driver.call(self, "conclude", keys, best, examples) if is_randomized(driver.predict) else best

    # --- its parts

    def targets(self, keys: Keys, predict: Predict, examples: Example) -> Targets:
        """The most likely classes of the clean images other than the label, the likeliest first, [b, k] or fewer."""
        if examples.target is not None:
            raise ValueError("multi_targeted chooses its targets itself: call it without `target`")
        logits = predict(stream(keys, JUDGE), examples.image)
        return likely_classes(logits, examples.label, self.k + 1)

    def merge(self, keys: Keys, best: Result | None, found: Result, predict: Predict, examples: Example) -> Result:
        """The best result with that at a further target, judged as an untargeted attack's.

        The first success stays, so that it does not matter whether what has been broken is attacked again. Of a
        randomised victim a success may be luck, and the stronger result is taken, as with `all_targets`.
        """
        found = self.judged(found, stream(keys, JUDGE), predict, examples)
        if best is None:
            return found
        return stronger(best, found) if self.all_targets else first_success(best, found, predict)

    def _aim(self, driver: Any, i: int, best: Any, keys: Keys, targets: Targets, examples: Example) -> Result:
        found = self._attacked(driver, i, keys, targets, examples)
        return driver.call(self, "merge", keys, best, found, examples)

    def _attacked(self, driver: Any, i: Any, keys: Keys, targets: Targets, examples: Example) -> Result:
        return self.attack.run(driver, stream(keys, RUN, i), _aimed(i, targets, examples))

    def _start(self, i: Any, keys: Keys, targets: Targets, predict: Predict, examples: Example) -> Any:
        return self.attack.begin(stream(keys, RUN, i), predict, _aimed(i, targets, examples))

    def _found(self, state: MultiTargetedState, predict: Predict, examples: Example) -> Result:
        """The best result with that of the present run, the last of whose steps has been made."""
        i = jnp.clip((state.step - 1) // self.attack.num_steps, 0, state.targets.shape[1] - 1)
        found = self.attack.end(state.run, predict, _aimed(i, state.targets, examples))
        return self.merge(state.keys, state.best, found, predict, examples)


def _aimed(i: Any, targets: Targets, examples: Example) -> Example:
    return examples.replace(target=jnp.take(targets, i, axis=1))


def multi_targeted(attack: PureAttack, k: Count = 9, all_targets: bool = False) -> MultiTargeted:
    """A targeted attack at each of the `k` most likely other classes of the clean image, the likeliest first.

    As APGD-T and FAB-T of AutoAttack (Croce & Hein 2020, section 4): to aim at one class after the other finds more
    than to move away from the label, and any wrong class is a success. Of each image the first success is kept, else
    the largest loss, which is the attack's untargeted one. Called from Python on a CPU, images that have been broken
    leave the batch before the next target.

    Args:
        attack: with per-example variables and a loss that takes targets.
        k: how many targets; a victim of fewer classes has one fewer than classes. 9 is AutoAttack's.
        all_targets: go on with images that have been broken, and keep the strongest success: for attacks that look for
            the nearest image that fools.

    Raises:
        ValueError: `k` below 1, or an attack with shared variables, or something that is not an attack; when called, a
            target.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import multi_targeted, pgd
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images), light(images) - 1], axis=-1)  # 3 classes
        >>> attack = multi_targeted(pgd(radius=0.03), k=2)
        >>> print(attack(jax.random.key(0), model, images, labels).success)
        [ True  True]
    """
    require_per_example("multi_targeted picks per example", attack)
    return MultiTargeted(attack.aimed(), require_count("k", k), bool(all_targets))
