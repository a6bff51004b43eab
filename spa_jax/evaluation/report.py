"""The report of an evaluation: a table in the terminal, and report.md, its pictures, report.html and report.json."""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spa_jax.configuration import freeze
from spa_jax.evaluation.contents import Section, alarms, compare
from spa_jax.evaluation.description import describe
from spa_jax.evaluation.files import file_name, write_files
from spa_jax.evaluation.histograms import attribute_histograms, histograms_png
from spa_jax.evaluation.markdown import Setting, markdown_report
from spa_jax.evaluation.page import report_page
from spa_jax.evaluation.pictures import Sheet, curves_png, sheet_png
from spa_jax.evaluation.records import (
    AttackRecord,
    AttributeValues,
    Check,
    Curve,
    Distance,
    ExampleFlags,
    ExampleShares,
    ModelReport,
    Nearest,
    Proportion,
)

_CAPTIONS = {
    "radius": "Accuracy by radius",
    "nearest": "Accuracy by the distance of the nearest image that fools",
    "attribute": "Accuracy by attribute value",
}
_WIDTH_OF_TITLES, _WIDTH_OF_MODEL, _WIDTH_OF_SECTION = 40, 28, 160
_PACKAGES = ("spa_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def write_report(
    models: Mapping[str, ModelReport],
    directory: str | os.PathLike,
    *,
    title: str,
    dataset: str,
    seed: int,
    config: Any,
    sheets: Mapping[str, Sheet] | None = None,
    class_names: Sequence[str] | None = None,
    victims: Mapping[str, str] | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """Print the comparison of models and write it to a directory: report.md, report.html, report.json and pictures.

    All files are written whole or not at all. report.html is one file to look at, which shows the images of the
    attacks' galleries too (`examples_per_class` of `spa_jax.evaluation.evaluate`). With several processes, call it in
    one of them.

    Args:
        models: by name, judged on the same examples in the same way.
        directory: made if it is not there; a report that is there is replaced, file by file.
        title: of the report.
        dataset: which examples, for the reader: "digits, test split".
        seed: of the evaluation's key.
        config: what was run, as a mapping of plain data or a `ConfigDict`.
        sheets: of `make_sheet`, by model.
        class_names: default: the numbers of the classes.
        victims: what the composed ones among the models are made of, in words.
        sections: what was measured of the models beside the attacks; printed, and in report.md and report.html.

    Returns:
        The printed tables as plain text.

    Raises:
        ValueError: no model, models that were not judged alike, or a directory that cannot be written.
        ConfigError: a config that is not plain data.
    """
    _check_alike(models)
    setting = make_setting(title, dataset, seed, config, class_names)
    pictures = _pictures(models, sheets or {}, class_names)
    captions = {name: caption for name, (caption, _) in pictures.items()}
    files = {name: png for name, (_, png) in pictures.items()}
    files["report.md"] = markdown_report(models, setting, captions, victims, sections).encode()
    files["report.html"] = report_page(models, setting, victims, sections).encode()
    files["report.json"] = _as_json(models, setting, list(pictures)).encode()
    write_files(directory, files)
    width = max(_WIDTH_OF_TITLES + _WIDTH_OF_MODEL * len(models), _WIDTH_OF_SECTION if sections else 0)
    return print_wide((_table(models, title), _caption(models, sections), *map(_section_table, sections)), width)


def read_report(path: str | os.PathLike) -> dict[str, ModelReport]:
    """The models of a report.json, example by example, to compare with others.

    Raises:
        ValueError: the file is not a report.
    """
    try:
        content = json.loads(Path(path).read_text())
        return {name: _model_from_data(data) for name, data in content["models"].items()}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"path={os.fspath(path)!r} is not a report.json of spa_jax: {error!r}") from error


def _check_alike(models: Mapping[str, ModelReport]) -> None:
    if not models:
        raise ValueError("models={} must hold at least one")
    first_name, first = next(iter(models.items()))
    for name, report in models.items():
        if not np.array_equal(report.labels, first.labels):
            raise ValueError(f"models {first_name!r} and {name!r} were judged on different examples")
        if report.survivors_only != first.survivors_only:
            raise ValueError(f"models {first_name!r} and {name!r} were judged with different survivors_only")


def make_setting(title: str, dataset: str, seed: int, config: Any, class_names: Sequence[str] | None) -> Setting:
    """What a report is of, with the versions and devices of this process.

    Raises:
        ConfigError: a config that is not plain data.
    """
    return Setting(title, dataset, seed, describe(freeze(config)), library_versions(), _devices(), class_names)


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide results."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _devices() -> str:
    devices = jax.devices()
    processes = jax.process_count()
    return f"{len(devices)} x {devices[0].device_kind}" + (f" in {processes} processes" if processes > 1 else "")


def _pictures(
    models: Mapping[str, ModelReport], sheets: Mapping[str, Sheet], class_names: Sequence[str] | None
) -> dict[str, tuple[str, bytes]]:
    """Caption and content of every picture by its file's name."""
    pictures = {}
    curves = {name: report.drawn_curves for name, report in models.items()}
    for kind, caption in _CAPTIONS.items():
        if any(curve.kind == kind for own in curves.values() for curve in own):
            pictures[f"accuracy_by_{kind}.png"] = (caption, curves_png(curves, kind))
    if attribute_histograms(models):
        pictures["attribute_values.png"] = ("Attribute values at which attacks fool", histograms_png(models))
    for name, sheet in sheets.items():
        file = "sheet.png" if len(sheets) == 1 else f"sheet_{file_name(name)}.png"
        pictures[file] = (f"{name} under {sheet.attack}", sheet_png(sheet, name, class_names))
    return pictures


def console_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Collection[str],
    wraps: Collection[str] = (),
) -> Any:
    """A table for `print_wide`; the columns `left` are aligned to the left, and only `wraps` may be folded."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(title), title_justify="left")
    for name in columns:
        shown.add_column(name, justify="left" if name in left else "right", no_wrap=name not in wraps)
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


def print_wide(shown: Sequence[Any], width: int) -> str:
    """Print texts and tables, never folded to a log file's width, and return them as plain text."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, width)
    console.print(*shown, sep="\n")
    plain = Console(width=width, force_terminal=False, color_system=None)
    with plain.capture() as captured:
        plain.print(*shown, sep="\n")
    return captured.get()


def _table(models: Mapping[str, ModelReport], title: str) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    table.add_column("accuracy")
    for name in models:
        table.add_column(escape(name), justify="right")
    for row_title, cells, highest in compare(models):
        table.add_row(escape(row_title), *(_cell(cell, highest, len(models) > 1) for cell in cells))
    return table


def _section_table(section: Section) -> Any:
    rows = [["" if cell is None else str(cell) for cell in row] for row in section.rows]
    left = (section.header[0], *section.texts)
    return console_table(section.title, section.header, rows, left=left, wraps=section.texts)


def _cell(accuracy: Proportion | None, highest: float, several: bool) -> str:
    if accuracy is None:
        return ""
    text = str(accuracy).replace("[", "\\[")
    return f"[bold green]{text}[/]" if several and accuracy.value == highest else text


def _caption(models: Mapping[str, ModelReport], sections: Sequence[Section]) -> str:
    first = next(iter(models.values()))
    findings = len(alarms(models, sections))
    caption = f"{len(first.labels)} examples, in brackets 95 % intervals"
    return f"{caption}; warnings: {findings}, see report.md" if findings else caption


# --- JSON -----------------------------------------------------------------------------------------------------------


def _as_json(models: Mapping[str, ModelReport], setting: Setting, pictures: Sequence[str]) -> str:
    first = next(iter(models.values()))
    content = {
        **dataclasses.asdict(setting),
        "num_examples": len(first.labels),
        "survivors_only": first.survivors_only,
        "pictures": pictures,
        "models": {name: _model_as_data(report) for name, report in models.items()},
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _model_as_data(report: ModelReport) -> dict[str, Any]:
    """Everything, examples included; who is correct is a text of one 0 or 1 an example, in the split's order."""
    return {
        "accuracies": {name: accuracy.as_data() for name, accuracy in report.accuracies.items()},
        "by_class": {
            name: {str(label): accuracy.as_data() for label, accuracy in report.by_class(name).items()}
            for name in report.conditions
        },
        "labels": " ".join(map(str, report.labels.tolist())),
        "clean": _flags_as_text(report.clean),
        "worst_case": _flags_as_text(report.worst_case),
        "survivors_only": report.survivors_only,
        "draws": report.draws,
        "failed": _shares_as_text(report.failed),
        "over_draws": {name: dataclasses.asdict(found) for name, found in report.over_draws.items()},
        "attacks": {
            name: {
                "correct": _flags_as_text(record.correct),
                "attacked": record.attacked,
                "invalid": record.invalid,
                "broken": record.broken,
                "failed": _shares_as_text(record.failed),
                "nearest": _nearest_as_data(record.nearest),
                "seconds": record.seconds,
                "parameters": record.parameters,
                "distances": {of: dataclasses.asdict(distance) for of, distance in record.distances.items()},
                "attributes": {of: _values_as_data(values) for of, values in record.attributes.items()},
            }
            for name, record in report.attacks.items()
        },
        "checks": [dataclasses.asdict(check) for check in report.checks],
        "curves": [dataclasses.asdict(curve) for curve in report.curves],
    }


def _model_from_data(data: Mapping[str, Any]) -> ModelReport:
    attacks = {name: _record_from_data(record) for name, record in data["attacks"].items()}
    return ModelReport(
        np.asarray(data["labels"].split(), np.int32),
        _flags_from_text(data["clean"]),
        attacks,
        data["survivors_only"],
        tuple(Check(**check) for check in data["checks"]),
        tuple(Curve(**curve) for curve in data["curves"]),
        data.get("draws", 1),
        _shares_from_text(data.get("failed")),
    )


def _record_from_data(data: Mapping[str, Any]) -> AttackRecord:
    distances = {name: Distance(**distance) for name, distance in data.get("distances", {}).items()}
    attributes = {name: _values_from_data(values) for name, values in data.get("attributes", {}).items()}
    changes = {"correct": _flags_from_text(data["correct"]), "distances": distances, "attributes": attributes}
    changes |= {"failed": _shares_from_text(data.get("failed")), "nearest": _nearest_from_data(data.get("nearest"))}
    return AttackRecord(**(dict(data) | changes))


def _values_as_data(attribute: AttributeValues) -> dict[str, Any]:
    values = " ".join(f"{value:.6g}" for value in attribute.values.tolist())
    return {"low": attribute.low, "high": attribute.high, "values": values}


def _values_from_data(data: Mapping[str, Any]) -> AttributeValues:
    return AttributeValues(np.asarray(data["values"].split(), np.float32), data["low"], data["high"])


def _nearest_as_data(nearest: Nearest | None) -> dict[str, Any] | None:
    """The norm, the distance of each example, and their median, which is null where it is infinite."""
    if nearest is None:
        return None
    median = nearest.median if math.isfinite(nearest.median) else None
    return {"norm": nearest.norm, "median": median, "distances": _shares_as_text(nearest.distances)}


def _nearest_from_data(data: Mapping[str, Any] | None) -> Nearest | None:
    return None if data is None else Nearest(data["norm"], np.asarray(data["distances"].split(), np.float64))


def _shares_as_text(shares: ExampleShares | None) -> str | None:
    return None if shares is None else " ".join(f"{share:.6g}" for share in shares.tolist())


def _shares_from_text(text: str | None) -> ExampleShares | None:
    return None if text is None else np.asarray(text.split(), np.float64)


def _flags_as_text(flags: ExampleFlags) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def _flags_from_text(text: str) -> ExampleFlags:
    return np.array([flag == "1" for flag in text], bool)
