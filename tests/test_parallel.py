"""Sharding over simulated devices, and over two processes on loopback."""

import os
import re
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from spa_jax import attribute, chain, make_attack, on_all_devices, pgd, restarts, spa, universal
from spa_jax.parallel import check_divisible, data_mesh, replicate, shard_batch, to_host, use_host_cores
from spa_jax.spaces import linf
from tests.analytic_victims import images, mlp


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


# --- attacks on all devices -----------------------------------------------------------------------------------------

KEY, VICTIM = jax.random.key(0), mlp()
UNIVERSAL = make_attack(chain(light=attribute("brightness"), noise=linf(0.1)), num_steps=3, lift=universal)
ATTACKS = {
    "restarts": restarts(pgd(0.1, 3), 2),
    "spa": spa(0.05, ["contrast"], 3),
    "universal": UNIVERSAL,
    "reference": pgd(0.1, 3, loss="kl_divergence"),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.usefixtures("quick_compilation")
def test_all_devices_find_what_one_finds_also_for_a_batch_they_cannot_share(name):
    x, y = images(batch=11), jnp.arange(11) % 3
    target = (y + 1) % 3 if name == "restarts" else None
    reference = {"reference": VICTIM(x)} if name == "reference" else {}
    alone = ATTACKS[name](KEY, VICTIM, x, y, target, **reference)
    spread = on_all_devices(ATTACKS[name])(KEY, VICTIM, x, y, target, **reference)
    chex.assert_trees_all_equal_shapes(alone, spread)
    chex.assert_trees_all_close(alone, spread, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("quick_compilation")
def test_a_divisible_batch_stays_on_its_devices_and_plain_functions_and_numpy_arrays_will_do():
    x, y, attack = images(batch=16), np.arange(16) % 3, pgd(0.1, 3)
    keys = jax.random.split(KEY, 16)
    spread = on_all_devices(attack, data_mesh(jax.devices()[:4]))(keys, lambda x: VICTIM(x), np.asarray(x), y)
    assert len(spread.x.sharding.device_set) == 4
    chex.assert_trees_all_close(spread, attack(keys, VICTIM, x, y), rtol=1e-4, atol=1e-5)


def test_what_an_attack_refuses_all_devices_refuse():
    attack, x, y = on_all_devices(pgd(0.1, 3)), images(batch=11), jnp.arange(11) % 3
    for arguments, message in (
        ((KEY, VICTIM, x * 2, y), r"images\.max\(\)=2"),
        ((KEY, VICTIM, x, y[:5]), r"labels\.shape="),
        ((jax.random.split(KEY, 5), VICTIM, x, y), r"key\.shape=\(5,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(*arguments)


# --- host cores -----------------------------------------------------------------------------------------------------


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

def linear(x):
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
