"""Adversarial training on purification (AToP, Lin et al. 2024): a purifier learns before a frozen classifier."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.attacks import attack_from_config
from spa_jax.attacks.catalogue import names_part, part_names
from spa_jax.losses import cross_entropy
from spa_jax.solvers import fold_in
from spa_jax.training.learner import Learner, Metrics, TrainStep, interleave
from spa_jax.training.recipes.purifier import Restored, as_purifier, restoration
from spa_jax.training.state import TrainState
from spa_jax.types import Example, Images, Keys, Labels, Values, Victim
from spa_jax.validation import require_choice, require_number
from spa_jax.victims import purify, straight_through

THROUGH = ("system", "straight_through", "classifier")
"""What the training examples of `atop` may be crafted against."""
TARGETS = ("clean", "attacked")
"""What the purifier may be asked to restore in `atop`."""
_CLEAN = 12


def atop(
    learner: Learner,
    classifier: Mapping,
    transform: str | Mapping,
    attack: Mapping,
    through: str = "system",
    target: str = "clean",
    classification_weight: float = 0.05,
    reconstruction_weight: float = 1.0,
    gan_weight: float = 0.0,
) -> TrainStep:
    """A step of fine-tuning a purifier g: the terms of `purifier`, and the cross entropy of f(g(t(x'))).

    The classifier f is frozen in inference mode. x and x' meet the same noise and mask. Start from a network that the
    recipe `purifier` has trained, by `training.start_from`; a discriminator starts anew.

    | `through` | what x' is crafted against | passes beside those of g and f for the update |
    |---|---|---|
    | "system" | f(g(t(x))), with the full gradient; our default | a forward and a backward pass of f and g a step |
    | "straight_through" | the same, the gradient of g and t taken as 1 (BPDA) | of f, and a forward pass of g |
    | "classifier" | f alone, as in AToP's code: a transfer attack on the system | of f |

    FGSM is one such step, PGD `num_steps`; with `rt3` a pass of g is one for each mask. An attack that keeps its best
    point, as "fgsm" does, takes a forward pass more, and leaves an image clean where the attacked one is not stronger;
    "pgd" of one step with `keep="last"` does neither.

    | `target` | restored image | reconstruction and GAN term | passes of g for the update |
    |---|---|---|---|
    | "clean" | g(t(x)) | compare it with x, as in AToP's logged run; our default | two |
    | "attacked" | g(t(x')) | compare it with x', as in AToP's equations and released notebooks | one |

    Args:
        learner: as for `purifier`.
        classifier: f, `{"part": NAME}`, trained before.
        transform: t, by name or as a mapping such as `{"name": "rt2", "sigma": 0.25}`.
        attack: any attack with variables for each image, such as `{"name": "fgsm", "radius": 8 / 255}`.
        through, target: see above.
        classification_weight: lambda, of the cross entropy; the default is AToP's for CIFAR-10 (0.1 for ImageNette).
        reconstruction_weight, gan_weight: see `spa_jax.training.recipes.purifier.Restoration`.

    Raises:
        ConfigError: an unknown transform or attack.
        ValueError: a number out of range, another `through` or `target`, a universal attack, a classifier that names no
            part, or no discriminator.
    """
    restoring = restoration(learner, transform, reconstruction_weight, gan_weight)
    require_choice("through", through, THROUGH)
    require_choice("target", target, TARGETS)
    require_number("classification_weight", classification_weight, "0 or larger", lambda weight: weight >= 0)
    if not names_part(classifier):
        raise ValueError(f"classifier={classifier!r} must name a part, {{'part': NAME}}")
    if not part_names(attack) and attack_from_config(attack).shared:
        raise ValueError(f"attack={dict(attack)!r} must have variables for each image")
    attacker, build = learner.attacker(attack), as_purifier(learner.model, transform=transform)

    def train_step(state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[TrainState, Metrics]:
        examples = learner.examples(state, batch, key)
        frozen = learner.parts(state)[classifier["part"]]
        victim = _victim(through, frozen, build(state.training_variables())())
        attacked = _crafted(learner.grown(attacker(state), state), victim, examples)
        wanted = examples.image if target == "clean" else attacked

        def loss(params: Any, _: Any) -> Any:
            both = [wanted, attacked] if target == "clean" else [attacked]
            keys = jnp.repeat(examples.key, len(both), axis=0)
            restored = restoring.restore(learner, state, params, keys, interleave(*both))
            first, last = (_every(restored, i, len(both)) for i in (0, len(both) - 1))
            logits = frozen(last.images)
            terms = restoring.terms(learner, state, wanted, first)
            terms["cross_entropy"] = cross_entropy(logits, examples)
            shares = {name: learner.average(term, examples.weight) for name, term in terms.items()}
            value = restoring.total(shares) + classification_weight * shares["cross_entropy"]
            shares["robust_accuracy"] = learner.accuracy(logits, examples)
            return value, (restored.statistics, shares, first.images)

        after, metrics, (fake, _) = learner.descend_beside(state, (), loss)
        return restoring.teach(learner, after, wanted, fake, examples), metrics

    return train_step


def _victim(through: str, classifier: Victim, purifier: Any) -> Victim:
    """What the attack sees of the system."""
    if through == "classifier":
        return classifier
    return purify(classifier, straight_through(purifier) if through == "straight_through" else purifier)


def _crafted(attack: Any, victim: Victim, examples: Example) -> Images:
    """The attacked images, constant to the outer gradient."""
    found = attack(examples.key, victim, examples.image, examples.label, weight=examples.weight)
    return jax.lax.stop_gradient(found.x)


def _every(restored: Restored, first: int, step: int) -> Restored:
    """One of the kinds of images that went through the network side by side."""
    images, *coarse = (image[first::step] for image in (restored.images, *restored.coarse))
    return Restored(images, tuple(coarse), restored.statistics)


def atop_accuracies(
    learner: Learner,
    state: TrainState,
    keys: Keys,
    images: Images,
    labels: Labels,
    attribute: Any,
    classifier: Mapping,
    transform: str | Mapping,
    attack: Mapping,
    **_: Any,
) -> dict[str, Values]:
    """Whether the system f(g(t(x))) is right about each image, clean and attacked as a whole, [b] each.

    The attack is that of the training, through the whole system whatever the training examples were crafted against;
    its images are judged with fresh noise and masks.
    """
    found = as_purifier(learner.model, transform=transform)(state.variables())()
    system = purify(learner.parts(state)[classifier["part"]], found)
    clean = jnp.argmax(system(fold_in(keys, _CLEAN), images), axis=-1) == labels
    attacked = attack_from_config(attack, learner.parts(state))(keys, system, images, labels)
    return {"accuracy": clean.astype(jnp.float32), "robust_accuracy": 1 - attacked.success.astype(jnp.float32)}
