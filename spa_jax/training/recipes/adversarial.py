"""Adversarial training: cross entropy on the images that an attack of this library finds (Madry et al. 2018)."""

from collections.abc import Mapping
from typing import Any

from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.state import TrainState


def adversarial(learner: Learner, attack: Mapping, clean_weight: float = 0.0) -> TrainStep:
    """A step of adversarial training; with the attack "pgd" it is Madry's PGD training.

    The attack runs in inference mode (running BatchNorm statistics). With a clean share, clean and adversarial images
    go through the network as one batch, so that BatchNorm sees both.

    Args:
        learner: network and optimiser.
        attack: `{"name": "pgd", ...}`, any attack of the library; `keep="last"` is what Madry et al. do.
        clean_weight: share of the loss taken on clean images, in [0, 1); 0 is Madry et al.'s, 0.5 Goodfellow et al.'s.

    Raises:
        ValueError: `clean_weight` out of range, or a broken rule in `attack`.
    """
    if not 0 <= clean_weight < 1:
        raise ValueError(f"clean_weight={clean_weight!r} must be in [0, 1)")
    attacker = learner.attacker(attack)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        keys, x, y, weights = learner.examples(state, batch, key)
        perturbed = learner.craft(attacker(state), state, keys, x, y).x

        def adversarial_loss(params: Any) -> Any:
            logits, statistics = learner.logits(params, state, perturbed)
            metrics = {"robust_accuracy": learner.accuracy(logits, y, weights)}
            return learner.cross_entropy(logits, y, weights), (statistics, metrics)

        def mixed_loss(params: Any) -> Any:
            (clean, robust), statistics = learner.responses(params, state, x, perturbed)
            metrics = {
                "accuracy": learner.accuracy(clean, y, weights),
                "robust_accuracy": learner.accuracy(robust, y, weights),
            }
            value = clean_weight * learner.cross_entropy(clean, y, weights)
            value += (1 - clean_weight) * learner.cross_entropy(robust, y, weights)
            return value, (statistics, metrics)

        return learner.descend(state, mixed_loss if clean_weight else adversarial_loss)

    return train_step
