"""Attacks made of attacks: restarts, the worst of several, chunks of a batch, targets, smaller spaces."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from spa_jax import spaces
from spa_jax.engine import PureAttack, judge, merge
from spa_jax.inputs import require_count
from spa_jax.losses import margin, targeted_form
from spa_jax.solvers import fold_in
from spa_jax.trees import as_pytree, pytree, static
from spa_jax.types import Keys, Loss, Predict, Result

AttackT = TypeVar("AttackT", bound=PureAttack)


@pytree
class Restarts(PureAttack):
    """An attack repeated; see `restarts`."""

    attack: Any
    n: int = static()
    at_once: int = static()

    @property
    def is_targeted(self) -> bool:
        return self.attack.is_targeted

    def search(self, keys: Keys, predict: Predict, x: Any, y: Any) -> Any:
        def run(i: Any) -> Any:
            return self.attack.search(fold_in(keys, i), predict, x, y)

        results = jax.lax.map(run, jnp.arange(self.n), batch_size=self.at_once if self.at_once > 1 else None)
        return functools.reduce(merge, [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(self.n)])


def restarts(attack: PureAttack, n: int, at_once: int = 1) -> PureAttack:
    """The strongest of `n` runs from different starts, per example.

    Args:
        attack: with per-example variables.
        n: number of runs.
        at_once: how many runs are held in memory together (vmapped); the others follow one after the other.

    Raises:
        ValueError: `n` or `at_once` below 1, or an attack with shared variables.
    """
    require_count("n", n)
    require_count("at_once", at_once)
    inside(attack, functools.partial(_refuse_shared, "restarts picks per example"))
    return attack if n == 1 else Restarts(attack, n, min(at_once, n))


def _refuse_shared(why: str, attack: AttackT) -> AttackT:
    if getattr(getattr(attack, "space", None), "shared", False):
        raise ValueError(f"{why}: it needs attacks with per-example variables, not universal ones")
    return attack


@pytree
class InChunks(PureAttack):
    """An attack on a part of the batch at a time; see `in_chunks`."""

    attack: Any
    size: int = static()

    @property
    def is_targeted(self) -> bool:
        return self.attack.is_targeted

    def search(self, keys: Keys, predict: Predict, x: Any, y: Any) -> Any:
        count = -(-len(y) // self.size)
        if count == 1:
            return self.attack.search(keys, predict, x, y)
        rows = -(-len(y) // count)
        missing = rows * count - len(y)

        def deal(leaf: Any) -> Any:
            # Row i of the chunks lies where the i-th part of the batch lay: a sharded batch stays on its devices.
            full = jnp.concatenate([leaf, leaf[:missing]]) if missing else leaf
            return jnp.swapaxes(full.reshape(rows, count, *leaf.shape[1:]), 0, 1)

        def collect(leaf: Any) -> Any:
            return jnp.swapaxes(leaf, 0, 1).reshape(rows * count, *leaf.shape[2:])[: len(y)]

        def run(chunk: Any) -> Any:
            keys, x, y = chunk
            return self.attack.search(keys, predict, x, y)

        return jax.tree.map(collect, jax.lax.map(run, jax.tree.map(deal, (keys, x, y))))


def in_chunks(attack: AttackT, size: int) -> AttackT | InChunks:
    """The same attack on at most `size` examples at a time, in one compiled program.

    It needs the memory of one chunk. On a CPU it is quicker where activations then stay in the cache: 8 to 16
    examples a device served a ResNet-20 best. The results are those of the whole batch at once, up to rounding.

    Args:
        attack: with per-example variables, on a victim that treats examples independently.
        size: examples at a time over all devices, 1 or more; where devices share the batch, a multiple of their number.

    Raises:
        ValueError: `size` below 1, or an attack with shared variables.
    """
    require_count("size", size)
    inside(attack, functools.partial(_refuse_shared, "in_chunks splits the batch"))
    return InChunks(attack, size)


@pytree
class WorstOf(PureAttack):
    """Several attacks, the strongest per example; see `worst_of`."""

    attacks: tuple[Any, ...]

    @property
    def is_targeted(self) -> bool:
        return self.attacks[0].is_targeted

    def search(self, keys: Keys, predict: Predict, x: Any, y: Any) -> Result:
        loss = targeted_form(margin) if self.is_targeted else margin
        judge_keys = fold_in(keys, len(self.attacks))
        results = [attack.search(fold_in(keys, i), predict, x, y) for i, attack in enumerate(self.attacks)]
        candidates = []
        for i, result in enumerate(results):
            evaluation = judge(loss, predict(judge_keys, result.x), y, self.is_targeted)
            candidates.append(Result(result.x, jnp.full(y.shape, i, jnp.int32), *evaluation))
        winner = functools.reduce(merge, candidates)
        found = tuple(result.variables for result in results)
        return winner._replace(variables={"winner": winner.variables, "found": found})


def worst_of(*attacks: Any) -> WorstOf:
    """Per example the strongest of several attacks: fooled first, then the larger margin, judged anew for all alike.

    The result's `value` is the margin, its `variables` are `{"winner": index [b], "found": each attack's variables}`.

    Raises:
        ValueError: no attack was given, or targeted and untargeted ones together.
    """
    if not attacks:
        raise ValueError("worst_of() needs at least one attack")
    if len({attack.is_targeted for attack in attacks}) > 1:
        raise ValueError(f"is_targeted={[attack.is_targeted for attack in attacks]} must be the same for all attacks")
    return WorstOf(tuple(attacks))


def with_fields(attack: AttackT, **changes: Any) -> AttackT:
    """The attack with fields replaced, in every attack that a combinator holds.

    Raises:
        ValueError: an attack in it has no such field.
    """

    def change(attack: AttackT) -> AttackT:
        own = {field.name for field in dataclasses.fields(attack)}
        for name, value in changes.items():
            if name not in own:
                raise ValueError(f"{name}={value!r}: {type(attack).__name__} has the fields {', '.join(sorted(own))}")
        return dataclasses.replace(attack, **changes)

    return inside(attack, change)


def inside(attack: AttackT, change: Callable[[Any], Any]) -> AttackT:
    """The attack with `change` made to it, or to every attack that it combines."""
    changes: dict[str, Any]
    if isinstance(attack, Restarts | InChunks):
        changes = {"attack": inside(attack.attack, change)}
    elif isinstance(attack, WorstOf):
        changes = {"attacks": tuple(inside(member, change) for member in attack.attacks)}
    else:
        return change(attack)
    return dataclasses.replace(attack, **changes)


def shrunk(attack: AttackT, share: Any) -> AttackT:
    """The attack in a smaller space: `share` of every radius and of every range about its identity.

    Raises:
        ValueError: the attack has no space whose size is known.
    """

    def change(attack: Any) -> Any:
        if not hasattr(attack, "space"):
            raise ValueError(f"attack={type(attack).__name__} has no space to shrink")
        smaller = spaces.shrink(attack.space.space, share)
        return dataclasses.replace(attack, space=dataclasses.replace(attack.space, space=smaller))

    return inside(attack, change)


def targeted(attack: AttackT, loss: Loss | None = None) -> AttackT:
    """The attack that wants one answer: call the result with target classes in place of the labels.

    Success means prediction == target. The loss becomes its targeted form.

    Args:
        attack: any untargeted attack of this library.
        loss: a targeted loss to use instead.

    Raises:
        ValueError: the attack's loss has no targeted form, or the attack is targeted already.
    """

    def aim(attack: Any) -> Any:
        if attack.is_targeted:
            raise ValueError(f"attack={type(attack).__name__} is targeted already")
        if not hasattr(attack, "loss"):
            return dataclasses.replace(attack, is_targeted=True)
        chosen = targeted_form(attack.loss) if loss is None else loss
        return dataclasses.replace(attack, loss=as_pytree(chosen), is_targeted=True)

    return inside(attack, aim)
