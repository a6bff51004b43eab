"""Pictures of an evaluation: attacked examples with their predictions, and accuracy curves, as PNG files in memory."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Float, Int

from spa_jax.data.types import Examples
from spa_jax.edits import EDITS
from spa_jax.evaluation.changes import attribute_spaces, attribute_values, moves_noise, names_of_numbers
from spa_jax.evaluation.drawing import (
    MARKERS,
    MINUS,
    MODEL_COLORS,
    MUTED,
    RIGHT,
    TILE_PIXELS,
    WRONG,
    Canvas,
    Pixels,
    as_png,
    fewest_digits,
    magnification,
    magnified,
    make_panels,
    new_canvas,
    shortened,
    spread_out,
    style_axes,
    with_unit,
    write_title,
)
from spa_jax.evaluation.judging import run_attack
from spa_jax.evaluation.records import Curve
from spa_jax.evaluation.sweep import AnyAttack, DeviceBatch, example_keys, first_of_each_class, make_sweep, stream
from spa_jax.trees import jit_by_kinds
from spa_jax.types import Images, Key, Labels, Predict, Victim
from spa_jax.victims import purification_stages
from spa_jax.victims.tracing import is_randomized

_NUMBERS_A_LINE, _MOST_NUMBERS = 3, 9
_STAGES = ("transformed", "purified")
_TIMES = "\N{MULTIPLICATION SIGN}"

TileImages: TypeAlias = Float[np.ndarray, "m h w c"]
TileLabels: TypeAlias = Int[np.ndarray, " m"]


# --- the sheet of examples ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SheetRow:
    """One row of a sheet.

    Attributes:
        title: what the row shows.
        images: in [0, 1].
        predictions: the victim's, or None for a row that was not shown to it.
        captions: what else stands under each image.
        is_signed: whether grey values stand for differences, 0.5 for none, and are shown in colour.
    """

    title: str
    images: TileImages
    predictions: TileLabels | None
    captions: Sequence[str]
    is_signed: bool = False


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Some examples as they are, edited, and attacked, with a victim's predictions.

    Attributes:
        attack: its name.
        labels: the true classes.
        rows: from top to bottom.
        attributes: names of the numbers that stand under the images, in their order.
        draws_at_random: whether the victim draws at random, so that another draw may answer otherwise.
    """

    attack: str
    labels: TileLabels
    rows: Sequence[SheetRow]
    attributes: Sequence[str] = ()
    draws_at_random: bool = False


def make_sheet(
    victim: Victim,
    split: Examples,
    attack: AnyAttack,
    *,
    name: str,
    key: Key,
    batch_size: int,
    columns: int = 10,
    mesh: Mesh | None = None,
) -> Sheet:
    """Attack the first example of each class (then the second, until the columns are full), chosen before any outcome.

    The rows are the clean images, the edited images A(x, a) of an attack by attributes and noise, the attacked images,
    and the noise alone, magnified: what the attacked image has beyond its own edited image, however it was made. Of a
    victim with a purifier they are also the attacked images transformed and purified, in the same draw as the
    predictions; see `spa_jax.victims.purification_stages`.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        attack: with per-example variables.
        name: of the attack, for the title.
        key: of the attack.
        batch_size: as for `evaluate`; the same number there reuses its compiled attack.
        columns: at most how many examples.
        mesh: as for `evaluate`.

    Raises:
        ValueError: `columns` below 1, or an empty split.
    """
    if columns < 1:
        raise ValueError(f"columns={columns} must be at least 1")
    sweep = make_sweep(split, batch_size, mesh)
    placed, is_joint = sweep.place(victim, [attack]), bool(attribute_spaces(attack)) and moves_noise(attack)
    predict, way = sweep.predict(placed), _way(victim, placed)
    attack_key, judge_key = stream(key, "sheet", name), stream(key, "judge sheet", name)

    def look(batch: DeviceBatch) -> Any:
        found, edited = run_attack(attack, placed, attack_key, batch)
        shown = {"clean": batch.images, "attacked": found.x} | ({"edited": edited} if is_joint else {})
        predictions = {row: _predictions(predict, judge_key, batch.index, images) for row, images in shown.items()}
        noise = {"noise": found.x - edited} if moves_noise(attack) else {}
        values = attribute_values(attack, found.variables)
        passed = _stages(way, judge_key, batch.index, found.x)
        own = {"images": shown, "predictions": predictions, "values": values, "stages": passed}
        return own | {"labels": batch.labels} | noise

    found = sweep.run("sheet", look, first_of_each_class(split, columns))
    numbers = {own: names_of_numbers(own, space) for own, space in attribute_spaces(attack).items()}
    return _laid_out(name, found, numbers, is_randomized(placed))


def _way(victim: Victim, placed: Victim) -> Any:
    """`purification_stages` of a victim as a function that crosses a `jit` boundary; a traced one no longer has any."""
    if hasattr(placed, "purification_stages"):
        return Partial(purification_stages, placed)
    return Partial(functools.partial(purification_stages, victim))


@jit_by_kinds
def _stages(way: Any, key: Key, index: Any, images: Images) -> dict[str, Images]:
    return way(example_keys(key, index), images)


@jax.jit
def _predictions(predict: Predict, key: Key, index: Any, images: Images) -> Labels:
    return jnp.argmax(predict(example_keys(key, index), images), axis=-1)


def _laid_out(
    name: str, found: Mapping[str, Any], attributes: Mapping[str, Sequence[str]], draws_at_random: bool
) -> Sheet:
    images, predictions, noise = found["images"], found["predictions"], found.get("noise")
    count = len(found["labels"])
    captions = _captions([found["values"][name] for name in attributes], count)
    names = "".join(f"\n{attribute}" for attribute in attributes)
    rows = [SheetRow("clean", images["clean"], predictions["clean"], [""] * count)]
    if "edited" in images:
        rows.append(SheetRow(f"edited{names}", images["edited"], predictions["edited"], captions))
    title = f"joint{names}\n+ noise" if attributes and noise is not None else f"{name}{names}"
    rows.append(SheetRow(title, images["attacked"], predictions["attacked"], captions))
    passed = {stage: found["stages"][stage] for stage in _STAGES if stage in found["stages"]}
    rows += [SheetRow(stage, shown, None, [""] * count) for stage, shown in passed.items()]
    if noise is not None:
        gain = magnification(noise)
        legend = f"\norange +\nviolet {MINUS}" if noise.shape[-1] == 1 else ""
        title = f"noise {_TIMES} {gain:g}{legend}"
        rows.append(SheetRow(title, 0.5 + gain * noise, None, [""] * count, is_signed=True))
    return Sheet(name, found["labels"], rows, tuple(itertools.chain(*attributes.values())), draws_at_random)


def _captions(values: Sequence[np.ndarray], count: int) -> list[str]:
    """Under each image the numbers of all its attributes, a few a line; of long vectors the first ones."""
    numbers = np.concatenate([np.zeros((count, 0)), *(np.reshape(value, (count, -1)) for value in values)], axis=1)
    return ["\n".join(_lines_of_numbers(row[:_MOST_NUMBERS], len(row))) for row in numbers]


def _lines_of_numbers(numbers: Float[np.ndarray, " m"], total: int) -> list[str]:
    shown = list(map(fewest_digits, numbers)) + ["…"] * (total > len(numbers))
    return [", ".join(shown[i : i + _NUMBERS_A_LINE]) for i in range(0, len(shown), _NUMBERS_A_LINE)]


def sheet_png(sheet: Sheet, model: str, class_names: Sequence[str] | None = None) -> bytes:
    """A sheet drawn: every pixel of an image a square of equal size, under it prediction and attribute value.

    Args:
        sheet: of `make_sheet`.
        model: its name, for the title.
        class_names: default: the numbers of the classes.
    """
    height, width = sheet.rows[0].images.shape[1:3]
    zoom = max(1, round(TILE_PIXELS / max(height, width)))
    tile, text_lines = (width * zoom, height * zoom), [_text_lines(row) for row in sheet.rows]
    left, gap, line, top = 240, 24, 38, 190 if sheet.draws_at_random else 150
    total_height = top + sum(tile[1] + gap + line * lines for lines in text_lines)
    canvas = new_canvas(left + len(sheet.labels) * (tile[0] + gap), total_height)
    _write_heading(canvas, sheet, model)
    y = top
    for row, lines in zip(sheet.rows, text_lines, strict=True):
        canvas.text(gap, y + tile[1] / 2, row.title, 9.0, "black", va="center", ha="left", linespacing=1.35)
        for column, image in enumerate(row.images):
            x = left + column * (tile[0] + gap)
            canvas.image(x, y, magnified(image, zoom, row.is_signed))
            _write_under(canvas, x + tile[0] / 2, y + tile[1] + 6, line, sheet, row, column, class_names)
        y += tile[1] + gap + line * lines
    return as_png(canvas.figure)


def _text_lines(row: SheetRow) -> int:
    captions = max(len(caption.splitlines()) for caption in row.captions)
    return int(row.predictions is not None) + captions


def _write_heading(canvas: Canvas, sheet: Sheet, model: str) -> None:
    attacked = [row for row in sheet.rows if row.predictions is not None][-1]
    right = int(np.sum(attacked.predictions == sheet.labels))
    title = f"{model} under {sheet.attack}: {right} of {len(sheet.labels)} stay right"
    canvas.text(24, 40, title, 12.0, "black", ha="left")
    numbers = [*map(with_unit, sheet.attributes[:_MOST_NUMBERS])] + ["…"] * (len(sheet.attributes) > _MOST_NUMBERS)
    values = f", and {', '.join(numbers)}" if numbers else ""
    explanation = (
        f"First examples of each class, not chosen by outcome. Below: the prediction, ✓ right or ✗ wrong{values}."
    )
    canvas.text(24, 92, explanation, 7.5, MUTED, ha="left")
    if sheet.draws_at_random:
        canvas.text(24, 128, _of_one_draw(sheet), 7.5, MUTED, ha="left")


def _of_one_draw(sheet: Sheet) -> str:
    rows = [row.title for row in sheet.rows if row.title in _STAGES]
    shown = f" and the {'rows' if len(rows) > 1 else 'row'} {' and '.join(rows)}" if rows else ""
    return f"The victim draws at random: predictions{shown} are of one draw; another draw may differ."


def _write_under(
    canvas: Canvas,
    x: Pixels,
    y: Pixels,
    line: int,
    sheet: Sheet,
    row: SheetRow,
    column: int,
    class_names: Sequence[str] | None,
) -> None:
    if row.predictions is None:
        return
    predicted = int(row.predictions[column])
    named = str(predicted) if class_names is None else shortened(class_names[predicted])
    is_right = predicted == sheet.labels[column]
    canvas.text(x, y, f"{'✓' if is_right else '✗'} {named}", 9.0, RIGHT if is_right else WRONG, weight="bold")
    canvas.text(x, y + line, row.captions[column], 7.5, MUTED, linespacing=1.35)


# --- accuracy curves ------------------------------------------------------------------------------------------------

_TITLES = {
    "radius": ("Accuracy under attack, by its radius", "still right under this radius and all smaller ones"),
    "nearest": ("Accuracy by the distance of the nearest image that fools", "still right within this distance"),
    "attribute": ("Accuracy on edited images, without an attack", "right when all are edited by the same value"),
}


_ACROSS = {"radius": "radius", "nearest": "distance"}


def curves_png(curves: Mapping[str, Sequence[Curve]], kind: str) -> bytes:
    """The curves of several models, one panel an attack or attribute, one line a model, with bands of 95 % intervals.

    Args:
        curves: of each model; those of another kind are left out.
        kind: "radius", "nearest" or "attribute".

    Raises:
        ValueError: another kind, or no curve of this one.
    """
    if kind not in _TITLES:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(_TITLES)}")
    names = list(dict.fromkeys(curve.name for own in curves.values() for curve in own if curve.kind == kind))
    if not names:
        raise ValueError(f"curves hold none of kind={kind!r}")
    models = list(curves)
    figure, panels = make_panels(len(names), 0.55 + 0.09 * max(map(len, models)))
    for axes, name in zip(panels, names, strict=True):
        lines = {m: curve for m in models for curve in curves[m] if (curve.kind, curve.name) == (kind, name)}
        _draw_panel(axes, name, kind, lines, models)
    total = max(curve.total for own in curves.values() for curve in own if curve.kind == kind)
    title, measured = _TITLES[kind]
    write_title(figure, title, f"Share of {total} images {measured}; bands: 95 % intervals")
    return as_png(figure)


def _draw_panel(axes: Any, name: str, kind: str, lines: Mapping[str, Curve], models: Sequence[str]) -> None:
    _style_panel(axes, name, kind)
    styles = {}
    for model, curve in lines.items():
        place = models.index(model)
        color, marker = MODEL_COLORS[place % len(MODEL_COLORS)], MARKERS[place % len(MARKERS)]
        styles[model] = {"color": color, "marker": marker, "markersize": 3.5, "linewidth": 1.6}
        low, middle, high = np.array([(100 * p.low, 100 * p.value, 100 * p.high) for p in curve.accuracies]).T
        axes.fill_between(curve.values, low, high, color=color, alpha=0.14, linewidth=0)
        axes.plot(curve.values, middle, markevery=10 if kind == "nearest" else None, **styles[model])
    _label_lines(axes, lines, styles)


def _style_panel(axes: Any, name: str, kind: str) -> None:
    axes.set_title(name, loc="left", fontsize=9.5)
    axes.set_xlabel(with_unit(name) if kind == "attribute" else _ACROSS[kind], fontsize=8)
    axes.set_ylim(-2, 102)
    axes.set_yticks(range(0, 101, 20), [f"{tick} %" for tick in range(0, 101, 20)])
    style_axes(axes)
    if kind == "attribute" and name in EDITS:
        identity = EDITS[name].identity
        axes.axvline(identity, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate("unchanged", (identity, 0), xytext=(3, 2), textcoords="offset points", fontsize=7, color=MUTED)


def _label_lines(axes: Any, lines: Mapping[str, Curve], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Each model's marker and name at the right end of its line, pushed apart where lines meet."""

    def height(model: str) -> tuple[float, float]:
        accuracies = [100 * p.value for p in lines[model].accuracies]
        return accuracies[-1], sum(accuracies)

    ordered = sorted(lines, key=height)
    for model, y in zip(ordered, spread_out([height(model)[0] for model in ordered], 8.0), strict=True):
        across = axes.get_yaxis_transform()
        axes.plot([1.02, 1.055, 1.09], [y] * 3, transform=across, clip_on=False, markevery=[1], **styles[model])
        text = {"va": "center", "fontsize": 8.5, "fontweight": "bold", "color": styles[model]["color"]}
        axes.text(1.11, y, model, transform=across, **text)
