"""Training of the noise generator: noises that fool the victim and differ from each other (L2L-DA, DSGAN)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.attacks import noise_attack
from spa_jax.attacks.catalogue import names_part
from spa_jax.losses import diversity
from spa_jax.solvers import fold_in
from spa_jax.spaces import chain, per_example
from spa_jax.spaces.generated import add_noise, generated_noise, painter, recursive_noise, victim_look
from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.state import TrainState
from spa_jax.types import Example, Images, Keys, Labels, Values, Victim
from spa_jax.validation import require_count, require_number
from spa_jax.victims.tracing import call

GENERATOR = "generator"
_VALUES, _LATENTS = 2, 3
_SMALLEST_RADIUS = 1e-12


@dataclasses.dataclass(frozen=True)
class NoiseObjective:
    """The objective of a noise generator's training, and the recursion that makes its noise.

    Attributes:
        radius: of the noise, on the [0, 1] scale.
        num_steps, step_share: of the recursion; the defaults are L2L-DA's.
        adversarial_weight: of the victim's mean cross entropy over both noises of an image and all mini-steps. The
            default is L2L-DA's.
        diversity_weight: of `spa_jax.losses.diversity` on noise in radii, mean over images and mini-steps. The default
            is our choice, and so far above L2L-DA's (0.006 to 0.016 in these units) because the cap bounds its pull.
        diversity_cap: of that ratio; the default is our choice, L2L-DA has none.
        remat: see `recursive_noise`.

    Raises:
        ValueError: a number out of range.
    """

    radius: float
    num_steps: int = 10
    step_share: float = 0.25
    adversarial_weight: float = 1.0
    diversity_weight: float = 0.5
    diversity_cap: float = 0.1
    remat: bool = True

    def __post_init__(self) -> None:
        require_count("num_steps", self.num_steps)
        for name in ("radius", "adversarial_weight", "diversity_weight", "diversity_cap"):
            require_number(name, getattr(self, name), "0 or larger", lambda value: value >= 0)
        require_number("step_share", self.step_share, "larger than 0", lambda share: share > 0)


class GeneratorStep(NamedTuple):
    """What `generator_loss` returns beside its value.

    Attributes:
        statistics: the generator's new running statistics.
        metrics: this device's shares of the metrics.
        images: [2 b, h, w, c] the noisy images after the last mini-step, two of each example side by side.
    """

    statistics: Any
    metrics: dict[str, jax.Array]
    images: Any


def noise_generator(
    learner: Learner,
    victim: Mapping,
    radius: float,
    attributes: Mapping | None = None,
    num_steps: int = 10,
    step_share: float = 0.25,
    adversarial_weight: float = 1.0,
    diversity_weight: float = 0.5,
    diversity_cap: float = 0.1,
) -> TrainStep:
    """A step of training a generator, the learner's model, against a frozen victim (L2L-DA's attack mode).

    Every image is edited by random attribute values, if there are attributes, and gets two random diversity variables.

    Args:
        learner: a noise generator and its optimiser.
        victim: `{"part": NAME}`, a classifier trained before.
        radius, num_steps, step_share, adversarial_weight, diversity_weight, diversity_cap: see `NoiseObjective`.
        attributes: those of the attack `spa` that the noise will follow, as its config has them.

    Raises:
        ValueError: a number out of range, or a victim that names no part.
    """
    numbers = (radius, num_steps, step_share, adversarial_weight, diversity_weight, diversity_cap)
    objective = NoiseObjective(*numbers)
    if not names_part(victim):
        raise ValueError(f"victim={victim!r} must name a part, {{'part': NAME}}")
    editor = learner.attacker({"name": "spa", "radius": 0.0, "attributes": attributes}) if attributes else None

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        examples = learner.examples(state, batch, key)
        if editor is not None:
            base = edited_at_random(editor(state), examples)
            examples = examples.replace(image=jax.lax.stop_gradient(base))
        average = functools.partial(learner.average, weights=examples.weight)
        frozen = learner.parts(state)[victim["part"]]

        def loss(params: Any) -> Any:
            value, found = generator_loss(
                objective, learner.model, params, state.batch_stats, frozen, average, examples
            )
            return value, (found.statistics, found.metrics)

        return learner.descend(state, loss)

    return train_step


def edited_at_random(attack: Any, examples: Example) -> Images:
    """The images at random values of an attack's attributes, without its noise."""
    members = {name: space for name, space in attack.members().items() if space.grid_axes}
    if not members:
        return examples.image
    edits = per_example(chain(**members))
    seen = examples.replace(prepared=jax.vmap(edits.space.prepare)(examples))
    return edits.apply(edits.init(fold_in(examples.key, _VALUES), seen), seen)


def generator_success(
    learner: Learner,
    state: TrainState,
    keys: Keys,
    images: Images,
    labels: Labels,
    attribute: Any,
    victim: Mapping,
    radius: float,
    num_steps: int = 10,
    step_share: float = 0.25,
    **_: Any,
) -> dict[str, Values]:
    """Whether one random noise fools the victim, and how far two random noises lie apart, in radii; [b] each."""
    model, variables = learner.model, state.variables()
    noise = functools.partial(generated_noise, model, variables, num_steps=num_steps, step_share=step_share)
    attack = noise_attack(radius, noise, num_steps=1, keep="last")
    found = [attack(fold_in(keys, i), learner.parts(state)[victim["part"]], images, labels) for i in (0, 1)]
    apart = jnp.mean(jnp.abs(found[0].x - found[1].x), axis=(1, 2, 3)) / max(radius, _SMALLEST_RADIUS)
    return {"fooled": found[0].success.astype(jnp.float32), "pairwise_distance": apart}


def latent_pairs(keys: Keys, dim: int) -> Float[Array, "n d"]:
    """Two standard normal latents for each example, side by side, [2 b, dim]."""
    drawn = jax.vmap(lambda key: jax.random.normal(key, (2, dim)))(keys)
    return drawn.reshape(-1, dim)


def generator_loss(
    objective: NoiseObjective,
    model: Any,
    params: Any,
    statistics: Any,
    victim: Victim,
    average: Callable[[Values], Any],
    examples: Example,
) -> tuple[Any, GeneratorStep]:
    """The loss of a noise generator on a batch, to be minimised over `params`.

    -adversarial_weight * mean CE(f(x'_t), y) - diversity_weight * mean diversity_t, both over all mini-steps t = 1..T.
    One forward and one backward pass of the victim a mini-step serve the recursion and the loss.

    Args:
        objective: the weights and numbers.
        model: the generator's module.
        params, statistics: its weights and running statistics ({} without).
        victim: in inference mode.
        average: this device's share of the mean over the batch of values [b], such as `learner.average` with weights.
        examples: their images are what the noise is added to; their keys are for z and for a randomised victim.
    """
    z = latent_pairs(fold_in(examples.key, _LATENTS), model.latent_dim)
    doubled = (examples.key, examples.image, examples.label)
    keys, base, labels = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), doubled)
    look = victim_look(functools.partial(call, victim), keys, labels)
    paint = painter(model, labels, z, params, train=True)
    found = recursive_noise(
        paint,
        look,
        base,
        objective.radius,
        num_steps=objective.num_steps,
        step_share=objective.step_share,
        statistics=statistics,
        remat=objective.remat,
    )
    images = add_noise(base, found.noise, objective.radius)
    losses = _over_pairs(jnp.concatenate([found.seen[1:], look(images)[1][None]]))
    first, second = (found.every[:, i::2] for i in (0, 1))
    apart = diversity(first, second, *(jnp.broadcast_to(z[i::2], (len(first), *z[i::2].shape)) for i in (0, 1)))
    counted = jnp.minimum(apart, objective.diversity_cap)
    value = -objective.adversarial_weight * average(losses.mean(0))
    value -= objective.diversity_weight * average(counted.mean(0))
    metrics = {
        "adversarial_loss": average(losses[-1]),
        "diversity": average(apart[-1]),
        "pairwise_distance": average(jnp.mean(jnp.abs(first[-1] - second[-1]), axis=(1, 2, 3))),
    }
    return value, GeneratorStep(found.statistics, metrics, jax.lax.stop_gradient(images))


def _over_pairs(values: Float[Array, "t n"]) -> Float[Array, "t b"]:
    return values.reshape(len(values), -1, 2).mean(-1)


def train_generator(
    learner: Learner, objective: NoiseObjective, state: TrainState, examples: Example
) -> tuple[TrainState, Metrics]:
    """One update of `networks["generator"]` against the classifier as it is; metrics are named `generator_...`."""
    network, known = learner.networks[GENERATOR], state.networks[GENERATOR]
    average = functools.partial(learner.average, weights=examples.weight)

    def loss(params: Any) -> Any:
        victim = learner.victim(state)
        return generator_loss(objective, network.model, params, known.batch_stats, victim, average, examples)

    (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(known.params)
    updated = network.descend(known, learner.total(gradient), found.statistics)
    metrics = learner.total({"loss": value, **found.metrics})
    state = state.replace(networks={**state.networks, GENERATOR: updated})
    return state, {f"generator_{name}": metric for name, metric in metrics.items()}


def as_noise(model: Any, mean: Any, std: Any, **options: Any) -> Callable[[Any], Any]:
    """From a generator's variables to a function from the radius to a space of generated noise."""
    return lambda variables: functools.partial(generated_noise, model, variables)
