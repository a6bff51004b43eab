"""Timing of several candidates, each in a process of its own, in turns.

Libraries disturb each other in one process: PyTorch's threads spin while they wait, XLA keeps its pool, and a program
that was compiled before makes another one's first call look quick. So each candidate has its own process. They run one
after the other, round by round, and the others wait.
"""

import contextlib
import importlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from spa_jax.benchmarks.floor import Times, seconds_of

Spec = Mapping[str, Any]
"""What is to be timed, as plain data: `build`, the function "module:name" that makes it, and its arguments.

`devices` is also the number of host devices of its process, and `collectives` whether they wait for each other.
"""

Build = Callable[..., tuple[Mapping[str, Any], Mapping[str, Callable[[], Any]]]]
"""From a spec's arguments: facts for the table, and functions by name; the first is the one whose first call counts."""

_QUIET = {"OMP_WAIT_POLICY": "passive"}


class Taken(NamedTuple):
    """What is known of one thing: its facts, and the times of its functions by name."""

    facts: Mapping[str, Any]
    times: Mapping[str, Times]


class WorkerError(RuntimeError):
    """A process of a benchmark has failed; the message holds its traceback."""


def time_in_turns(specs: Mapping[Any, Spec], repeats: int, apart: bool = True) -> dict[Any, Taken]:
    """Time things in turns, so that a drift of the machine meets all of them alike.

    Args:
        specs: by name.
        repeats: rounds, 1 or more.
        apart: each in a fresh process of its own, with as many host devices as its argument `devices` says; False: all
            in this one, where first calls may profit from each other.

    Raises:
        WorkerError: a process has failed.
    """
    with contextlib.ExitStack() as stack:
        workers: dict[Any, Any] = {}
        for name, spec in specs.items():
            workers[name] = stack.enter_context(_process(spec)) if apart else _Here(spec)
        taken: dict[Any, dict[str, list[tuple[float, float]]]] = {
            name: {function: [] for function in worker.firsts} for name, worker in workers.items()
        }
        for _ in range(repeats):
            for name, worker in workers.items():
                for function, times in taken[name].items():
                    times.append(worker.time(function))
        return {name: Taken(worker.facts, _times(worker.firsts, taken[name])) for name, worker in workers.items()}


def _times(firsts: Mapping[str, float], taken: Mapping[str, list[tuple[float, float]]]) -> dict[str, Times]:
    return {name: Times(firsts[name], *zip(*pairs, strict=True)) for name, pairs in taken.items()}


class _Here:
    """A thing in this process."""

    def __init__(self, spec: Spec) -> None:
        arguments = {name: value for name, value in spec.items() if name != "collectives"}
        module, name = arguments.pop("build").split(":")
        self.facts, self._functions = getattr(importlib.import_module(module), name)(**arguments)
        self.firsts = {name: seconds_of(function)[0] for name, function in self._functions.items()}

    def time(self, function: str) -> tuple[float, float]:
        return seconds_of(self._functions[function])


class _Apart:
    """A thing in another process, behind a pipe."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.facts, self.firsts = self._answer()

    def time(self, function: str) -> tuple[float, float]:
        self._pipe.send(function)
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, answer = self._pipe.recv()
        except EOFError as error:
            raise WorkerError("a process of the benchmark ended without a message") from error
        if kind == "error":
            raise WorkerError(answer)
        return answer


@contextlib.contextmanager
def _process(spec: Spec) -> Iterator[_Apart]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, spec), daemon=True)
    with _environment(_QUIET):
        process.start()
    theirs.close()
    try:
        yield _Apart(ours)
    finally:
        ours.close()
        process.join(timeout=10)
        process.terminate()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(pipe: Any, spec: Spec) -> None:
    """The other process: build the candidate, report its first calls, time its functions until the pipe closes."""
    from spa_jax.parallel import use_host_cores

    try:
        use_host_cores(spec.get("devices") or 1, collectives=spec.get("collectives", False))
        worker = _Here(spec)
        pipe.send(("ready", (worker.facts, worker.firsts)))
        with contextlib.suppress(EOFError):
            while True:
                pipe.send(("times", worker.time(pipe.recv())))
    except Exception:  # any error is reported by the other side
        pipe.send(("error", traceback.format_exc()))
