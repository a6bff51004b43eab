"""SPA training with direct noise: clean, attribute-only and joint samples of the SPA attack, weighted explicitly."""

from collections.abc import Mapping
from typing import Any

from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.samples import Outer, SampleLoss
from spa_jax.training.state import TrainState


def spa_direct(
    learner: Learner,
    attack: Mapping,
    clean_weight: float = 0.2,
    attribute_weight: float = 0.4,
    joint_weight: float = 0.4,
    outer: Outer = "cross_entropy",
    beta: float = 6.0,
) -> TrainStep:
    """A step of SPA training: the joint attack runs on the network as it is, the network learns from its samples.

    Clean, attribute-only and joint images go through the network as one batch, so BatchNorm sees all three, unless the
    learner keeps the statistics of clean images apart.

    Args:
        learner: network and optimiser.
        attack: `{"name": "spa", ...}`; `keep="last"` saves the forward passes that pick the best step.
        clean_weight, attribute_weight, joint_weight, outer, beta: see `SampleLoss`.

    Raises:
        ValueError: a number out of range, or the attack is not "spa".
    """
    loss = SampleLoss(clean_weight, attribute_weight, joint_weight, outer, beta)
    if attack.get("name") != "spa" or attack.get("restarts", 1) != 1:
        raise ValueError(f"attack={dict(attack)!r} must be the attack 'spa' without restarts")
    attacker = learner.attacker(attack)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        keys, x, y, weights = learner.examples(state, batch, key)
        spa = attacker(state)
        found = learner.craft(spa, state, keys, x, y)
        attacked = {"attribute": spa.edit(found.variables, x), "joint": found.x}
        return learner.descend(state, lambda params: loss(learner, params, state, x, attacked, y, weights))

    return train_step
