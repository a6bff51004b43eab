"""One program over all devices: the mesh, arrays onto it and back, and host cores as devices.

A batch is split over the one mesh axis "data", everything else is replicated. With several processes each one passes
its own slice of the batch, in the order of the process indices.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spa_jax.types import Attack, Result
from spa_jax.validation import checked_examples, checked_keys

_THREADS_PER_DEVICE = 8
_DEVICE_COUNT_FLAG = "xla_force_host_platform_device_count"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, "data", over the given devices.

    Args:
        devices: default: all devices of all processes. They are put in the order of process and id, so that process i
            holds the i-th slice of every batch.

    Raises:
        ValueError: no device was given.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices=[] must hold at least one device")
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(ordered), ("data",), axis_types=(AxisType.Auto,))


def check_divisible(batch_size: int, mesh: Mesh) -> None:
    """Check that a global batch can be split evenly over the mesh.

    Raises:
        ValueError: it cannot.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if batch_size % mesh.size:
        raise ValueError(f"batch_size={batch_size} must be divisible by the {mesh.size} devices")


def all_processes_agree(flag: bool) -> bool:
    """Whether a flag is true in every process; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(flag))))


def from_process_0(array: np.ndarray | np.generic) -> np.ndarray:
    """The array of process 0 in every process; all of them must ask, with arrays of one shape and type."""
    if jax.process_count() == 1:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Arrays of this process, [b, ...], as global arrays split over the mesh by their first axis.

    Args:
        tree: NumPy arrays; every process passes equally many rows, and the global batch is their concatenation.
        mesh: of `data_mesh`.

    Raises:
        ValueError: an array has no first axis, or the global batch cannot be split evenly.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    processes = len({device.process_index for device in mesh.devices.flat})

    def shard(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        if leaf.ndim == 0:
            raise ValueError(f"leaf={leaf!r} has no batch axis to be sharded")
        check_divisible(leaf.shape[0] * processes, mesh)
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree.map(shard, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every array, typed keys included, whole on every device of the mesh; several processes must pass equal values."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jax.device_put(_whole(leaf), sharding)

    return jax.tree.map(put, tree)


def to_host(tree: Any) -> Any:
    """Arrays as whole NumPy arrays, gathered from all processes where they are spread over several.

    Then every process has to make the call.
    """
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental.multihost_utils import process_allgather

        leaf = process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def on_all_devices(attack: Attack, mesh: Mesh | None = None) -> Callable[..., Result]:
    """The attack, called alike, with its batch split over all devices of this process.

    A batch that the devices cannot share evenly is padded with copies of weight 0, which the result leaves out. The
    result is that of one device, up to rounding. On a CPU, `use_host_cores()` first makes each core a device.

    Args:
        attack: any attack of this library.
        mesh: of `data_mesh`. Default: all devices.

    Returns:
        `(key, victim, images, labels, target=None, *, weight=None, reference=None) -> Result`.
    """
    mesh = data_mesh() if mesh is None else mesh
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def attacked(key: Any, victim: Any, images: Any, labels: Any, target: Any = None, **extra: Any) -> Result:
        seen = checked_examples(images, labels, target, **extra)
        count = len(seen.image)
        keys = checked_keys(key, count, attack.shared)
        rows = np.arange(count + -count % mesh.size)
        is_padding = rows >= count

        def spread(leaf: Any) -> jax.Array:
            return jax.device_put(leaf[np.where(is_padding, 0, rows)] if np.any(is_padding) else leaf, sharding)

        weight = jnp.ones(count, seen.image.dtype) if seen.weight is None else seen.weight
        seen = jax.tree.map(spread, seen.replace(weight=weight))
        weight = seen.weight * (1 - is_padding.astype(weight.dtype))
        keys = keys if attack.shared else spread(keys)
        found = attack(keys, victim, seen.image, seen.label, seen.target, weight=weight, reference=seen.reference)
        if attack.shared:
            of_images = dataclasses.replace(found, variables=None, nonfinite=None)
            kept = jax.tree.map(lambda leaf: leaf[:count], of_images)
            return dataclasses.replace(kept, variables=found.variables, nonfinite=found.nonfinite)
        return jax.tree.map(lambda leaf: leaf[:count], found)

    return attacked


def use_host_cores(n: int | None = None, *, collectives: bool = True) -> None:
    """Make the cores of a CPU `n` devices, so that a sharded program uses all: XLA runs most convolutions on one.

    Does nothing where XLA_FLAGS or `jax_num_cpu_devices` have set a number already. Accelerators are not affected.

    For programs with collectives XLA's pool gets several threads for each device (the environment variable NPROC,
    unless it is set): with one thread a core, devices that wait for each other in a sum can hold every thread that the
    sum still needs, for ever. Attacks have no collectives, and on many threads a ResNet-20 takes a third longer.

    Args:
        n: number of devices. Default: the cores this process may run on.
        collectives: whether devices will wait for each other, as in training; False: the pool stays as XLA makes it.

    Raises:
        ValueError: `n` below 1.
        RuntimeError: JAX has already made its devices; call this first in the program.
    """
    n = _cores() if n is None else n
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    if _DEVICE_COUNT_FLAG in os.environ.get("XLA_FLAGS", "") or jax.config.values["jax_num_cpu_devices"] > 0:
        return
    if collectives:
        os.environ.setdefault("NPROC", str(_THREADS_PER_DEVICE * n))
    jax.config.update("jax_num_cpu_devices", n)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
