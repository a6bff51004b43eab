"""A discriminator of images that a recipe trains beside its network, by hinge losses (Lim & Ye 2017)."""

from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.training.learner import Learner, interleave
from spa_jax.training.state import TrainState, as_variables
from spa_jax.types import Images, Values

DISCRIMINATOR = "discriminator"
"""Its name among the networks of a config."""


def require_discriminator(learner: Learner, name: str, weight: float) -> None:
    """Refuse a weight of the discriminator's term where there is none.

    Raises:
        ValueError: naming the weight.
    """
    if DISCRIMINATOR not in learner.networks:
        raise ValueError(f"{name}={weight!r} needs networks={{'{DISCRIMINATOR}': ...}} in the config")


def scores(learner: Learner, state: TrainState, images: Images) -> Values:
    """The mean score of each image's patches; larger looks more real. Differentiable in the images."""
    model, variables = learner.networks[DISCRIMINATOR].model, state.networks[DISCRIMINATOR].variables()
    found: Any = model.apply(variables, images, train=False)
    return jnp.mean(found, axis=(1, 2))


def teach_discriminator(learner: Learner, state: TrainState, real: Images, fake: Images, weight: Values) -> TrainState:
    """One update of the discriminator; images count by `weight` [b].

    Both kinds go through it side by side.
    """
    network = state.networks[DISCRIMINATOR]
    model = learner.networks[DISCRIMINATOR].model

    def loss(params: Any) -> Any:
        variables = as_variables(params, network.batch_stats)
        found, updates = model.apply(variables, interleave(real, fake), train=True, mutable=["batch_stats"])
        hinges = jax.nn.relu(1 - found[::2]) + jax.nn.relu(1 + found[1::2])
        value = learner.average(jnp.mean(hinges, axis=(1, 2)), weight)
        return value, updates.get("batch_stats", network.batch_stats)

    gradient, batch_stats = jax.grad(loss, has_aux=True)(network.params)
    taught = learner.networks[DISCRIMINATOR].descend(network, learner.total(gradient), batch_stats)
    return state.replace(networks=state.networks | {DISCRIMINATOR: taught})
