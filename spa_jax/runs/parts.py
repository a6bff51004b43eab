"""Parts of attacks: networks trained before (manipulators, noise generators, victims), found by what a config says."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from spa_jax.attacks.catalogue import part_names
from spa_jax.configuration import check_keys
from spa_jax.errors import ConfigError, suggest
from spa_jax.runs.checkpoints import load_variables
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
        abstract: the shapes of its variables.
    """

    directory: Path
    network: str | None
    build: Build
    abstract: Any

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


def check_parts(config: Mapping[str, Any], models: Mapping[str, Any], path: str) -> None:
    """Check the parts of a config and every name of one.

    Args:
        config: of one model.
        models: all models of the config, by name.
        path: of the config, for messages.

    Raises:
        ConfigError: an entry is wrong, its model is unknown, or an unknown part is asked for.
    """
    parts = config.get("parts") or {}
    for name, entry in parts.items():
        check_keys(entry, SCHEMA, f"{path}.parts.{name}")
        templates = {entry["model"].replace("{victim}", model) for model in models}
        if not entry.get("workdir") and not templates & set(models):
            hint = suggest(entry["model"], models)
            raise ConfigError(f"{path}.parts.{name}.model={entry['model']!r} is not a model of this config{hint}")
    known = {*parts, *(config.get("networks") or {})}
    for name in part_names({key: value for key, value in config.items() if key != "parts"}):
        if name not in known:
            raise ConfigError(f"{path}: part={name!r} is neither in parts nor in networks{suggest(name, known)}")
