"""Training of a regressor that reads attributes from images: the independent judge of a manipulator."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.state import TrainState
from spa_jax.trees import pytree
from spa_jax.types import Images, Keys, Values, Victim
from spa_jax.victims import classifier


def regressor(learner: Learner, centre: tuple, scale: tuple) -> TrainStep:
    """A step that lowers the squared error of the attributes, in units of `scale` around `centre`.

    Args:
        learner: a network with one output an attribute (`num_classes` in its config).
        centre: m numbers, about the middle of each attribute.
        scale: m numbers above 0, about the size of its deviations.

    Raises:
        ValueError: `centre` and `scale` are not of one length, or a scale is not above 0.
    """
    middle, size = check_units(centre, scale)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        examples = learner.examples(state, batch, key)
        wanted = (batch["attribute"] - middle) / size

        def loss(params: Any) -> Any:
            outputs, statistics = learner.logits(params, state, examples.image)
            errors = outputs - wanted
            absolute = jnp.mean(jnp.abs(errors * size), axis=-1)
            metrics = {"absolute_error": learner.average(absolute, examples.weight)}
            return learner.average(jnp.mean(errors**2, axis=-1), examples.weight), (statistics, metrics)

        return learner.descend(state, loss)

    return train_step


def check_units(centre: Sequence[float], scale: Sequence[float]) -> tuple[jax.Array, jax.Array]:
    """Centre and scale as arrays [1, m].

    Raises:
        ValueError: they are not of one length, or a scale is not above 0.
    """
    if len(centre) != len(scale) or not all(size > 0 for size in scale):
        raise ValueError(f"centre={centre!r}, scale={scale!r} must have one length, and every scale must be above 0")
    return jnp.asarray(centre, jnp.float32)[None], jnp.asarray(scale, jnp.float32)[None]


@pytree
class Regressor:
    """A trained regressor, `images [b, h, w, c] -> attributes [b, m]` in their own units."""

    network: Any
    centre: Any
    scale: Any

    def __call__(self, images: Images) -> Float[Array, "b m"]:
        return self.centre + self.scale * self.network(images)


def reading(network: Victim, centre: Sequence[float], scale: Sequence[float]) -> Regressor:
    """The regressor of a network that this recipe has trained."""
    return Regressor(network, *check_units(centre, scale))


def regressor_errors(
    learner: Learner, state: TrainState, keys: Keys, images: Images, labels: Any, attribute: Any, **units: Any
) -> dict[str, Values]:
    """Mean absolute error over the attributes, by example, [b]."""
    read = reading(learner.victim(state, averaged=True), **units)(images)
    return {"absolute_error": jnp.mean(jnp.abs(read - attribute), axis=-1)}


def as_regressor(model: Any, mean: Any, std: Any, centre: Sequence[float], scale: Sequence[float]) -> Any:
    """From a regressor's variables to a function from images to attributes."""
    return lambda variables: reading(classifier(model, variables, mean, std), centre, scale)
