"""The launch scripts as a user runs them: the main job, errors as one line, help, two processes."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spa_jax.evaluation import AttackRecord, ModelReport, write_report

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config.model.width=2",
    "--config.training.batch_size=240",
)


def _command(script, *arguments):
    return [sys.executable, str(ROOT / "launch" / script), *map(str, arguments)]


def _run(script, *arguments, **variables):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(_command(script, *arguments), capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_train_then_evaluate_then_attack(tmp_path):
    config = ROOT / "configs" / "digits_spa.py"
    common = ("--config", f"{config}:epochs=1,baselines=false", "--workdir=~", *SMALL)
    at_home = {"HOME": str(tmp_path)}
    trained = _run("train.py", *common, **at_home)
    assert trained.returncode == 0, trained.stderr
    assert "joint" in trained.stdout
    report = (tmp_path / "report" / "report.md").read_text()
    for picture in re.findall(r"\]\((\S+\.png)\)", report):
        assert (tmp_path / "report" / picture).stat().st_size > 1000
    assert _run("evaluate.py", *common, **at_home).returncode == 0
    attacked = _run("attack.py", *common, "--attack", "joint", "--output=~/joint.npz", **at_home)
    assert attacked.returncode == 0, attacked.stderr
    found = np.load(tmp_path / "joint.npz")
    assert found["x"].shape == (397, 8, 8, 1)
    assert np.abs(found["variables/noise"]).max() <= 0.1 + 1e-6
    assert np.abs(found["x"] - found["edited/x"]).max() <= 0.1 + 1e-6
    assert found["edited/success"].sum() <= found["success"].sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config.recipe.attack.num_stepz=3",), "num_stepz"),
        (("--config.model.qqq=3",), "qqq=3 is not an option of model 'small_cnn'"),
        (("--config.traning.num_epochs=3",), "config.traning is unknown; did you mean 'training'"),
        (("--config.training.batch_size=many",), "batch_size"),
        (("--config.evaluation.attacks.PGD.radius=-1/255",), "config.evaluation.attacks.PGD: radius=-0.0039"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments, message, tmp_path):
    config = ROOT / "configs" / "digits_spa.py"
    done = _run("train.py", "--config", config, "--workdir", tmp_path / "run", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_fails_is_one_line_with_file_line_and_cause(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(:\n")
    done = _run("train.py", "--config", tmp_path / "mine.py", "--workdir", tmp_path / "run")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "mine.py:1: SyntaxError" in done.stderr


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_a_platform_that_is_not_there_is_named(platform, tmp_path):
    config = ROOT / "configs" / "digits_pgd.py"
    done = _run("train.py", "--config", config, "--workdir", tmp_path / "run", JAX_PLATFORMS=platform)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"JAX_PLATFORMS='{platform}' has no devices here" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "attack.py", "benchmark.py"])
def test_help_names_flags_and_an_example(script):
    shown = _run(script, "--help").stdout
    assert "--config" in shown and "--workdir" in shown and f"python launch/{script}" in shown


@pytest.mark.slow
def test_the_leaderboard_compares_reports_and_needs_no_config(tmp_path):
    flags = np.ones(3, bool)
    model = ModelReport(np.arange(3, dtype=np.int32), flags, {"mine": AttackRecord(flags, 3)}, False)
    write_report({"a": model}, tmp_path, title="t", dataset="d", seed=0, config={})
    result, output = f"--result={tmp_path / 'report.json'}", tmp_path / "board.html"
    done = _run("leaderboard.py", result, result, "--output", output)
    assert (done.returncode, done.stdout) == (0, f"{output}: 2 entries from 2 files\n")
    assert "2 models" not in output.read_text() and "1 model from 1 file." in output.read_text()
    wrong = _run("leaderboard.py", "--result", tmp_path / "none.json")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    assert "none.json' cannot be read" in wrong.stderr
    assert "python launch/leaderboard.py" in _run("leaderboard.py", "--help").stdout


_PROCESS = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(sys.argv[4]))
count, index = int(sys.argv[2]), int(sys.argv[3])
if count > 1:
    jax.distributed.initialize(sys.argv[5], count, index)
from spa_jax.parallel import data_mesh
from spa_jax.runs.experiment import check_config, load_data, make_experiment, variants
from spa_jax.runs.loop import train
from tests.training.conftest import tiny_config
config = check_config(tiny_config())
train(make_experiment(variants(config)["tiny"], load_data(config), data_mesh()), Path(sys.argv[1]))
"""


def free_address():
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _train_in_processes(workdir, count, devices):
    address = free_address()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NPROC": "32"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(workdir), str(count), str(index), str(devices), address],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    from spa_jax.runs.checkpoints import load_variables

    _train_in_processes(tmp_path / "one", 1, 4)
    _train_in_processes(tmp_path / "two", 2, 2)
    one, two = (load_variables(tmp_path / name, step="latest", names=["params"]) for name in ("one", "two"))
    assert one.step == two.step == 15
    for layer, weights in one.variables["params"].items():
        for name, leaf in weights.items():
            np.testing.assert_allclose(leaf, two.variables["params"][layer][name], rtol=1e-4, atol=1e-5)


def _start_job(workdir, address):
    """Two processes of the launch script, with their standard errors in files."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    config = f"{ROOT}/configs/digits_spa.py:epochs=8,baselines=false"
    small = (*SMALL, "--config.training.evaluate_every=2", "--config.evaluation.num_examples=40")
    job = ("--distributed", f"--coordinator={address}", "--num_processes=2", "--host_devices=1")
    processes = []
    for index in range(2):
        given = ("--config", config, "--workdir", workdir, *small, *job, f"--process_index={index}")
        with open(workdir / f"{index}.err", "w") as errors:
            command = _command("train.py", *given)
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors))
    return processes


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_process_ends_the_job_within_a_minute_with_one_line_and_the_job_goes_on(index, tmp_path):
    processes = _start_job(tmp_path, free_address())
    try:
        for _ in range(400):
            if (tmp_path / "spa" / "metrics.jsonl").exists() and "validation" in _metrics(tmp_path):
                break
            time.sleep(1)
        processes[index].kill()
        processes[index].wait()
        killed = time.monotonic()
        assert processes[1 - index].wait(timeout=60) not in (0, None)
        assert time.monotonic() - killed < 60
        time.sleep(1)
        *_, last = (tmp_path / f"{1 - index}.err").read_text().splitlines()
        assert last.startswith(f"process {index} is gone"), last
        processes = _start_job(tmp_path, free_address())
        assert [process.wait(timeout=900) for process in processes] == [0, 0]
        assert (tmp_path / "report" / "report.md").exists()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _metrics(workdir):
    return (workdir / "spa" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num_processes=2",), "--coordinator, --num_processes and --process_index need --distributed"),
        (("--distributed", "--coordinator=127.0.0.1:1"), "--distributed needs --num_processes, --process_index too"),
        (("--distributed",), "--distributed: no cluster was found; give --coordinator, --num_processes"),
    ],
)
def test_a_mistake_about_the_processes_is_one_line(arguments, message, tmp_path):
    config = ROOT / "configs" / "digits_spa.py"
    done = _run("train.py", "--config", config, "--workdir", tmp_path / "run", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
