"""Recipes by name; each is one record, see `Recipe`."""

from collections.abc import Mapping
from typing import Any

from spa_jax.training.recipes.adversarial import adversarial
from spa_jax.training.recipes.atop import atop, atop_accuracies
from spa_jax.training.recipes.base import Recipe, Start, Validation
from spa_jax.training.recipes.manipulator import as_edit, manipulator, manipulator_errors
from spa_jax.training.recipes.noise_generator import GENERATOR, as_noise, generator_success, noise_generator
from spa_jax.training.recipes.purifier import as_purifier, purifier, purifier_errors
from spa_jax.training.recipes.region import carry_region, region
from spa_jax.training.recipes.regressor import as_regressor, regressor, regressor_errors
from spa_jax.training.recipes.standard import standard
from spa_jax.training.recipes.universal import carry_free, carry_universal, free, replays_of, universal

__all__ = [
    "RECIPES",
    "STEPS",
    "Recipe",
    "Start",
    "Validation",
    "adversarial",
    "atop",
    "becomes",
    "free",
    "manipulator",
    "options_of",
    "purifier",
    "region",
    "standard",
    "universal",
]

RECIPES: Mapping[str, Recipe] = {
    "adversarial": Recipe(adversarial, networks={GENERATOR: as_noise}),
    "atop": Recipe(atop, validation=Validation(atop_accuracies, "robust_accuracy", 1), becomes=as_purifier),
    "manipulator": Recipe(
        manipulator,
        validation=Validation(manipulator_errors, "round_trip_psnr", 1),
        becomes=as_edit,
        needs_attributes=True,
    ),
    "noise_generator": Recipe(noise_generator, validation=Validation(generator_success, "fooled", 1), becomes=as_noise),
    "purifier": Recipe(purifier, validation=Validation(purifier_errors, "l1", -1), becomes=as_purifier),
    "regressor": Recipe(
        regressor,
        validation=Validation(regressor_errors, "absolute_error", -1),
        becomes=as_regressor,
        needs_attributes=True,
    ),
    "standard": Recipe(standard),
    "free": Recipe(free, init=carry_free, updates=replays_of),
    "region": Recipe(region, init=carry_region),
    "universal": Recipe(universal, init=carry_universal),
}
"""The recipes that a config may name."""

STEPS = {name: recipe.step for name, recipe in RECIPES.items()}
"""The steps of the recipes by name, whose signatures are the keys of a config's `recipe`."""


def options_of(recipe: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The record that a config's `recipe` names, and its options."""
    options = dict(recipe)
    return RECIPES[options.pop("name")], options


def becomes(recipe: Mapping[str, Any], network: str | None, model: Any, mean: Any, std: Any) -> Any:
    """What turns a network's variables into a part of attacks or evaluation; None for a network that neither uses.

    Args:
        recipe: of the config that trains it.
        network: its name among the further networks, or None for the model itself.
        model, mean, std: the network and its normalisation.
    """
    record, options = options_of(recipe)
    kind = record.becomes if network is None else record.networks.get(network)
    return None if kind is None else kind(model, mean, std, **options)
