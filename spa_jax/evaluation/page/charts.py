"""Curves as SVG inside a page: one panel an attack or attribute, one line a model, with the numbers as a table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from spa_jax.edits import EDITS
from spa_jax.evaluation.drawing import MINUS, Pixels, spread_out, with_unit
from spa_jax.evaluation.page.markup import Markup, join, tag
from spa_jax.evaluation.page.tables import heat, table
from spa_jax.evaluation.records import Curve

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 112, 14, 44
_LONGEST_LABEL = 16
CURVE_KINDS = ("radius", "nearest", "attribute")
_MEASURED = {
    "radius": "right under this radius and all smaller ones",
    "nearest": "still right within this distance",
    "attribute": "right when all are edited by this value",
}

_ACROSS = {"radius": "radius", "nearest": "distance"}

Scale: TypeAlias = Callable[[Pixels], Pixels]
"""From a value to where it lies across, in units of the drawing."""

_COLORS = 7
_MOST_MARKERS = 20
_MARKERS = {
    0: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    1: "M-3.6,-3.6h7.2v7.2h-7.2z",
    2: "M0,-4.8L4.8,0L0,4.8L-4.8,0z",
    3: "M0,-4.6L4.6,3.6L-4.6,3.6z",
    4: "M0,4.6L4.6,-3.6L-4.6,-3.6z",
    5: "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    6: "M-4.5,-2.4L-2.4,-4.5L0,-2.1L2.4,-4.5L4.5,-2.4L2.1,0L4.5,2.4L2.4,4.5L0,2.1L-2.4,4.5L-4.5,2.4L-2.1,0z",
}


def curve_figures(curves: Mapping[str, Sequence[Curve]], kind: str) -> list[Markup]:
    """A figure for each curve of a kind, one of `CURVE_KINDS`, that some model has.

    Args:
        curves: of each model.
        kind: of `Curve`.
    """
    names = dict.fromkeys(curve.name for own in curves.values() for curve in own if curve.kind == kind)
    models = list(curves)
    return [
        _figure(
            kind,
            name,
            {m: curve for m in models for curve in curves[m] if (curve.kind, curve.name) == (kind, name)},
            models,
            f"{kind}-{number}",
        )
        for number, name in enumerate(names)
    ]


def _figure(kind: str, name: str, lines: Mapping[str, Curve], models: Sequence[str], identifier: str) -> Markup:
    of = f"by {with_unit(name)}" if kind == "attribute" else f"{name}, by {_ACROSS[kind]}"
    total = max(curve.total for curve in lines.values())
    heading = tag("h3", f"Accuracy {of}" if kind == "attribute" else f"Accuracy under {of}", id=identifier)
    caption = tag("figcaption", f"Share of {total} images {_MEASURED[kind]}. Bands: 95 % intervals.")
    rows = [[_number(value), *cells] for value, cells in _cells(lines)]
    numbers = table(f"Numbers of the curve {of}", [_ACROSS.get(kind, name), *lines], rows)
    details = tag("details", tag("summary", "Numbers as a table"), numbers)
    return tag(
        "figure", heading, _svg(kind, name, lines, models, f"{identifier}-svg"), caption, details, class_="curve"
    )


def _cells(lines: Mapping[str, Curve]) -> Iterator[tuple[Pixels, list[Markup]]]:
    known = {model: dict(zip(curve.values, curve.accuracies, strict=True)) for model, curve in lines.items()}
    for value in sorted({value for own in known.values() for value in own}):
        yield value, [heat(own.get(value)) for own in known.values()]


def _svg(kind: str, name: str, lines: Mapping[str, Curve], models: Sequence[str], identifier: str) -> Markup:
    values = [value for curve in lines.values() for value in curve.values]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def x(value: Pixels) -> Pixels:
        return _LEFT + (value - low) / span * (_WIDTH - _LEFT - _RIGHT)

    against = name if kind == "attribute" else f"the {_ACROSS[kind]} of {name}"
    title = tag("title", f"Accuracy against {against}", id=identifier)
    words = tag("desc", _in_words(lines), id=f"{identifier}-words")
    parts = [_axes(kind, name, low, high, x), *(_line(curve, models.index(m), x) for m, curve in lines.items())]
    parts.append(_labels(lines, models))
    named = f"{identifier} {identifier}-words"
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    return tag("svg", title, words, *parts, viewBox=box, role="img", aria_labelledby=named)


def _in_words(lines: Mapping[str, Curve]) -> str:
    told = []
    for model, curve in lines.items():
        first, last = curve.accuracies[0], curve.accuracies[-1]
        ends = (_number(curve.values[0]), f"{100 * first.value:.0f} %", _number(curve.values[-1]))
        told.append(f"{model}: {ends[1]} at {ends[0]}, {100 * last.value:.0f} % at {ends[2]}")
    return f"{'; '.join(told)}. All numbers are in the table below."


def _y(share: Pixels) -> Pixels:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _axes(kind: str, name: str, low: Pixels, high: Pixels, x: Scale) -> Markup:
    right, bottom = _WIDTH - _RIGHT, _y(0)
    parts = []
    for share in range(0, 101, 20):
        y = f"{_y(share / 100):.1f}"
        parts.append(tag("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{share} %", x=_LEFT - 8, y=y, class_="tick end"))
    if kind == "attribute" and name in EDITS and low <= EDITS[name].identity <= high:
        at = f"{x(EDITS[name].identity):.1f}"
        parts.append(tag("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="identity"))
        parts.append(tag("text", "unchanged", x=float(at) + 4, y=bottom - 7, class_="tick"))
    for tick in _ticks(low, high):
        parts.append(tag("text", _number(tick), x=f"{x(tick):.1f}", y=bottom + 15, class_="tick middle"))
    title = with_unit(name) if kind == "attribute" else _ACROSS[kind]
    parts.append(tag("text", title, x=(_LEFT + right) / 2, y=_HEIGHT - 6, class_="axis middle"))
    return tag("g", *parts, aria_hidden="true")


def _ticks(low: Pixels, high: Pixels) -> list[Pixels]:
    """About five round numbers from low to high."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = min((power * n for n in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough))
    first = int(np.ceil(low / step - 1e-9))
    return [round(i * step, 10) for i in range(first, int(np.floor(high / step + 1e-9)) + 1)]


def _line(curve: Curve, place: int, x: Scale) -> Markup:
    points = [(x(value), share) for value, share in zip(curve.values, curve.accuracies, strict=True)]
    upper = [f"{across:.1f},{_y(share.high):.1f}" for across, share in points]
    lower = [f"{across:.1f},{_y(share.low):.1f}" for across, share in reversed(points)]
    middle = "L".join(f"{across:.1f},{_y(share.value):.1f}" for across, share in points)
    band = tag("path", d=f"M{'L'.join(upper + lower)}z", class_="band")
    every = max(1, len(points) // _MOST_MARKERS)
    marks = [_marker(place, across, _y(share.value)) for across, share in points[::every]]
    return tag("g", band, tag("path", d=f"M{middle}", class_="line"), *marks, class_=_color(place), aria_hidden="true")


def _marker(place: int, x: Pixels, y: Pixels) -> Markup:
    shape = _MARKERS[(place + place // _COLORS) % len(_MARKERS)]  # after the last colour other pairs
    return tag("path", d=shape, transform=f"translate({x:.1f} {y:.1f})", class_="marker")


def _color(place: int) -> str:
    return f"series c{place % _COLORS}"


def _labels(lines: Mapping[str, Curve], models: Sequence[str]) -> Markup:
    """Each model's marker and name at the right end of its line, pushed apart where lines meet."""
    ends = {model: 100 * curve.accuracies[-1].value for model, curve in lines.items()}
    ordered = sorted(ends, key=lambda model: (ends[model], sum(lines[model].correct)))
    labels = []
    for model, height in zip(ordered, spread_out([ends[model] for model in ordered], 8.0), strict=True):
        y, place = _y(height / 100), models.index(model)
        text = model if len(model) <= _LONGEST_LABEL else f"{model[: _LONGEST_LABEL - 1]}…"
        name = tag("text", text, x=_WIDTH - _RIGHT + 24, y=f"{y:.1f}", class_="label")
        labels.append(tag("g", _marker(place, _WIDTH - _RIGHT + 13, y), name, class_=_color(place)))
    return tag("g", join(labels), aria_hidden="true")


def _number(value: Pixels) -> str:
    return f"{value:.4g}".replace("-", MINUS)
