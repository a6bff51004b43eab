"""TRADES: clean cross entropy and the divergence of adversarial from clean answers (Zhang et al. 2019)."""

from collections.abc import Mapping
from typing import Any

import jax

from spa_jax.combinators import with_fields
from spa_jax.losses import kl_divergence
from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.state import TrainState


def trades(learner: Learner, attack: Mapping, beta: float = 6.0) -> TrainStep:
    """A step of TRADES, minimising CE(x) + beta * KL(p(x) || p(x')) (eq. 5).

    The attack's loss is replaced by that divergence from the clean answer. Its random start is that of the attack
    (uniform in the ball for "pgd"; the authors' code starts from Gaussian noise of 0.001).

    Args:
        learner: network and optimiser.
        attack: `{"name": "pgd", ...}`, any attack with a loss.
        beta: weight of the divergence, 0 or larger; 6 is the paper's for CIFAR-10.

    Raises:
        ValueError: `beta` is negative, or a broken rule in `attack`.
    """
    if beta < 0:
        raise ValueError(f"beta={beta!r} must be 0 or larger")
    attacker = learner.attacker(attack)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        keys, x, y, weights = learner.examples(state, batch, key)
        reference = jax.lax.stop_gradient(learner.victim(state)(keys, x))
        perturbed = learner.craft(with_fields(attacker(state), loss=kl_divergence(reference)), state, keys, x, y).x

        def loss(params: Any) -> Any:
            (clean, robust), statistics = learner.responses(params, state, x, perturbed)
            natural = learner.cross_entropy(clean, y, weights)
            divergence = learner.average(kl_divergence(clean)(robust, y), weights)
            metrics = {
                "accuracy": learner.accuracy(clean, y, weights),
                "robust_accuracy": learner.accuracy(robust, y, weights),
                "divergence": divergence,
            }
            return natural + beta * divergence, (statistics, metrics)

        return learner.descend(state, loss)

    return train_step
