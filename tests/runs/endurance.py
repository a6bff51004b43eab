"""What a run must survive: `kill -9` at any instant, and any one damaged file of its checkpoints.

python -m tests.runs.endurance kills --count 30 --seed 0       # one process
python -m tests.runs.endurance kills --count 10 --processes 2  # one of two processes on loopback
python -m tests.runs.endurance damage --count 200 --seed 0

Every killed or damaged run goes on with the same command; its last parameters and its report must be those of a run
that nothing disturbed, bit for bit. Prints a line a case and the counts, and fails at the first difference.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spa_jax.errors import CheckpointError
from spa_jax.parallel import data_mesh
from spa_jax.runs import loop
from spa_jax.runs.checkpoints import Loaded, load_variables
from spa_jax.runs.experiment import check_config, load_data, make_experiment, variants
from tests.runs.tiny import NUM_EPOCHS, STEPS_AN_EPOCH
from tests.training.conftest import stop_requested_at, tiny_config

ROOT = Path(__file__).parents[2]
HARMS = ("flip", "cut", "empty", "delete")
_PATIENCE = 300.0
_PEER_PATIENCE = 30.0

_PROCESS = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
workdir, count, index, address = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=10)
from spa_jax.runs.loop import train_and_evaluate
from tests.runs.tiny import get_config
train_and_evaluate(get_config(), workdir)
"""


# --- damage ---------------------------------------------------------------------------------------------------------


def damage(path: Path, harm: str, rng: random.Random) -> str:
    """Do one of `HARMS` to a file, and say what was done."""
    content = bytearray(path.read_bytes())
    if harm == "delete":
        path.unlink()
        return "deleted"
    if harm == "flip" and content:
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        return f"bit {bit} of byte {place} of {len(content)} flipped"
    kept = rng.randrange(len(content)) if harm == "cut" and content else 0
    path.write_bytes(content[:kept])
    return f"cut to {kept} of {len(content)} bytes"


def files_of(workdir: Path) -> list[Path]:
    """Every file of a run's checkpoints, relative to the run."""
    return sorted(path.relative_to(workdir) for path in (workdir / "checkpoints").rglob("*") if path.is_file())


class DamagedRuns:
    """Copies of one run that was stopped after two of its three epochs, each with one damaged file."""

    def __init__(self, directory: Path):
        """Train the run to its end once, and once more until it is stopped."""
        config = check_config(tiny_config())
        self._experiment = make_experiment(variants(config)["tiny"], load_data(config), data_mesh())
        self._directory = directory
        self.stopped, self.whole = directory / "stopped", directory / "whole"
        self.expected = self.train(self.whole)
        with stop_requested_at(13), contextlib.suppress(loop.Interrupted):
            self.train(self.stopped)
        self.saved = {step: load_variables(self.stopped, step=step) for step in _steps_saved(self.stopped)}
        self.best = load_variables(self.stopped).step

    def train(self, workdir: Path) -> Loaded:
        """Train to the end, or from where the run in the directory was; the last state."""
        loop.train(self._experiment, workdir)
        return load_variables(workdir, step="latest")

    def survives(self, number: int, file: Path, harm: str, rng: random.Random) -> str:
        """Damage a file of a copy, evaluate it and train it to its end; what became of it, as text.

        Raises:
            AssertionError: wrong parameters, or a file that cost more than its own step.
        """
        copy = self._directory / f"damaged-{number}"
        shutil.copytree(self.stopped, copy)
        done = damage(copy / file, harm, rng)
        hit = int(file.parts[1])
        found = self._found(copy, hit)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            evaluated = load_variables(copy)
            ended = self.train(copy)
        assert_identical(evaluated.variables, self.saved[evaluated.step].variables)
        assert evaluated.config == self.saved[evaluated.step].config
        assert_identical(ended.variables, self.expected.variables)
        assert ended.step == self.expected.step
        assert evaluated.step == self.best or (hit == self.best and said), (evaluated.step, hit, self.best)
        shutil.rmtree(copy)
        return (
            f"{number}: {file}, {done}: step {evaluated.step} is evaluated, {'with' if said else 'no'} warning, {found}"
        )

    def _found(self, copy: Path, step: int) -> str:
        """What becomes of the damaged step itself, when nothing else will do."""
        try:
            loaded = load_variables(copy, step=step)
        except CheckpointError:
            return "step refused"
        assert_identical(loaded.variables, self.saved[step].variables)
        assert loaded.config == self.saved[step].config
        return "step intact"


def assert_identical(left: Any, right: Any) -> None:
    """Two trees hold the same bits."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def run_damage(count: int, seed: int, directory: Path) -> Counter[str]:
    """Damaged files in turn, so that each is met about equally often, with every harm in turn."""
    rng, found = random.Random(seed), Counter[str]()
    runs = DamagedRuns(directory)
    files = files_of(runs.stopped)
    rng.shuffle(files)
    print(f"{len(files)} files in the steps {sorted(runs.saved)}, the best is {runs.best}", flush=True)
    for number in range(count):
        round_, place = divmod(number, len(files))
        harm = HARMS[(place + round_) % len(HARMS)]
        line = runs.survives(number, files[place], harm, rng)
        print(line, flush=True)
        found[f"{harm}, {line.rpartition(', ')[2]}"] += 1
    return found


# --- kills ----------------------------------------------------------------------------------------------------------


def start(workdir: Path, processes: int) -> list[subprocess.Popen[str]]:
    """The command that trains and reports: `launch/train.py`, or the same program in several processes."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "NPROC": "16"}
    single = [str(ROOT / "launch" / "train.py"), "--config", str(ROOT / "tests" / "runs" / "tiny.py")]
    commands = [[*single, "--workdir", str(workdir), "--host_devices", "2"]]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        commands = [["-c", _PROCESS, str(workdir), str(processes), str(i), address] for i in range(processes)]
    return [
        subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]


def finish(workdir: Path, processes: int) -> float:
    """Run the command to its end; the seconds of processor time that a process took."""
    begun = _used_by_children()
    for process in start(workdir, processes):
        _, errors = process.communicate(timeout=_PATIENCE)
        assert process.returncode == 0, errors
    return (_used_by_children() - begun) / processes


def _used_by_children() -> float:
    return os.times().children_user + os.times().children_system


def _used(process: subprocess.Popen[str]) -> float:
    """Processor time of a living process (Linux), which does not depend on what else the machine does."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def kill_one(workdir: Path, processes: int, seconds: float, rng: random.Random) -> str:
    """Run the command and kill one of its processes after some seconds of its processor time; how far it was."""
    running = start(workdir, processes)
    victim = rng.choice(running)
    while victim.poll() is None and _used(victim) < seconds:
        time.sleep(0.001)
    alive = victim.poll() is None
    victim.send_signal(signal.SIGKILL)
    phase = _phase(workdir) if alive else "over already"
    for process in running:
        try:
            process.communicate(timeout=_PEER_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    return phase


def _phase(workdir: Path) -> str:
    if (workdir / "report" / "report.json").exists():
        return "after the report"
    saved = {name: _steps_saved(workdir / name) for name in ("clean", "tiny")}
    if NUM_EPOCHS * STEPS_AN_EPOCH in saved["tiny"]:
        return "evaluation for the report"
    return "training" if saved["clean"] else "before the first checkpoint"


def _steps_saved(workdir: Path) -> list[int]:
    return [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdecimal()]


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    """What a run has recorded, without the time that it took."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["time"]
        line["values"].pop("examples_per_second", None)
    return lines


def outcome(workdir: Path) -> dict[str, Any]:
    """What must not depend on a kill: last states, metrics and report, without the times that they took."""
    report = json.loads((workdir / "report" / "report.json").read_text())
    for model in report["models"].values():
        for attack in model["attacks"].values():
            del attack["seconds"]
    found: dict[str, Any] = {"report": report}
    for name in ("tiny", "clean"):
        loaded = load_variables(workdir / name, step="latest")
        leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(loaded.variables)]
        found[name] = {"lines": lines_of(workdir / name), "best": load_variables(workdir / name).step, "leaves": leaves}
    return found


def run_kills(count: int, seed: int, processes: int, directory: Path) -> Counter[str]:
    """Kill at instants drawn evenly over the processor time of the undisturbed command, compiled programs cached."""
    rng, found = random.Random(seed), Counter[str]()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    finish(directory / "first", processes)
    expected, seconds = outcome(directory / "first"), finish(directory / "whole", processes)
    assert outcome(directory / "whole") == expected, "two undisturbed runs differ"
    print(f"the undisturbed run takes {seconds:.1f} s of a processor", flush=True)
    for number in range(count):
        workdir, after = directory / f"killed-{number}", rng.uniform(0.3, 1.0) * seconds
        phase = kill_one(workdir, processes, after, rng)
        finish(workdir, processes)
        assert outcome(workdir) == expected, f"{number}: killed after {after:.2f} s ({phase}) it ends differently"
        print(f"{number}: killed after {after:.2f} s, {phase}: identical", flush=True)
        found[phase] += 1
        shutil.rmtree(workdir)
    return found


def main() -> None:
    """Parse, run, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "damage"])
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if asked.what == "kills":
            found = run_kills(asked.count, asked.seed, asked.processes, Path(directory))
        else:
            found = run_damage(asked.count, asked.seed, Path(directory))
    print("\n".join(f"{number:4d} {case}" for case, number in sorted(found.items())))


if __name__ == "__main__":
    main()
