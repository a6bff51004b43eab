"""The report on a manipulator: a table in the terminal, manipulation.md, its pictures and manipulation.json."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from spa_jax.data.types import AttributeInfo
from spa_jax.evaluation.drawing import (
    MUTED,
    RIGHT,
    WRONG,
    Canvas,
    as_png,
    fewest_digits,
    magnified,
    new_canvas,
    shortened,
)
from spa_jax.evaluation.files import file_name, write_files
from spa_jax.evaluation.manipulation import AttributeSweep, Bin, ManipulationReport
from spa_jax.evaluation.markdown import Setting, plain, table, where_it_ran
from spa_jax.evaluation.report import console_table, make_setting, print_wide

_WIDTH = 140
_TILE_PIXELS, _LEFT, _GAP, _LINE, _TOP = 144, 200, 16, 34, 190


def write_manipulation_report(
    report: ManipulationReport,
    directory: str | os.PathLike,
    *,
    title: str,
    dataset: str,
    seed: int,
    config: Any,
    class_names: Sequence[str] | None = None,
) -> str:
    """Print the numbers of a manipulator; write manipulation.md, manipulation.json and a picture for each attribute.

    With several processes, call it in one of them.

    Args:
        report: of `evaluate_manipulator`.
        directory: made if it is not there; a report that is there is replaced, file by file.
        title: of the report.
        dataset: which examples, for the reader: "rotated digits, test split".
        seed: of the evaluation's key.
        config: what was run, as a mapping of plain data or a `ConfigDict`.
        class_names: default: the numbers of the classes.

    Returns:
        The printed table as plain text.

    Raises:
        ValueError: the directory cannot be written.
        ConfigError: a config that is not plain data.
    """
    setting = make_setting(title, dataset, seed, config, class_names)
    files = {f"sweep_{file_name(sweep.attribute.name)}.png": sweep_png(sweep, class_names) for sweep in report.sweeps}
    pictures = dict(zip(files, (sweep.attribute.name for sweep in report.sweeps), strict=True))
    files["manipulation.md"] = ("\n".join(_markdown(report, setting, pictures)) + "\n").encode()
    files["manipulation.json"] = _as_json(report, setting, list(pictures)).encode()
    write_files(directory, files)
    return print_wide((_console_table(report, title), _caption(report)), _WIDTH)


# --- Markdown -------------------------------------------------------------------------------------------------------

_READ_BACK = """\
Each attribute in turn is set to a value drawn from its box, one an example, and the independent regressor reads it from
the edited image. The floor is the regressor's error on the real images: smaller errors cannot be measured."""

_CROSS = """\
One attribute (row) is set to random values of its box; the number is the mean absolute change of the regressor's
reading of another (column), in half ranges of that one's box, in brackets in its unit. Bold is the attribute itself,
whose reading should change."""

_LABELS = """\
Share of images to which the independent classifier gives the original's label, in brackets its 95 % interval (Wilson).
Where it falls, the edit has left the class, or it shows images that the classifier never saw."""


def _markdown(report: ManipulationReport, setting: Setting, pictures: dict[str, str]) -> Iterator[str]:
    yield from (f"# {plain(setting.title)}", "")
    yield from (f"{report.num_examples} examples of {plain(setting.dataset)}, seed {setting.seed}.", "")
    yield from ("## Does the edit show the value that was set?", "", *_read_back_table(report), "", _READ_BACK, "")
    yield from ("## Does anything else change?", "", *_cross_table(report), "", _CROSS, "")
    yield from ("## Does the image keep its class?", "", *_label_table(report), "", _LABELS, "")
    for name, parts in report.labels.by_value.items():
        yield from (f"By the value of {plain(name)}:", "", *_bin_table(parts), "")
    if report.reconstruction:
        yield from ("## Reconstruction", "", *_reconstruction_table(report), "")
    if pictures:
        yield from ("## Pictures", "")
        for file, name in pictures.items():
            yield from (f"![{plain(name)} over its box]({file})", "")
    yield from ("## What was run", "", *where_it_ran(setting))


def _read_back_table(report: ManipulationReport) -> list[str]:
    header = ["", "unit", "box", "error", "floor", "error at low end", "reads as", "error at high end", "reads as"]
    rows = []
    for attribute, half, low, high in _with_box(report):
        own = report.read_back[attribute.name]
        errors = [f"{error:.3g} ({100 * error / half:.0f} %)" for error in (own.error, own.floor)]
        at_low = [f"{own.error_at_low:.3g}", f"{own.reading_at_low:.3g}"]
        at_high = [f"{own.error_at_high:.3g}", f"{own.reading_at_high:.3g}"]
        rows.append([plain(attribute.name), plain(attribute.unit), f"{low:g} to {high:g}", *errors, *at_low, *at_high])
    return [*table(header, rows), "", "In brackets: of half the range of the box."]


def _with_box(report: ManipulationReport) -> list[tuple[AttributeInfo, float, float, float]]:
    """The attributes, each with half its range and the ends of it."""
    bounds = (values.tolist() for values in (report.half_ranges, report.low, report.high))
    return list(zip(report.attributes, *bounds, strict=True))


def _cross_table(report: ManipulationReport) -> list[str]:
    rows = []
    for i, attribute in enumerate(report.attributes):
        cells = []
        for j, (relative, own) in enumerate(
            zip(report.relative_cross_effects[i], report.cross_effects[i], strict=True)
        ):
            cell = f"{relative:.2f} ({own:.3g})"
            cells.append(f"**{cell}**" if i == j else cell)
        rows.append([plain(attribute.name), *cells])
    return table(["set", *(plain(attribute.name) for attribute in report.attributes)], rows)


def _label_table(report: ManipulationReport) -> list[str]:
    labels = report.labels
    edited = [[f"{plain(name)} set", str(share)] for name, share in labels.alone.items()]
    return table(["", "accuracy"], [["real images", str(labels.real)], *edited, ["all set", str(labels.together)]])


def _bin_table(parts: Sequence[Bin]) -> list[str]:
    rows = []
    for part in parts:
        cells = ["0", ""] if part.accuracy is None else [str(part.accuracy.total), str(part.accuracy)]
        rows.append([f"{part.low:.4g} to {part.high:.4g}", *cells])
    return table(["value", "examples", "accuracy"], rows)


def _reconstruction_table(report: ManipulationReport) -> list[str]:
    units = {"psnr": " dB", "ssim": ""}
    rows = [
        [name.upper(), f"{found.mean:.3g}{units[name]}", f"{found.worst:.3g}{units[name]}"]
        for name, found in report.reconstruction.items()
    ]
    return table(["", "mean", "worst"], rows)


# --- terminal and JSON ----------------------------------------------------------------------------------------------


def _console_table(report: ManipulationReport, title: str) -> Any:
    rows = []
    for i, (attribute, _, low, high) in enumerate(_with_box(report)):
        own = report.read_back[attribute.name]
        cells = [f"{low:g} to {high:g}", f"{own.error:.3g}", f"{own.floor:.3g}", _largest_side_effect(report, i)]
        rows.append([f"{attribute.name} ({attribute.unit})", *cells, str(report.labels.alone[attribute.name])])
    columns = ("attribute", "box", "read-back error", "floor", "largest side effect", "class kept")
    return console_table(title, columns, rows, left=columns[:1])


def _largest_side_effect(report: ManipulationReport, i: int) -> str:
    others = {
        attribute.name: float(report.relative_cross_effects[i, j])
        for j, attribute in enumerate(report.attributes)
        if j != i
    }
    if not others:
        return ""
    name = max(others, key=lambda name: others[name])
    return f"{others[name]:.2f} of {name}"


def _caption(report: ManipulationReport) -> str:
    lines = [f"{report.num_examples} examples; side effects in half ranges; class kept with 95 % intervals"]
    lines.append(f"class kept on real images: {report.labels.real}; all set at random: {report.labels.together}")
    if report.reconstruction:
        psnr, ssim = (report.reconstruction[name].mean for name in ("psnr", "ssim"))
        lines.append(f"reconstruction: PSNR {psnr:.1f} dB, SSIM {ssim:.3f}")
    return "\n".join(lines).replace("[", "\\[")


def _as_json(report: ManipulationReport, setting: Setting, pictures: Sequence[str]) -> str:
    labels = report.labels
    content = {
        **dataclasses.asdict(setting),
        "num_examples": report.num_examples,
        "pictures": pictures,
        "attributes": [dataclasses.asdict(attribute) for attribute in report.attributes],
        "low": report.low.tolist(),
        "high": report.high.tolist(),
        "reconstruction": {name: dataclasses.asdict(found) for name, found in report.reconstruction.items()},
        "read_back": {name: dataclasses.asdict(own) for name, own in report.read_back.items()},
        "cross_effects": report.cross_effects.tolist(),
        "relative_cross_effects": report.relative_cross_effects.tolist(),
        "labels": {
            "real": labels.real.as_data(),
            "together": labels.together.as_data(),
            "alone": {name: share.as_data() for name, share in labels.alone.items()},
            "by_value": {name: list(map(_bin_as_data, parts)) for name, parts in labels.by_value.items()},
        },
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _bin_as_data(part: Bin) -> dict[str, Any]:
    accuracy = None if part.accuracy is None else part.accuracy.as_data()
    return {"low": part.low, "high": part.high, "accuracy": accuracy}


# --- pictures -------------------------------------------------------------------------------------------------------


def sweep_png(sweep: AttributeSweep, class_names: Sequence[str] | None = None) -> bytes:
    """A contact sheet: one row for each example, one column for each value of the attribute, the original first.

    Under each image: whether the classifier is right, and the value that the regressor reads.

    Args:
        sweep: of a `ManipulationReport`.
        class_names: default: the numbers of the classes.
    """
    height, width = sweep.images.shape[2:4]
    zoom = max(1, round(_TILE_PIXELS / max(height, width)))
    tile = width * zoom, height * zoom
    rows, columns = sweep.images.shape[:2]
    canvas = new_canvas(_LEFT + columns * (tile[0] + _GAP), _TOP + rows * (tile[1] + _GAP + _LINE))
    _write_heading(canvas, sweep, tile[0])
    for row in range(rows):
        y = _TOP + row * (tile[1] + _GAP + _LINE)
        label = int(sweep.labels[row])
        name = str(label) if class_names is None else shortened(class_names[label])
        canvas.text(24, y + tile[1] / 2, name, 9.0, "black", va="center", ha="left")
        for column in range(columns):
            x = _LEFT + column * (tile[0] + _GAP)
            canvas.image(x, y, magnified(sweep.images[row, column], zoom, False))
            is_right = sweep.predictions[row, column] == label
            word = f"{'✓' if is_right else '✗'} {fewest_digits(sweep.readings[row, column])}"
            canvas.text(x + tile[0] / 2, y + tile[1] + 5, word, 7.5, RIGHT if is_right else WRONG)
    return as_png(canvas.figure)


def _write_heading(canvas: Canvas, sweep: AttributeSweep, tile_width: int) -> None:
    name, unit = sweep.attribute.name, sweep.attribute.unit
    low, high = fewest_digits(sweep.values[0]), fewest_digits(sweep.values[-1])
    canvas.text(24, 36, f"{name} from {low} to {high} {unit}", 12.0, "black", ha="left")
    explanation = (
        f"First examples of each class. Below: whether an independent classifier sees the class, ✓ or ✗, "
        f"and an independent reading of {name}."
    )
    canvas.text(24, 88, explanation, 7.5, MUTED, ha="left")
    for column, title in enumerate(["original", *map(fewest_digits, sweep.values)]):
        x = _LEFT + column * (tile_width + _GAP) + tile_width / 2
        canvas.text(x, _TOP - 42, title, 9.0, "black")
