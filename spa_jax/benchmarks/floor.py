"""How fast an attack runs, as a multiple of its floor: the bare compiled passes that it cannot do without."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from spa_jax.attacks.base import PureAttack
from spa_jax.losses import cross_entropy
from spa_jax.types import Attack, Example, Images, Keys, Labels, Predict, Victim
from spa_jax.victims import as_victim


class Times(NamedTuple):
    """Seconds that one function took: its first call, and the repetitions by the wall clock and of the processor."""

    first: float
    wall: tuple[float, ...]
    cpu: tuple[float, ...]


def measure(
    attack: Attack, victim: Victim, x: Images, y: Labels, *, key: Any = None, repeats: int = 5
) -> dict[str, float]:
    """Time one attack in turns with its floor, A B A B, on the devices where `x` lies.

    The floor is the passes of `count_passes`: compiled losses and input gradients of the victim, and compiled forward
    passes, one after the other, on the same batch with the same sharding. Every ratio is the median over the pairs of
    neighbouring repetitions.

    Args:
        attack: any attack of this library.
        victim: any function from images to logits.
        x: images [b, h, w, c] in [0, 1], sharded as they shall be.
        y: labels [b].
        key: for the attack, one or one per image; None: `jax.random.key(0)`.
        repeats: timed repetitions of each, 1 or more.

    Returns:
        `examples_per_s`; `compile_s`, what the first call took longer than the median one (next to nothing for an
        attack that was compiled before); `multiple_of_floor`, wall time; `cpu_multiple_of_floor`, processor time of
        this process, which other work on the machine disturbs less; `seconds` and `cpu_seconds` of a call.

    Raises:
        ValueError: `repeats` below 1, or an input that the attack refuses.
    """
    key = jax.random.key(0) if key is None else key
    predict, passes = as_victim(victim, x, inline=False), count_passes(attack)
    times = alternate(
        {
            "attack": lambda: jax.block_until_ready(attack(key, victim, x, y)),
            "floor": lambda: run_passes(predict, x, y, passes),
        },
        repeats,
    )
    return summarise(times["attack"], times["floor"], len(x))


def alternate(functions: Mapping[Any, Callable[[], Any]], repeats: int) -> dict[Any, Times]:
    """Time functions in turns, so that a drift of the machine meets all of them alike; each is called once before.

    Args:
        functions: by name; each returns when its work is done.
        repeats: rounds, 1 or more.

    Raises:
        ValueError: `repeats` below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats!r} must be at least 1")
    first = {name: seconds_of(function)[0] for name, function in functions.items()}
    rounds = [{name: seconds_of(function) for name, function in functions.items()} for _ in range(repeats)]
    return {name: Times(first[name], *zip(*(one[name] for one in rounds), strict=True)) for name in functions}


def seconds_of(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call by the wall clock, and of this process's processor time, all threads together."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def summarise(times: Times, floor: Times | None, batch_size: int) -> dict[str, float]:
    """Medians of a function's times; the multiples of the floor, pair by pair, where it has a floor."""
    seconds = statistics.median(times.wall)
    row = {
        "examples_per_s": batch_size / seconds,
        "compile_s": max(0.0, times.first - seconds),
        "seconds": seconds,
        "cpu_seconds": statistics.median(times.cpu),
    }
    if floor is not None:
        row["multiple_of_floor"] = median_ratio(times.wall, floor.wall)
        row["cpu_multiple_of_floor"] = median_ratio(times.cpu, floor.cpu)
    return row


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median over repetitions of `times / others`."""
    return statistics.median(time / other for time, other in zip(times, others, strict=True))


# --- the floor ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Passes:
    """Passes of a batch through a victim: losses with their input gradients, and forward passes alone."""

    gradients: int = 0
    forwards: int = 0

    def __add__(self, other: "Passes") -> "Passes":
        """All passes of both."""
        return Passes(self.gradients + other.gradients, self.forwards + other.forwards)

    def __mul__(self, times: int) -> "Passes":
        """The passes so many times."""
        return Passes(self.gradients * times, self.forwards * times)


def count_passes(attack: Any) -> Passes:
    """The fewest passes that a call needs: one a step and draw, forward alone in a search; restarts and parts add."""
    if hasattr(attack, "attacks"):
        return sum(map(count_passes, attack.attacks), Passes())
    if hasattr(attack, "attack"):
        return count_passes(attack.attack) * getattr(attack, "n", 1)
    stages = getattr(attack, "stages", ())
    searched = sum(stage.num_steps for stage in stages if not getattr(stage.solver, "takes_gradient", True))
    return Passes(attack.num_steps - searched, searched) * getattr(attack, "draws", 1)


def run_passes(predict: Predict, x: Images, y: Labels, passes: Passes) -> None:
    """Run so many compiled passes of the victim, one after the other."""
    for _ in range(passes.gradients):
        jax.block_until_ready(loss_gradient(predict, x, y))
    for _ in range(passes.forwards):
        jax.block_until_ready(forward(predict, x, y))


@jax.jit
def loss_gradient(predict: Predict, x: Images, y: Labels) -> Any:
    """The input gradient of the victim's cross entropy, and its values."""

    def total(x: Images) -> Any:
        values = cross_entropy(predict(_keys(x), x), Example(x, y))
        return values.sum(), values

    return jax.grad(total, has_aux=True)(x)


@jax.jit
def forward(predict: Predict, x: Images, y: Labels) -> Any:
    """The victim's cross entropy."""
    return cross_entropy(predict(_keys(x), x), Example(x, y))


def _keys(x: Images) -> Keys:
    return jax.random.split(jax.random.key(0), len(x))


# --- memory ---------------------------------------------------------------------------------------------------------


def temporary_bytes(attack: PureAttack, victim: Victim, x: Images, y: Labels) -> int:
    """Memory in bytes that the attack as one compiled program needs beside its inputs and its result, on one device.

    The victim is a pytree, such as `spa_jax.classifier`.
    """
    memory: Any = attacked.lower(attack, _keys(x), victim, x, y).compile().memory_analysis()
    return memory.temp_size_in_bytes


@jax.jit
def attacked(attack: PureAttack, keys: Keys, victim: Victim, x: Images, y: Labels) -> Any:
    """A whole attack as one compiled program, as it runs on accelerators."""
    return attack(keys, victim, x, y)
