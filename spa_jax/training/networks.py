"""Networks that a recipe trains beside the learner's own."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import optax

from spa_jax.training.state import NetworkState


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that a recipe trains beside the learner's, with an optimiser of its own.

    Attributes:
        model: a flax.linen module of `spa_jax.models`.
        optimizer: the optax rule of its update.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation

    def init(self, key: Any, image_shape: tuple[int, int, int]) -> NetworkState:
        """The state before the first step."""
        from spa_jax.models import init_variables

        variables = init_variables(self.model, key, image_shape)
        params = variables["params"]
        return NetworkState(params, variables.get("batch_stats", {}), self.optimizer.init(params))

    def descend(self, state: NetworkState, gradient: Any, batch_stats: Any) -> NetworkState:
        """One update of the weights.

        Args:
            state: before it.
            gradient: of the loss over the global batch.
            batch_stats: new running statistics.
        """
        params, opt_state = update(self.optimizer, gradient, state.opt_state, state.params)
        return NetworkState(params, batch_stats, opt_state)


def update(optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
    """New weights and optimiser state; optax mixes integers and floats, which strict promotion would refuse."""
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state
