"""What a run leaves to be read: metrics as JSON lines and TensorBoard events, and a progress bar or plain lines."""

import collections
import contextlib
import datetime
import itertools
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

_SECONDS_BETWEEN_PLAIN_LINES = 10.0
_STEPS_OF_THE_SPEED = 50
_SHOWN_IN_PROGRESS = {"loss": "loss", "accuracy": "clean", "robust_accuracy": "robust"}


class Recorder:
    """Writes a run's metrics and shows how far it is; use it as a context manager.

    `<workdir>/metrics.jsonl` has one object a line: `step`, `split`, `time` (seconds since 1970) and `values`, in which
    null stands for a number that is not finite. `<workdir>/tensorboard` has the same as event files. In a terminal a
    progress bar shows speed, loss, accuracies and the time left; elsewhere a plain line says so every ten seconds.

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
        self._open = contextlib.ExitStack()
        self._lines: TextIO
        self._events: Any = None
        self._progress: Progress | None = None

    def __enter__(self) -> "Recorder":
        """Open the files, drop what the run will do again, start the progress bar."""
        if self._writes:
            with contextlib.ExitStack() as opening:
                self._start(opening)
                self._open = opening.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stop the progress bar and close the files."""
        self._open.close()

    def train(self, step: int, metrics: Mapping[str, Any], examples: int) -> None:
        """Record a training step.

        Args:
            step: >= 1.
            metrics: scalars by name; `loss`, `accuracy` and `robust_accuracy` are shown in the progress.
            examples: how many the step has seen, over all devices and processes; the speed is made of them.

        Raises:
            ValueError: a metric is not a scalar.
        """
        if not self._writes:
            return
        values = _scalars(metrics)
        self._measure_speed(step, examples)
        if self._speed:
            values["examples_per_second"] = self._speed[0]
        self._write(step, "train", values)
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
        """
        if not self._writes:
            return
        values = _scalars(metrics)
        self._write(step, split, values)
        self._arrivals.clear()
        self.message(
            f"{self._name} step {step} {split}: ".lstrip() + ", ".join(map(_labelled, values, values.values()))
        )

    def message(self, text: str) -> None:
        """Say something above the progress bar."""
        if self._writes:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _start(self, opening: contextlib.ExitStack) -> None:
        from tensorboardX import SummaryWriter

        self._workdir.mkdir(parents=True, exist_ok=True)
        path = self._workdir / "metrics.jsonl"
        _drop_later_lines(path, self._step)
        self._lines = opening.enter_context(path.open("a", encoding="utf-8"))
        self._events = SummaryWriter(
            str(self._workdir / "tensorboard"),
            purge_step=self._step + 1,
            filename_suffix=f".{self._step}",  # a run resumed within a second would overwrite the file before
        )
        opening.callback(self._events.close)
        if self._console.is_terminal:
            self._progress = opening.enter_context(_progress_bar(self._console))
            self._progress.add_task(self._name, total=self._total_steps, completed=self._step, state="")

    def _write(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
        now = time.time()
        line = {"step": step, "split": split, "time": round(now, 3), "values": values}
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        for name, value in values.items():
            if value is not None:
                self._events.add_scalar(f"{split}/{name}", value, step, now)

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
