"""SPA training with generated noise: generator and classifier are trained together, the generator one update ahead."""

from collections.abc import Mapping
from typing import Any

import jax

from spa_jax.inputs import require_number
from spa_jax.semantic import Spa
from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.recipes.noise_generator import NoiseObjective, edited_at_random, generator_loss
from spa_jax.training.samples import Outer, SampleLoss
from spa_jax.training.state import TrainState
from spa_jax.types import Images, Keys, Labels, Values

GENERATOR = "generator"


def spa_generated(
    learner: Learner,
    attack: Mapping,
    generator: Mapping,
    clean_weight: float = 0.2,
    attribute_weight: float = 0.4,
    joint_weight: float = 0.4,
    outer: Outer = "cross_entropy",
    beta: float = 6.0,
    generator_warmup: int = 0,
) -> TrainStep:
    """A step of SPA training: generator, then joint attack, then classifier (the authors' public code, its order).

    The generator, `networks["generator"]`, is updated against the classifier as it is, on images at random values of
    the attack's attributes and with two random diversity variables each. The attack then runs with the updated
    generator, and the classifier learns from clean, attribute-only and joint images. A manipulator among the
    attributes stays as it is. With the attack "noise", which has no attributes, this is the training of L2L-DA (Jang
    et al. 2019).

    Args:
        learner: network and optimiser, with the generator among its networks.
        attack: `{"name": "spa", "noise": {"part": "generator", ...}, ...}` or `{"name": "noise", ...}`.
        generator: its `NoiseObjective`, by name: `radius`, `num_steps`, `diversity_weight` ...
        clean_weight, attribute_weight, joint_weight, outer, beta: see `SampleLoss`.
        generator_warmup: steps in which the classifier learns from clean and attribute-only images, while the generator
            is trained already. 0 is our choice.

    Raises:
        ValueError: a number out of range, an attack of another kind, or no such network.
    """
    loss = SampleLoss(clean_weight, attribute_weight, joint_weight, outer, beta)
    objective = NoiseObjective(**generator)
    require_number("generator_warmup", generator_warmup, "0 or larger", lambda steps: steps >= 0)
    if attack.get("name") not in ("spa", "noise") or attack.get("restarts", 1) != 1:
        raise ValueError(f"attack={dict(attack)!r} must be the attack 'spa' or 'noise' without restarts")
    if GENERATOR not in learner.networks:
        raise ValueError(f"networks={sorted(learner.networks)!r} must hold the {GENERATOR!r} that this recipe trains")
    attacker = learner.attacker(attack)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        keys, x, y, weights = learner.examples(state, batch, key)
        attack = attacker(state)
        base = jax.lax.stop_gradient(edited_at_random(attack, keys, x)) if isinstance(attack, Spa) else x
        state, generator_metrics = train_generator(learner, objective, state, keys, base, y, weights)
        attack = attacker(state)
        found = learner.craft(attack, state, keys, x, y)
        edited = {"attribute": attack.edit(found.variables, x)} if isinstance(attack, Spa) else {}
        attacked = {**edited, "joint": found.x}
        share = jax.numpy.asarray(state.step >= generator_warmup, jax.numpy.float32)
        state, metrics = learner.descend(
            state, lambda params: loss(learner, params, state, x, attacked, y, weights, share)
        )
        return state, {**generator_metrics, **metrics}

    return train_step


def train_generator(
    learner: Learner,
    objective: NoiseObjective,
    state: TrainState,
    keys: Keys,
    base: Images,
    labels: Labels,
    weights: Values,
) -> tuple[TrainState, Metrics]:
    """One update of the generator against the classifier as it is."""
    network, known = learner.networks[GENERATOR], state.networks[GENERATOR]

    def loss(params: Any) -> Any:
        return generator_loss(
            objective,
            network.model,
            params,
            known.batch_stats,
            learner.victim(state),
            lambda values: learner.average(values, weights),
            keys,
            base,
            labels,
        )

    (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(known.params)
    updated = network.descend(known, learner.total(gradient), found.statistics)
    metrics = learner.total({"loss": value, **found.metrics})
    state = state.replace(networks={**state.networks, GENERATOR: updated})
    return state, {f"generator_{name}": metric for name, metric in metrics.items()}
