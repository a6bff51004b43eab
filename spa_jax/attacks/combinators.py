"""Attacks made of attacks: restarts, the strongest of several, chunks of a batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spa_jax.attacks.base import JUDGE, RUN, PureAttack, part_of, require_attack, stream
from spa_jax.solvers import better, is_stronger
from spa_jax.trees import branch, pytree, select, static
from spa_jax.types import Count, Example, Flags, Images, Keys, NonFinite, Predict, Result, Variables, Victim
from spa_jax.validation import require_count
from spa_jax.victims.tracing import is_randomized


class Wrapped(PureAttack):
    """An attack that works by means of one other."""

    attack: Any

    @property
    def nearest_in(self) -> str | None:
        return self.attack.nearest_in

    def members(self) -> Any:
        return self.attack.members()

    def inside(self, change: Callable[[Any], Any]) -> Any:
        return dataclasses.replace(self, attack=self.attack.inside(change))  # type: ignore[call-arg]

    def with_surrogates(self, ready: Callable[[Victim], Any]) -> Any:
        return dataclasses.replace(self, attack=self.attack.with_surrogates(ready))  # type: ignore[call-arg]

    def make(self, variables: Variables, predict: Predict, examples: Example, without: tuple[str, ...] = ()) -> Images:
        return self.attack.make(variables, predict, examples, without)

    def judged(self, result: Result, keys: Keys, predict: Predict, examples: Example) -> Result:
        return self.attack.judged(result, keys, predict, examples)


def stronger(old: Result, new: Result) -> Result:
    """The stronger of two results of one attack, per example; what was not finite is counted in both."""
    nonfinite = jax.tree.map(jnp.add, old.nonfinite, new.nonfinite)
    return dataclasses.replace(better(old, new), nonfinite=nonfinite)


def first_success(old: Result, new: Result, predict: Predict) -> Result:
    """The first success per example, else the stronger result: what is broken need not be attacked again.

    A success against a randomised victim may be luck, and the stronger result is taken.
    """
    wins = is_stronger(new, old) & (is_randomized(predict) | ~old.success)
    nonfinite = jax.tree.map(jnp.add, old.nonfinite, new.nonfinite)
    return dataclasses.replace(select(wins, new, old), nonfinite=nonfinite)


def beaten(like: Result) -> Result:
    """A result like another one, but weaker than any: no success, and nothing was seen that is not finite."""
    return dataclasses.replace(
        like,
        value=jnp.full_like(like.value, -jnp.inf),
        success=jnp.zeros_like(like.success),
        nonfinite=jax.tree.map(jnp.zeros_like, like.nonfinite),
    )


def require_per_example(why: str, attack: Any) -> None:
    """Check that something is an attack with per-example variables.

    Raises:
        ValueError: it is not; the message begins with `why`.
    """
    require_attack(attack)
    if attack.shared:
        raise ValueError(f"{why}: it needs attacks with per-example variables, not universal ones")


# --- restarts -------------------------------------------------------------------------------------------------------


class RestartState(NamedTuple):
    """Steps made, the attack's keys, the state of the current run, and the strongest result of the runs before."""

    step: Any
    keys: Any
    run: Any
    best: Result


@pytree
class Restarts(Wrapped):
    """An attack repeated; see `restarts`."""

    attack: Any
    n: int = static()
    at_once: int = static()

    @property
    def num_steps(self) -> int:
        """Steps of all runs."""
        return self.n * self.attack.num_steps

    @property
    def tells_broken(self) -> bool:
        return self.attack.tells_broken

    def broken(self, state: RestartState) -> Flags:
        return state.best.success | self.attack.broken(state.run)

    def batch_sizes(self, size: int) -> set[int]:
        return self.attack.batch_sizes(size)

    def begin(self, keys: Keys, predict: Predict, examples: Example) -> RestartState:
        run = self.attack.begin(stream(keys, RUN), predict, examples)
        nothing = beaten(self.attack.end(run, predict, examples))
        return RestartState(jnp.zeros((), jnp.int32), keys, run, nothing)

    def move(self, state: RestartState, predict: Predict, examples: Example) -> RestartState:
        def start_again(state: RestartState) -> RestartState:
            best = stronger(state.best, self.attack.end(state.run, predict, examples))
            keys = stream(state.keys, RUN, state.step // self.attack.num_steps)
            return state._replace(best=best, run=self.attack.begin(keys, predict, examples))

        again = (state.step > 0) & (state.step % self.attack.num_steps == 0)
        state = branch(again.astype(jnp.int32), [lambda state: state, start_again], state)
        return state._replace(step=state.step + 1, run=self.attack.move(state.run, predict, examples))

    def end(self, state: RestartState, predict: Predict, examples: Example) -> Result:
        best = stronger(state.best, self.attack.end(state.run, predict, examples))
        return self.conclude(state.keys, best, predict, examples)

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        def once(i: Any) -> Result:
            return self.attack.run(driver, stream(keys, RUN, i), examples)

        results = driver.each(once, jnp.arange(self.n), self.at_once)
        best = functools.reduce(stronger, [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(self.n)])
        return driver.call(self, "conclude", keys, best, examples) if is_randomized(driver.predict) else best


def restarts(attack: PureAttack, n: Count, at_once: Count = 1) -> PureAttack:
    """The strongest of `n` runs from different starts, per example.

    Args:
        attack: with per-example variables.
        n: number of runs.
        at_once: inside a compiled program, how many runs are held in memory together (vmapped).

    Raises:
        ValueError: `n` or `at_once` below 1, or an attack with shared variables, or something that is not an attack.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import pgd, restarts
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> attack = restarts(pgd(radius=0.03, num_steps=5), n=2)
        >>> print(attack(jax.random.key(0), model, images, labels).success)
        [ True  True]
    """
    n, at_once = require_count("n", n), require_count("at_once", at_once)
    if n == 1:
        return attack
    require_per_example("restarts picks per example", attack)
    return Restarts(attack, n, min(at_once, n))


# --- chunks ---------------------------------------------------------------------------------------------------------


@pytree
class InChunks(Wrapped):
    """An attack on a part of the batch at a time; see `in_chunks`. Its state is the attack's, stacked by chunk."""

    attack: Any
    size: int = static()

    @property
    def num_steps(self) -> int:
        """Steps of every chunk."""
        return self.attack.num_steps

    def batch_sizes(self, size: int) -> set[int]:
        return self.attack.batch_sizes(self._split(size)[1])

    def begin(self, keys: Keys, predict: Predict, examples: Example) -> Any:
        return self._map(self.attack.begin, self._deal(keys), predict, examples)

    def move(self, state: Any, predict: Predict, examples: Example) -> Any:
        return self._map(self.attack.move, state, predict, examples)

    def end(self, state: Any, predict: Predict, examples: Example) -> Result:
        return self._collect(self._map(self.attack.end, state, predict, examples), len(examples.image))

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        batch = len(examples.image)
        if self._split(batch)[0] == 1:
            return self.attack.run(driver, keys, examples)
        found = driver.each(lambda chunk: self.attack.run(driver, *chunk), self._deal((keys, examples)))
        return self._collect(found, batch)

    def judged(self, result: Result, keys: Keys, predict: Predict, examples: Example) -> Result:
        def judge(given: Any, predict: Predict, examples: Example) -> Result:
            return self.attack.judged(*given, predict, examples)

        return self._collect(self._map(judge, self._deal((result, keys)), predict, examples), len(examples.image))

    def _map(self, function: Callable[..., Any], chunks: Any, predict: Predict, examples: Example) -> Any:
        return jax.lax.map(lambda chunk: function(chunk[0], predict, chunk[1]), (chunks, self._deal(examples)))

    def _split(self, batch: int) -> tuple[int, int]:
        """How many chunks, of how many examples each."""
        count = -(-batch // self.size)
        return count, -(-batch // count)

    def _deal(self, tree: Any) -> Any:
        """Row i of the chunks lies where the i-th part of the batch lay: a sharded batch stays on its devices."""

        def deal(leaf: Any) -> Any:
            count, rows = self._split(len(leaf))
            missing = rows * count - len(leaf)
            full = jnp.concatenate([leaf, leaf[:missing]]) if missing else leaf
            return jnp.swapaxes(full.reshape(rows, count, *leaf.shape[1:]), 0, 1)

        return jax.tree.map(deal, tree)

    def _collect(self, tree: Any, batch: int) -> Any:
        def collect(leaf: Any) -> Any:
            return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])[:batch]

        return jax.tree.map(collect, tree)


def in_chunks(attack: PureAttack, size: Count) -> InChunks:
    """The same attack on at most `size` examples at a time.

    It needs the memory of one chunk. On a CPU it is quicker where activations then stay in the cache: 8 to 16
    examples a device served a ResNet-20 best. The results are those of the whole batch at once, up to rounding.

    Args:
        attack: with per-example variables, on a victim that treats examples independently.
        size: examples at a time over all devices, 1 or more; where devices share the batch, a multiple of their number.

    Raises:
        ValueError: `size` below 1, or an attack with shared variables, or something that is not an attack.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import in_chunks, pgd
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> attack = in_chunks(pgd(radius=0.03), size=1)  # the same result, in the memory of one image
        >>> print(attack(jax.random.key(0), model, images, labels).success)
        [ True  True]
    """
    require_per_example("in_chunks splits the batch", attack)
    return InChunks(attack, require_count("size", size))


# --- the strongest of several ---------------------------------------------------------------------------------------


class WorstOfState(NamedTuple):
    """Steps made, the attack's keys, and the state of each attack."""

    step: Any
    keys: Any
    states: tuple[Any, ...]


@pytree
class WorstOf(PureAttack):
    """Several attacks, the strongest per example; see `worst_of`."""

    attacks: tuple[Any, ...]

    @property
    def num_steps(self) -> int:
        """Steps of all attacks, which are run one after the other."""
        return sum(attack.num_steps for attack in self.attacks)

    def inside(self, change: Callable[[Any], Any]) -> "WorstOf":
        return dataclasses.replace(self, attacks=tuple(attack.inside(change) for attack in self.attacks))

    def with_surrogates(self, ready: Callable[[Victim], Any]) -> "WorstOf":
        return dataclasses.replace(self, attacks=tuple(attack.with_surrogates(ready) for attack in self.attacks))

    def batch_sizes(self, size: int) -> set[int]:
        return {size}.union(*(attack.batch_sizes(size) for attack in self.attacks))

    def begin(self, keys: Keys, predict: Predict, examples: Example) -> WorstOfState:
        states = [attack.begin(stream(keys, RUN, i), predict, examples) for i, attack in enumerate(self.attacks)]
        return WorstOfState(jnp.zeros((), jnp.int32), keys, tuple(states))

    def move(self, state: WorstOfState, predict: Predict, examples: Example) -> WorstOfState:
        def go(i: int, state: WorstOfState) -> WorstOfState:
            own = self.attacks[i].move(state.states[i], predict, examples)
            return state._replace(step=state.step + 1, states=(*state.states[:i], own, *state.states[i + 1 :]))

        index = part_of(state.step, [attack.num_steps for attack in self.attacks])
        return branch(index, [functools.partial(go, i) for i in range(len(self.attacks))], state)

    def end(self, state: WorstOfState, predict: Predict, examples: Example) -> Result:
        pairs = zip(self.attacks, state.states, strict=True)
        results = tuple(attack.end(own, predict, examples) for attack, own in pairs)
        return self.choose(state.keys, results, predict, examples)

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        results = [attack.run(driver, stream(keys, RUN, i), examples) for i, attack in enumerate(self.attacks)]
        return driver.call(self, "choose", keys, tuple(results), examples)

    def choose(self, keys: Keys, results: tuple[Result, ...], predict: Predict, examples: Example) -> Result:
        """The strongest result per example, all of them judged anew, and by a randomised victim once more at last."""
        candidates = [self.candidate(keys, result, predict, examples, i) for i, result in enumerate(results)]
        winner = functools.reduce(stronger, candidates)
        found = tuple(result.variables for result in results)
        winner = dataclasses.replace(winner, variables={"winner": winner.variables, "found": found})
        return self.conclude(keys, winner, predict, examples)

    def candidate(self, keys: Keys, result: Result, predict: Predict, examples: Example, i: int) -> Result:
        """The result of the attack `i`, judged anew, with its number in the place of its variables."""
        index = jnp.full(examples.label.shape, i, jnp.int32)
        zeros = jnp.zeros_like(index)
        nonfinite = NonFinite(zeros, zeros) if result.nonfinite is None else result.nonfinite
        unjudged = Result(result.x, index, None, None, nonfinite=nonfinite)
        return self.judged(unjudged, stream(keys, JUDGE), predict, examples)


def checked_attacks(name: str, verb: str, attacks: tuple[PureAttack, ...]) -> tuple[PureAttack, ...]:
    """Several attacks for a combinator of that name, which does something to each example.

    Raises:
        ValueError: no attack, or one with shared variables, or something that is not an attack.
    """
    if not attacks:
        raise ValueError(f"{name}() needs at least one attack")
    for attack in attacks:
        require_per_example(f"{name} {verb} per example", attack)
    return attacks


def worst_of(*attacks: PureAttack) -> WorstOf:
    """Per example the strongest of several attacks: success first, then the larger margin, judged anew for all alike.

    The result's `value` is the margin, its `variables` are `{"winner": index [b], "found": each attack's variables}`.

    Raises:
        ValueError: no attack was given, or one with shared variables, or something that is not an attack.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import fgsm, pgd, worst_of
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = worst_of(fgsm(radius=0.01), pgd(radius=0.03))(jax.random.key(0), model, images, labels)
        >>> print(result.success, result.variables["winner"])
        [ True  True] [1 1]
    """
    return WorstOf(checked_attacks("worst_of", "picks", attacks))
