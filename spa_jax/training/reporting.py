"""From a run's directory to its report: the trained models of a config, judged side by side."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spa_jax.catalogue import attack_from_config, named_attributes
from spa_jax.data.types import Dataset, Examples
from spa_jax.engine import PureAttack
from spa_jax.evaluation.accuracy import evaluate
from spa_jax.evaluation.curves import accuracy_by_attribute, accuracy_by_radius
from spa_jax.evaluation.pictures import Sheet, make_sheet
from spa_jax.evaluation.records import Check, Curve, ModelReport
from spa_jax.evaluation.report import write_report
from spa_jax.evaluation.sanity import sanity_checks
from spa_jax.evaluation.sweep import evenly_spaced
from spa_jax.predict import Victim, classifier
from spa_jax.training.experiment import (
    classifies,
    evaluation_attacks,
    find_parts,
    load_data,
    make_learner,
    variants,
)
from spa_jax.training.parts import load_model

_REPORT = 3
_CURVE_EXAMPLES = 1000


def load_victim(config: Mapping[str, Any], workdir: Path, dataset: Dataset, mesh: Mesh) -> Victim:
    """The best checkpoint of one model, with its averaged weights where it has any, as a victim.

    Raises:
        CheckpointError: there is none, or it belongs to another network.
    """
    variables = load_model(workdir / config["name"], _everywhere(mesh))
    learner = make_learner(config, dataset)
    return classifier(learner.model, variables, learner.mean, learner.std)


def load_parts(
    config: Mapping[str, Any], models: Mapping[str, Any], workdir: Path, mesh: Mesh, load: Any = load_data
) -> dict[str, Any]:
    """The learned parts of the attacks that judge one model.

    Raises:
        CheckpointError: one of them was not trained.
    """
    found = find_parts(config, config["evaluation"]["attacks"], models, workdir, load)
    return {name: part.build(part.load(_everywhere(mesh))) for name, part in found.items()}


def _everywhere(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def report_models(config: Mapping[str, Any], workdir: Path, dataset: Dataset, mesh: Mesh) -> str:
    """Judge every model of a config on the test split and write `report/` in the run's directory.

    The curves come from at most 1,000 examples, evenly spaced; each of their points is a whole attack.

    Args:
        config: checked, see `spa_jax.training.experiment`.
        workdir: holds one directory a model.
        dataset: the data.
        mesh: the devices.

    Returns:
        The table as text.
    """
    settings, key = config["evaluation"], jax.random.fold_in(jax.random.key(config["seed"]), _REPORT)
    split = dataset.test if settings["num_examples"] is None else evenly_spaced(dataset.test, settings["num_examples"])
    common = {"key": key, "batch_size": settings["batch_size"], "mesh": mesh}
    models, sheets = {}, {}
    everyone = variants(config)
    with _progress() as show:
        for name, variant in everyone.items():
            if not classifies(variant):
                continue
            parts = load_parts(variant, everyone, workdir, mesh)
            attacks = evaluation_attacks(variant, parts)
            victim = load_victim(variant, workdir, dataset, mesh)
            show(name)
            report = evaluate(
                victim, split, attacks, survivors_only=settings["survivors_only"], on_batch=show.batch, **common
            )
            curves = _curves(config, parts, victim, evenly_spaced(split, _CURVE_EXAMPLES), common)
            models[name] = dataclasses.replace(report, curves=curves, checks=_checks(config, victim, split, common))
            pictured = settings["radius_attack"] or list(attacks)[-1]
            sheets[name] = make_sheet(victim, split, attacks[pictured], name=pictured, **common)
    return _write(config, workdir / "report", dataset, models, sheets)


def _curves(
    config: Mapping[str, Any],
    parts: Mapping[str, Any],
    victim: Victim,
    split: Examples,
    common: Mapping[str, Any],
) -> list[Curve]:
    settings = config["evaluation"]
    curves = []
    if settings["radii"] and settings["radius_attack"]:
        name = settings["radius_attack"]
        spec = settings["attacks"][name]

        def attack_at(radius: float) -> PureAttack:
            return attack_from_config(spec | {"radius": radius}, parts)

        curves.append(accuracy_by_radius(victim, split, attack_at, settings["radii"], name=name, **common))
    if settings["attribute_points"]:
        for edit, values in _attribute_values(evaluation_attacks(config, parts), settings["attribute_points"]).items():
            curves.append(accuracy_by_attribute(victim, split, edit, values, **common))
    return curves


def _attribute_values(attacks: Mapping[str, PureAttack], points: int) -> dict[str, np.ndarray]:
    """For each attribute that some attack moves, values over twice its range, to see where the accuracy ends."""
    values = {}
    for attack in attacks.values():
        for name, space in named_attributes(attack).items():
            low, high = (2 * bound - space.identity_value for bound in (space.low, space.high))
            values[name] = np.linspace(low, high, points)
    return values


def _checks(config: Mapping[str, Any], victim: Victim, split: Examples, common: Mapping[str, Any]) -> list[Check]:
    radii = [spec["radius"] for spec in config["evaluation"]["attacks"].values() if spec.get("radius")]
    if not radii:
        return []
    return sanity_checks(victim, split, radius=radii[0], key=common["key"], mesh=common["mesh"], unroll=1)


def _write(
    config: Mapping[str, Any],
    directory: Path,
    dataset: Dataset,
    models: Mapping[str, ModelReport],
    sheets: Mapping[str, Sheet],
) -> str:
    if jax.process_index() != 0:
        return ""
    title = f"{config['name']} on {dataset.name}"
    return write_report(
        models,
        directory,
        title=title,
        dataset=f"{dataset.name}, test split",
        seed=config["seed"],
        config=config,
        sheets=sheets,
        class_names=dataset.class_names,
    )


class _Shown:
    """A line in the terminal that says which model is under which attack."""

    def __init__(self, status: Any) -> None:
        self._status, self._model = status, ""

    def __call__(self, model: str) -> None:
        self._model = model

    def batch(self, attack: str, done: int, total: int) -> None:
        self._status.update(f"evaluating {self._model}: {attack} {done}/{total}")


@contextlib.contextmanager
def _progress() -> Iterator[_Shown]:
    from rich.console import Console

    with Console(stderr=True).status("evaluating") as status:
        yield _Shown(status)
