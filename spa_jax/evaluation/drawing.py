"""What the pictures of an evaluation share: a canvas measured in pixels, panels, colours, and PNG files in memory."""

import io
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from spa_jax.edits import EDITS

DPI = 200
TILE_PIXELS = 224
RIGHT, WRONG, MUTED, _GRID = "#00785A", "#C24A00", "#5F6368", "#E3E6EA"
MODEL_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe & Ito (2008), distinguishable with all common kinds of colour blindness."""

MARKERS = "osD^vPX"
_FRAME_GREY = 0.87
_NARROWEST_FIGURE, _NARROWEST_SHEET = 6.2, 1400
_LONGEST_NAME = 14
_LEAST_NOISE = 1e-6
MINUS = "\N{MINUS SIGN}"

Pixels: TypeAlias = int | float


class Canvas:
    """A figure measured in pixels from its upper left corner, so that images land on whole pixels."""

    def __init__(self, figure: Any, width: int, height: int) -> None:
        self.figure, self.width, self.height = figure, width, height

    def text(
        self, x: Pixels, y: Pixels, text: str, size: float, color: str, ha: str = "center", **options: Any
    ) -> None:
        """Text at a place, centred below it unless said otherwise."""
        place = {"va": "top", "ha": ha} | options
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, color=color, **place)

    def image(self, x: int, y: int, pixels: Float[np.ndarray, "h w 3"]) -> None:
        """An image whose upper left corner lies at a place."""
        self.figure.figimage(pixels, xo=x, yo=self.height - y - len(pixels))


def new_canvas(width: int, height: int) -> Canvas:
    """A canvas of so many pixels, but wide enough for a heading."""
    from matplotlib.figure import Figure

    width = max(width, _NARROWEST_SHEET)
    return Canvas(Figure(figsize=(width / DPI, height / DPI), dpi=DPI), width, height)


def magnified(image: Float[np.ndarray, "h w c"], zoom: int, is_signed: bool) -> Float[np.ndarray, "hz wz 3"]:
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


def magnification(noise: np.ndarray) -> float:
    """The largest 1, 2 or 5 times a power of ten that keeps 0.5 + magnification * noise in [0, 1], but for rounding."""
    largest = float(np.abs(noise).max()) * (1 - 1e-4)
    if largest < _LEAST_NOISE:
        return 1.0
    power = 10.0 ** math.floor(math.log10(0.5 / largest))
    return max(step * power for step in (1, 2, 5) if step * power * largest <= 0.5)


def fewest_digits(number: Any) -> str:
    """A number as it stands under an image."""
    return f"{number:.3g}".replace("-", MINUS)


def shortened(name: str) -> str:
    """A class's name as it fits under an image, on one line."""
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def with_unit(attribute: str) -> str:
    """An attribute as an axis names it: "rotation in degrees", "value of light", or "smile" for `face[smile]`."""
    if attribute in EDITS:
        return f"{attribute} in {EDITS[attribute].unit}"
    _, _, entry = attribute.removesuffix("]").partition("[")
    return entry if entry and not entry.isdecimal() else f"value of {attribute}"


def make_panels(count: int, label_width: float) -> tuple[Any, list[Any]]:
    """A figure and its panels, laid out in inches; `label_width` is kept free on the right of each."""
    from matplotlib.figure import Figure

    columns = count if count <= 3 else 2 if count == 4 else 3
    rows = -(-count // columns)
    left, panel_width, panel_height, above, below, heading = 0.65, 3.0, 2.1, 0.35, 0.55, 0.62
    cell_width, cell_height = left + panel_width + label_width, above + panel_height + below
    width, height = max(columns * cell_width, _NARROWEST_FIGURE), rows * cell_height + heading
    figure = Figure(figsize=(width, height), dpi=DPI)
    panels = []
    for i in range(count):
        row, column = divmod(i, columns)
        bottom = height - heading - (row + 1) * cell_height + below
        place = (column * cell_width + left, bottom, panel_width, panel_height)
        panels.append(figure.add_axes((place[0] / width, place[1] / height, place[2] / width, place[3] / height)))
    return figure, panels


def style_axes(axes: Any) -> None:
    """A panel's grid, ticks and frame."""
    axes.margins(x=0.02)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)


def spread_out(heights: Sequence[float], distance: float) -> list[float]:
    """Ascending heights moved up, then down, as little as it takes to stay apart and under 100."""
    spread: list[float] = []
    for height in heights:
        spread.append(max(height, spread[-1] + distance) if spread else height)
    ceiling = 100.0
    for i in reversed(range(len(spread))):
        spread[i] = min(spread[i], ceiling)
        ceiling = spread[i] - distance
    return spread


def write_title(figure: Any, title: str, subtitle: str) -> None:
    """A figure's title and what it measures, in the corner that `make_panels` keeps free."""
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 1 - 0.12 / height, title, fontsize=12, va="top")
    figure.text(0.15 / width, 1 - 0.4 / height, subtitle, fontsize=8.5, color=MUTED, va="top")


def without_math(figure: Any) -> Any:
    """The figure, whose texts show `$` as it stands instead of setting a formula: names may hold it."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def as_png(figure: Any) -> bytes:
    """The file's content."""
    buffer = io.BytesIO()
    without_math(figure).savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()
