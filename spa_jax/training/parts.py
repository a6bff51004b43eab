"""Parts of attacks: networks trained before (manipulators, noise generators, victims), found by what a config says."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from spa_jax.catalogue import part_names
from spa_jax.checkpoints import load_variables
from spa_jax.configuration import check_keys, check_spec
from spa_jax.errors import ConfigError, suggest
from spa_jax.generated_noise import generated_noise
from spa_jax.manipulators import manipulator
from spa_jax.models import MSP, NoiseGenerator
from spa_jax.predict import classifier
from spa_jax.spaces import Latent, latent
from spa_jax.training.recipes.regressor import reading
from spa_jax.training.state import as_variables

Build = Callable[[Any], Any]
"""From a network's variables to a part that attacks are made of."""

SCHEMA: Mapping[str, Any] = {"model": str, "network": str | None, "workdir": str | None}
"""An entry of a config's `parts`: a model of the same config, or of the run in `workdir`.

With `network`, it is that network which the model's recipe trains beside it. `{victim}` in the model's name stands for
the name of the model that is attacked.
"""


@dataclasses.dataclass(frozen=True)
class TrainedPart:
    """A part that a run takes from a checkpoint.

    Attributes:
        directory: of the model's run.
        network: which of its further networks, or None for the model itself.
        build: what its variables become.
    """

    directory: Path
    network: str | None
    build: Build

    def load(self, sharding: jax.sharding.Sharding) -> Any:
        """The variables of the best checkpoint, averaged weights where there are any.

        Raises:
            CheckpointError: there is none.
        """
        if self.network is not None:
            found = load_variables(self.directory, names=["networks"], sharding=sharding).variables["networks"]
            network = found[self.network]
            return as_variables(network["params"], network.get("batch_stats"))
        return load_model(self.directory, sharding)


def load_model(directory: Path, sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """The variables of a run's best checkpoint, with the averaged weights where there are any.

    Raises:
        CheckpointError: there is none.
    """
    found = load_variables(directory, names=["params", "batch_stats", "ema"], sharding=sharding).variables
    params = found["params"] if found.get("ema") is None else found["ema"]
    return as_variables(params, found.get("batch_stats"))


def build_of(model: nn.Module, mean: Any, std: Any, recipe: Mapping[str, Any] | None = None) -> Build:
    """What a network is for an attack: an edit, a maker of noise spaces, or a victim.

    A manipulator becomes an edit for `spa_jax.attribute`, a noise generator a function from the radius to a space of
    generated noise, a classifier a victim with its normalisation, a regressor a function from images to attributes.
    """
    if isinstance(model, MSP):
        return functools.partial(manipulator, model)
    if isinstance(model, NoiseGenerator):
        return lambda variables: functools.partial(generated_noise, model, variables)
    if recipe and recipe["name"] == "regressor":
        units = {"centre": recipe["centre"], "scale": recipe["scale"]}
        return lambda variables: reading(classifier(model, variables, mean, std), **units)
    return lambda variables: classifier(model, variables, mean, std)


def check_parts(config: Mapping[str, Any], models: Mapping[str, Any], path: str) -> None:
    """Check the parts of a config and every name of one.

    Args:
        config: of one model.
        models: all models of the config, by name.
        path: of the config, for messages.

    Raises:
        ConfigError: an entry is wrong, its model is unknown, or a part is asked for that is none.
    """
    parts = config.get("parts") or {}
    for name, entry in parts.items():
        check_keys(entry, SCHEMA, f"{path}.parts.{name}")
        templates = {entry["model"].replace("{victim}", model) for model in models}
        if not entry.get("workdir") and not templates & set(models):
            hint = suggest(entry["model"], models)
            raise ConfigError(f"{path}.parts.{name}.model={entry['model']!r} is no model of this config{hint}")
    known = {*parts, *(config.get("networks") or {})}
    for name in part_names({key: value for key, value in config.items() if key != "parts"}):
        if name not in known:
            raise ConfigError(f"{path}: part={name!r} is neither in parts nor in networks{suggest(name, known)}")


class _StandIn:
    """A part whose weights are not there yet, to check the attack that asks for it: it changes nothing."""

    def only(self, *names: str) -> "_StandIn":
        return self

    def read(self, image: Any, prepared: Any = None) -> float:
        """As a manipulator, it reads the image's own value: the box of an attack may leave 0 out."""
        return 0.0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._noise(*arguments, **options) if len(arguments) == 1 else arguments[0]

    def _noise(self, radius: Any, **options: Any) -> Latent:
        check_spec({"noise": generated_noise}, {"name": "noise", **options}, "noise", provided=_GIVEN)
        return latent(_unchanged, 1, radius)


_GIVEN = ("model", "variables", "radius")


def _unchanged(z: Any, example: Any) -> Any:
    return example.image


def stand_ins(config: Mapping[str, Any]) -> dict[str, Any]:
    """For every part of a config, something that takes its place where only the form of an attack is checked."""
    return {name: _StandIn() for name in {*(config.get("parts") or {}), *(config.get("networks") or {})}}
