"""The state of a training run: everything that a step changes, in one pytree."""

from typing import Any

import flax.struct


class TrainState(flax.struct.PyTreeNode):
    """What a training step takes and returns, and what a checkpoint holds.

    Attributes:
        step: int32 scalar, number of updates made; it names the next batch and its randomness.
        params: the trained weights.
        batch_stats: running statistics of BatchNorm, {} without it.
        opt_state: of the optimiser.
        ema: exponential moving average of `params`, or None.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def variables(self) -> dict[str, Any]:
        """The network's variables for inference: the averaged weights where there are any."""
        return self._variables(self.params if self.ema is None else self.ema)

    def training_variables(self) -> dict[str, Any]:
        """The network's variables that the next step will change."""
        return self._variables(self.params)

    def _variables(self, params: Any) -> dict[str, Any]:
        return {"params": params, "batch_stats": self.batch_stats} if self.batch_stats else {"params": params}
