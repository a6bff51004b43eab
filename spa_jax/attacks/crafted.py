"""Attacks that search on one victim and are judged by another: transfer, BPDA, expectation over transformation."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from spa_jax.attacks.base import FINAL, PureAttack, stream
from spa_jax.attacks.combinators import Wrapped, require_per_example
from spa_jax.errors import shown
from spa_jax.trees import pytree
from spa_jax.types import Example, Images, Keys, Predict, Result, Variables, Victim


class CraftedState(NamedTuple):
    """The attack's keys, and the state of the attack on the surrogate."""

    keys: Any
    own: Any


@pytree
class CraftedOn(Wrapped):
    """An attack that searches on one victim and is judged by another; see `crafted_on`.

    The surrogate is a victim as people write it, and inside of a call `(keys, images) -> logits`.
    """

    attack: Any
    surrogate: Any

    @property
    def num_steps(self) -> int:
        """Steps on the surrogate."""
        return self.attack.num_steps

    @property
    def nearest_in(self) -> None:
        return None

    def batch_sizes(self, size: int) -> set[int]:
        return {size, *self.attack.batch_sizes(size)}

    def with_surrogates(self, ready: Callable[[Victim], Any]) -> "CraftedOn":
        return CraftedOn(self.attack.with_surrogates(ready), ready(self.surrogate))

    def begin(self, keys: Keys, predict: Predict, examples: Example) -> CraftedState:
        return CraftedState(keys, self.attack.begin(keys, self.surrogate, examples))

    def move(self, state: CraftedState, predict: Predict, examples: Example) -> CraftedState:
        return state._replace(own=self.attack.move(state.own, self.surrogate, examples))

    def end(self, state: CraftedState, predict: Predict, examples: Example) -> Result:
        return self.transfer(state.keys, self.attack.end(state.own, self.surrogate, examples), predict, examples)

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        found = self.attack.run(driver.against(self.surrogate), keys, examples)
        return driver.call(self, "transfer", keys, found, examples)

    def transfer(self, keys: Keys, found: Result, predict: Predict, examples: Example) -> Result:
        """What was found, as the victim itself judges it; what the surrogate cannot answer is not held against it."""
        if found.nonfinite is not None:
            unbroken = jnp.zeros_like(found.nonfinite.answers)
            found = dataclasses.replace(found, nonfinite=found.nonfinite._replace(answers=unbroken))
        return self.judged(found, stream(keys, FINAL), predict, examples)

    def make(self, variables: Variables, predict: Predict, examples: Example, without: tuple[str, ...] = ()) -> Images:
        return self.attack.make(variables, self.surrogate, examples, without)


def crafted_on(attack: PureAttack, surrogate: Victim) -> CraftedOn:
    """An attack that searches on a surrogate and succeeds where the victim itself is fooled.

    The attack sees the surrogate alone, and chooses its best point by it. The victim judges what is found once, with
    fresh keys; `value` and `success` are those. Which surrogate makes it

    - a transfer attack: another network;
    - BPDA (Athalye et al. 2018, section 4.1): `purify(network, straight_through(purifier))` against
      `purify(network, purifier)`;
    - EOT: `eot(victim, n)` against the randomised victim;
    - an attack on a victim without gradient: `eot(victim, n)` against `majority_vote(victim, n)`.

    `worst_of(pgd(r), crafted_on(pgd(r), bypassed))` is the strongest of full gradient and straight through for each
    image, as the victim judges them.

    Args:
        attack: with per-example variables.
        surrogate: any function from images to logits, or `randomized(f)`. One that is no pytree of arrays is traced at
            each call, as a victim is.

    Raises:
        ValueError: an attack with shared variables, or something that is not an attack or no function; when called, a
            surrogate that does not answer as a victim does, or for a class that is among the labels.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import crafted_on, pgd
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> coarse = lambda images: model(jnp.round(8 * images) / 8)  # has no gradient
        >>> attack = pgd(radius=0.1, random_start=False)
        >>> print(attack(jax.random.key(0), coarse, images, labels).success)
        [False False]
        >>> print(crafted_on(attack, model)(jax.random.key(0), coarse, images, labels).success)
        [ True  True]
    """
    require_per_example("crafted_on judges per example", attack)
    if not callable(surrogate):
        raise ValueError(f"surrogate={shown(surrogate)} must be a function from images to logits")
    return CraftedOn(attack, surrogate)
