"""At which attribute values an attack fools, as histograms (after SIA, Gao et al. 2023, arXiv 2303.13010)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from spa_jax.edits import EDITS
from spa_jax.evaluation.drawing import MODEL_COLORS, MUTED, as_png, make_panels, style_axes, with_unit, write_title
from spa_jax.evaluation.records import AttributeValues, ModelReport

_BINS = 20
MOST_PANELS = 12
_WIDTH_OF_LETTER = 0.07


def attribute_histograms(models: Mapping[str, ModelReport]) -> dict[tuple[str, str], dict[str, AttributeValues]]:
    """For each attack and attribute, the values at which it fooled each model, without models that it never fooled.

    Args:
        models: by name.
    """
    found: dict[tuple[str, str], dict[str, AttributeValues]] = {}
    for model, report in models.items():
        for attack, record in report.attacks.items():
            for attribute, values in record.attributes.items():
                found.setdefault((attack, attribute), {})[model] = values
    return found


def histograms_png(models: Mapping[str, ModelReport]) -> bytes:
    """The histograms drawn: one panel for each attack and attribute, at most 12, and one outline a model.

    The range is the one that the attack was given, in 20 bins, wider where a value lies outside of it (an image's own
    value may). The height is the share of the model's fooled images, whose number stands beside its name.

    Args:
        models: by name.

    Raises:
        ValueError: no attack fooled a model by an attribute.
    """
    found = attribute_histograms(models)
    if not found:
        raise ValueError(f"models {', '.join(models)} hold no attribute values of fooled images")
    shown = dict(list(found.items())[:MOST_PANELS])
    figure, panels = make_panels(len(shown), 0.3 + _WIDTH_OF_LETTER * (max(map(len, models)) + 8))
    for axes, ((attack, attribute), by_model) in zip(panels, shown.items(), strict=True):
        _draw(axes, attack, attribute, by_model, list(models))
    left_out = f" (the first {len(shown)} of {len(found)} attributes)" if len(shown) < len(found) else ""
    write_title(figure, "Attribute values at which attacks fool", f"Share of each model's fooled images{left_out}")
    return as_png(figure)


def _draw(axes: Any, attack: str, attribute: str, by_model: Mapping[str, AttributeValues], models: list[str]) -> None:
    edges = bin_edges(by_model)
    for place, (model, own) in enumerate(by_model.items()):
        color = MODEL_COLORS[models.index(model) % len(MODEL_COLORS)]
        shares = 100 * np.histogram(own.values, edges)[0] / len(own.values)
        axes.stairs(shares, edges, color=color, linewidth=1.6)
        axes.stairs(shares, edges, color=color, alpha=0.12, fill=True)
        text = {"va": "top", "fontsize": 8.5, "fontweight": "bold", "color": color, "transform": axes.transAxes}
        axes.text(1.03, 1 - 0.1 * place, f"{model} ({len(own.values)})", **text)
    axes.set_title(f"{attack}: {attribute}", loc="left", fontsize=9.5)
    axes.set_xlabel(with_unit(attribute), fontsize=8)
    axes.set_ylim(bottom=0)
    style_axes(axes)
    axes.yaxis.set_major_formatter("{x:g} %")
    if attribute in EDITS and edges[0] <= EDITS[attribute].identity <= edges[-1]:
        axes.axvline(EDITS[attribute].identity, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)


def bin_edges(by_model: Mapping[str, AttributeValues]) -> Float[np.ndarray, " edges"]:
    """The 21 edges of the bins of one attribute, which all models share."""
    low = min(min(own.low, float(own.values.min())) for own in by_model.values())
    high = max(max(own.high, float(own.values.max())) for own in by_model.values())
    margin = 0 if high > low else 0.5
    return np.linspace(low - margin, high + margin, _BINS + 1)
