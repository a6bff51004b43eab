"""How a classifier learns from the samples of an SPA attack: clean, attribute-only and joint images, weighted."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp

from spa_jax.inputs import require_choice, require_number
from spa_jax.losses import kl_divergence
from spa_jax.training.learner import Learner
from spa_jax.training.state import TrainState
from spa_jax.types import Images, Labels, Values

Outer = Literal["cross_entropy", "trades"]
_METRICS = {"attribute": "attribute_accuracy", "joint": "robust_accuracy"}


@dataclasses.dataclass(frozen=True)
class SampleLoss:
    """The outer loss of SPA training.

    "cross_entropy" is the weighted mean of the cross entropies. "trades" is the clean cross entropy plus `beta` times
    the weighted mean divergence of the answers to attribute-only and joint images from the clean ones (Zhang et al.
    2019, eq. 5), in which `clean_weight` has no part.

    Attributes:
        clean_weight, attribute_weight, joint_weight: shares of the loss, 0 or larger, made to sum to 1 over the images
            there are. The defaults are those of the authors' public code (one batch of 1, 2 and 2 parts).
        outer: which of the two.
        beta: 0 or larger; 6 is that of TRADES for CIFAR-10.

    Raises:
        ValueError: a weight is negative, all are 0, or another number or name breaks its rule.
    """

    clean_weight: float = 0.2
    attribute_weight: float = 0.4
    joint_weight: float = 0.4
    outer: str = "cross_entropy"
    beta: float = 6.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        weights = {f"{name}_weight": weight for name, weight in self._weights.items()}
        if min(weights.values()) < 0 or sum(weights.values()) == 0:
            raise ValueError(f"{weights!r}: weights must be 0 or larger and not all 0")
        require_choice("outer", self.outer, ("cross_entropy", "trades"))
        require_number("beta", self.beta, "0 or larger", lambda beta: beta >= 0)

    @property
    def _weights(self) -> dict[str, float]:
        return {"clean": self.clean_weight, "attribute": self.attribute_weight, "joint": self.joint_weight}

    def __call__(
        self,
        learner: Learner,
        params: Any,
        state: TrainState,
        x: Images,
        attacked: Mapping[str, Images],
        y: Labels,
        weights: Values,
        joint_share: Any = 1.0,
    ) -> tuple[Any, Any]:
        """This device's share of the loss, and what `Learner.descend` wants beside it.

        Args:
            learner: the network.
            params: its weights.
            state: before the step.
            x: clean images.
            attacked: "attribute" and "joint" images, or one of them.
            y: labels.
            weights: of the examples.
            joint_share: multiplies the weight of the joint images, to leave them out at first.
        """
        logits, statistics = learner.responses(params, state, x, *attacked.values())
        named = dict(zip(["clean", *attacked], logits, strict=True))
        shares = {name: self._weights[name] * (joint_share if name == "joint" else 1.0) for name in named}
        metrics = {"accuracy": learner.accuracy(logits[0], y, weights)}
        metrics |= {_METRICS[name]: learner.accuracy(named[name], y, weights) for name in attacked}
        if self.outer == "trades":
            shares.pop("clean")
            divergences = {name: learner.average(kl_divergence(logits[0])(named[name], y), weights) for name in shares}
            value = learner.cross_entropy(logits[0], y, weights) + self.beta * _mean(divergences, shares)
        else:
            value = _mean({name: learner.cross_entropy(own, y, weights) for name, own in named.items()}, shares)
        return value, (statistics, metrics)


def _mean(values: Mapping[str, Any], shares: Mapping[str, Any]) -> Any:
    total = jnp.maximum(sum(shares.values()), 1e-12)
    return sum(shares[name] * values[name] for name in values) / total
