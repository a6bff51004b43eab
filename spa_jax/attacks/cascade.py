"""Attacks one after the other on what is left, and the standard cascade of them, AutoAttack."""

import functools
from collections.abc import Mapping
from typing import Any

from spa_jax.attacks.base import RUN, PureAttack, stream
from spa_jax.attacks.combinators import WorstOf, checked_attacks, first_success, restarts
from spa_jax.attacks.fab import fab
from spa_jax.attacks.gradient import apgd_ce, apgd_dlr
from spa_jax.attacks.query import square
from spa_jax.attacks.stopping import until_broken
from spa_jax.attacks.survivors import ladder_sizes, on_rows, standing_rows
from spa_jax.attacks.targets import multi_targeted
from spa_jax.trees import pytree
from spa_jax.types import Example, Keys, Predict, Result, Scalar
from spa_jax.validation import require_choice

_ORDERS: Mapping[str, tuple[str, ...]] = {
    "standard": ("APGD-CE", "APGD-T", "FAB-T", "Square"),
    "plus": ("APGD-CE", "APGD-DLR", "APGD-MARGIN", "FAB", "Square", "APGD-T", "FAB-T"),
    "rand": ("APGD-CE", "APGD-DLR", "APGD-MARGIN"),
}
"""The published order of each version."""
_DRAWS = 20
_RESTARTS = 5
_TARGETS = 9
_TARGETS_IN_L1 = 5


@pytree
class InTurn(WorstOf):
    """Attacks one after the other on what is left; see `in_turn`."""

    attacks: tuple[Any, ...]

    def batch_sizes(self, size: int) -> set[int]:
        return set().union(*(ladder_sizes(attack, size) for attack in self.attacks))

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        if not driver.is_hosted:
            return super().run(driver, keys, examples)
        best = self._turn(driver, 0, None, keys, examples)
        for i in range(1, len(self.attacks)):
            rows = standing_rows(best.success, driver.predict)
            best = on_rows(rows, functools.partial(self._turn, driver, i), best, keys, examples)
        return driver.call(self, "conclude", keys, best, examples)

    def _turn(self, driver: Any, i: int, best: Any, keys: Keys, examples: Example) -> Any:
        found = self.attacks[i].run(driver, stream(keys, RUN, i), examples)
        return driver.call(self, "merge", keys, best, found, examples, stage=i)

    def choose(self, keys: Keys, results: tuple[Result, ...], predict: Predict, examples: Example) -> Result:
        best: Any = None
        for i, result in enumerate(results):
            best = self.merge(keys, best, result, predict, examples, stage=i)
        return self.conclude(keys, best, predict, examples)

    def merge(
        self, keys: Keys, best: Result | None, found: Result, predict: Predict, examples: Example, stage: int = 0
    ) -> Result:
        """The best result with that of the attack number `stage`."""
        found = self.candidate(keys, found, predict, examples, stage)
        return found if best is None else first_success(best, found, predict)


def in_turn(*attacks: PureAttack) -> InTurn:
    """Attacks one after the other, each on what all before it have left: a cascade, for the least work.

    Of each image the first success is kept, else the result with the largest margin. The result's `value` is the
    margin, its `variables` the number of the attack, from 0. Called from Python on a CPU, images that have been broken
    leave the batch; inside a compiled program every attack sees all of them, with the same result.

    Raises:
        ValueError: no attack was given, or one with shared variables, or something that is not an attack.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import fgsm, in_turn, pgd
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = in_turn(fgsm(radius=0.01), pgd(radius=0.03))(jax.random.key(0), model, images, labels)
        >>> print(result.success, result.variables)
        [ True  True] [1 1]
    """
    return InTurn(checked_attacks("in_turn", "attacks", attacks))


def autoattack_parts(
    radius: Scalar, norm: str = "linf", version: str = "standard", loss: str = "dlr"
) -> dict[str, PureAttack]:
    """The attacks of AutoAttack by name, in the published order.

    Args:
        radius, norm, version, loss: as for `autoattack`.

    Raises:
        ValueError: as `autoattack`.
    """
    require_choice("version", version, tuple(_ORDERS))
    require_choice("loss", loss, ("dlr", "margin"))
    ce, dlr = apgd_ce(radius, norm=norm), apgd_dlr(radius, norm=norm).with_loss(loss)
    of_loss = f"APGD-{loss.upper()}"
    if version == "rand":
        return {"APGD-CE": ce.averaged(_DRAWS), of_loss: dlr.averaged(_DRAWS)}
    several = _RESTARTS if version == "plus" or norm == "l1" else 1
    targets = _TARGETS_IN_L1 if version == "standard" and norm == "l1" else _TARGETS
    known = {
        "APGD-CE": until_broken(restarts(ce, several)),
        of_loss: until_broken(restarts(dlr, several)),
        "APGD-T": multi_targeted(until_broken(dlr), targets),
        "FAB": until_broken(restarts(fab(norm, radius, random_start=True), _RESTARTS)),
        "FAB-T": multi_targeted(until_broken(fab(norm, radius)), _TARGETS),
        "Square": until_broken(square(radius, norm=norm)),
    }
    return {name: known[name] for name in _ORDERS[version] if name in known}


def autoattack(radius: Scalar, norm: str = "linf", version: str = "standard", loss: str = "dlr") -> InTurn:
    """AutoAttack (Croce & Hein 2020; for l1 Croce & Hein 2021): strong attacks in turn, without numbers to be tuned.

    A robust accuracy that is published is to be measured by it; `spa_jax.evaluation.autoattack` does that for a whole
    split, can be interrupted, and warns where the number is not to be believed. The versions, with the numbers of the
    authors' code, 100 steps for gradient attacks and 5,000 queries (docs/autoattack.md has what differs):

    - "standard": APGD-CE, APGD-T at 9 targets, FAB-T at 9, Square. In l1 APGD-CE runs 5 times, APGD-T has 5 targets.
    - "plus": APGD-CE, APGD-DLR and FAB, 5 times each, Square, APGD-T, FAB-T.
    - "rand": APGD-CE and APGD-DLR on the mean gradient over 20 draws, for victims that draw at random.

    Args:
        radius: of the ball, on the [0, 1] scale.
        norm: "linf", "l2" or "l1".
        version: "standard", "plus" or "rand".
        loss: "dlr", or "margin" in its place for victims of fewer than 4 classes, which the targeted DLR loss needs.

    Raises:
        ValueError: a negative radius, or another norm, version or loss; when called, fewer than 4 classes under "dlr".

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import autoattack
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> print(autoattack(radius=0.03, loss="margin")(jax.random.key(0), model, images, labels).success)
        [ True  True]
    """
    return in_turn(*autoattack_parts(radius, norm, version, loss).values())
