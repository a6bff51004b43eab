"""Adversarial training: attack the images, then minimise an outer objective of the logits."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.attacks import PureAttack
from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.outer import outer_from_spec
from spa_jax.training.recipes.noise_generator import GENERATOR, NoiseObjective, edited_at_random, train_generator
from spa_jax.training.state import TrainState
from spa_jax.types import Example
from spa_jax.validation import require_number


def adversarial(
    learner: Learner,
    attack: Mapping,
    outer: str | Mapping = "cross_entropy",
    generator: Mapping | None = None,
    generator_warmup: int = 0,
) -> TrainStep:
    """A step of adversarial training.

    | training | `attack` | `outer` |
    |---|---|---|
    | Madry et al. 2018 | "pgd" with `keep="last"` | "cross_entropy" |
    | TRADES (Zhang et al. 2019) | "pgd" | "trades" |
    | MART (Wang et al. 2020) | "pgd" with `keep="last"` | "mart" |
    | SPAT, with any of these | "spat" | "cross_entropy", "mart", or "trades" with `attack_maximises="own"` |
    | SPA, direct noise | "spa" | "spa": clean, attribute-only and joint images, weighted |
    | SPA, generated noise | "spa" with `noise={"part": "generator"}` | "spa", and `generator` |
    | L2L-DA (Jang et al. 2019) | "noise" with the part "generator" | any, and `generator` |

    The attack runs in inference mode (running BatchNorm statistics). All images that the outer objective sees go
    through the network as one batch, so that BatchNorm sees them all, unless the objective passes each kind apart
    (`trades` with `batch_norm="apart"`, as its authors do) or the learner keeps the statistics of clean
    images apart. With a `generator`, each step first updates the noise generator, `networks["generator"]`, against the
    classifier as it is, on images at random values of the attack's attributes and with two random diversity variables
    each (the order of SPA's public code).

    Where the attack maximises a loss with smoothed labels, the metrics `reversed_clean` and `reversed_attacked` are the
    shares of clean and of attacked images at which a step without a guard would help the network, see
    `spa_jax.losses.smoothed_cross_entropy`; they cost two forward passes.

    Args:
        learner: network and optimiser, with the generator among its networks.
        attack: `{"name": "pgd", ...}`, any attack of the library.
        outer: the outer objective, a name of `spa_jax.training.outer.OUTER` or `{"name": ..., options}`.
        generator: the generator's `NoiseObjective`, by name: `radius`, `num_steps`, `diversity_weight` ...
        generator_warmup: steps in which attacked images do not count, while the generator is trained already. 0 is our
            choice.

    Raises:
        ConfigError: an unknown name or option.
        ValueError: a number out of range; an objective that sees edited images of an attack without any; no generator
            among the networks.
    """
    objective = outer_from_spec(outer)
    painting = None if generator is None else NoiseObjective(**generator)
    require_number("generator_warmup", generator_warmup, "0 or larger", lambda steps: steps >= 0)
    _check(learner, attack, objective.images, generator)
    attacker = learner.attacker(attack)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        examples = learner.examples(state, batch, key)
        metrics: Metrics = {}
        if painting is not None:
            base = jax.lax.stop_gradient(edited_at_random(attacker(state), examples))
            state, metrics = train_generator(learner, painting, state, examples.replace(image=base))
        images = _craft(learner, attacker(state), objective, state, examples)
        metrics |= _reversals(learner, attacker(state), objective, state, images, examples)
        share = jnp.asarray(state.step >= generator_warmup, jnp.float32) if generator_warmup else 1.0
        state, outer_metrics = learner.learn(state, objective, images, examples, share)
        return state, metrics | outer_metrics

    return train_step


def _check(learner: Learner, attack: Mapping, images: tuple[str, ...], generator: Mapping | None) -> None:
    if "edited" in images and attack.get("name") != "spa":
        raise ValueError(f"attack={dict(attack)!r} has no edited images for the outer objective: only 'spa' has them")
    if generator is not None and GENERATOR not in learner.networks:
        raise ValueError(f"networks={sorted(learner.networks)!r} must hold the {GENERATOR!r} that `generator` trains")


def against(learner: Learner, attack: Any, objective: Any, state: TrainState, examples: Example) -> tuple[Any, Example]:
    """The attack with the loss that the outer objective wants maximised, and the examples with what that loss reads."""
    if objective.attack_loss is None:
        return attack, examples
    reference = jax.lax.stop_gradient(learner.victim(state)(examples.image))
    return attack.with_loss(objective.attack_loss), examples.replace(reference=reference)


def _craft(
    learner: Learner, attack: PureAttack, objective: Any, state: TrainState, examples: Example
) -> dict[str, Any]:
    """The images that there are, by name; edited ones of attacks that have them."""
    attack, examples = against(learner, attack, objective, state, examples)
    found = learner.craft(attack, state, examples)
    return {"clean": examples.image, "edited": found.without.get("noise"), "attacked": found.x}


def _reversals(
    learner: Learner,
    attack: PureAttack,
    objective: Any,
    state: TrainState,
    images: Mapping[str, Any],
    examples: Example,
) -> Metrics:
    """The shares of images at which a step of a smoothed loss helps the network; nothing for other losses."""
    loss = objective.attack_loss or _loss_of(attack)
    if not hasattr(loss, "reverses"):
        return {}
    victim = learner.victim(state)

    def share(name: str) -> jax.Array:
        helped = loss.reverses(victim(images[name]), examples)
        return learner.average(helped.astype(jnp.float32), examples.weight)

    return learner.total({f"reversed_{name}": share(name) for name in ("clean", "attacked")})


def _loss_of(attack: Any) -> Any:
    """The loss of an attack, or of the one that it repeats or deals out; None where it has none."""
    return _loss_of(attack.attack) if hasattr(attack, "attack") else getattr(attack, "loss", None)
