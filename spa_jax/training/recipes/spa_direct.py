"""SPA training with direct noise: clean, attribute-only and joint samples of the SPA attack, weighted explicitly."""

from collections.abc import Mapping
from typing import Any

from spa_jax.semantic import Spa
from spa_jax.training.learner import Learner, Metrics, TrainStep, interleave, separate
from spa_jax.training.state import TrainState


def spa_direct(
    learner: Learner,
    attack: Mapping,
    clean_weight: float = 0.2,
    attribute_weight: float = 0.4,
    joint_weight: float = 0.4,
) -> TrainStep:
    """A step of SPA training: the joint attack runs on the network as it is, the network learns from its samples.

    Clean, attribute-only and joint images go through the network as one batch, so BatchNorm sees all three.

    Args:
        learner: network and optimiser.
        attack: `{"name": "spa", ...}`; `keep="last"` saves the forward passes that pick the best step.
        clean_weight, attribute_weight, joint_weight: shares of the loss, 0 or larger, made to sum to 1. The defaults
            are those of the authors' public code (one batch of 1, 2 and 2 parts).

    Raises:
        ValueError: a weight is negative, all are 0, or the attack is not "spa".
    """
    raw = {"clean_weight": clean_weight, "attribute_weight": attribute_weight, "joint_weight": joint_weight}
    if min(raw.values()) < 0 or sum(raw.values()) == 0:
        raise ValueError(f"{raw!r}: weights must be 0 or larger and not all 0")
    attacker = learner.attacker(attack)
    if not isinstance(attacker, Spa):
        raise ValueError(f"attack={dict(attack)!r} must be the attack 'spa' without restarts")
    shares = [weight / sum(raw.values()) for weight in raw.values()]

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        keys, x, y, weights = learner.examples(state, batch, key)
        found = learner.craft(attacker(state), state, keys, x, y)
        edited = attacker.edit(found.variables, x)

        def loss(params: Any) -> Any:
            logits, statistics = learner.logits(params, state, interleave(x, edited, found.x))
            parts = separate(logits, 3)
            clean, attribute, joint = (learner.accuracy(part, y, weights) for part in parts)
            metrics = {"accuracy": clean, "attribute_accuracy": attribute, "robust_accuracy": joint}
            losses = [learner.cross_entropy(part, y, weights) for part in parts]
            return sum(share * value for share, value in zip(shares, losses, strict=True)), (statistics, metrics)

        return learner.descend(state, loss)

    return train_step
