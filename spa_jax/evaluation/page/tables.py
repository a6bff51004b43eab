"""Tables of a page: plain ones, and those of accuracies, coloured by height and sortable by every column."""

from collections.abc import Sequence
from typing import Any

from spa_jax.evaluation.page.markup import Markup, tag
from spa_jax.evaluation.records import Proportion


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    sorted_by: str | None = None,
    wide: Sequence[str] = (),
    **attributes: Any,
) -> Markup:
    """A table whose first column names its rows, in a region that scrolls by itself where it is wider than the page.

    Args:
        caption: what it shows.
        header: of the columns.
        rows: cells, each a text or an element `td`.
        sorted_by: the column by which the rows are sorted, the largest first.
        wide: columns of longer texts, which stand on the left.
        attributes: of the element `table`.
    """
    head = tag("tr", *(_heading(title, title == sorted_by, title in wide) for title in header))
    body = [tag("tr", tag("th", first, scope="row"), *map(_cell, others)) for first, *others in rows]
    own = tag("table", tag("caption", tag("span", caption)), tag("thead", head), tag("tbody", *body), **attributes)
    return tag("div", own, class_="scroll", role="region", tabindex="0", aria_label=caption)


def _heading(title: str, is_sorted: bool, is_wide: bool) -> Markup:
    order, kind = "descending" if is_sorted else None, "wide" if is_wide else None
    return tag("th", title, scope="col", aria_sort=order, class_=kind)


def _cell(value: Any) -> Markup:
    return value if isinstance(value, Markup) and value.startswith("<td") else tag("td", value)


def heat(accuracy: Proportion | None, *, best: bool = False) -> Markup:
    """A cell with an accuracy and its interval, coloured by its height; `best` marks the highest of its column."""
    if accuracy is None:
        return tag("td", tag("span", "not measured", class_="muted"), data_sort="-1")
    interval = tag("span", f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}", class_="interval")
    mark = tag("span", " highest", class_="hidden") if best else None
    value = tag("b" if best else "span", percent(accuracy.value), mark, class_="value")
    style = f"--share:{accuracy.value:.4f};--low:{accuracy.low:.4f};--high:{accuracy.high:.4f}"
    return tag("td", value, interval, class_="heat", style=style, data_sort=f"{accuracy.value:.6f}")


def percent(share: float) -> str:
    """A share as report.md writes it."""
    return f"{100 * share:.1f} %"


def scale() -> Markup:
    """The legend of the colour of `heat`, which repeats what the numbers say."""
    steps = [tag("span", class_="heat", style=f"--share:{share / 4}") for share in range(5)]
    return tag("p", "0 %", tag("span", *steps, class_="ramp"), "100 %", class_="scale", aria_hidden="true")
