"""Training of a purifier's network: it restores images that a random transform has covered with noise and masks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from spa_jax.configuration import build, named
from spa_jax.solvers import fold_in
from spa_jax.training.discriminator import require_discriminator, scores, teach_discriminator
from spa_jax.training.learner import Learner, Metrics, TrainStep
from spa_jax.training.state import TrainState, as_variables
from spa_jax.types import Example, Images, Keys, Values
from spa_jax.validation import require_number
from spa_jax.victims.purifiers import purifier as make_purifier
from spa_jax.victims.rewriting import quick
from spa_jax.victims.transforms import TRANSFORMS, RandomTransform

_TRANSFORM = 11


class Restored(NamedTuple):
    """What a purifier's network makes of images in training.

    Attributes:
        images: g(t(x)), [b, h, w, c] in [0, 1].
        coarse: further images of a network that restores in several passes.
        statistics: the network's new running statistics.
    """

    images: Images
    coarse: tuple[Images, ...]
    statistics: Any


@dataclasses.dataclass(frozen=True)
class Restoration:
    """The terms of a purifier's loss that need no classifier.

    Attributes:
        transform: t, before the network g.
        reconstruction_weight: of the mean over pixels of |x - g(t(x))|, and of that of each coarse image; 1 in AToP's
            code.
        gan_weight: of -D(g(t(x))), the mean score of patches by the discriminator D; 1 in AToP's code, where the term
            has no gradient since the image is detached before D sees it. Here it has. 0 needs no discriminator.

    Raises:
        ValueError: a negative weight.
    """

    transform: RandomTransform
    reconstruction_weight: float = 1.0
    gan_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("reconstruction_weight", "gan_weight"):
            require_number(name, getattr(self, name), "0 or larger", lambda weight: weight >= 0)

    def restore(self, learner: Learner, state: TrainState, params: Any, keys: Keys, images: Images) -> Restored:
        """The images as the network with these weights restores them, in training mode; one key an image."""

        def apply(variables: Any, images: Any, masks: Any) -> Any:
            mutable = ["batch_stats", "intermediates"]
            return learner.model.apply(variables, images, masks, train=True, mutable=mutable)

        drawn = self.transform.draw(fold_in(keys, _TRANSFORM), images)
        filled, updates = quick(apply)(as_variables(params, state.batch_stats), *drawn)
        coarse = updates.get("intermediates", {}).get("coarse", ())
        return Restored(
            self.transform.combine(filled, drawn.masks),
            tuple(self.transform.combine(image, drawn.masks) for image in coarse),
            updates.get("batch_stats", state.batch_stats),
        )

    def terms(self, learner: Learner, state: TrainState, target: Images, restored: Restored) -> dict[str, Values]:
        """The terms of each example by name, [b]: "l1" and, where it counts, "gan"."""
        apart = [jnp.mean(jnp.abs(target - image), axis=(1, 2, 3)) for image in (restored.images, *restored.coarse)]
        terms = {"l1": sum(apart[1:], apart[0])}
        return terms | ({"gan": -scores(learner, state, restored.images)} if self.gan_weight else {})

    def total(self, terms: Mapping[str, Any]) -> Any:
        """The weighted sum of the terms."""
        weights = {"l1": self.reconstruction_weight, "gan": self.gan_weight}
        return sum(weights[name] * term for name, term in terms.items() if name in weights)

    def teach(self, learner: Learner, state: TrainState, real: Images, fake: Images, examples: Example) -> TrainState:
        """The state after one update of the discriminator, where there is one."""
        return teach_discriminator(learner, state, real, fake, examples.weight) if self.gan_weight else state


def restoration(
    learner: Learner, transform: str | Mapping, reconstruction_weight: float, gan_weight: float
) -> Restoration:
    """The terms of a recipe, from its options.

    Raises:
        ConfigError: an unknown transform.
        ValueError: a number out of range, or no discriminator.
    """
    if gan_weight:
        require_discriminator(learner, "gan_weight", gan_weight)
    return Restoration(_known(transform), reconstruction_weight, gan_weight)


def _known(transform: str | Mapping) -> RandomTransform:
    return build(TRANSFORMS, named(transform), "transform", "recipe.transform")


def purifier(
    learner: Learner, transform: str | Mapping, reconstruction_weight: float = 1.0, gan_weight: float = 0.0
) -> TrainStep:
    """A step of a purifier's pre-training: it lowers |x - g(t(x))| and, with a discriminator, -D(g(t(x))).

    This is the first stage of AToP (Lin et al. 2024), which starts from weights of Places2 in its code; here the
    network learns from the images that it will purify. The discriminator is taught in the same step, by hinge losses.
    It costs a forward and a backward pass of g, with `rt3` one for each mask.

    Args:
        learner: a network of `spa_jax.models` that completes images, and its optimiser; with `gan_weight`, also a
            network named "discriminator". The normalisation of the config is not applied.
        transform: t, by name or as a mapping such as `{"name": "rt2", "sigma": 0.25}`; `{"name": "rt1", "share": 0.0}`
            changes nothing.
        reconstruction_weight, gan_weight: see `Restoration`.

    Raises:
        ConfigError: an unknown transform.
        ValueError: a number out of range, or no discriminator.
    """
    restoring = restoration(learner, transform, reconstruction_weight, gan_weight)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        examples = learner.examples(state, batch, key)

        def loss(params: Any, _: Any) -> Any:
            restored = restoring.restore(learner, state, params, examples.key, examples.image)
            terms = restoring.terms(learner, state, examples.image, restored)
            shares = {name: learner.average(term, examples.weight) for name, term in terms.items()}
            return restoring.total(shares), (restored.statistics, shares, restored.images)

        after, metrics, (fake, _) = learner.descend_beside(state, (), loss)
        return restoring.teach(learner, after, examples.image, fake, examples), metrics

    return train_step


def purifier_errors(
    learner: Learner, state: TrainState, keys: Keys, images: Images, labels: Any, attribute: Any, **options: Any
) -> dict[str, Values]:
    """The mean over pixels of |x - g(t(x))|, by example, [b], with the averaged weights where there are any."""
    clean = as_purifier(learner.model, **options)(state.variables())()
    return {"l1": jnp.mean(jnp.abs(clean(keys, images) - images), axis=(1, 2, 3))}


def as_purifier(
    model: Any, mean: Any = 0.0, std: Any = 1.0, *, transform: str | Mapping, **options: Any
) -> Callable[[Any], Any]:
    """From a purifier's variables to a function from a transform to the purifier; by default from that of training."""
    known = _known(transform)
    return lambda variables: functools.partial(make_purifier, model, variables, transform=known)
