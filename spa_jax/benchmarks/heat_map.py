"""The picture of a matrix: models down, attacks across, accuracy as colour and number."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spa_jax.evaluation.contents import condition_title
from spa_jax.evaluation.drawing import without_math

_CELL_WIDTH, _CELL_HEIGHT, _DPI = 0.95, 0.42, 180
_DARK_BELOW = 0.55


def heat_map_png(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """A heat map of rows with `model`, `attack` and `accuracy` in [0, 1], in the order in which they come.

    Args:
        rows: of one panel.
        title: what the rows are the accuracy of.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("rows=[] must hold at least one")
    models, attacks = (list(dict.fromkeys(row[name] for row in rows)) for name in ("model", "attack"))
    shares = np.full((len(models), len(attacks)), np.nan)
    for row in rows:
        shares[models.index(row["model"]), attacks.index(row["attack"])] = row["accuracy"]
    return _drawn(shares, models, attacks, title)


def _drawn(shares: np.ndarray, models: Sequence[str], attacks: Sequence[str], title: str) -> bytes:
    from matplotlib.figure import Figure

    size = (2.2 + _CELL_WIDTH * len(attacks), 1.7 + _CELL_HEIGHT * len(models))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    titles = [condition_title(name, survivors_only=False) for name in attacks]
    axes.set_xticks(range(len(attacks)), titles, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(models)), models, fontsize=8)
    axes.set_title(f"Accuracy of {title}, %", loc="left", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    best = np.nanmax(shares, axis=0)
    for (i, j), share in np.ndenumerate(shares):
        if not np.isnan(share):
            color, weight = ("white" if share < _DARK_BELOW else "black"), ("bold" if share == best[j] else "normal")
            axes.text(j, i, f"{100 * share:.1f}", ha="center", va="center", color=color, fontsize=8, weight=weight)
    content = io.BytesIO()
    without_math(figure).savefig(content, dpi=_DPI, format="png", facecolor="white")
    return content.getvalue()
