"""Recipes by name: each makes a pure `train_step(state, batch, key) -> (state, metrics)`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from spa_jax.training.learner import TrainStep
from spa_jax.training.recipes.adversarial import adversarial
from spa_jax.training.recipes.manipulator import manipulator, manipulator_errors
from spa_jax.training.recipes.noise_generator import generator_success, noise_generator
from spa_jax.training.recipes.regressor import regressor, regressor_errors
from spa_jax.training.recipes.spa_direct import spa_direct
from spa_jax.training.recipes.spa_generated import spa_generated
from spa_jax.training.recipes.standard import standard
from spa_jax.training.recipes.trades import trades

__all__ = [
    "RECIPES",
    "VALIDATIONS",
    "Validation",
    "adversarial",
    "manipulator",
    "spa_direct",
    "spa_generated",
    "standard",
    "trades",
]

RECIPES: Mapping[str, Callable[..., TrainStep]] = {
    "adversarial": adversarial,
    "manipulator": manipulator,
    "noise_generator": noise_generator,
    "regressor": regressor,
    "spa_direct": spa_direct,
    "spa_generated": spa_generated,
    "standard": standard,
    "trades": trades,
}


class Validation(NamedTuple):
    """How a model that is no classifier is judged while it is trained.

    Attributes:
        measure: `(learner, state, keys, images, labels, attribute, **recipe options) -> {name: values [b]}`.
        chosen: the name whose mean picks the best checkpoint.
        sign: 1 where more is better, -1 where less is.
    """

    measure: Callable[..., dict[str, Any]]
    chosen: str
    sign: int


VALIDATIONS: Mapping[str, Validation] = {
    "manipulator": Validation(manipulator_errors, "round_trip_psnr", 1),
    "noise_generator": Validation(generator_success, "fooled", 1),
    "regressor": Validation(regressor_errors, "absolute_error", -1),
}
"""For recipes that train no classifier."""
