"""The scripts for clusters: the manifest against its schema, dry runs, and a job on a real one-node Slurm."""

import copy
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCHEMA = json.loads((Path(__file__).parent / "jobset.schema.json").read_text())


def _manifest():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


# --- Kubernetes -----------------------------------------------------------------------------------------------------


def test_the_jobset_fits_its_schema_and_its_numbers_agree():
    manifest = _manifest()
    jsonschema.Draft202012Validator(SCHEMA).validate(manifest)
    (job,) = manifest["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    given = dict(argument.removeprefix("--").partition("=")[::2] for argument in container["args"])
    name = manifest["metadata"]["name"]
    assert given["coordinator"] == f"{name}-{job['name']}-0-0.{name}:{container['ports'][0]['containerPort']}"
    spec = job["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] == int(given["num_processes"])
    assert given["process_index"] == f"$({container['env'][0]['name']})"
    assert (ROOT / given["config"]).is_file() and "distributed" in given


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["spec"].update(replicas=1),
        lambda manifest: manifest["metadata"].update(name="Spa_Jax"),
        lambda manifest: manifest["spec"]["replicatedJobs"][0]["template"]["spec"].update(completions="2"),
        lambda manifest: manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"].clear(),
    ],
)
def test_the_schema_refuses_a_wrong_manifest(change):
    manifest = copy.deepcopy(_manifest())
    change(manifest)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(manifest)


# --- Cloud TPU ------------------------------------------------------------------------------------------------------


def _pod(*arguments, **environment):
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1"} | environment
    command = ["bash", str(LAUNCH / "tpu_pod.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_dry_run_for_a_pod_prints_its_commands():
    done = _pod("--config", "c.py:epochs=2", "--workdir", "/mnt/my runs", TPU="slice", ZONE="zone-b")
    assert done.returncode == 0, done.stderr
    pack, copy_to, *on_workers = [shlex.split(line) for line in done.stdout.splitlines()]
    assert pack[:2] == ["git", "archive"]
    assert copy_to[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"] and "slice:spa_jax.tar" in copy_to
    for command in on_workers:
        assert command[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice"]
        assert {"--zone=zone-b", "--worker=all"} <= set(command)
    last = shlex.split(on_workers[-1][-1].removeprefix("--command="))
    assert last[-4:] == ["--config", "c.py:epochs=2", "--workdir", "/mnt/my runs"]
    assert last[last.index("launch/train.py") + 1] == "--distributed"


def test_a_pod_without_its_name_is_one_line():
    done = _pod(ZONE="zone-b")
    assert done.returncode != 0 and "set TPU to the name of the slice" in done.stderr and not done.stdout


# --- Slurm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (143, True)])
def test_a_slurm_job_is_requeued_only_after_it_was_stopped(status, requeued, tmp_path):
    for name, end in {"srun": f"exit {status}", "scontrol": "exit 0"}.items():
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n{end}\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sh"), "--config", "c.py"], env=environment, timeout=60)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert done.returncode == status
    assert calls[0].endswith("python launch/train.py --distributed --join_timeout=600 --config c.py")
    assert calls[1:] == (["scontrol requeue 7"] if requeued else [])


SLURM = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scancel", "scontrol", "squeue")
MISSING = [program for program in SLURM if shutil.which(program) is None]


def _slurm_conf(directory, host, ports):
    return f"""
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
ReturnToService=2
NodeName={host} CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def _free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def slurm(tmp_path):
    """A one-node Slurm of this test's own, as an environment for its commands."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (tmp_path / name).mkdir()
    tmp_path.chmod(0o755)
    conf, key = tmp_path / "slurm.conf", tmp_path / "munge.key"
    conf.write_text(_slurm_conf(tmp_path, host, _free_ports(2)))
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munge = [f"--{name}={tmp_path}/munge.{end}" for name, end in (("socket", "socket"), ("key-file", "key"))]
    munge += [f"--{name}-file={tmp_path}/munged.{name}" for name in ("pid", "log", "seed")]
    commands = [
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf), "-N", host],
    ]
    environment = os.environ | {"SLURM_CONF": str(conf), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    daemons = []
    try:
        for command in commands:
            with open(tmp_path / f"{command[0]}.out", "wb") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, timeout=60)
        for _ in range(60):  # the daemons end the job's processes, so they outlive it
            if not subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, timeout=60).stdout:
                break
            time.sleep(1)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


def _until(file, text, seconds=300):
    """Wait until a file holds a text."""
    for _ in range(seconds):
        if file.exists() and text in file.read_text():
            return
        time.sleep(1)
    raise AssertionError(f"no {text!r} within {seconds} s: {file.read_text() if file.exists() else 'no file'}")


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"Slurm's programs are missing: {', '.join(MISSING)}")
def test_a_job_on_a_real_slurm_is_stopped_requeued_and_finished(slurm, tmp_path):
    """Two processes on one node; SIGTERM, as a preemption sends it, after the first evaluation."""
    workdir, log = tmp_path / "run", tmp_path / "job.log"
    config = f"{ROOT}/configs/digits_spa.py:epochs=12,baselines=false"
    small = ("--config.model.width=2", "--config.training.evaluate_every=2", "--config.evaluation.num_examples=40")
    flags = ("--nodes=1", "--ntasks-per-node=2", "--parsable", f"--output={log}", f"--chdir={ROOT}")
    slurm |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def run(*command):
        done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    arguments = ("--config", config, "--workdir", str(workdir), "--host_devices", "1", *small)
    job = run("sbatch", *flags, str(LAUNCH / "slurm.sh"), *arguments).strip()

    _until(log, "validation")
    run("scancel", "--signal=TERM", job)
    _until(log, "the same command goes on from there")
    _until(log, "going on from step", 400)
    _until(workdir / "report" / "report.md", "joint", 500)
    for _ in range(120):
        shown = run("scontrol", "show", "job", job)
        if "JobState=COMPLETED" in shown:
            break
        time.sleep(1)
    assert "JobState=COMPLETED" in shown and "Restarts=1" in shown
