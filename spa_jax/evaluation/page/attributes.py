"""Tables of a page that show at which attribute values attacks fool: a row a model, a column a range of values."""

from collections.abc import Mapping

import numpy as np

from spa_jax.evaluation.drawing import fewest_digits, with_unit
from spa_jax.evaluation.histograms import MOST_PANELS, attribute_histograms, bin_edges
from spa_jax.evaluation.page.markup import Markup, tag
from spa_jax.evaluation.page.tables import table
from spa_jax.evaluation.records import AttributeValues, ModelReport


def value_tables(models: Mapping[str, ModelReport]) -> list[Markup]:
    """For each attack and attribute, at most 12, the share of each model's fooled images by attribute value."""
    found = list(attribute_histograms(models).items())[:MOST_PANELS]
    return [_table(attack, attribute, by_model) for (attack, attribute), by_model in found]


def _table(attack: str, attribute: str, by_model: Mapping[str, AttributeValues]) -> Markup:
    edges = bin_edges(by_model)
    middles = [fewest_digits(middle) for middle in (edges[:-1] + edges[1:]) / 2]
    shares = {model: np.histogram(own.values, edges)[0] / len(own.values) for model, own in by_model.items()}
    largest = max(float(own.max()) for own in shares.values())
    rows = [
        [f"{model} ({len(by_model[model].values):,})", *(_cell(float(share), largest) for share in own)]
        for model, own in shares.items()
    ]
    caption = f"{attack}: {with_unit(attribute)}, middle of each range; in percent of the fooled images of the model"
    return table(caption, ["model (fooled)", *middles], rows, class_="bins")


def _cell(share: float, largest: float) -> Markup:
    return tag("td", f"{100 * share:.0f}", class_="heat", style=f"--share:{share / largest:.4f}")
