"""Engines: one recipe step, data-parallel over all devices, as one `jit` program or under `pmap`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spa_jax.parallel import check_divisible, replicate, shard_batch
from spa_jax.training.learner import Learner, TrainStep
from spa_jax.training.state import Carried, TrainState

AXIS = "data"
"""The name of the mapped axis under `pmap`."""
ENGINES = ("jit", "pmap")
"""The engines that a config may name."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """How a step runs and where its inputs are put.

    Attributes:
        step: the compiled `train_step(state, batch, key)`; its input state is donated and must not be used again.
        place_state: puts a state, or anything shared, on the devices.
        place_batch: puts this process's slice of a batch on the devices.
    """

    step: TrainStep
    place_state: Callable[[Any], Any]
    place_batch: Callable[[Mapping[str, Any]], Any]


def make_engine(name: str, mesh: Mesh, learner: Learner, recipe: Callable[[Learner], TrainStep]) -> Engine:
    """Compile a recipe's step for the devices of a mesh.

    "jit" shards the batch over the mesh (NamedSharding) in one global program. "pmap" maps the same step over the
    devices, with sums over the axis and BatchNorm statistics of the global batch. Both keep one set of parameters,
    without an axis of replicas, and reach the same parameters up to rounding.

    Args:
        name: "jit" or "pmap".
        mesh: of `spa_jax.parallel.data_mesh`.
        learner: for `jit`; its twin for `pmap` knows the axis.
        recipe: `learner -> train_step`.

    Raises:
        ValueError: unknown engine.
    """
    if name == "jit":
        return _jit_engine(mesh, recipe(learner))
    if name == "pmap":
        return _pmap_engine(mesh, recipe(_with_axis(learner)))
    raise ValueError(f"engine={name!r} must be one of {', '.join(ENGINES)}")


def _jit_engine(mesh: Mesh, train_step: TrainStep) -> Engine:
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    step = jax.jit(train_step, donate_argnums=0, out_shardings=(_by_field(everywhere, split), everywhere))
    return Engine(step, lambda tree: _place(tree, mesh), lambda batch: shard_batch(batch, mesh))


def _by_field(everywhere: Any, split: Any) -> TrainState:
    """Where each field of a state lies: all of it on every device, but what a recipe carries for each example."""
    fields = {field.name: everywhere for field in dataclasses.fields(TrainState)}
    return TrainState(**fields | {"carried": Carried(everywhere, split)})


def _place(tree: Any, mesh: Mesh) -> Any:
    if not isinstance(tree, TrainState):
        return replicate(tree, mesh)
    carried = Carried(replicate(tree.carried.shared, mesh), shard_batch(tree.carried.per_example, mesh))
    return replicate(tree.replace(carried=Carried()), mesh).replace(carried=carried)


def _with_axis(learner: Learner) -> Learner:
    networks = {
        name: dataclasses.replace(network, model=_on_axis(network.model)) for name, network in learner.networks.items()
    }
    return dataclasses.replace(learner, model=_on_axis(learner.model), networks=networks, axis_name=AXIS)


def _on_axis(model: nn.Module) -> nn.Module:
    knows_axes = any(field.name == "axis_name" for field in dataclasses.fields(model))
    return model.clone(axis_name=AXIS) if knows_axes else model


def _pmap_engine(mesh: Mesh, train_step: TrainStep) -> Engine:
    devices = list(mesh.devices.flat)
    local = len(mesh.local_devices)
    state_axes = _by_field(None, 0)
    mapped = jax.pmap(
        train_step,
        axis_name=AXIS,
        in_axes=(state_axes, 0, None),
        out_axes=(state_axes, None),
        devices=devices,
        donate_argnums=0,
    )

    def step(state: TrainState, batch: Any, key: Any) -> tuple[TrainState, Any]:
        state, metrics = mapped(_reshaped(state, lambda leaf: (local, -1, *leaf.shape[1:])), batch, key)
        return _reshaped(state, lambda leaf: (-1, *leaf.shape[2:])), metrics

    def place_batch(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        check_divisible(len(batch["label"]) * (mesh.size // local), mesh)
        return {key: value.reshape(local, -1, *value.shape[1:]) for key, value in batch.items()}

    return Engine(step, lambda tree: _place(tree, mesh), place_batch)


def _reshaped(state: TrainState, shape: Callable[[Any], tuple[int, ...]]) -> TrainState:
    """What is carried for each example with another shape: `pmap` wants an axis of devices."""
    per_example = jax.tree.map(lambda leaf: leaf.reshape(shape(leaf)), state.carried.per_example)
    return state.replace(carried=state.carried.replace(per_example=per_example))
