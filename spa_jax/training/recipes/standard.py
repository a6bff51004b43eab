"""Standard training: cross entropy on the images as they are."""

from collections.abc import Mapping
from typing import Any

from spa_jax.losses import smoothed_cross_entropy
from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.state import TrainState


def standard(learner: Learner, label_smoothing: float = 0.0) -> TrainStep:
    """A step of standard training.

    Args:
        learner: network and optimiser.
        label_smoothing: share of the label spread over all classes; 0 is our choice.

    Raises:
        ValueError: `label_smoothing` outside [0, 1].
    """
    objective = smoothed_cross_entropy(label_smoothing)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        examples = learner.examples(state, batch, key)

        def loss(params: Any) -> Any:
            logits, statistics = learner.logits(params, state, examples.image)
            metrics = {"accuracy": learner.accuracy(logits, examples)}
            return learner.average(objective(logits, examples), examples.weight), (statistics, metrics)

        return learner.descend(state, loss)

    return train_step
