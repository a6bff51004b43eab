"""What every attack is: pure steps on a visible state, and the call that makes all of them.

An attack has pure functions on checked inputs, `begin`, `move` and `end`. What people call, `init`, `step`, `result`
and the attack itself, checks the inputs and compiles these. Called from Python on a CPU, an attack is a Python loop
over one compiled step: XLA's CPU backend is slow at convolutions inside loops, and compiles long unrolled programs
slowly. Inside a compiled program, and on accelerators, the step is scanned.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from spa_jax.errors import shown
from spa_jax.goals import is_answer, misclassified, untargeted
from spa_jax.losses import loss_from_spec, margin
from spa_jax.numerics import Grid, at_least_float32
from spa_jax.trees import beside, is_in_shard_map, kinds_of, one_ahead, pytree, repeat, static, varying_as
from spa_jax.types import Count, Example, Flags, Images, Keys, Result, Variables, Victim
from spa_jax.validation import check_values, checked_examples, checked_keys, is_traced, require_count
from spa_jax.victims import as_victim, trace_for
from spa_jax.victims.tracing import is_randomized

AttackT = TypeVar("AttackT", bound="PureAttack")

_NO_KEY = object()
START, STEP, JUDGE, RUN, FINAL = range(5)
"""Streams of an attack's keys. A victim never sees the keys that draw a start, and a result was not chosen by the keys
that judge it at last."""


def stream(keys: Keys, purpose: int, number: Any = 0) -> Keys:
    """Each key, or the single one, folded with a purpose and a number."""

    def fold(key: Any) -> Any:
        return jax.random.fold_in(jax.random.fold_in(key, purpose), number)

    return fold(keys) if keys.ndim == 0 else jax.vmap(fold)(keys)


def part_of(step: Any, lengths: Iterable[int]) -> Any:
    """Which of several parts, run one after the other, a step belongs to; steps beyond the last are of the last."""
    ends = list(itertools.accumulate(lengths))
    return sum((step >= end).astype(jnp.int32) for end in ends[:-1]) if ends[:-1] else jnp.zeros((), jnp.int32)


# --- the victim as an attack sees it --------------------------------------------------------------------------------


@pytree
class Widened:
    """A victim `(keys, images) -> logits` that is shown images in their own dtype and answers in float32 at least.

    An attack searches in float32 at least, whatever the images that it is given are.
    """

    predict: Any
    dtype: Any = static()
    is_randomized: bool = static()

    def __call__(self, keys: Any, images: Images) -> Any:
        logits = self.predict(keys, images.astype(self.dtype))
        is_floating = jnp.issubdtype(logits.dtype, jnp.floating)
        return logits.astype(at_least_float32(logits.dtype)) if is_floating else logits


def _widened(examples: Example) -> Example:
    """The examples with every number in float32 at least."""

    def widen(array: Any) -> Any:
        return None if array is None else array.astype(at_least_float32(array.dtype))

    names = ("image", "weight", "reference")
    return examples.replace(**{name: widen(getattr(examples, name)) for name in names})


# --- how the steps of an attack are run -----------------------------------------------------------------------------


class Inline:
    """Inside a compiled program, and inside `shard_map`: functions are called as they are, steps are scanned."""

    is_hosted = False

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

    def against(self, predict: Any) -> "Inline":
        """The driver of attacks on another victim, as `ready` has made it."""
        return Inline(predict)

    def ready(self, victim: Victim, attack: Any, images: Images) -> Any:
        """Another victim `(keys, images) -> logits` that the attack shows these images."""
        inline = as_victim(victim, images, inline=True)
        return Widened(inline, self.predict.dtype, is_randomized(victim))


class Hosted:
    """From Python: every function is compiled once, steps and entries are a Python loop."""

    is_hosted = True

    def __init__(self, victim: Victim, attack: Any, images: Images, dtype: Any) -> None:
        self._victim = victim
        self._dtype = dtype
        self._known: dict[Any, Any] = {}
        self.predict = self._prepared(attack, images)

    def call(self, attack: Any, method: str, *arguments: Any, **options: Any) -> Any:
        """One of the attack's pure functions, compiled."""
        predict = self._prepared(attack, arguments[-1].image)
        return _compiled(attack, method, predict, arguments, kinds=kinds_of(attack), **options)

    def repeat(self, attack: Any, num_steps: int, state: Any, examples: Example, **stage: int) -> Any:
        """`num_steps` steps."""
        for _ in range(num_steps):
            moved = self.call(attack, "advance", state, examples, **stage)
            state = one_ahead(state, moved) if attack.shared else moved
        return state

    def each(self, function: Callable[[Any], Any], entries: Any, at_once: int = 1) -> Any:
        """`function` of every entry along the first axis, stacked."""
        count = len(jax.tree.leaves(entries)[0])
        found = [function(jax.tree.map(lambda leaf, i=i: leaf[i], entries)) for i in range(count)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    def against(self, predict: Any) -> "Hosted":
        """The driver of attacks on another victim, as `ready` has made it."""
        return _HostedAgainst(predict)

    def ready(self, victim: Victim, attack: Any, images: Images) -> Any:
        """Another victim `(keys, images) -> logits` that the attack shows these images."""
        return _prepared(victim, attack, images, self._dtype)

    def _prepared(self, attack: Any, images: Images) -> Any:
        form = self._form(attack, images)
        if form not in self._known:
            self._known[form] = _prepared(self._victim, attack, images, self._dtype)
        return self._known[form]

    @staticmethod
    def _form(attack: Any, images: Images) -> Any:
        return frozenset(attack.batch_sizes(len(images))), images.shape[1:]


class _HostedAgainst(Hosted):
    """The same against a victim that is ready for every batch it will be shown."""

    def __init__(self, predict: Any) -> None:
        self.predict = predict

    def _prepared(self, attack: Any, images: Images) -> Any:
        return self.predict


def _apply(attack: Any, method: str, predict: Any, arguments: tuple[Any, ...], **options: Any) -> Any:
    *others, examples = arguments
    return getattr(attack, method)(*others, predict, examples, **options)


@functools.partial(jax.jit, static_argnums=1, static_argnames=("kinds", "stage", "without", "replace"))
def _compiled(attack: Any, method: str, predict: Any, arguments: tuple[Any, ...], *, kinds: int, **options: Any) -> Any:
    return _apply(attack, method, predict, arguments, **options)


def _is_scanned(*inputs: Any) -> bool:
    """Whether an attack is part of a compiled program, or runs on an accelerator."""
    return jax.default_backend() != "cpu" or is_traced(*inputs, jnp.zeros(()))


@functools.partial(jax.jit, static_argnames="kinds")
def _whole(attack: Any, predict: Any, keys: Keys, examples: Example, *, kinds: int) -> Any:
    return attack.run(Inline(predict), keys, examples)


def _prepared(victim: Victim, attack: Any, images: Images, dtype: Any) -> Any:
    """The victim `(keys, images) -> logits` for every batch size in which the attack shows it the images."""
    sizes = attack.batch_sizes(len(images))
    form = jax.ShapeDtypeStruct((min(sizes), *images.shape[1:]), dtype)
    found = as_victim(victim if len(sizes) == 1 else trace_for(victim, form, sizes), form, inline=False)
    # Weights that lie on one device would be sent to the others at every step.
    found = found if is_traced(images) else beside(images, found)
    return Widened(found, dtype, is_randomized(victim))


# --- the attack -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PureAttack:
    """Base of all attacks; see `spa_jax.types.Attack`.

    A subclass is a `spa_jax.trees.pytree` with `num_steps`, the pure functions `begin(keys, predict, examples) ->
    state`, `move(state, predict, examples) -> state` and `end(state, predict, examples) -> Result`, and `run`, which is
    all of them by a driver (`Inline` or `Hosted`).
    """

    def __init_subclass__(cls) -> None:
        """Attacks are compared by identity: `jax.jit(attack)` then works whatever numbers it holds."""
        cls.__eq__, cls.__hash__ = object.__eq__, object.__hash__  # type: ignore[method-assign]

    # --- what people call

    def init(self, key: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Any:
        """The state before the first step; arguments and errors are those of a call."""
        attack, driver, keys, examples = self._checked(key, victim, images, labels, target, **extra)
        state = driver.call(attack, "begin", keys, examples)
        return varying_as(lambda state: driver.call(attack, "move", state, examples), state)

    def step(self, state: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Any:
        """One step: of an attack by gradients one forward and one backward pass of the victim, of others as they say.

        It may be jitted, scanned, vmapped and mapped over devices. An attack with shared variables (`universal`) may
        get another batch at each step. Values are not read back, so that steps can be queued; shapes are checked.
        """
        attack, driver, _, examples = self._checked(_NO_KEY, victim, images, labels, target, **extra)
        return driver.call(attack, "move", state, examples)

    def result(self, state: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Result:
        """What the state has found on these images."""
        attack, driver, _, examples = self._checked(_NO_KEY, victim, images, labels, target, **extra)
        return _narrowed(driver.call(attack, "end", state, examples), driver.predict.dtype)

    def __call__(self, key: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Result:
        """Attack a batch: `init`, `num_steps` times `step`, `result`.

        Args:
            key: one key, or one per image [b]; a single one where the variables are shared.
            victim: any function from images [b, h, w, c] to logits [b, k]; `spa_jax.randomized(f)` of keys and images.
                A plain function is traced at each call, and the arrays it closes over become arguments of the compiled
                program. A pytree (`spa_jax.classifier`, `jax.tree_util.Partial`) skips the tracing.
            images: [b, h, w, c], floating, in [0, 1]. The search is in float32 at least. Images in half precision give
                a result that is rounded such that it keeps its bound in their type.
            labels: [b], integers in [0, k - 1].
            target: [b], the classes to reach; None: the attack is untargeted.
            extra: `weight` [b], how much each image counts where variables are shared, 0 for padding; `reference`,
                logits [b, k] for losses that compare with some, such as `kl_divergence`.

        Raises:
            ValueError: an input breaks one of these rules.
        """
        attack, driver, keys, examples = self._checked(key, victim, images, labels, target, **extra)
        if isinstance(driver, Inline) or not _is_scanned(attack, driver.predict, keys, examples):
            result = attack.run(driver, keys, examples)
        else:
            result = _whole(attack, driver.predict, keys, examples, kinds=kinds_of(attack))
        return _narrowed(result, driver.predict.dtype)

    def apply(
        self,
        variables: Variables,
        victim: Victim,
        images: Any,
        labels: Any,
        target: Any = None,
        without: tuple[str, ...] = (),
    ) -> Images:
        """The images that variables make, such as a universal perturbation on images it was not made for.

        Args:
            variables: of a state or result of this attack, for as many images or shared.
            victim, images, labels, target: as for a call.
            without: names of variables that are left at their identity.

        Raises:
            ValueError: an input breaks a rule.
        """
        attack, driver, _, examples = self._checked(_NO_KEY, victim, images, labels, target)
        made = driver.call(attack, "make", variables, examples.replace(prepared=None), without=without)
        return made.astype(driver.predict.dtype)

    def make(self, variables: Variables, predict: Any, examples: Example, without: tuple[str, ...] = ()) -> Images:
        """The images of variables; the pure function behind `apply`."""
        raise ValueError(f"attack={type(self).__name__} has no space whose variables can be applied")

    def run(self, driver: Any, keys: Keys, examples: Example) -> Any:
        """The whole attack by a driver: `begin`, all steps and `end`."""
        raise NotImplementedError

    def judged(self, result: Result, keys: Keys, predict: Any, examples: Example) -> Result:
        """The result with value and success as the victim sees its images with these keys [b]."""
        logits = predict(keys, result.x)
        success = getattr(self, "goal", misclassified)(logits, examples) & is_answer(logits)
        return dataclasses.replace(result, value=getattr(self, "loss", margin)(logits, examples), success=success)

    def conclude(self, keys: Keys, result: Result, predict: Any, examples: Example) -> Result:
        """The result; that of a randomised victim is judged once with fresh keys, which it was not chosen by."""
        return self.judged(result, stream(keys, FINAL), predict, examples) if is_randomized(predict) else result

    # --- properties

    @property
    def shared(self) -> bool:
        """Whether all images share one set of variables."""
        return False

    @property
    def tells_broken(self) -> bool:
        """Whether `broken` can be asked."""
        return False

    def broken(self, state: Any) -> Flags:
        """Which examples a state has a success of, [b]."""
        raise NotImplementedError

    @property
    def nearest_in(self) -> str | None:
        """The norm in which the attack looks for the nearest image that fools, at any distance; None: it does not."""
        return None

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

    def rounded(self: AttackT, levels: Count = 255) -> AttackT:
        """The attack with images whose pixels are multiples of 1 / `levels`: 255 for what an 8-bit file can hold.

        Search and judgement see the rounded images; see `spa_jax.spaces.rounded`.

        Raises:
            ValueError: `levels` below 1, or an attack without a space.
        """
        return self.on_grid(require_count("levels", levels))

    def on_grid(self: AttackT, grid: Grid) -> AttackT:
        """The attack with images on a grid: multiples of 1 / an integer, or the numbers of a type by name."""
        return self.inside(lambda attack: attack.with_grid(grid))

    def with_grid(self: AttackT, grid: Grid) -> AttackT:
        """`on_grid` for one attack that combines no others."""
        return _with_field(self, "space", lambda space: space.on_grid(grid))

    def with_loss(self: AttackT, loss: Any) -> AttackT:
        """The attack with another loss.

        Raises:
            ValueError: it has no loss.
        """
        return self.inside(lambda attack: _with_field(attack, "loss", lambda _: loss_from_spec(loss)))

    def aimed(self: AttackT) -> AttackT:
        """The attack that takes targets as directions only: any wrong class is a success.

        An attack without a goal of its own stays as it is.
        """

        def change(attack: Any) -> Any:
            return _with_field(attack, "goal", untargeted) if hasattr(attack, "goal") else attack

        return self.inside(change)

    def averaged(self: AttackT, draws: Count) -> AttackT:
        """The attack on the expectation of its loss over a randomised victim's draws (EOT, Athalye et al. 2018).

        Every step follows the mean of the gradients of so many draws, and a point counts by its mean loss and mean
        logits; at last the victim judges once with fresh keys. Draws are made one after the other: they cost their
        passes and hold the memory of one. On a victim that draws nothing it is the attack itself.

        `crafted_on(attack, eot(victim, draws))` climbs the loss of the mean logits instead, which takes the memory of
        all draws or one more forward pass of each.

        Raises:
            ValueError: `draws` below 1, or an attack that no loss is climbed by, such as `cw`.
        """
        count = require_count("draws", draws)
        return self.inside(lambda attack: _with_field(attack, "draws", lambda _: count))

    def check_classes(self, count: int) -> None:
        """Check that the attack fits a victim with that many classes.

        Raises:
            ValueError: it does not.
        """

    def batch_sizes(self, size: int) -> set[int]:
        """In which batches the victim sees a batch of that size."""
        return {size}

    def with_surrogates(self: AttackT, ready: Callable[[Victim], Any]) -> AttackT:
        """The attack with every other victim that it asks (`crafted_on`) as its pure functions call them."""
        return self

    def _checked(self, key: Any, victim: Victim, *arrays: Any, **extra: Any) -> tuple[Any, Any, Any, Example]:
        """The attack for images of their type, its driver, the keys if any, and the examples in float32 at least."""
        examples, keys = checked_examples(*arrays, **extra), None
        dtype = examples.image.dtype
        attack = self if dtype == at_least_float32(dtype) else self.on_grid(str(dtype))
        examples = _widened(examples)
        if is_in_shard_map():
            inline = as_victim(victim, examples.image, inline=True)
            driver: Any = Inline(Widened(inline, dtype, is_randomized(victim)))
        else:
            driver = Hosted(victim, attack, examples.image, dtype)
        smallest, seen = min(self.batch_sizes(len(examples.image))), examples.image
        if key is not _NO_KEY:
            keys = checked_keys(key, len(examples.image), self.shared)
            self.check_classes(check_values(driver.predict, keys, examples, smallest))

        def ready(surrogate: Victim) -> Any:
            found = driver.ready(surrogate, attack, seen)
            if keys is not None:
                check_values(found, keys, examples, smallest)
            return found

        attack = attack.with_surrogates(ready)
        return attack, driver, keys, examples.replace(image=jnp.clip(examples.image, 0, 1))


def _narrowed(result: Result, dtype: Any) -> Result:
    """The result with its images in a type that holds them exactly."""
    without = {name: images.astype(dtype) for name, images in result.without.items()}
    return dataclasses.replace(result, x=result.x.astype(dtype), without=without)


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
