"""Models against attacks: trains what is missing, judges every model under every attack, over several seeds."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spa_jax.benchmarks.heat_map import heat_map_png
from spa_jax.benchmarks.speed import Row
from spa_jax.configuration import check_keys, freeze
from spa_jax.data.types import Dataset
from spa_jax.errors import ConfigError, suggest
from spa_jax.evaluation.accuracy import evaluate
from spa_jax.evaluation.contents import condition_title
from spa_jax.evaluation.files import write_files
from spa_jax.evaluation.records import ModelReport, Proportion
from spa_jax.evaluation.universal import UniversalRecord, worst_record
from spa_jax.parallel import data_mesh
from spa_jax.runs.checkpoints import prepare_workdir
from spa_jax.runs.experiment import check_config, classifies, evaluation_batch_size, variants
from spa_jax.runs.loop import train_models
from spa_jax.runs.reporting import craft_universal, test_split
from spa_jax.runs.victims import Lineup

MATRIX_SCHEMA: Mapping[str, Any] = {"experiment": Mapping, "seeds": tuple | list, "panels": Mapping | None}
_PANEL_SCHEMA: Mapping[str, Any] = {"attacks": Mapping, "models": tuple | list}
_MAIN = "matrix"
_EVALUATE = 4


def check_matrix(section: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Check the section `matrix` of a config, on the config's `data`, before anything is read or trained.

    Raises:
        ConfigError: an unknown or missing key, name or part.
        ValueError: a number out of range.
    """
    check_keys(section, MATRIX_SCHEMA, "config.matrix")
    if not section["seeds"]:
        raise ConfigError("config.matrix.seeds=() must hold at least one seed")
    config = check_config({**section["experiment"], "data": data})
    models = [*(name for name, variant in variants(config).items() if classifies(variant)), *(config["victims"] or {})]
    for name, panel in _panels(section).items():
        check_keys(panel, _PANEL_SCHEMA, f"config.matrix.panels.{name}")
        for model in panel["models"]:
            if model not in models:
                hint = suggest(model, models)
                raise ConfigError(
                    f"config.matrix.panels.{name}.models: {model!r} is neither a classifier nor a victim{hint}"
                )
        check_config(_judged_by(config, panel["attacks"]))


def fill_matrix(section: Mapping[str, Any], data: Mapping[str, Any], workdir: Path) -> list[Row]:
    """Train the models of an experiment once for each seed, and judge each under each attack on its own.

    What is done is kept: `seed_S/MODEL/` is the run of a model, `seed_S/MODEL/PANEL.json` its judgement. The same
    command goes on from there, and judges again where the attacks have changed. All models are judged on the same
    images with the same keys. Beside the matrix of all classifiers under the experiment's attacks there may be panels
    of other attacks on some models, such as the ablations of an attack at equal cost.

    The section `evaluation.universal` of the experiment adds universal perturbations, crafted afresh against every
    model: the column of each shows the one that leaves the lowest accuracy, of all seeds and targets, and an image
    counts in the worst case only if it withstands all of them.

    Args:
        section: see `MATRIX_SCHEMA`; the experiment is a config as for training, without its data.
        data: of all models.
        workdir: gets the runs and a picture `PANEL.png` for the matrix and each panel.

    Returns:
        One row for each panel, model and attack: `accuracy`, the mean over the seeds, with its 95 % `low` and `high`,
        and `by_seed`. The interval adds the spread over the seeds (Student's) and the drawing of the images (Wilson's),
        squared.
    """
    config = check_config({**section["experiment"], "data": data})
    panels = {_MAIN: None, **_panels(section)}
    found: dict[tuple[str, str, str], list[tuple[float, int]]] = {}
    for seed in section["seeds"]:
        for panel, model, accuracies in _judge_seed({**config, "seed": seed}, panels, workdir / f"seed_{seed}"):
            for attack, (value, total) in accuracies.items():
                found.setdefault((panel, model, attack), []).append((value, total))
    rows = [_row(*name, values) for name, values in found.items()]
    for panel in panels:
        own = [row for row in rows if row["panel"] == panel]
        write_files(workdir, {f"{panel}.png": heat_map_png(own, "all models" if panel == _MAIN else panel)})
    return rows


def _panels(section: Mapping[str, Any]) -> dict[str, Any]:
    return dict(section.get("panels") or {})


def _judged_by(config: Mapping[str, Any], attacks: Mapping[str, Any]) -> dict[str, Any]:
    changes = {"attacks": attacks, "radius_attack": None, "universal": None}
    return {**config, "evaluation": {**config["evaluation"], **changes}}


def _judge_seed(
    config: Mapping[str, Any], panels: Mapping[str, Any], workdir: Path
) -> Iterator[tuple[str, str, dict[str, tuple[float, int]]]]:
    """Panel, model, and for each attack the accuracy and the number of images."""
    _, load = train_models(config, prepare_workdir(workdir))
    lineup = Lineup(config, workdir, load(config), data_mesh(), load)
    for panel, settings in panels.items():
        for name in lineup.names if settings is None else settings["models"]:
            variant = lineup.config(name)
            judged = variant if settings is None else _judged_by(variant, settings["attacks"])
            yield panel, name, _judge_once(judged, name, lineup, load(config), workdir, panel)


def _judge_once(
    config: Mapping[str, Any], name: str, lineup: Lineup, dataset: Dataset, workdir: Path, panel: str
) -> dict[str, tuple[float, int]]:
    """The judgement of a model or victim, read where it was made before with the same attacks."""
    path = workdir / name / f"{panel}.json"
    asked = freeze({"evaluation": config["evaluation"], "parts": config.get("parts")})
    if config["victims"]:
        asked |= {"victims": freeze(config["victims"])}
    if path.exists() and (stored := json.loads(path.read_text()))["asked"] == asked:
        return {name: tuple(value) for name, value in stored["accuracies"].items()}
    report, universal = _judge(config, name, lineup, dataset)
    conditions = with_universal(report, universal)
    accuracies = {name: (share.value, share.total) for name, share in conditions.items()}
    seconds = {name: record.seconds for name, record in report.attacks.items()}
    seconds |= {name: sum(record.seconds for record in records) for name, records in universal.items()}
    content = {"asked": asked, "accuracies": accuracies, "seconds": seconds}
    if jax.process_index() == 0:
        write_files(path.parent, {path.name: (json.dumps(content, indent=1) + "\n").encode()})
    return accuracies


def _judge(
    config: Mapping[str, Any], name: str, lineup: Lineup, dataset: Dataset
) -> tuple[ModelReport, Mapping[str, Sequence[UniversalRecord]]]:
    settings, split, victim = config["evaluation"], test_split(config, dataset), lineup.victim(name)
    key = jax.random.fold_in(jax.random.key(config["seed"]), _EVALUATE)
    common: dict[str, Any] = {"key": key, "batch_size": evaluation_batch_size(config, split), "mesh": lineup.mesh}
    attacks = lineup.attacks(name, settings["attacks"])
    report = evaluate(victim, split, attacks, survivors_only=False, sanity=False, **common)
    if not settings["universal"]:
        return report, {}
    return report, craft_universal(config, victim, dataset, split, common).records


def with_universal(report: ModelReport, universal: Mapping[str, Sequence[UniversalRecord]]) -> dict[str, Proportion]:
    """Accuracies under every attack of a report and under the strongest of each kind of universal perturbation.

    The last is the worst case: images that withstand all attacks and all perturbations, those of every target too.
    """
    if not universal:
        return report.accuracies
    correct = [record.answers == record.labels for records in universal.values() for record in records]
    worst = {name: worst_record(records).accuracy for name, records in universal.items()}
    known = {name: share for name, share in report.accuracies.items() if name != "worst_case"}
    survivors = np.logical_and.reduce([report.worst_case, *correct])
    return known | worst | {"worst_case": Proportion.of(survivors)}


def _row(panel: str, model: str, attack: str, values: Sequence[tuple[float, int]]) -> Row:
    shares = np.asarray([value for value, _ in values])
    low, high = _interval(shares, values[0][1])
    return {
        "panel": panel,
        "model": model,
        "attack": attack,
        "accuracy": float(shares.mean()),
        "low": low,
        "high": high,
        "by_seed": shares.tolist(),
        "images": values[0][1],
    }


def _interval(shares: np.ndarray, images: int) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds: the squares of its half widths over seeds and over images add up."""
    from scipy.stats import t

    mean, seeds = float(shares.mean()), len(shares)
    drawn = Proportion(round(mean * images), images)
    over_seeds = t.ppf(0.975, seeds - 1) * shares.std(ddof=1) / math.sqrt(seeds) if seeds > 1 else 0.0
    low, high = math.hypot(drawn.value - drawn.low, over_seeds), math.hypot(drawn.high - drawn.value, over_seeds)
    return max(0.0, mean - low), min(1.0, mean + high)


def matrix_table(rows: Sequence[Row]) -> str:
    """The rows as one Markdown table for each panel: models down, attacks across, per cent with intervals."""
    parts = []
    for panel in dict.fromkeys(row["panel"] for row in rows):
        own = [row for row in rows if row["panel"] == panel]
        attacks = list(dict.fromkeys(row["attack"] for row in own))
        lines = [
            f"## {panel}",
            "",
            "| " + " | ".join(["accuracy, %", *(condition_title(name, False) for name in attacks)]) + " |",
            "| --- " * (len(attacks) + 1) + "|",
        ]
        for model in dict.fromkeys(row["model"] for row in own):
            cells = {row["attack"]: _cell(row) for row in own if row["model"] == model}
            lines.append("| " + " | ".join([model, *(cells.get(attack, "") for attack in attacks)]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(row: Row) -> str:
    return f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
