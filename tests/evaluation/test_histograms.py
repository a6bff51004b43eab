"""Attribute values of fooled images: records of numbers and vectors, and the panels drawn of them."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from spa_jax.evaluation import AttackRecord, AttributeValues, ModelReport, histograms, histograms_png
from spa_jax.evaluation.drawing import with_unit


def report(attributes):
    flags = np.ones(4, bool)
    return ModelReport(np.zeros(4, np.int32), flags, {"joint": AttackRecord(flags, 4, attributes=attributes)}, False)


def values(count=50, low=-1.0, high=1.0, seed=0):
    drawn = np.random.default_rng(seed).uniform(low, high, count).astype(np.float32)
    return AttributeValues(drawn, low, high)


def test_a_vector_is_recorded_number_by_number():
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = AttributeValues.of(["smile", "age"], vectors, np.array([-1.0, -2.0]), np.array([1.0, 2.0]))
    assert list(found) == ["smile", "age"]
    np.testing.assert_array_equal(found["age"].values, [1, 3, 5])
    assert (found["age"].low, found["age"].high) == (-2, 2)
    assert list(AttributeValues.of(["smile"], vectors[:, :1], np.array([-1.0]), np.array([1.0]))) == ["smile"]
    number = AttributeValues.of(["angle"], vectors[:, 0], -1.0, 1.0)["angle"]
    np.testing.assert_array_equal(number.values, [0, 2, 4])


def test_models_are_gathered_by_attack_and_attribute():
    found = histograms.attribute_histograms(
        {
            "a": report({"rotation": values(), "hue": values()}),
            "b": report({"rotation": values(seed=1)}),
            "c": report({}),
        }
    )
    assert {panel: list(models) for panel, models in found.items()} == {
        ("joint", "rotation"): ["a", "b"],
        ("joint", "hue"): ["a"],
    }


@pytest.mark.parametrize(
    ("attribute", "label"),
    [
        ("rotation", "rotation in degrees"),
        ("light", "value of light"),
        ("face[smile]", "smile"),
        ("face[0]", "value of face[0]"),
    ],
)
def test_an_axis_names_its_attribute(attribute, label):
    assert with_unit(attribute) == label


def test_bins_hold_every_value():
    wide = AttributeValues(np.array([-3.0, 0.5], np.float32), -1.0, 1.0)
    edges = histograms.bin_edges({"a": wide, "b": values()})
    assert (edges[0], edges[-1], len(edges)) == (-3, 1, 21)
    point = AttributeValues(np.array([2.0], np.float32), 2.0, 2.0)
    assert histograms.bin_edges({"a": point})[0] < 2 < histograms.bin_edges({"a": point})[-1]


def test_the_picture_grows_with_the_attributes_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(histograms, "MOST_PANELS", 4)

    def drawn(count):
        return imread(io.BytesIO(histograms_png({"a": report({f"face[{i}]": values() for i in range(count)})})))

    assert drawn(1).shape[0] < drawn(4).shape[0] == drawn(6).shape[0]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="models a hold no attribute values"):
        histograms_png({"a": report({})})
