"""What every attack is: pure steps on a visible state, and the call that makes all of them.

An attack has pure functions on checked inputs, `begin`, `move` and `end`. What people call, `init`, `step`, `result`
and the attack itself, checks the inputs and compiles these. Called from Python on a CPU, an attack is a Python loop
over one compiled step: XLA's CPU backend is slow at convolutions inside loops, and compiles long unrolled programs
slowly. Inside a compiled program, and on accelerators, the step is scanned.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from spa_jax.errors import shown
from spa_jax.losses import loss_from_spec
from spa_jax.trees import beside, is_in_shard_map, repeat, varying_as
from spa_jax.types import Example, Images, Keys, Result, Variables, Victim
from spa_jax.validation import check_values, checked_examples, checked_keys, is_traced
from spa_jax.victims import as_victim, trace_for

AttackT = TypeVar("AttackT", bound="PureAttack")

_NO_KEY = object()
START, STEP, JUDGE, RUN = range(4)
"""Streams of an attack's keys; a victim never sees the keys that draw a start."""


def stream(keys: Keys, purpose: int, number: Any = 0) -> Keys:
    """Each key, or the single one, folded with a purpose and a number."""

    def fold(key: Any) -> Any:
        return jax.random.fold_in(jax.random.fold_in(key, purpose), number)

    return fold(keys) if keys.ndim == 0 else jax.vmap(fold)(keys)


def part_of(step: Any, lengths: Iterable[int]) -> Any:
    """Which of several parts, run one after the other, a step belongs to; steps beyond the last are of the last."""
    ends = list(itertools.accumulate(lengths))
    return sum((step >= end).astype(jnp.int32) for end in ends[:-1]) if ends[:-1] else jnp.zeros((), jnp.int32)


# --- how the steps of an attack are run -----------------------------------------------------------------------------


class Inline:
    """Inside a compiled program, and inside `shard_map`: functions are called as they are, steps are scanned."""

    def __init__(self, predict: Any) -> None:
        self.predict = predict

    def call(self, attack: Any, method: str, *arguments: Any, **options: Any) -> Any:
        """One of the attack's pure functions on the arguments, the last of which are the examples."""
        return _apply(attack, method, self.predict, arguments, **options)

    def repeat(self, attack: Any, num_steps: int, state: Any, examples: Example, **stage: int) -> Any:
        """`num_steps` steps."""
        return repeat(lambda state: self.call(attack, "advance", state, examples, **stage), state, num_steps)

    def each(self, function: Callable[[Any], Any], entries: Any, at_once: int = 1) -> Any:
        """`function` of every entry along the first axis, stacked."""
        return jax.lax.map(function, entries, batch_size=at_once if at_once > 1 else None)


class Hosted:
    """From Python: every function is compiled once, steps and entries are a Python loop."""

    def __init__(self, victim: Victim, attack: Any, images: Images) -> None:
        self._victim = victim
        self._known: dict[Any, Any] = {}
        self.predict = self._prepared(attack, images)

    def call(self, attack: Any, method: str, *arguments: Any, **options: Any) -> Any:
        """One of the attack's pure functions, compiled."""
        return _compiled(attack, method, self._prepared(attack, arguments[-1].image), arguments, **options)

    def repeat(self, attack: Any, num_steps: int, state: Any, examples: Example, **stage: int) -> Any:
        """`num_steps` steps."""
        for _ in range(num_steps):
            state = self.call(attack, "advance", state, examples, **stage)
        return state

    def each(self, function: Callable[[Any], Any], entries: Any, at_once: int = 1) -> Any:
        """`function` of every entry along the first axis, stacked."""
        count = len(jax.tree.leaves(entries)[0])
        found = [function(jax.tree.map(lambda leaf, i=i: leaf[i], entries)) for i in range(count)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    def _prepared(self, attack: Any, images: Images) -> Any:
        form = self._form(attack, images)
        if form not in self._known:
            self._known[form] = _prepared(self._victim, attack, images)
        return self._known[form]

    @staticmethod
    def _form(attack: Any, images: Images) -> Any:
        return frozenset(attack.batch_sizes(len(images))), images.shape[1:], images.dtype


def _apply(attack: Any, method: str, predict: Any, arguments: tuple[Any, ...], **options: Any) -> Any:
    *others, examples = arguments
    return getattr(attack, method)(*others, predict, examples, **options)


_compiled = jax.jit(_apply, static_argnums=1, static_argnames=("stage", "without", "replace"))


def _is_scanned(*inputs: Any) -> bool:
    """Whether an attack is part of a compiled program, or runs on an accelerator."""
    return jax.default_backend() != "cpu" or is_traced(*inputs, jnp.zeros(()))


@jax.jit
def _whole(attack: Any, predict: Any, keys: Keys, examples: Example) -> Any:
    return attack.run(Inline(predict), keys, examples)


def _prepared(victim: Victim, attack: Any, images: Images) -> Any:
    """The victim `(keys, images) -> logits` for every batch size in which the attack shows it the images."""
    sizes = attack.batch_sizes(len(images))
    form = jax.ShapeDtypeStruct((min(sizes), *images.shape[1:]), images.dtype)
    found = as_victim(victim if len(sizes) == 1 else trace_for(victim, form, sizes), form, inline=False)
    # Weights that lie on one device would be sent to the others at every step.
    return found if is_traced(images) else beside(images, found)


# --- the attack -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PureAttack:
    """Base of all attacks; see `spa_jax.types.Attack`.

    A subclass is a pytree dataclass with `num_steps`, the pure functions `begin(keys, predict, examples) -> state`,
    `move(state, predict, examples) -> state` and `end(state, predict, examples) -> Result`, and `run`, which is all of
    them by a driver (`Inline` or `Hosted`).
    """

    def __init_subclass__(cls) -> None:
        """Attacks are compared by identity: `jax.jit(attack)` then works whatever numbers it holds."""
        cls.__eq__, cls.__hash__ = object.__eq__, object.__hash__  # type: ignore[method-assign]

    # --- what people call

    def init(self, key: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Any:
        """The state before the first step; arguments and errors are those of a call."""
        driver, keys, examples = self._checked(key, victim, images, labels, target, **extra)
        state = driver.call(self, "begin", keys, examples)
        return varying_as(lambda state: driver.call(self, "move", state, examples), state)

    def step(self, state: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Any:
        """One step: one forward and one backward pass of the victim.

        It may be jitted, scanned, vmapped and mapped over devices. An attack with shared variables (`universal`) may
        get another batch at each step. Values are not read back, so that steps can be queued; shapes are checked.
        """
        driver, _, examples = self._checked(_NO_KEY, victim, images, labels, target, **extra)
        return driver.call(self, "move", state, examples)

    def result(self, state: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Result:
        """What the state has found on these images."""
        driver, _, examples = self._checked(_NO_KEY, victim, images, labels, target, **extra)
        return driver.call(self, "end", state, examples)

    def __call__(self, key: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Result:
        """Attack a batch: `init`, `num_steps` times `step`, `result`.

        Args:
            key: one key, or one per image [b]; a single one where the variables are shared.
            victim: any function from images [b, h, w, c] to logits [b, k]; `spa_jax.randomized(f)` of keys and images.
                A plain function is traced at each call, and the arrays it closes over become arguments of the compiled
                program. A pytree (`spa_jax.classifier`, `jax.tree_util.Partial`) skips the tracing.
            images: [b, h, w, c], floating, in [0, 1].
            labels: [b], integers in [0, k - 1].
            target: [b], the classes to reach; None: the attack is untargeted.
            extra: `weight` [b], how much each image counts where variables are shared, 0 for padding; `reference`,
                logits [b, k] for losses that compare with some, such as `kl_divergence`.

        Raises:
            ValueError: an input breaks one of these rules.
        """
        driver, keys, examples = self._checked(key, victim, images, labels, target, **extra)
        if isinstance(driver, Inline) or not _is_scanned(self, driver.predict, keys, examples):
            return self.run(driver, keys, examples)
        return _whole(self, driver.predict, keys, examples)

    def apply(
        self, variables: Variables, victim: Victim, images: Any, labels: Any, without: tuple[str, ...] = ()
    ) -> Images:
        """The images that variables make, such as a universal perturbation on images it was not made for.

        Args:
            variables: of a state or result of this attack, for as many images or shared.
            victim, images, labels: as for a call.
            without: names of variables that are left at their identity.

        Raises:
            ValueError: an input breaks a rule.
        """
        driver, _, examples = self._checked(_NO_KEY, victim, images, labels)
        return driver.call(self, "make", variables, examples.replace(prepared=None), without=without)

    def make(self, variables: Variables, predict: Any, examples: Example, without: tuple[str, ...] = ()) -> Images:
        """The images of variables; the pure function behind `apply`."""
        raise ValueError(f"attack={type(self).__name__} has no space whose variables can be applied")

    def run(self, driver: Any, keys: Keys, examples: Example) -> Any:
        """The whole attack by a driver: `begin`, all steps and `end`."""
        raise NotImplementedError

    # --- properties

    @property
    def shared(self) -> bool:
        """Whether all images share one set of variables."""
        return False

    def members(self) -> Mapping[str, Any]:
        """The spaces that it moves, by the names of their variables; empty where they are not known."""
        return {}

    def inside(self: AttackT, change: Callable[[Any], Any]) -> AttackT:
        """The attack with a change made to it, or to every attack that it combines."""
        return change(self)

    def scaled(self: AttackT, share: Any) -> AttackT:
        """The attack in a smaller space: `share` of every radius, and of every range about its identity.

        Raises:
            ValueError: it has no space.
        """
        return self.inside(lambda attack: _with_field(attack, "space", lambda space: space.scaled(share)))

    def with_loss(self: AttackT, loss: Any) -> AttackT:
        """The attack with another loss.

        Raises:
            ValueError: it has no loss.
        """
        return self.inside(lambda attack: _with_field(attack, "loss", lambda _: loss_from_spec(loss)))

    def batch_sizes(self, size: int) -> set[int]:
        """In which batches the victim sees a batch of that size."""
        return {size}

    def _checked(self, key: Any, victim: Victim, *arrays: Any, **extra: Any) -> tuple[Any, Any, Example]:
        examples, keys = checked_examples(*arrays, **extra), None
        if is_in_shard_map():
            driver: Any = Inline(as_victim(victim, examples.image, inline=True))
        else:
            driver = Hosted(victim, self, examples.image)
        if key is not _NO_KEY:
            keys = checked_keys(key, len(examples.image), self.shared)
            check_values(driver.predict, keys, examples, min(self.batch_sizes(len(examples.image))))
        return driver, keys, examples.replace(image=jnp.clip(examples.image, 0, 1))


def require_attack(attack: Any) -> None:
    """Check that something is an attack of this library.

    Raises:
        ValueError: it is not.
    """
    if isinstance(attack, PureAttack):
        return
    hint = ""
    if isinstance(attack, list | tuple):
        hint = ": say worst_of(*attacks)"
    elif hasattr(attack, "__name__"):
        hint = f": call it first, as {attack.__name__}(...)"
    raise ValueError(f"attack={shown(attack)} must be an attack, such as pgd(8/255){hint}")


def _with_field(attack: Any, name: str, change: Callable[[Any], Any]) -> Any:
    if not hasattr(attack, name):
        raise ValueError(f"attack={type(attack).__name__} has no {name}")
    return dataclasses.replace(attack, **{name: change(getattr(attack, name))})
