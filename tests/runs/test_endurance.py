"""Damaged files and killed processes: a few here, many with `python -m tests.runs.endurance`."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import endurance
from tests.runs.endurance import HARMS, DamagedRuns, assert_identical, files_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return DamagedRuns(tmp_path_factory.mktemp("damage"))


KINDS = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "d")


@pytest.mark.parametrize(("kind", "harm"), list(zip(KINDS, HARMS, strict=True)))
def test_a_damaged_file_costs_its_step_at_most(kind, harm, runs):
    step = runs.best if kind in ("_CHECKPOINT_METADATA", "d") else max(runs.saved)
    files = [file for file in files_of(runs.stopped) if file.parts[1] == str(step)]
    chosen = next(file for file in files if kind in (file.name, file.parent.name))
    runs.survives(HARMS.index(harm), chosen, harm, random.Random(0))


_TRAIN = """
import sys
import tests.conftest
from pathlib import Path
from spa_jax.parallel import data_mesh
from spa_jax.runs import loop
from spa_jax.runs.experiment import check_config, load_data, make_experiment, variants
from tests.training.conftest import tiny_config
config = check_config(tiny_config())
loop.train(make_experiment(variants(config)["tiny"], load_data(config), data_mesh()), Path(sys.argv[1]))
"""


def test_a_run_killed_while_it_trains_ends_like_one_that_was_not(runs, tmp_path):
    command = [sys.executable, "-c", _TRAIN, str(tmp_path)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "checkpoints" / "5").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    ended = runs.train(tmp_path)
    assert_identical(ended.variables, runs.expected.variables)
    assert endurance.lines_of(tmp_path) == endurance.lines_of(runs.whole)


@pytest.mark.slow
def test_damaged_files(tmp_path):
    assert sum(endurance.run_damage(40, 1, tmp_path).values()) == 40


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "count"), [(1, 4), (2, 2)])
def test_kills(processes, count, tmp_path):
    assert sum(endurance.run_kills(count, 1, processes, tmp_path).values()) == count
