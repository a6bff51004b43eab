"""Sharding over simulated devices, and over two processes on loopback."""

import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from spa_jax.parallel import check_divisible, data_mesh, replicate, shard_batch, to_host, use_host_cores


def test_mesh_spans_all_devices_in_order():
    mesh = data_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.axis_types == (AxisType.Auto,)
    assert [device.id for device in mesh.devices.flat] == sorted(device.id for device in jax.devices())
    assert [device.id for device in data_mesh(jax.devices()[3:1:-1]).devices.flat] == [2, 3]
    with pytest.raises(ValueError, match="at least one device"):
        data_mesh([])


def test_batch_is_split_and_comes_back():
    batch = {"image": np.arange(32.0, dtype=np.float32).reshape(16, 2), "label": np.arange(16, dtype=np.int32)}
    sharded = shard_batch(batch, data_mesh())
    assert all(leaf.sharding.spec == PartitionSpec("data") for leaf in sharded.values())
    assert {shard.data.shape for shard in sharded["image"].addressable_shards} == {(2, 2)}
    back = to_host(jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree))(sharded))
    for name, leaf in batch.items():
        assert isinstance(back[name], np.ndarray)
        np.testing.assert_array_equal(back[name], 2 * leaf)


def test_replicated_arrays_are_whole_on_every_device():
    tree = replicate({"w": np.ones((3, 2)), "key": jax.random.key(1), "rate": 0.5}, data_mesh())
    assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8 for leaf in jax.tree.leaves(tree))
    assert jnp.array_equal(jax.random.key_data(tree["key"]), jax.random.key_data(jax.random.key(1)))


def test_to_host_takes_what_is_on_the_host_already():
    assert to_host((np.arange(3), 2.0, jnp.ones(2)))[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [100, 4])
def test_indivisible_batch_is_an_error(size):
    with pytest.raises(ValueError, match=f"batch_size={size} must be divisible by the 8 devices"):
        check_divisible(size, data_mesh())
    with pytest.raises(ValueError, match=f"batch_size={size} must be divisible by the 8 devices"):
        shard_batch(np.zeros(size), data_mesh())


def test_empty_and_scalar_batches_are_errors():
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        check_divisible(0, data_mesh())
    with pytest.raises(ValueError, match="has no batch axis"):
        shard_batch(np.float32(1), data_mesh())


def test_cores_become_devices_before_the_first_computation():
    assert run_python("import jax; from spa_jax.parallel import *; use_host_cores(3); print(len(jax.devices()))") == "3"


def test_device_count_of_the_environment_wins():
    code = "import jax; from spa_jax.parallel import *; use_host_cores(3); print(len(jax.devices()))"
    assert run_python(code, XLA_FLAGS="--xla_force_host_platform_device_count=2") == "2"


def test_cores_are_checked():
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        use_host_cores(0)


def environment(**variables):
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return inherited | {"JAX_PLATFORMS": "cpu"} | variables


def run_python(code, **variables):
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=True)
    return run.stdout.strip()


TWO_PROCESSES = """
import sys
import jax, numpy as np
from spa_jax.data.types import Split
from spa_jax.evaluation import evaluate
from spa_jax import fgsm
from spa_jax.parallel import *

process = int(sys.argv[1])
use_host_cores(2)
jax.distributed.initialize("127.0.0.1:" + sys.argv[2], num_processes=2, process_id=process)
mesh = data_mesh()
batch = shard_batch(np.arange(4) + 4 * process, mesh)
weights = replicate({"w": np.ones(3), "j": jax.numpy.full(2, 2.0), "key": jax.random.key(1)}, mesh)
total = jax.jit(lambda batch, w: (batch * 2, batch.sum() * w["w"] * w["j"][0], jax.random.bits(w["key"])))
doubled, sums, bits = to_host(total(batch, weights))
assert doubled.tolist() == list(range(0, 16, 2)), doubled
assert sums.tolist() == [56.0] * 3, sums
assert bits == jax.random.bits(jax.random.key(1)), bits

def linear(keys, x):
    score = x.reshape(x.shape[0], -1) @ jax.numpy.linspace(-1, 1.2, 16)
    return jax.numpy.stack([0 * score, score], -1)

images = np.random.default_rng(0).uniform(size=(21, 4, 4, 1)).astype(np.float32)
split = Split(images, np.ones(21, np.int32))
report = evaluate(linear, split, {"fgsm": fgsm(0.05)}, key=jax.random.key(0), batch_size=8)
print("RESULT", report.clean.astype(int), report.worst_case.astype(int), flush=True)
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_processes_share_a_batch_and_an_evaluation():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(i), port],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (re.search(r"RESULT[\s\S]*", output).group() for output, _ in outputs)
    assert first == second
    clean, worst = re.findall(r"\[[\d\s]+\]", first)
    assert 0 < worst.count("1") < clean.count("1") < 21
