"""Networks beside the learner's own: those that a recipe trains with it, and those trained before, as parts of attacks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import optax

from spa_jax.predict import classifier
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
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.params)
        return NetworkState(optax.apply_updates(state.params, updates), batch_stats, opt_state)


Build = Callable[[Any], Any]
"""From a network's variables to a part that attacks are made of."""


def part_builder(model: nn.Module, mean: Any, std: Any) -> Build:
    """What a network is for an attack: an edit, a maker of noise spaces, or a victim.

    A manipulator becomes an edit for `spa_jax.attribute`, a noise generator a function from the radius to a space of
    generated noise, a classifier a victim with its normalisation.
    """
    from spa_jax.generated_noise import generated_noise
    from spa_jax.manipulators import manipulator
    from spa_jax.models import MSP, NoiseGenerator

    if isinstance(model, MSP):
        return functools.partial(manipulator, model)
    if isinstance(model, NoiseGenerator):
        return lambda variables: functools.partial(generated_noise, model, variables)
    return lambda variables: classifier(model, variables, mean, std)


def build_parts(builders: Mapping[str, Build], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The parts whose variables are at hand."""
    return {name: build(variables[name]) for name, build in builders.items() if name in variables}
