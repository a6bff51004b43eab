"""Outer objectives of adversarial training by name: the training loss on clean, edited and attacked images."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from spa_jax import losses
from spa_jax.configuration import build
from spa_jax.types import Example, Logits, Loss, Values
from spa_jax.validation import require_choice, require_number

IMAGES = ("clean", "edited", "attacked")
"""What an objective may see: the images, the attack's images without their noise, and the attack's images."""


class Outer(Protocol):
    """An objective that training minimises.

    Attributes:
        images: which of `IMAGES` it sees, in that order.
        attack_loss: what the attack maximises instead of its own loss, or None.
        apart: whether each kind of image goes through the network by itself, so that BatchNorm normalises it by its own
            statistics; else all are one batch.
    """

    images: tuple[str, ...]
    attack_loss: Any
    apart: bool

    def __call__(self, logits: Mapping[str, Logits], examples: Example, attacked_share: Any = 1.0) -> Values:
        """Values [b] from the logits in training mode; `attacked_share` scales the weight of the attacked images."""


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The weighted mean of the cross entropies on clean, edited and attacked images.

    Weights are 0 or larger and are made to sum to 1; images of weight 0 are not shown to the network.

    Attributes:
        clean_weight: 0 is Madry et al.'s (2018), equal weights are Goodfellow et al.'s (2015).
        edited_weight: of the attack's images without their noise, A(x, a).
        attacked_weight: of the attack's images.
        label_smoothing: of the labels that the network learns; 0, as in the papers, for the hard ones. It raises the
            accuracy under PGD, not always that under stronger attacks.

    Raises:
        ValueError: a weight is negative, or all are 0; a smoothing outside [0, 1].
    """

    clean_weight: float = 0.0
    edited_weight: float = 0.0
    attacked_weight: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_weights(self._weights)
        _check_smoothing(self.label_smoothing)

    @property
    def _weights(self) -> dict[str, float]:
        return {"clean": self.clean_weight, "edited": self.edited_weight, "attacked": self.attacked_weight}

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(name for name in IMAGES if self._weights[name])

    @property
    def attack_loss(self) -> None:
        return None

    @property
    def apart(self) -> bool:
        return False

    def __call__(self, logits: Mapping[str, Logits], examples: Example, attacked_share: Any = 1.0) -> Values:
        classify = _classification(self.label_smoothing)
        values = {name: classify(logits[name], examples) for name in self.images}
        return _weighted_mean(values, self._weights, attacked_share)


@dataclasses.dataclass(frozen=True)
class SpaSamples(CrossEntropy):
    """SPA training's weighted samples: clean, attribute-only and joint images.

    The default weights are those of the authors' public code (one batch of 1, 2 and 2 parts).
    """

    clean_weight: float = 0.2
    edited_weight: float = 0.4
    attacked_weight: float = 0.4


@dataclasses.dataclass(frozen=True)
class Trades:
    """TRADES: CE(x) + beta * KL(p(x) || p(x')) (Zhang et al. 2019, eq. 5).

    With an `edited_weight`, x' are edited and attacked images, and the divergence is their weighted mean.

    Attributes:
        beta: weight of the divergence, 0 or larger; 6 is the paper's for CIFAR-10.
        edited_weight, attacked_weight: shares of the divergence.
        attack_maximises: "kl_divergence", the divergence from the clean prediction as in the paper, or "own", the loss
            that the attack has.
        batch_norm: what BatchNorm sees as one batch in training. "together": clean and attacked images, which is our
            choice, in one pass through the network. "apart": each kind in a pass of its own, as in the authors' code;
            the running statistics then move towards those of each kind in turn, clean images first (the authors pass
            clean images a second time, after the attacked ones).
        label_smoothing: as for `CrossEntropy`.

    The random start is that of the attack (uniform in the ball for "pgd"; the authors' code starts from Gaussian noise
    of 0.001). `separate_statistics` of the training passes clean images apart, too, and keeps statistics of each.

    Raises:
        ValueError: a number out of range, or another `attack_maximises` or `batch_norm`.
    """

    beta: float = 6.0
    edited_weight: float = 0.0
    attacked_weight: float = 1.0
    attack_maximises: str = "kl_divergence"
    batch_norm: str = "together"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_pairs(self.beta, self.batch_norm, self.label_smoothing)
        _check_weights(self._weights)
        require_choice("attack_maximises", self.attack_maximises, ("kl_divergence", "own"))

    @property
    def apart(self) -> bool:
        return self.batch_norm == "apart"

    @property
    def _weights(self) -> dict[str, float]:
        return {"edited": self.edited_weight, "attacked": self.attacked_weight}

    @property
    def images(self) -> tuple[str, ...]:
        return ("clean", *(name for name, weight in self._weights.items() if weight))

    @property
    def attack_loss(self) -> Any:
        return losses.kl_divergence if self.attack_maximises == "kl_divergence" else None

    def __call__(self, logits: Mapping[str, Logits], examples: Example, attacked_share: Any = 1.0) -> Values:
        reference = examples.replace(reference=logits["clean"])
        divergences = {name: losses.kl_divergence(logits[name], reference) for name in self.images[1:]}
        divergence = _weighted_mean(divergences, self._weights, attacked_share)
        classify = _classification(self.label_smoothing)
        return classify(logits["clean"], examples) + self.beta * divergence


@dataclasses.dataclass(frozen=True)
class Mart:
    """MART: BCE(x') + beta * KL(p(x) || p(x')) * (1 - p_y(x)) (Wang et al. 2020).

    BCE(x') = -log p_y(x') - log(1 - max_{k != y} p_k(x')), the cross entropy boosted by a margin. The divergence counts
    the more the less the network is sure of the clean image; gradients go through that weight too, as in the authors'
    code, which adds 1e-4 and 1e-12 within its logarithms, where this has none. The attack maximises its own loss, which
    is cross entropy in the paper.

    Attributes:
        beta: weight of the divergence, 0 or larger; 5 is that of the authors' training script for CIFAR-10, while the
            function of the same code defaults to 6.
        batch_norm: as for `Trades`; the authors pass clean and attacked images apart.
        label_smoothing: of -log p_y(x') alone; as for `CrossEntropy`.

    Raises:
        ValueError: a number out of range, or another `batch_norm`.
    """

    beta: float = 5.0
    batch_norm: str = "together"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_pairs(self.beta, self.batch_norm, self.label_smoothing)

    @property
    def images(self) -> tuple[str, ...]:
        return ("clean", "attacked")

    @property
    def attack_loss(self) -> None:
        return None

    @property
    def apart(self) -> bool:
        return self.batch_norm == "apart"

    def __call__(self, logits: Mapping[str, Logits], examples: Example, attacked_share: Any = 1.0) -> Values:
        unsure = jnp.sum(losses.off_label(logits["clean"], examples.label), axis=-1)
        divergence = losses.kl_divergence(logits["attacked"], examples.replace(reference=logits["clean"]))
        classified = _classification(self.label_smoothing)(logits["attacked"], examples)
        margin = _margin(logits["attacked"], examples)
        return attacked_share * (classified + margin + self.beta * unsure * divergence)


def _margin(logits: Logits, examples: Example) -> Values:
    """-log(1 - max_{k != y} p_k), from the sum of all other probabilities, so that it stays finite near p_k = 1."""
    own = jax.nn.one_hot(examples.label, logits.shape[-1], dtype=bool)
    rival = jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=-1)
    others = jnp.where(jax.nn.one_hot(rival, logits.shape[-1], dtype=bool), -jnp.inf, logits)
    return jax.nn.logsumexp(logits, axis=-1) - jax.nn.logsumexp(others, axis=-1)


def _check_pairs(beta: float, batch_norm: str, label_smoothing: float) -> None:
    """What objectives of clean and attacked images have in common."""
    require_number("beta", beta, "0 or larger", lambda beta: beta >= 0)
    require_choice("batch_norm", batch_norm, ("together", "apart"))
    _check_smoothing(label_smoothing)


def _check_smoothing(label_smoothing: float) -> None:
    require_number("label_smoothing", label_smoothing, "in [0, 1]", lambda s: 0 <= s <= 1)


def _classification(label_smoothing: float) -> Loss:
    return losses.smoothed_cross_entropy(label_smoothing) if label_smoothing else losses.cross_entropy


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        require_number(f"{name}_weight", weight, "0 or larger", lambda w: w >= 0)
    if not any(weights.values()):
        named = ", ".join(f"{name}_weight={weight!r}" for name, weight in weights.items())
        raise ValueError(f"{named} must not all be 0")


def _weighted_mean(values: Mapping[str, Values], weights: Mapping[str, float], attacked_share: Any) -> Values:
    shares = {name: weights[name] * (attacked_share if name == "attacked" else 1.0) for name in values}
    total = jnp.maximum(sum(shares.values()), 1e-12)
    return sum(shares[name] * values[name] for name in values) / total


OUTER: Mapping[str, Callable[..., Any]] = {
    "cross_entropy": CrossEntropy,
    "mart": Mart,
    "spa": SpaSamples,
    "trades": Trades,
}
"""Outer objectives by name."""


def outer_from_spec(outer: str | Mapping[str, Any]) -> Any:
    """An outer objective from its name, or from `{"name": "trades", "beta": 6.0}`.

    Raises:
        ConfigError: an unknown name or option, or a wrong type.
        ValueError: a number out of range.
    """
    return build(OUTER, {"name": outer} if isinstance(outer, str) else outer, "outer objective", "recipe.outer")
