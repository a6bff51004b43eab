"""The state of a training run: everything that a step changes, in one pytree."""

from typing import Any

import chex
import flax.struct


class NetworkState(flax.struct.PyTreeNode):
    """The state of a network that a recipe trains beside the main one.

    Attributes:
        params: the trained weights.
        batch_stats: running statistics of BatchNorm, {} without it.
        opt_state: of its optimiser.
    """

    params: Any
    batch_stats: Any
    opt_state: Any

    def variables(self) -> dict[str, Any]:
        """The network's variables."""
        return as_variables(self.params, self.batch_stats)


class Carried(flax.struct.PyTreeNode):
    """What a recipe carries from step to step beside the networks, such as the state of a universal perturbation.

    Attributes:
        shared: a pytree that is the same on every device.
        per_example: a pytree with one entry for each place of the global batch, [b, ...], split over the devices.
    """

    shared: chex.ArrayTree = None
    per_example: chex.ArrayTree = None


class TrainState(flax.struct.PyTreeNode):
    """What a training step takes and returns; a checkpoint holds all of it but `frozen`.

    Attributes:
        step: int32 scalar, number of updates made; it names the next batch and its randomness.
        params: the trained weights.
        batch_stats: running statistics of BatchNorm, {} without it.
        opt_state: of the optimiser.
        ema: exponential moving average of `params`, or None.
        clean_batch_stats: where clean and attacked images are normalised apart, the running statistics of clean ones;
            `batch_stats` are then those of attacked images. None: one set of statistics for all.
        networks: further networks that the recipe trains, by name.
        carried: the recipe's own slot.
        frozen: variables of networks trained before, by name, which no step changes; saved once for the run.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    clean_batch_stats: Any = None
    networks: Any = flax.struct.field(default_factory=dict)
    carried: Carried = flax.struct.field(default_factory=Carried)
    frozen: Any = flax.struct.field(default_factory=dict)

    def variables(self) -> dict[str, Any]:
        """The network's variables for inference: the averaged weights where there are any."""
        return as_variables(self.params if self.ema is None else self.ema, self.batch_stats)

    def training_variables(self) -> dict[str, Any]:
        """The network's variables that the next step will change."""
        return as_variables(self.params, self.batch_stats)


def as_variables(params: Any, batch_stats: Any) -> dict[str, Any]:
    """The collections that `model.apply` takes."""
    return {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}
