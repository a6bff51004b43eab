"""What a run leaves to be read: metrics as JSON lines and TensorBoard events, and a progress bar or plain lines."""

import collections
import contextlib
import datetime
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from spa_jax.errors import SpaError

_SECONDS_BETWEEN_PLAIN_LINES = 10.0
_SECONDS_BETWEEN_FLUSHES = 1.0
_STEPS_OF_THE_SPEED = 50
_SHOWN_IN_PROGRESS = {"loss": "loss", "accuracy": "clean", "robust_accuracy": "robust"}


class RecordError(SpaError):
    """The record cannot be written."""


class Recorder:
    """Writes a run's metrics and shows how far it is; use it as a context manager.

    `<workdir>/metrics.jsonl` has one object a line: `step`, `split`, `time` (seconds since 1970) and `values`, in which
    null stands for a number that is not finite. `<workdir>/tensorboard` has the same as event files. In a terminal a
    progress bar shows speed, loss, accuracies and the time left; elsewhere a plain line says so every ten seconds.

    Both are written at most once a second, after every evaluation, and when `flush` is called: call it before a
    checkpoint is saved, then a killed run that goes on from there has every step once. Until then a kill loses them.

    With several processes, all make the same calls and process 0 alone writes.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        total_steps: int,
        resume_step: int = 0,
        name: str = "",
        *,
        console: Console | None = None,
    ):
        """Nothing is written before the recorder is entered.

        Args:
            workdir: directory of the run, created if need be.
            total_steps: >= 1, the run's last step.
            resume_step: >= 0, the step the run goes on from: what was recorded of later steps is dropped (of 0:
                everything), so that no step stands there twice.
            name: put before the progress.
            console: where the progress goes; None: standard output.
        """
        self._workdir = Path(workdir)
        self._total_steps, self._step, self._name = total_steps, resume_step, name
        self._console = console or Console()
        self._writes = jax.process_index() == 0
        self._shown: dict[str, float | None] = {}
        self._arrivals: collections.deque[tuple[float, int, int]] = collections.deque(maxlen=_STEPS_OF_THE_SPEED)
        self._speed: tuple[float, float] | None = None
        self._last_plain_line = -math.inf
        self._last_flush = -math.inf
        self._open = contextlib.ExitStack()
        self._pending: list[dict[str, Any]] = []
        self._lines: BinaryIO
        self._events: Any = None
        self._progress: Progress | None = None

    def __enter__(self) -> "Recorder":
        """Open the files, drop what the run will do again, start the progress bar.

        Raises:
            RecordError: they cannot be written.
        """
        if self._writes:
            with contextlib.ExitStack() as opening, self._readable_errors():
                self._start(opening)
                self._open = opening.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Write what is left, stop the progress bar and close the files.

        Raises:
            RecordError: they cannot be written; where an exception is on its way already, it gets a note instead.
        """
        try:
            with self._readable_errors(), self._open:
                self.flush()
        except RecordError as failed:
            if error is None:
                raise
            error.add_note(f"besides: {failed}")

    def train(self, step: int, metrics: Mapping[str, Any], examples: int) -> None:
        """Record a training step.

        Args:
            step: >= 1.
            metrics: scalars by name; `loss`, `accuracy` and `robust_accuracy` are shown in the progress.
            examples: how many the step has seen, over all devices and processes; the speed is made of them.

        Raises:
            ValueError: a metric is not a scalar.
            RecordError: the files cannot be written.
        """
        if not self._writes:
            return
        values = _scalars(metrics)
        self._measure_speed(step, examples)
        if self._speed:
            values["examples_per_second"] = self._speed[0]
        self._add(step, "train", values)
        if time.monotonic() - self._last_flush >= _SECONDS_BETWEEN_FLUSHES:
            self.flush()
        self._step = step
        self._shown |= {label: values[name] for name, label in _SHOWN_IN_PROGRESS.items() if name in values}
        self._show()

    def evaluation(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Record an evaluation and say its result; the time it took does not count in the speed of training.

        Args:
            step: the training step it was made after.
            split: "validation", "test" ...
            metrics: scalars by name; None for one that does not exist.

        Raises:
            ValueError: a metric is not a scalar.
            RecordError: the files cannot be written.
        """
        if not self._writes:
            return
        values = _scalars(metrics)
        self._add(step, split, values)
        self.flush()
        self._arrivals.clear()
        self.message(
            f"{self._name} step {step} {split}: ".lstrip() + ", ".join(map(_labelled, values, values.values()))
        )

    def flush(self) -> None:
        """Write what was recorded since the last time.

        Raises:
            RecordError: the files cannot be written.
        """
        pending, self._pending = self._pending, []
        self._last_flush = time.monotonic()
        if not pending:
            return
        with self._readable_errors():
            self._lines.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in pending).encode())
            self._lines.flush()
            for line in pending:
                self._events.write_event(_event(line))
            self._events.flush()

    def message(self, text: str) -> None:
        """Say something above the progress bar."""
        if self._writes:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _start(self, opening: contextlib.ExitStack) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        events = self._workdir / "tensorboard"
        events.mkdir(parents=True, exist_ok=True)
        path = self._workdir / "metrics.jsonl"
        _drop_later_lines(path, self._step)
        self._lines = opening.enter_context(path.open("ab"))
        # a run resumed within a second would overwrite the file before, but for the suffix
        self._events = opening.enter_context(contextlib.closing(EventsWriter(str(events / "events"), f".{self._step}")))
        self._events.write_event(_start_event(self._step + 1))
        self._events.flush()
        if self._console.is_terminal:
            self._progress = opening.enter_context(_progress_bar(self._console))
            self._progress.add_task(self._name, total=self._total_steps, completed=self._step, state="")

    def _add(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
        self._pending.append({"step": step, "split": split, "time": round(time.time(), 3), "values": values})

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RecordError(f"the record in {self._workdir} cannot be written: {error}") from error

    def _measure_speed(self, step: int, examples: int) -> None:
        self._arrivals.append((time.monotonic(), step, examples))
        (start, first, _), (end, last, _) = self._arrivals[0], self._arrivals[-1]
        if end > start:
            seen = sum(count for _, _, count in itertools.islice(self._arrivals, 1, None))
            self._speed = seen / (end - start), (last - first) / (end - start)

    def _show(self) -> None:
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=self._step, state=self._state())
            return
        now = time.monotonic()
        if self._step == self._total_steps or now - self._last_plain_line >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._last_plain_line = now
            self.message(f"{self._name} step {self._step}/{self._total_steps} {self._state()}".lstrip())

    def _state(self) -> str:
        parts = [_labelled(label, value) for label, value in self._shown.items()]
        if self._speed:
            examples_per_second, steps_per_second = self._speed
            left = datetime.timedelta(seconds=round((self._total_steps - self._step) / max(steps_per_second, 1e-9)))
            parts += [f"{examples_per_second:.0f} ex/s", f"{left} left"]
        return " ".join(parts)


def _progress_bar(console: Console) -> Progress:
    def text(template: str) -> TextColumn:
        return TextColumn(template, markup=False, table_column=Column(no_wrap=True))

    bar = BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4))
    columns = (text("{task.description}"), bar, text("{task.percentage:3.0f}%"), text("{task.fields[state]}"))
    return Progress(*columns, console=console, refresh_per_second=2, expand=True)


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: _scalar(name, value) for name, value in metrics.items()}


def _scalar(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if np.ndim(value) != 0:
        raise ValueError(f"metric {name} has shape={np.shape(value)}; only scalars can be recorded")
    number = float(value)
    return number if math.isfinite(number) else None


def _labelled(label: str, value: float | None) -> str:
    return f"{label} -" if value is None else f"{label} {value:.3g}"


def _event(line: Mapping[str, Any]) -> Any:
    """TensorBoard's form of a line."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    tags = {f"{line['split']}/{name}": value for name, value in line["values"].items() if value is not None}
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()]
    return Event(step=line["step"], wall_time=line["time"], summary=Summary(value=values))


def _start_event(step: int) -> Any:
    """Tells TensorBoard to forget what it has read of this step and later ones."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    return Event(step=step, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START))


def _drop_later_lines(path: Path, step: int) -> None:
    """Keep the whole lines up to `step`; the last may have been cut off when the run was killed."""
    if not path.exists():
        return
    kept = path.with_suffix(".jsonl.kept")
    with path.open(encoding="utf-8", errors="replace") as lines, kept.open("w", encoding="utf-8") as target:
        target.writelines(line for line in lines if 0 < _step_of(line) <= step)
    kept.replace(path)


def _step_of(line: str) -> int:
    """The step of a line, or -1 if the line is incomplete."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else -1
    except (ValueError, KeyError, TypeError):
        return -1
