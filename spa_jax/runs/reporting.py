"""From a run's directory to its report: the trained models of a config, judged side by side."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from spa_jax.attacks import PureAttack, attack_from_config
from spa_jax.data.types import Dataset, Examples
from spa_jax.edits import EDITS
from spa_jax.errors import ConfigError, suggest
from spa_jax.evaluation.accuracy import evaluate
from spa_jax.evaluation.card import RobustnessCard, cards_section, write_cards
from spa_jax.evaluation.cascade import autoattack
from spa_jax.evaluation.certified import CertifiedRecord, measure_certified
from spa_jax.evaluation.certified_report import certified_section, write_certified
from spa_jax.evaluation.curves import accuracy_by_attribute, accuracy_by_radius
from spa_jax.evaluation.files import file_name
from spa_jax.evaluation.manipulation import evaluate_manipulator
from spa_jax.evaluation.manipulation_report import write_manipulation_report
from spa_jax.evaluation.pictures import Sheet, make_sheet
from spa_jax.evaluation.records import Curve, ModelReport
from spa_jax.evaluation.report import write_report
from spa_jax.evaluation.sweep import evenly_spaced
from spa_jax.evaluation.training_examples import TrainingExamplesRecord
from spa_jax.evaluation.training_examples_report import write_training_examples_report
from spa_jax.evaluation.universal import UniversalRecord, clean_answers, evaluate_universal, measure_transfer
from spa_jax.evaluation.universal_report import UniversalFindings, write_universal_report
from spa_jax.models import abstract_variables
from spa_jax.parallel import data_mesh
from spa_jax.runs.experiment import (
    LoadData,
    evaluation_batch_size,
    make_learner,
    universal_specs,
)
from spa_jax.runs.parts import load_model, stored_config
from spa_jax.runs.training_examples import judge_training_examples
from spa_jax.runs.victims import Lineup, everywhere, load_parts
from spa_jax.training.recipes import becomes
from spa_jax.types import Victim

_REPORT = 3
_CURVE_EXAMPLES = 1000


def load_part(workdir: str | os.PathLike, model: str, network: str | None = None) -> Any:
    """A model of a finished run, for use in one's own program, on all devices.

    Args:
        workdir: of the run.
        model: its name in the run's config.
        network: one that its recipe trained beside it, or None for the model itself.

    Returns:
        A manipulator as an edit for `spa_jax.attribute`; a noise generator as a function from the radius to a space,
        as `spa_jax.spa` takes it for `noise`; a purifier as a function from a transform, by default its own, to a
        purifier; a classifier as a victim; a regressor as a function of keys and images.

    Raises:
        CheckpointError: the run does not exist, or its checkpoints are damaged.
        ConfigError: the model has no such network.
    """
    entry = {"model": model, "network": network, "workdir": os.fspath(workdir)}
    config = stored_config(Path(workdir).expanduser() / model)
    return load_parts({**config, "parts": {model: entry}}, {"part": model}, {}, Path(workdir), data_mesh())[model]


def report_models(config: Mapping[str, Any], workdir: Path, load: LoadData, mesh: Mesh) -> str:
    """Judge every model of a config on the test split and write `report/` in the run's directory.

    The curves come from at most 1,000 examples, evenly spaced; each of their points is a whole attack. Manipulators are
    judged by `evaluation.manipulation`, each into a directory of its own below.

    Args:
        config: checked, see `spa_jax.runs.experiment`.
        workdir: holds one directory a model.
        load: gives the data of a config, as `data_loader()`.
        mesh: the devices.

    Returns:
        The tables as text.
    """
    dataset = load(config)
    split = test_split(config, dataset)
    lineup = Lineup(config, workdir, dataset, mesh, load)
    models: dict[str, ModelReport] = {}
    sheets: dict[str, Sheet] = {}
    universal: dict[str, UniversalFindings] = {}
    training: dict[str, dict[str, TrainingExamplesRecord]] = {}
    cards: dict[str, RobustnessCard] = {}
    certified: dict[str, CertifiedRecord] = {}
    _check_claims(config, lineup.names)
    with _progress() as show:
        for name in lineup.names:
            show(name)
            own, victim = lineup.config(name), lineup.victim(name)
            models[name], sheet = _judge(lineup, name, victim, split, mesh, show)
            sheets |= {name: sheet} if sheet else {}
            settings, common = own["evaluation"], _common(own, split, mesh) | {"on_batch": show.batch}
            if settings["universal"]:
                other = universal.get(settings["universal"]["transfer_from"])
                universal[name] = craft_universal(own, victim, dataset, split, common, other)
            if settings["autoattack"]:
                cards[name] = _card(own, name, victim, dataset, workdir / "report" / "autoattack", common)
            if settings["certified"]:
                certified[name] = _certified(own, victim, dataset, common)
            if settings["training_examples"] and name in lineup.models:
                parts = lineup.parts(own, settings["training_examples"])
                training[name] = judge_training_examples(own, parts, victim, dataset, common)
    written = [_report_manipulator(own, lineup, workdir, mesh, load) for own in _manipulators(lineup.models)]
    if jax.process_index() != 0:
        return "\n".join(written)
    directory, heading, sections = workdir / "report", _heading(config, dataset), []
    if cards:
        write_cards(cards, directory)
        sections.append(cards_section(cards))
    if certified:
        swept = config["evaluation"]["certified"]
        write_certified(certified, swept, directory)
        sections.append(certified_section(certified, swept))
    if models:
        told = {"sheets": sheets, "victims": lineup.in_words(), "sections": sections, **heading}
        written.append(write_report(models, directory, **told))
    if universal:
        written.append(write_universal_report(universal, directory, **heading))
    if training:
        heading |= {"dataset": f"{dataset.name}, training split"}
        written.append(write_training_examples_report(training, directory, **heading))
    return "\n".join(written)


def test_split(config: Mapping[str, Any], dataset: Dataset) -> Examples:
    """The images that models are judged on."""
    count = config["evaluation"]["num_examples"]
    return dataset.test if count is None else evenly_spaced(dataset.test, count)


def _check_claims(config: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in (config["evaluation"]["autoattack"] or {}).get("claimed", ()):
        if name not in names:
            path = "config.evaluation.autoattack.claimed"
            raise ConfigError(f"{path}.{name} is not a model or victim of the config{suggest(name, names)}")


def _card(
    config: Mapping[str, Any],
    name: str,
    victim: Victim,
    dataset: Dataset,
    directory: Path,
    common: Mapping[str, Any],
) -> RobustnessCard:
    """AutoAttack on one model, which goes on where it was interrupted."""
    section = config["evaluation"]["autoattack"]
    options = {key: section[key] for key in ("radius", "norm", "version", "parts", "give_up_after")}
    split, count = test_split(config, dataset), section["num_examples"]
    told = {"model": name, "data": dataset.name, "seed": config["seed"], "claimed": section["claimed"].get(name)}
    split = split if count is None else evenly_spaced(dataset.test, count)
    options |= {key: common[key] for key in ("mesh", "on_batch")} | {"batch_size": evaluation_batch_size(config, split)}
    return autoattack(victim, split, workdir=directory / file_name(name), **options, **told)


def _certified(
    config: Mapping[str, Any], victim: Victim, dataset: Dataset, common: Mapping[str, Any]
) -> CertifiedRecord:
    """What is proved of one model under the attribute that its config names."""
    section = dict(config["evaluation"]["certified"])
    split = evenly_spaced(dataset.test, section.pop("num_images"))
    options = {**common, "batch_size": evaluation_batch_size(config, split)}
    return measure_certified(victim, split, section.pop("attribute"), **section, **options)


def _common(config: Mapping[str, Any], split: Examples, mesh: Mesh) -> dict[str, Any]:
    key = jax.random.fold_in(jax.random.key(config["seed"]), _REPORT)
    return {"key": key, "batch_size": evaluation_batch_size(config, split), "mesh": mesh}


def _judge(
    lineup: Lineup,
    name: str,
    victim: Victim,
    split: Examples,
    mesh: Mesh,
    show: "_Shown",
) -> tuple[ModelReport, Sheet | None]:
    config, attacks = lineup.config(name), lineup.attacks(name)
    settings, common = config["evaluation"], _common(config, split, mesh)
    options = {key: settings[key] for key in ("survivors_only", "judge_draws", "examples_per_class")}
    if settings["perceptual"] is not None:
        options["perceptual"] = lineup.perceptual(settings["perceptual"])
    report = evaluate(victim, split, attacks, on_batch=show.batch, **options, **common)
    curves = _curves(lineup, name, victim, evenly_spaced(split, _CURVE_EXAMPLES), common)
    report = dataclasses.replace(report, curves=curves)
    if not attacks:
        return report, None
    pictured = settings["radius_attack"] or list(attacks)[-1]
    return report, make_sheet(victim, split, attacks[pictured], name=pictured, **common)


def crafting_split(config: Mapping[str, Any], dataset: Dataset, count: int | None) -> Examples:
    """The images that universal perturbations are made from."""
    split = getattr(dataset, config["evaluation"]["universal"]["crafting"])
    return split if count is None else evenly_spaced(split, count)


def craft_universal(
    config: Mapping[str, Any],
    victim: Victim,
    dataset: Dataset,
    split: Examples,
    common: Mapping[str, Any],
    other: UniversalFindings | None = None,
) -> UniversalFindings:
    """Craft the universal perturbations that a config asks for against a victim, and measure them on a split.

    Args:
        config: of a model, complete; its section `evaluation.universal` is read.
        victim: the model.
        dataset: has the images that they are made from.
        split: to measure on.
        common: `key`, `batch_size`, `mesh` and perhaps `on_batch` of `spa_jax.evaluation.evaluate_universal`; its
            perturbations are made and measured in batches of the section's own size.
        other: what was found of the model of `transfer_from`, or None.
    """
    settings = config["evaluation"]["universal"]
    attacks = {name: attack_from_config(spec) for name, spec in universal_specs(config).items()}
    everything = tuple(range(dataset.num_classes))
    targets = {name: everything if own == "all" else own for name, own in settings["targets"].items()}
    judged = {name: common[name] for name in ("key", "batch_size", "mesh")}
    judged |= {"clean": clean_answers(victim, split, **judged)}
    options = {**common, "clean": judged["clean"]} | {name: settings[name] for name in ("batch_size", "num_epochs")}
    images = crafting_split(config, dataset, settings["num_images"])
    records = evaluate_universal(victim, images, split, attacks, seeds=settings["seeds"], targets=targets, **options)
    untargeted = {name: attack for name, attack in attacks.items() if name not in targets}
    curves: dict[str, list[UniversalRecord]] = {name: [] for name in untargeted if settings["image_counts"]}
    for count in settings["image_counts"]:
        images = crafting_split(config, dataset, count)
        for name, found in evaluate_universal(victim, images, split, untargeted, **options).items():
            curves[name] += found
    if other is None:
        return UniversalFindings(records, curves)
    transferred = measure_transfer(attacks, other.records, victim, split, **judged)
    return UniversalFindings(records, curves, transferred, settings["transfer_from"])


def _manipulators(models: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    asked = [model for model in models.values() if model["evaluation"]["manipulation"]]
    return [model for model in asked if model["recipe"]["name"] == "manipulator"]


def _report_manipulator(config: Mapping[str, Any], lineup: Lineup, workdir: Path, mesh: Mesh, load: LoadData) -> str:
    """Judge a manipulator by the regressor and the classifier that its config names."""
    settings, dataset = config["evaluation"]["manipulation"], load(config)
    split = test_split(config, dataset)
    judges = lineup.parts(config, settings)
    learner = make_learner(config, dataset)
    build = becomes(config["recipe"], None, learner.model, learner.mean, learner.std)
    abstract = abstract_variables(learner.model, dataset.image_shape)
    edit = build(load_model(workdir / config["name"], everywhere(mesh), abstract))
    report = evaluate_manipulator(
        edit,
        split,
        low=settings["low"],
        high=settings["high"],
        attributes=dataset.attributes,
        **{name: judges[settings[name]["part"]] for name in ("regressor", "classifier")},
        **_common(config, split, mesh),
    )
    if jax.process_index() != 0:
        return ""
    return write_manipulation_report(
        report,
        workdir / "report" / config["name"],
        **_heading(config, dataset),
    )


def _curves(lineup: Lineup, name: str, victim: Victim, split: Examples, common: Mapping[str, Any]) -> list[Curve]:
    settings = lineup.config(name)["evaluation"]
    curves = []
    if settings["radii"] and settings["radius_attack"]:
        attack = settings["radius_attack"]
        spec = settings["attacks"][attack]

        def attack_at(radius: float) -> PureAttack:
            return lineup.attacks(name, {attack: spec | {"radius": radius}})[attack]

        curves.append(accuracy_by_radius(victim, split, attack_at, settings["radii"], name=attack, **common))
    if settings["attribute_points"]:
        for edit, values in _attribute_values(lineup.attacks(name), settings["attribute_points"]).items():
            curves.append(accuracy_by_attribute(victim, split, edit, values, **common))
    return curves


def _attribute_values(attacks: Mapping[str, PureAttack], points: int) -> dict[str, np.ndarray]:
    """For each attribute that some attack moves, values over twice its range, to see where the accuracy ends."""
    values = {}
    for attack in attacks.values():
        for space in attack.members().values():
            if space.name not in EDITS:
                continue
            low, high = (2 * bound - space.identity_value for bound in (space.low, space.high))
            values[space.name] = np.linspace(low, high, points)
    return values


def _heading(config: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """What every report of a run says of it."""
    return {
        "title": f"{config['name']} on {dataset.name}",
        "dataset": f"{dataset.name}, test split",
        "seed": config["seed"],
        "config": config,
        "class_names": dataset.class_names,
    }


class _Shown:
    """A bar in the terminal: which model is under which attack, and how many of the images that it runs on it has."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._task = progress, progress.add_task("evaluating", total=None)
        self._model, self._words = "", ""

    def __call__(self, model: str) -> None:
        self._model = model

    def batch(self, attack: str, done: int, total: int) -> None:
        words = f"evaluating {self._model}: {attack}"
        if words != self._words:  # a clock of its own
            self._progress.reset(self._task, description=words, total=total)
        self._words = words
        self._progress.update(self._task, completed=done)


@contextlib.contextmanager
def _progress() -> Iterator[_Shown]:
    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Shown(progress)
