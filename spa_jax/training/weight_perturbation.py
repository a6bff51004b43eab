"""Adversarial weight perturbation: the gradient of an update is taken where the loss is higher."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from spa_jax.numerics import in_dtype_of
from spa_jax.validation import require_number


@dataclasses.dataclass(frozen=True)
class WeightPerturbation:
    """AWP (Wu et al. 2020): each layer moves up the training loss by a share of its own norm.

    The update takes its gradient at the moved weights and is applied to the original ones, and so is weight decay,
    which the authors apply at the moved ones. Running BatchNorm statistics and the training metrics are those of the
    moved network, as in the authors' code. It costs a forward and a backward pass more in every step.

    Attributes:
        gamma: how far, in norms of the layer; 5e-3 is the authors' for adversarial training and TRADES on CIFAR-10.
        warmup: steps without a perturbation, which cost as much; the authors wait ten epochs of 200 for TRADES.

    Raises:
        ValueError: a negative number.
    """

    gamma: float = 5e-3
    warmup: int = 0

    def __post_init__(self) -> None:
        for name in ("gamma", "warmup"):
            require_number(name, getattr(self, name), "0 or larger", lambda number: number >= 0)

    def moved(self, params: chex.ArrayTree, gradient: chex.ArrayTree, step: Any) -> chex.ArrayTree:
        """The weights moved along the gradient of the loss; weights of one dimension or none stay as they are.

        Args:
            params: the weights.
            gradient: of the loss of the global batch there.
            step: how many updates were made.
        """
        gamma = jnp.where(step >= self.warmup, self.gamma, 0.0)

        def move(weight: Any, slope: Any) -> Any:
            if jnp.ndim(weight) <= 1:
                return weight
            length = jnp.linalg.norm(slope)
            ascent = slope / jnp.where(length > 0, length, 1)
            return weight + in_dtype_of(gamma, weight) * jnp.linalg.norm(weight) * ascent

        return jax.tree.map(move, params, gradient)
