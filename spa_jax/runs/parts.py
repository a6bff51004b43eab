"""Parts of attacks: networks trained before (manipulators, noise generators, victims), found by what a config says."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spa_jax.attacks.catalogue import part_names
from spa_jax.errors import CheckpointError, ConfigError, suggest
from spa_jax.runs.checkpoints import load_variables
from spa_jax.runs.settings import check_model_name, complete
from spa_jax.training.state import as_variables

Build = Callable[[Any], Any]
"""From a network's variables to a part that attacks are made of."""


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
            CheckpointError: there is none, or it is of another network.
        """
        if self.network is None:
            return load_model(self.directory, sharding, self.abstract)
        found = load_variables(self.directory, names=["networks"], sharding=sharding).variables["networks"]
        network = found[self.network]
        variables = as_variables(network["params"], network.get("batch_stats"))
        _check_shapes(variables, self.abstract, f"{self.directory}, network {self.network!r}")
        return variables


def load_model(directory: Path, sharding: jax.sharding.Sharding, abstract: Any) -> dict[str, Any]:
    """The variables of a run's best checkpoint, with the averaged weights where there are any.

    Args:
        directory: of the model's run.
        sharding: where they go.
        abstract: the shapes that the network has, see `spa_jax.models.abstract_variables`.

    Raises:
        CheckpointError: there is none, or it is of another network.
    """
    found = load_variables(directory, names=["params", "batch_stats", "ema"], sharding=sharding).variables
    params = found["params"] if found.get("ema") is None else found["ema"]
    variables = as_variables(params, found.get("batch_stats"))
    _check_shapes(variables, abstract, str(directory))
    return variables


def _check_shapes(variables: Any, abstract: Any, where: str) -> None:
    stored, expected = ({name: np.shape(leaf) for name, leaf in _named_leaves(tree)} for tree in (variables, abstract))
    differing = sorted(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
    if differing:
        name = differing[0]
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        shapes = f"{stored.get(name, 'not there')} in the checkpoint, {expected.get(name, 'not there')} in the config"
        raise CheckpointError(f"{where} is of another network: {name} is {shapes}{more}")


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def stored_config(directory: Path) -> dict[str, Any]:
    """The complete config that a run's best checkpoint was made with.

    Raises:
        CheckpointError: no checkpoint was found.
    """
    return complete(load_variables(directory, names=["step"]).config, f"config of {directory}")


def check_parts(config: Mapping[str, Any], models: Mapping[str, Any], path: str) -> None:
    """Check the parts of a config and every name of one.

    Args:
        config: of one model, complete.
        models: all models of the config, by name.
        path: of the config, for messages.

    Raises:
        ConfigError: a name cannot be a directory, a part's model is unknown, or a part is unknown.
    """
    parts = config["parts"] or {}
    for name, entry in parts.items():
        check_model_name(name, f"the name in {path}.parts")
        check_model_name(entry["model"], f"{path}.parts.{name}.model")
        templates = {entry["model"].replace("{victim}", model) for model in models}
        if not entry["workdir"] and not templates & set(models):
            hint = suggest(entry["model"], models)
            raise ConfigError(f"{path}.parts.{name}.model={entry['model']!r} is not a model of this config{hint}")
    known = {*parts, *(config["networks"] or {})}
    for name in part_names({key: value for key, value in config.items() if key != "parts"}):
        if name not in known:
            raise ConfigError(f"{path}: part={name!r} is neither in parts nor in networks{suggest(name, known)}")
