"""The victims of a run: its trained classifiers, and what the config composes of them, loaded by name."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spa_jax.attacks import PureAttack
from spa_jax.attacks.catalogue import part_names
from spa_jax.configuration import diff
from spa_jax.data.types import Dataset
from spa_jax.errors import ConfigError
from spa_jax.models import abstract_variables
from spa_jax.perceptual import PerceptualDistance, captured_features, perceptual_distance
from spa_jax.runs.experiment import (
    LoadData,
    classifies,
    evaluation_attacks,
    find_parts,
    load_data,
    make_learner,
    part_source,
    variants,
)
from spa_jax.runs.parts import load_model, stored_config
from spa_jax.training.learner import Learner
from spa_jax.types import Victim
from spa_jax.victims import classifier, victim_from_config, victim_in_words


def load_victim(config: Mapping[str, Any], workdir: Path, dataset: Dataset, mesh: Mesh) -> Victim:
    """The best checkpoint of one model, with its averaged weights where it has any, as a victim.

    Raises:
        CheckpointError: there is none, or it does not fit the data.
        ConfigError: it is of another network or normalisation than the config's; the message names the difference.
    """
    directory, learner = workdir / config["name"], make_learner(config, dataset)
    stored = stored_config(directory)
    trained = make_learner(stored, dataset)
    changed = diff(_network_of(trained, stored), _network_of(learner, config))
    if changed:
        raise ConfigError(f"{directory} was trained as another network (stored -> config): {'; '.join(changed)}")
    variables = load_model(directory, everywhere(mesh), abstract_variables(learner.model, dataset.image_shape))
    return classifier(learner.model, variables, learner.mean, learner.std)


def _network_of(learner: Learner, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a network computes, but for its precision."""
    fields = [field.name for field in dataclasses.fields(learner.model)]
    options = {name: getattr(learner.model, name) for name in fields if name not in ("parent", "name", "dtype")}
    return {"model": {"name": config["model"]["name"], **options}, "normalization": config["normalization"]}


def load_parts(
    config: Mapping[str, Any],
    wanted: Any,
    models: Mapping[str, Any],
    workdir: Path,
    mesh: Mesh,
    load: LoadData = load_data,
) -> dict[str, Any]:
    """The parts that a section of a config uses, such as the attacks of an evaluation.

    Raises:
        CheckpointError: one of them was not trained.
    """
    found = find_parts(config, part_names(wanted), models, workdir, load)
    return {name: part.build(part.load(everywhere(mesh))) for name, part in found.items()}


def everywhere(mesh: Mesh) -> NamedSharding:
    """Whole on every device of a mesh."""
    return NamedSharding(mesh, PartitionSpec())


class Lineup:
    """Who is judged in a run, by name: the classifiers of a config, then the victims that it composes.

    A composed victim is judged by the evaluation of the config itself. Each classifier is loaded once.

    Args:
        config: checked, see `spa_jax.runs.experiment`.
        workdir: holds one directory a model.
        dataset: of the config.
        mesh: the devices.
        load: gives the data of a config.
    """

    def __init__(
        self, config: Mapping[str, Any], workdir: Path, dataset: Dataset, mesh: Mesh, load: LoadData = load_data
    ) -> None:
        self.models = variants(config)
        self._own = self.models[config["name"]]
        self._workdir, self._dataset, self.mesh, self._load = workdir, dataset, mesh, load
        self._loaded: dict[str, Victim] = {}
        self._parts: dict[tuple[str, str], Any] = {}

    @property
    def names(self) -> list[str]:
        """The names of all."""
        return [name for name, model in self.models.items() if classifies(model)] + list(self._composed)

    @property
    def _composed(self) -> Mapping[str, Any]:
        return self._own["victims"] or {}

    def in_words(self) -> dict[str, str]:
        """What each composed victim is made of.

        Raises:
            CheckpointError: the run of a part in another directory has no checkpoint.
        """
        declared = part_names(self._composed) & set(self._own["parts"] or {})
        sources = {name: part_source(self._own, name, self.models, self._workdir)[1] for name in declared}
        trained_with = {
            name: source["recipe"]["transform"] for name, source in sources.items() if "transform" in source["recipe"]
        }
        return {name: victim_in_words(spec, trained_with) for name, spec in self._composed.items()}

    def config(self, name: str) -> dict[str, Any]:
        """The complete config whose evaluation judges one."""
        return self.models.get(name, self._own)

    def victim(self, name: str) -> Victim:
        """One of them.

        Raises:
            CheckpointError: a model that it is made of was not trained.
            ConfigError: it was trained as another network than the config's.
        """
        if name not in self._loaded:
            self._loaded[name] = self._compose(self._composed[name]) if name in self._composed else self._trained(name)
        return self._loaded[name]

    def perceptual(self, name: str) -> PerceptualDistance:
        """The distance in the features of one of the classifiers.

        Raises:
            CheckpointError: it was not trained.
        """
        known: Any = self.victim(name)
        return perceptual_distance(captured_features(known.apply.model, known.variables, None, known.mean, known.std))

    def attacks(self, name: str, specs: Mapping[str, Any] | None = None) -> dict[str, PureAttack]:
        """The attacks that judge one: those of its config, or these.

        Raises:
            CheckpointError: a part or surrogate was not trained.
        """
        config = self.config(name)
        if specs is not None:
            config = {**config, "evaluation": {**config["evaluation"], "attacks": specs}}
        parts = self.parts(config, config["evaluation"]["attacks"])
        return evaluation_attacks(config, parts, lambda spec: self._compose(spec, name))

    def parts(self, config: Mapping[str, Any], wanted: Any) -> dict[str, Any]:
        """The parts that a section of one of the configs uses; each is loaded once."""
        names = part_names(wanted)
        missing = [{"part": name} for name in names if (config["name"], name) not in self._parts]
        found = load_parts(config, missing, self.models, self._workdir, self.mesh, self._load)
        self._parts |= {(config["name"], name): part for name, part in found.items()}
        return {name: self._parts[config["name"], name] for name in names if (config["name"], name) in self._parts}

    def _trained(self, name: str) -> Victim:
        return load_victim(self.models[name], self._workdir, self._dataset, self.mesh)

    def _compose(self, spec: Any, attacked: str | None = None) -> Victim:
        def known(kind: str, name: str | None) -> Victim:
            return self.victim(str(attacked if name is None else name))

        return victim_from_config(spec, known, self.parts(self._own, spec))
