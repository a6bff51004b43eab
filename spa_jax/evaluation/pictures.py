"""Pictures of an evaluation: attacked examples with their predictions, and accuracy curves, as PNG files in memory."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from spa_jax.attributes import EDITS
from spa_jax.data.types import Examples, IndexArray
from spa_jax.evaluation.accuracy import run_attack
from spa_jax.evaluation.records import Curve
from spa_jax.evaluation.sweep import DeviceBatch, example_keys, make_sweep, stream
from spa_jax.parallel import replicate
from spa_jax.trees import as_pytree
from spa_jax.types import Attack, Images, Key, Labels, Predict

_DPI = 200
_TILE_PIXELS = 224
_RIGHT, _WRONG, _MUTED, _GRID = "#00785A", "#C24A00", "#5F6368", "#E3E6EA"
_MODEL_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe & Ito (2008), told apart by all common kinds of colour blindness."""

_MARKERS = "osD^vPX"
_LABELLED_EXAMPLES = 1000
_LONGEST_NAME = 14
_FRAME_GREY = 0.87
_NARROWEST_FIGURE = 6.2
_NARROWEST_SHEET = 1400
_TIMES, _MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"

TileImages: TypeAlias = Float[np.ndarray, "m h w c"]
TileLabels: TypeAlias = Int[np.ndarray, " m"]
Pixels: TypeAlias = int | float


# --- the sheet of examples ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SheetRow:
    """One row of a sheet.

    Attributes:
        title: what the row shows.
        images: in [0, 1].
        predictions: the victim's, or None for a row that was not shown to it.
        captions: what else stands under each image.
    """

    title: str
    images: TileImages
    predictions: TileLabels | None
    captions: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Some examples as they are, edited, and attacked, with a victim's predictions.

    Attributes:
        attack: its name.
        labels: the true classes.
        rows: from top to bottom.
        attributes: names of the edits whose values stand under the images, in their order.
    """

    attack: str
    labels: TileLabels
    rows: Sequence[SheetRow]
    attributes: Sequence[str] = ()


def make_sheet(
    predict: Predict,
    split: Examples,
    attack: Attack,
    *,
    name: str,
    key: Key,
    batch_size: int,
    columns: int = 10,
    mesh: Mesh | None = None,
) -> Sheet:
    """Attack the first example of each class (then the second, until the columns are full), chosen before any outcome.

    The rows are the clean images, for `spa_jax.spa` the images at its attribute-only optimum, the attacked images, and
    the noise alone, magnified.

    Args:
        predict: the victim.
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
    predict = replicate(as_pytree(predict), sweep.mesh)
    attack_key, judge_key = stream(key, "sheet", name), stream(key, "judge sheet", name)

    def look(batch: DeviceBatch) -> Any:
        found = run_attack(as_pytree(attack), predict, attack_key, batch)
        shown = {"clean": batch.images, "attacked": found.x}
        if hasattr(found, "edited"):
            shown["edited"] = found.edited.x
        predictions = {row: _predictions(predict, judge_key, batch.index, images) for row, images in shown.items()}
        variables = {"attacked": found.variables} | ({"edited": found.edited.variables} if "edited" in shown else {})
        return {"images": shown, "predictions": predictions, "variables": variables, "labels": batch.labels}

    return _laid_out(name, sweep.run("sheet", look, _of_each_class(split, columns)))


def _of_each_class(split: Examples, columns: int) -> IndexArray:
    labels = split.labels
    if labels is None:
        labels = split.take(np.arange(min(len(split), _LABELLED_EXAMPLES)))["label"]
    nth_of_class = np.zeros(len(labels), int)
    for label in np.unique(labels):
        nth_of_class[labels == label] = np.arange(np.sum(labels == label))
    chosen = np.lexsort((labels, nth_of_class))[:columns]
    return chosen[np.argsort(labels[chosen], kind="stable")]


@jax.jit
def _predictions(predict: Predict, key: Key, index: Any, images: Images) -> Labels:
    return jnp.argmax(predict(example_keys(key, index), images), axis=-1)


def _laid_out(name: str, found: Mapping[str, Any]) -> Sheet:
    clean, attacked = found["images"]["clean"], found["images"]["attacked"]
    attributes, noise = _parts(found["variables"]["attacked"])
    names = "".join(f"\n{attribute}" for attribute in attributes)
    rows = [SheetRow("clean", clean, found["predictions"]["clean"], [""] * len(clean))]
    if "edited" in found["images"]:
        captions = _captions(_parts(found["variables"]["edited"])[0], len(clean))
        rows.append(SheetRow(f"edited{names}", found["images"]["edited"], found["predictions"]["edited"], captions))
    title = f"joint{names}\n+ noise" if attributes and noise is not None else f"{name}{names}"
    captions = _captions(attributes, len(clean))
    rows.append(SheetRow(title, attacked, found["predictions"]["attacked"], captions))
    if noise is not None:
        gain = _gain(noise)
        legend = f"\norange +\nviolet {_MINUS}" if noise.shape[-1] == 1 else ""
        rows.append(SheetRow(f"noise {_TIMES} {gain:g}{legend}", 0.5 + gain * noise, None, [""] * len(clean)))
    return Sheet(name, found["labels"], rows, tuple(attributes))


def _parts(variables: Any) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The attribute values by name, [m] each, and the noise [m, h, w, c] where there is any."""
    named = variables if isinstance(variables, Mapping) else {"value": variables}
    named = {name: value for name, value in named.items() if isinstance(value, np.ndarray)}
    noises = [value for value in named.values() if value.ndim == 4]
    return {name: value for name, value in named.items() if value.ndim == 1}, noises[0] if noises else None


def _captions(attributes: Mapping[str, np.ndarray], count: int) -> list[str]:
    columns = [[f"{number:.3g}".replace("-", _MINUS) for number in value] for value in attributes.values()]
    return [", ".join(column[i] for column in columns) for i in range(count)]


def _gain(noise: np.ndarray) -> float:
    """The largest 1, 2 or 5 times a power of ten that keeps 0.5 + gain * noise in [0, 1], but for rounding."""
    largest = float(np.abs(noise).max()) * (1 - 1e-4)
    if largest == 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(0.5 / largest))
    return max(step * power for step in (1, 2, 5) if step * power * largest <= 0.5)


def sheet_png(sheet: Sheet, model: str, class_names: Sequence[str] | None = None) -> bytes:
    """A sheet drawn: every pixel of an image a square of equal size, under it prediction and attribute value.

    Args:
        sheet: of `make_sheet`.
        model: its name, for the title.
        class_names: default: the numbers of the classes.
    """
    from matplotlib.figure import Figure

    height, width = sheet.rows[0].images.shape[1:3]
    zoom = max(1, round(_TILE_PIXELS / max(height, width)))
    tile, text_lines = (width * zoom, height * zoom), [_text_lines(row) for row in sheet.rows]
    left, gap, line, top = 240, 24, 38, 150
    total_width = max(left + len(sheet.labels) * (tile[0] + gap), _NARROWEST_SHEET)
    total_height = top + sum(tile[1] + gap + line * lines for lines in text_lines)
    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI)
    canvas = _Canvas(figure, total_width, total_height)
    _write_heading(canvas, sheet, model)
    y = top
    for row, lines in zip(sheet.rows, text_lines, strict=True):
        canvas.text(gap, y + tile[1] / 2, row.title, 9.0, "black", va="center", ha="left", linespacing=1.35)
        for column, image in enumerate(row.images):
            x = left + column * (tile[0] + gap)
            canvas.image(x, y, _magnified(image, zoom, row.predictions is None))
            _write_under(canvas, x + tile[0] / 2, y + tile[1] + 6, line, sheet, row, column, class_names)
        y += tile[1] + gap + line * lines
    return _png(figure)


def _text_lines(row: SheetRow) -> int:
    return int(row.predictions is not None) + int(any(row.captions))


def _write_heading(canvas: "_Canvas", sheet: Sheet, model: str) -> None:
    attacked = [row for row in sheet.rows if row.predictions is not None][-1]
    right = int(np.sum(attacked.predictions == sheet.labels))
    title = f"{model} under {sheet.attack}: {right} of {len(sheet.labels)} stay right"
    canvas.text(24, 40, title, 12.0, "black", ha="left")
    values = f", and {', '.join(map(_with_unit, sheet.attributes))}" if sheet.attributes else ""
    explanation = (
        f"First examples of each class, not chosen by outcome. Below: the prediction, ✓ right or ✗ wrong{values}."
    )
    canvas.text(24, 92, explanation, 7.5, _MUTED, ha="left")


def _write_under(
    canvas: "_Canvas",
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
    named = str(predicted) if class_names is None else _shortened(class_names[predicted])
    is_right = predicted == sheet.labels[column]
    canvas.text(x, y, f"{'✓' if is_right else '✗'} {named}", 9.0, _RIGHT if is_right else _WRONG, weight="bold")
    canvas.text(x, y + line, row.captions[column], 7.5, _MUTED)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


class _Canvas:
    """A figure measured in pixels from its upper left corner, so that images land on whole pixels."""

    def __init__(self, figure: Any, width: int, height: int) -> None:
        self.figure, self.width, self.height = figure, width, height

    def text(
        self, x: Pixels, y: Pixels, text: str, size: float, color: str, ha: str = "center", **options: Any
    ) -> None:
        place = {"va": "top", "ha": ha} | options
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, color=color, **place)

    def image(self, x: int, y: int, pixels: Float[np.ndarray, "h w 3"]) -> None:
        self.figure.figimage(pixels, xo=x, yo=self.height - y - len(pixels))


def _magnified(image: Float[np.ndarray, "h w c"], zoom: int, is_signed: bool) -> Float[np.ndarray, "hz wz 3"]:
    """The image in colour, each pixel `zoom` pixels wide and high; signed grey values 0..1 as violet, white, orange."""
    if image.shape[-1] == 3:
        colored = image
    elif is_signed:
        from matplotlib import colormaps

        colored = colormaps["PuOr_r"](0.15 + 0.7 * image[..., 0])[..., :3]
    else:
        colored = np.repeat(image[..., :1], 3, axis=-1)
    framed = np.repeat(np.repeat(colored.clip(0, 1), zoom, axis=0), zoom, axis=1)
    framed[[0, -1]] = framed[:, [0, -1]] = _FRAME_GREY
    return framed


# --- accuracy curves ------------------------------------------------------------------------------------------------

_TITLES = {
    "radius": ("Accuracy under attack, by its radius", "still right under this radius and all smaller ones"),
    "attribute": ("Accuracy on edited images, without an attack", "right when all are edited by the same value"),
}


def curves_png(curves: Mapping[str, Sequence[Curve]], kind: str) -> bytes:
    """The curves of several models, one panel an attack or attribute, one line a model, with bands of 95 % intervals.

    Args:
        curves: of each model; those of another kind are left out.
        kind: "radius" or "attribute".

    Raises:
        ValueError: another kind, or no curve of this one.
    """
    if kind not in _TITLES:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(_TITLES)}")
    names = list(dict.fromkeys(curve.name for own in curves.values() for curve in own if curve.kind == kind))
    if not names:
        raise ValueError(f"curves hold none of kind={kind!r}")
    models = list(curves)
    figure, panels = _panels(len(names), 0.55 + 0.09 * max(map(len, models)))
    for axes, name in zip(panels, names, strict=True):
        lines = {m: curve for m in models for curve in curves[m] if (curve.kind, curve.name) == (kind, name)}
        _draw_panel(axes, name, kind, lines, models)
    total = max(curve.total for own in curves.values() for curve in own if curve.kind == kind)
    title, measured = _TITLES[kind]
    _write_title(figure, title, f"Share of {total} images {measured}; bands: 95 % intervals")
    return _png(figure)


def _panels(count: int, label_width: float) -> tuple[Any, list[Any]]:
    """A figure and its panels, laid out in inches; `label_width` is kept free on the right of each."""
    from matplotlib.figure import Figure

    columns = count if count <= 3 else 2 if count == 4 else 3
    rows = -(-count // columns)
    left, panel_width, panel_height, above, below, heading = 0.65, 3.0, 2.1, 0.35, 0.55, 0.62
    cell_width, cell_height = left + panel_width + label_width, above + panel_height + below
    width, height = max(columns * cell_width, _NARROWEST_FIGURE), rows * cell_height + heading
    figure = Figure(figsize=(width, height), dpi=_DPI)
    panels = []
    for i in range(count):
        row, column = divmod(i, columns)
        bottom = height - heading - (row + 1) * cell_height + below
        place = (column * cell_width + left, bottom, panel_width, panel_height)
        panels.append(figure.add_axes((place[0] / width, place[1] / height, place[2] / width, place[3] / height)))
    return figure, panels


def _draw_panel(axes: Any, name: str, kind: str, lines: Mapping[str, Curve], models: Sequence[str]) -> None:
    _style_panel(axes, name, kind)
    styles = {}
    for model, curve in lines.items():
        place = models.index(model)
        color, marker = _MODEL_COLORS[place % len(_MODEL_COLORS)], _MARKERS[place % len(_MARKERS)]
        styles[model] = {"color": color, "marker": marker, "markersize": 3.5, "linewidth": 1.6}
        low, middle, high = np.array([(100 * p.low, 100 * p.value, 100 * p.high) for p in curve.accuracies]).T
        axes.fill_between(curve.values, low, high, color=color, alpha=0.14, linewidth=0)
        axes.plot(curve.values, middle, **styles[model])
    _label_lines(axes, lines, styles)


def _with_unit(attribute: str) -> str:
    return f"{attribute} in {EDITS[attribute].unit}" if attribute in EDITS else f"value of {attribute}"


def _style_panel(axes: Any, name: str, kind: str) -> None:
    axes.set_title(name, loc="left", fontsize=9.5)
    axes.set_xlabel("radius" if kind == "radius" else _with_unit(name), fontsize=8)
    axes.set_ylim(-2, 102)
    axes.set_yticks(range(0, 101, 20), [f"{tick} %" for tick in range(0, 101, 20)])
    axes.margins(x=0.02)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=_MUTED, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_MUTED)
    if kind == "attribute" and name in EDITS:
        identity = EDITS[name].identity
        axes.axvline(identity, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate("unchanged", (identity, 0), xytext=(3, 2), textcoords="offset points", fontsize=7, color=_MUTED)


def _label_lines(axes: Any, lines: Mapping[str, Curve], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Each model's marker and name at the right end of its line, pushed apart where lines meet."""

    def height(model: str) -> tuple[float, float]:
        accuracies = [100 * p.value for p in lines[model].accuracies]
        return accuracies[-1], sum(accuracies)

    ordered = sorted(lines, key=height)
    for model, y in zip(ordered, _spread([height(model)[0] for model in ordered], 8.0), strict=True):
        across = axes.get_yaxis_transform()
        axes.plot([1.02, 1.055, 1.09], [y] * 3, transform=across, clip_on=False, markevery=[1], **styles[model])
        text = {"va": "center", "fontsize": 8.5, "fontweight": "bold", "color": styles[model]["color"]}
        axes.text(1.11, y, model, transform=across, **text)


def _spread(heights: Sequence[float], distance: float) -> list[float]:
    """Ascending heights moved up, then down, as little as it takes to stay apart and under 100."""
    spread: list[float] = []
    for height in heights:
        spread.append(max(height, spread[-1] + distance) if spread else height)
    ceiling = 100.0
    for i in reversed(range(len(spread))):
        spread[i] = min(spread[i], ceiling)
        ceiling = spread[i] - distance
    return spread


def _write_title(figure: Any, title: str, subtitle: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 1 - 0.12 / height, title, fontsize=12, va="top")
    figure.text(0.15 / width, 1 - 0.4 / height, subtitle, fontsize=8.5, color=_MUTED, va="top")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    return buffer.getvalue()
