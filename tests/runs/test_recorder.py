"""The record of a run: every step once, valid JSON, the same in TensorBoard, and a readable progress."""

import io
import json
import math
import struct
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from spa_jax.runs import recorder
from spa_jax.runs.recorder import Recorder, RecordError
from tests.runs.full_disk import files_of_at_most


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(recorder, "time", clock)
    return clock


def plain():
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def lines(workdir):
    def refuse(constant):
        raise AssertionError(f"{constant} is not valid JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(workdir):
    """(tag, step, value) of all event files, oldest first, and the steps at which TensorBoard is told to purge."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    scalars, purges = [], []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            if event.session_log.status == SessionLog.START:
                purges.append(event.step)
    return scalars, purges


def record(workdir, steps, resume_step=0, **options):
    with Recorder(workdir, 100, resume_step, console=plain(), **options) as recorder:
        for step in steps:
            recorder.train(step, {"loss": 1 / step}, examples=8)


def test_steps_and_evaluations_are_recorded(tmp_path, clock):
    with Recorder(tmp_path / "run", 2, console=plain()) as recorder:
        recorder.train(1, {"loss": jnp.float32(0.5), "accuracy": np.float64(0.25)}, examples=8)
        clock.now += 2
        recorder.train(2, {"loss": 0.125}, examples=8)
        recorder.evaluation(2, "validation", {"robust_accuracy": 0.75, "margin": None})
    assert lines(tmp_path / "run") == [
        {"step": 1, "split": "train", "time": 1000.0, "values": {"loss": 0.5, "accuracy": 0.25}},
        {"step": 2, "split": "train", "time": 1002.0, "values": {"loss": 0.125, "examples_per_second": 4.0}},
        {"step": 2, "split": "validation", "time": 1002.0, "values": {"robust_accuracy": 0.75, "margin": None}},
    ]
    assert events(tmp_path / "run")[0] == [
        ("train/loss", 1, 0.5),
        ("train/accuracy", 1, 0.25),
        ("train/loss", 2, 0.125),
        ("train/examples_per_second", 2, 4.0),
        ("validation/robust_accuracy", 2, 0.75),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, jnp.float32(jnp.nan)])
def test_numbers_that_are_not_finite_are_null(tmp_path, value):
    with Recorder(tmp_path, 1, console=plain()) as recorder:
        recorder.train(1, {"loss": value}, examples=1)
    assert lines(tmp_path)[0]["values"] == {"loss": None}
    assert events(tmp_path)[0] == []


def test_a_resumed_run_has_no_step_twice(tmp_path):
    record(tmp_path, range(1, 8))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "split": "tr')
    record(tmp_path, range(5, 10), resume_step=4)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 10))
    assert events(tmp_path)[1] == [1, 5]


def test_a_run_that_starts_afresh_forgets_the_one_before(tmp_path):
    record(tmp_path, [1, 2, 3])
    record(tmp_path, [1])
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_what_cannot_be_read_is_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nnoise\n[1]\n{"split": 1}\n\xff\xfe\n{"step": 2}\n{"step": null}\n{"step": 2}')
    record(tmp_path, [], resume_step=2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_every_line_is_on_disk_before_an_exception_ends_the_run(tmp_path):
    console = terminal()
    with pytest.raises(ZeroDivisionError), Recorder(tmp_path, 10, console=console) as recorder:
        recorder.train(1, {"loss": 1.0}, examples=1)
        assert len(lines(tmp_path)) == 1
        raise ZeroDivisionError
    assert "\x1b[?25h" in console.file.getvalue().rpartition("\x1b[?25l")[2], "the cursor is shown again"
    assert events(tmp_path)[0] == [("train/loss", 1, 1.0)]


def test_lines_are_written_once_a_second_and_when_asked(tmp_path, clock):
    with Recorder(tmp_path, 10, console=plain()) as recorder:
        written = []
        for step, pause in enumerate([0.0, 0.4, 0.7, 0.1], start=1):
            clock.now += pause
            recorder.train(step, {"loss": 1.0}, examples=1)
            written.append((len(lines(tmp_path)), len(events(tmp_path)[0])))
        assert [count for count, _ in written] == [1, 1, 3, 3]
        recorder.flush()
        assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
        assert {step for _, step, _ in events(tmp_path)[0]} == {1, 2, 3, 4}
        recorder.train(5, {"loss": 1.0}, examples=1)
        recorder.evaluation(5, "validation", {"accuracy": 1.0})
        assert len(lines(tmp_path)) == 6


def test_a_full_disk_is_one_error_and_leaves_the_lines_of_before(tmp_path, capfd):
    failed = pytest.raises(RecordError, match=r"the record in .* cannot be written: .*File too large")
    with failed, Recorder(tmp_path, 100, console=plain()) as recorder:
        for step in range(1, 40):
            recorder.train(step, {"loss": 1.0}, examples=1)
        with files_of_at_most(1000):
            recorder.flush()
    assert "Traceback" not in capfd.readouterr().err
    record(tmp_path, [2], resume_step=1)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_another_error_is_not_hidden_by_a_full_disk(tmp_path):
    failed = pytest.raises(ZeroDivisionError)
    with files_of_at_most(1000), failed as error, Recorder(tmp_path, 100, console=plain()) as recorder:
        for step in range(1, 40):
            recorder.train(step, {"loss": 1.0}, examples=1)
        raise ZeroDivisionError
    assert "cannot be written" in error.value.__notes__[0]


def test_what_is_open_is_closed_when_opening_fails(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(RecordError, match="cannot be written"), warnings.catch_warnings():
        warnings.simplefilter("error")
        Recorder(tmp_path, 10, console=plain()).__enter__()


def test_without_a_terminal_a_plain_line_comes_every_ten_seconds_and_at_the_end(tmp_path, clock):
    console = plain()
    with Recorder(tmp_path, 41, name="digits", console=console) as recorder:
        for step in range(1, 42):
            recorder.train(step, {"loss": 0.5, "robust_accuracy": 0.25, "other": 1.0}, examples=32)
            clock.now += 0.5
    assert console.file.getvalue().splitlines() == [
        "digits step 1/41 loss 0.5 robust 0.25",
        "digits step 21/41 loss 0.5 robust 0.25 64 ex/s 0:00:10 left",
        "digits step 41/41 loss 0.5 robust 0.25 64 ex/s 0:00:00 left",
    ]


def test_evaluation_does_not_slow_the_shown_speed(tmp_path, clock):
    with Recorder(tmp_path, 5, console=plain()) as recorder:
        for step in (1, 2):
            clock.now += 1
            recorder.train(step, {}, examples=10)
        clock.now += 1000
        recorder.evaluation(2, "validation", {})
        for step in (3, 4):
            clock.now += 1
            recorder.train(step, {}, examples=10)
    assert [line["values"].get("examples_per_second") for line in lines(tmp_path)] == [None, 10, None, 10, 10]


def test_in_a_terminal_a_bar_shows_the_progress(tmp_path, clock):
    console = terminal()
    with Recorder(tmp_path, 4, name="[digits]", console=console) as recorder:
        for step in range(1, 4):
            recorder.train(step, {"loss": 0.5, "accuracy": 1.0, "robust_accuracy": 0.25}, examples=32)
            clock.now += 1
        recorder.evaluation(3, "validation", {"robust_accuracy": 0.125})
        recorder.message("[hello]")
    shown = console.file.getvalue()
    assert "[digits]" in shown
    assert " 75%" in shown
    assert "loss 0.5 clean 1 robust 0.25 32 ex/s 0:00:01 left" in shown
    assert "[digits] step 3 validation: robust_accuracy 0.125\n" in shown
    assert "[hello]\n" in shown


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    console = plain()
    with Recorder(tmp_path / "run", 4, console=console) as recorder:
        recorder.train(1, {"loss": 1.0}, examples=1)
        recorder.evaluation(1, "validation", {"accuracy": 1.0})
        recorder.message("hello")
    assert not (tmp_path / "run").exists()
    assert console.file.getvalue() == ""


def test_a_metric_that_is_no_scalar_is_named(tmp_path):
    with Recorder(tmp_path, 4, console=plain()) as recorder:
        with pytest.raises(ValueError, match=r"metric loss has shape=\(2,\); only scalars"):
            recorder.train(1, {"loss": np.ones(2)}, examples=1)
        with pytest.raises(ValueError, match="metric gap"):
            recorder.evaluation(1, "test", {"gap": jnp.ones(1)})
