"""Attacks and training steps on one accelerator: images a second, beside the bare passes and the matrix peak, memory.

Each program is compiled once, ahead of time, so that compilation and memory are known apart from its run. On a CPU the
networks are small ones, and attacks run as they do there, from Python: their memory is not reported.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.extend.core import primitives

from spa_jax.attacks.catalogue import attack_from_config
from spa_jax.benchmarks.cells import Bench, Training, weight_gradient
from spa_jax.benchmarks.floor import (
    Passes,
    alternate,
    attacked,
    count_passes,
    forward,
    loss_gradient,
    run_passes,
    summarise,
)
from spa_jax.benchmarks.speed import Row
from spa_jax.configuration import check_keys
from spa_jax.models import create_model
from spa_jax.parallel import data_mesh, replicate, shard_batch
from spa_jax.victims.rewriting import nested_jaxprs

DEVICE_SCHEMA: Mapping[str, Any] = {
    "networks": Mapping,
    "small_networks": Mapping,
    "num_classes": int,
    "batch_size": int,
    "small_batch_size": int,
    "dtypes": tuple | list,
    "attacks": Mapping,
    "work": tuple | list,
    "repeats": int,
    "time_limit": float,
}
"""Section `device`. The `small_...` are for a CPU; `work` holds "attack" and "training"; `time_limit` is in seconds."""

_NETWORK_SCHEMA: Mapping[str, Any] = {"model": Mapping, "input_shape": tuple | list}
_TERA = 1e12

PEAKS: Mapping[str, Mapping[str, float]] = {
    "H100 PCIe": {"float32": 378 * _TERA, "bfloat16": 756 * _TERA},
    "H100": {"float32": 494.7 * _TERA, "bfloat16": 989.4 * _TERA},
    "H200": {"float32": 494.7 * _TERA, "bfloat16": 989.4 * _TERA},
    "A100": {"float32": 156 * _TERA, "bfloat16": 312 * _TERA},
}
"""Dense matrix FLOP/s by a part of the device kind (NVIDIA's data sheets); XLA multiplies float32 there in TF32."""


class _Program(NamedTuple):
    """What is timed: how to run it, what it cost to make, and the passes that it cannot do without."""

    run: Callable[[], Any]
    compile_s: float
    memory: float | None
    passes: Passes
    updates: int


def check_device(section: Mapping[str, Any]) -> None:
    """Check the section `device` of a config before anything runs.

    Raises:
        ConfigError: an unknown or missing key or name.
        ValueError: a number out of range.
    """
    check_keys(section, DEVICE_SCHEMA, "config.device")
    for kind in ("networks", "small_networks"):
        for name, network in section[kind].items():
            check_keys(network, _NETWORK_SCHEMA, f"config.device.{kind}.{name}")
            create_model(num_classes=section["num_classes"], input_shape=network["input_shape"], **network["model"])
    for work in section["work"]:
        if work not in _WORK:
            raise ValueError(f"config.device.work={section['work']!r} must hold {', '.join(_WORK)}")
    for spec in section["attacks"].values():
        attack_from_config(spec)


def time_device(section: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """For every network and type of number, each attack and the training step on it; one row each.

    A row has `network`, `dtype`, `work`, `attack`, `examples_per_s`, `seconds`, `multiple_of_floor` (the bare passes,
    compiled and run one by one), `peak_share` (their floating-point operations over the time and the
    device's peak; None where that is unknown), `compile_s`, `MiB` (all that the program holds), and `skipped`: why it
    was not measured, when the time was up or memory short.
    """
    started = time.perf_counter()
    small = jax.default_backend() == "cpu"
    sized = dict(section)
    if small:
        sized |= {"networks": section["small_networks"], "batch_size": section["small_batch_size"]}
    for network in sized["networks"]:
        for dtype in section["dtypes"]:
            bench = Bench(_with_dtype(sized, network, dtype), network, seed)
            floor = _Floor(bench)
            for work in section["work"]:
                for attack, spec in section["attacks"].items():
                    named = {"network": network, "dtype": dtype, "work": work, "attack": attack}
                    named |= {"device": jax.devices()[0].device_kind, "batch_size": sized["batch_size"]}
                    if time.perf_counter() - started > section["time_limit"]:
                        yield named | {"skipped": f"the time limit of {section['time_limit']:g} s was reached"}
                    else:
                        yield named | _measured(bench, floor, work, spec, dtype, section["repeats"])


def _with_dtype(section: Mapping[str, Any], name: str, dtype: str) -> dict[str, Any]:
    network = section["networks"][name]
    model = {**network["model"], "dtype": dtype}
    return {**section, "networks": {name: {**network, "model": model}}}


def _measured(bench: Bench, floor: "_Floor", work: str, spec: Mapping[str, Any], dtype: str, repeats: int) -> Row:
    try:
        program = _WORK[work](bench, spec)
        runs = {"run": program.run, "floor": lambda: floor.run(program.passes, program.updates)}
        times = alternate(runs, repeats)
    except jax.errors.JaxRuntimeError as error:
        return {"skipped": str(error).splitlines()[0][:200]}
    row = summarise(times["run"], times["floor"], len(bench.labels))
    peak, flops = _peak(jax.devices()[0].device_kind, dtype), floor.flops(program.passes, program.updates)
    compile_s = program.compile_s + row["compile_s"] if program.memory is None else program.compile_s
    return {
        **{name: row[name] for name in ("examples_per_s", "seconds", "multiple_of_floor")},
        "teraflops_per_s": flops / row["seconds"] / _TERA,
        "peak_share": None if peak is None else flops / row["seconds"] / peak,
        "compile_s": compile_s,
        "MiB": None if program.memory is None else program.memory / 2**20,
    }


def _peak(kind: str, dtype: str) -> float | None:
    """The device's matrix peak for numbers of a type, or None where it is not known."""
    return next((peaks.get(dtype) for part, peaks in PEAKS.items() if part in kind), None)


# --- the bare passes ------------------------------------------------------------------------------------------------


class _Floor:
    """The bare passes of a network: input gradients, forward passes, and gradients of the weights in training mode."""

    def __init__(self, bench: Bench) -> None:
        mesh = data_mesh(jax.devices()[:1])
        x, y = shard_batch((bench.images, bench.labels), mesh)
        self._seen = replicate(bench.predict("prepared"), mesh), x, y
        self._weights = replicate(bench.variables, mesh), x, y
        self._update = weight_gradient(bench.model, prepared=True)

    def run(self, passes: Passes, updates: int) -> None:
        """Run so many of them."""
        run_passes(*self._seen, passes)
        for _ in range(updates):
            jax.block_until_ready(self._update(*self._weights))

    def flops(self, passes: Passes, updates: int) -> float:
        """Floating-point operations of so many of them, in convolutions and matrix products."""
        counts = ((loss_gradient, self._seen, passes.gradients), (forward, self._seen, passes.forwards))
        return sum(n * _flops(f, a) for f, a, n in (*counts, (self._update, self._weights, updates)) if n)


def _flops(function: Any, arguments: Any) -> float:
    return _products(jax.make_jaxpr(function)(*arguments))


def _products(jaxpr: Any) -> float:
    """Twice the multiplications of the convolutions and matrix products of a jaxpr; zeros of dilated images count."""
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        total += sum(map(_products, nested_jaxprs(equation)))
        if equation.primitive is primitives.conv_general_dilated_p:
            kernel, axis = equation.invars[1].aval, equation.params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[axis]
        if equation.primitive is primitives.dot_general_p:
            x, ((axes, _), _) = equation.invars[0].aval, equation.params["dimension_numbers"]
            total += 2.0 * equation.outvars[0].aval.size * math.prod(x.shape[axis] for axis in axes)
    return total


# --- what is timed --------------------------------------------------------------------------------------------------


def _attack_program(bench: Bench, spec: Mapping[str, Any]) -> _Program:
    attack, mesh = attack_from_config(spec), data_mesh(jax.devices()[:1])
    passes = count_passes(attack)
    victim = replicate(bench.victim, mesh)
    x, y = shard_batch((bench.images, bench.labels), mesh)
    if jax.default_backend() == "cpu":
        return _Program(lambda: _wait(attack(jax.random.key(0), victim, x, y)), 0.0, None, passes, 0)
    keys = replicate(jax.random.split(jax.random.key(0), len(bench.labels)), mesh)
    arguments = attack, keys, victim, x, y
    program, compile_s = _compiled(attacked, arguments)
    return _Program(lambda: _wait(program(*arguments)), compile_s, _memory(program), passes, 0)


def _training_program(bench: Bench, spec: Mapping[str, Any]) -> _Program:
    spec = {**spec, "keep": "last"}
    training = Training(bench, spec, data_mesh(jax.devices()[:1]))
    program, compile_s = _compiled(training.step, (training.state, training.batch, training.key))
    training.step = program
    return _Program(training.run, compile_s, _memory(program), count_passes(attack_from_config(spec)), 1)


_WORK: Mapping[str, Callable[[Bench, Mapping[str, Any]], _Program]] = {
    "attack": _attack_program,
    "training": _training_program,
}


def _wait(result: Any) -> None:
    jax.block_until_ready(result)


Compiled: TypeAlias = Any
"""A `jax.stages.Compiled`."""


def _compiled(function: Any, arguments: tuple[Any, ...]) -> tuple[Compiled, float]:
    """The compiled function and the seconds that tracing and compiling took."""
    started = time.perf_counter()
    program = function.lower(*arguments).compile()
    return program, time.perf_counter() - started


def _memory(program: Compiled) -> float:
    """Bytes of arguments, results and temporaries; a result that takes an argument's place counts once."""
    analysis = program.memory_analysis()
    held = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return float(sum(getattr(analysis, name) for name in held) - analysis.alias_size_in_bytes)
