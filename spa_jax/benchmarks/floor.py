"""How fast an attack runs, as a multiple of its floor: one compiled gradient of the bare victim for each step."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from spa_jax.engine import PureAttack
from spa_jax.losses import cross_entropy
from spa_jax.types import Attack, Images, Keys, Labels, Predict


class Times(NamedTuple):
    """Seconds that one function took: its first call, and the repetitions by the wall clock and of the processor."""

    first: float
    wall: tuple[float, ...]
    cpu: tuple[float, ...]


def measure(
    attack: Attack, predict: Predict, x: Images, y: Labels, *, key: Any = None, repeats: int = 5
) -> dict[str, float]:
    """Time one attack in turns with its floor, A B A B, on the devices where `x` lies.

    The floor is one compiled loss and input gradient of the victim, run once for each gradient step of the attack, on
    the same batch with the same sharding. Every ratio is the median over the pairs of neighbouring repetitions.

    Args:
        attack: any attack of this library.
        predict: the victim.
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
    times = alternate(
        {
            "floor": lambda: run_gradients(predict, x, y, gradient_count(attack)),
            "attack": lambda: jax.block_until_ready(attack(key, predict, x, y)),
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
    first = {name: _seconds(function)[0] for name, function in functions.items()}
    rounds = [{name: _seconds(function) for name, function in functions.items()} for _ in range(repeats)]
    return {name: Times(first[name], *zip(*(one[name] for one in rounds), strict=True)) for name in functions}


def _seconds(function: Callable[[], Any]) -> tuple[float, float]:
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


def run_gradients(predict: Predict, x: Images, y: Labels, count: int) -> None:
    """Run `count` compiled losses and input gradients of the victim, one after the other."""
    for _ in range(count):
        jax.block_until_ready(_gradient(predict, x, y))


@jax.jit
def _gradient(predict: Predict, x: Images, y: Labels) -> Any:
    def total(x: Images) -> Any:
        values = cross_entropy(predict(None, x), y)
        return values.sum(), values

    return jax.grad(total, has_aux=True)(x)


def gradient_count(attack: Any) -> int:
    """How many steps an attack takes, the fewest gradients that a call needs; restarts and parts are added up."""
    if hasattr(attack, "attacks"):
        return sum(map(gradient_count, attack.attacks))
    if hasattr(attack, "attack"):
        return getattr(attack, "n", 1) * gradient_count(attack.attack)
    return attack.num_steps * getattr(attack, "search_steps", 1)


# --- memory ---------------------------------------------------------------------------------------------------------


def temporary_bytes(attack: PureAttack, predict: Predict, x: Images, y: Labels) -> int:
    """Memory in bytes that the compiled attack needs beside its inputs and its result, on one device."""
    keys = jax.random.split(jax.random.key(0), len(x))
    memory: Any = _search.lower(attack, keys, predict, x, y).compile().memory_analysis()
    return memory.temp_size_in_bytes


@jax.jit
def _search(attack: PureAttack, keys: Keys, predict: Predict, x: Images, y: Labels) -> Any:
    return attack.search(keys, predict, x, y)
