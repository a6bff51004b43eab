"""The README's examples run as they stand, its two commands come first, and two processes train on loopback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.test_launch import free_address

README = Path(__file__).parents[1] / "README.md"


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_examples_run_in_their_order(capsys):
    names = {}
    for block in _blocks("python"):
        exec(block, names)
    assert names["perturbed"].shape == names["images"].shape
    assert "[" in capsys.readouterr().out


def test_the_first_two_commands_train_and_test():
    train, test = _blocks("bash")[:2]
    assert "launch/train.py --config configs/digits_spa.py" in train
    assert "-m pytest" in test


@pytest.mark.slow
def test_the_command_for_two_processes_trains_and_reports(tmp_path):
    command = _blocks("bash")[2].replace("127.0.0.1:12321", free_address()).replace("runs/two", str(tmp_path))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(README.parent),
    }
    done = subprocess.run(["bash", "-c", command], cwd=README.parent, env=environment, capture_output=True, timeout=900)
    assert (tmp_path / "report" / "report.md").exists(), done.stderr.decode()
    assert done.stdout.count(b"validation") == 1, "process 0 alone prints"
