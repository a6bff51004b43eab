"""The lock of a directory: one run at a time, whoever holds it, and none that outlives its process."""

import fcntl
import os
import signal
import subprocess
import sys

import pytest

from spa_jax.errors import CheckpointError
from spa_jax.runs import loop
from spa_jax.runs.lock import WorkdirInUse, sole_run
from tests.training.conftest import tiny_config

_HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_run_is_refused_by_name_while_the_first_lives(tmp_path):
    refused = pytest.raises(WorkdirInUse, match=rf"workdir='.*' is in use by another run \(process {os.getpid()} on ")
    with sole_run(tmp_path), refused, sole_run(tmp_path):
        pytest.fail("two runs in one directory")
    with sole_run(tmp_path):
        pass


def test_an_exception_lets_go_of_the_lock(tmp_path):
    with pytest.raises(KeyError), sole_run(tmp_path):
        raise KeyError
    with sole_run(tmp_path):
        pass


def test_a_killed_process_leaves_no_lock_behind(tmp_path):
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(WorkdirInUse, match="a process that has just begun"), sole_run(tmp_path):
            pytest.fail("two runs in one directory")
        process.send_signal(signal.SIGKILL)
    with sole_run(tmp_path):
        pass


def test_a_second_run_loses_no_line_of_the_first(tmp_path):
    (tmp_path / "tiny").mkdir()
    record = tmp_path / "tiny" / "metrics.jsonl"
    record.write_text('{"step": 1}\n')
    with sole_run(tmp_path), pytest.raises(WorkdirInUse):
        loop.train_and_evaluate(tiny_config(), tmp_path)
    assert record.read_text() == '{"step": 1}\n'
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "metrics.jsonl", "tiny"]


def test_without_locks_the_run_goes_on_with_a_warning(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked .*Function not implemented"), sole_run(tmp_path):
        pass


def test_a_lock_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(CheckpointError, match=r"\.lock cannot be written"), sole_run(tmp_path):
        pass
