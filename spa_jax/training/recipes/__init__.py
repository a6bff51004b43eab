"""Recipes by name: each makes a pure `train_step(state, batch, key) -> (state, metrics)`."""

from collections.abc import Callable, Mapping

from spa_jax.training.learner import TrainStep
from spa_jax.training.recipes.adversarial import adversarial
from spa_jax.training.recipes.manipulator import manipulator
from spa_jax.training.recipes.spa_direct import spa_direct
from spa_jax.training.recipes.standard import standard
from spa_jax.training.recipes.trades import trades

__all__ = ["PART_RECIPES", "RECIPES", "adversarial", "manipulator", "spa_direct", "standard", "trades"]

RECIPES: Mapping[str, Callable[..., TrainStep]] = {
    "adversarial": adversarial,
    "manipulator": manipulator,
    "spa_direct": spa_direct,
    "standard": standard,
    "trades": trades,
}

PART_RECIPES: tuple[str, ...] = ("manipulator", "noise_generator")
"""Those that train a part of attacks instead of a classifier."""
