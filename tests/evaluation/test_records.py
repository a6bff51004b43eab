"""Intervals and records."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from spa_jax.evaluation import AttackRecord, ModelReport, Nearest, Proportion


def test_wilson_interval_agrees_with_published_values():
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    published = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)]
    for correct, total, low, high in published:
        proportion = Proportion(correct, total)
        assert (proportion.low, proportion.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_agrees_with_scipy_and_holds_the_share(counts):
    proportion = Proportion(*counts)
    reference = binomtest(*counts).proportion_ci(0.95, method="wilson")
    assert (proportion.low, proportion.high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert 0 <= proportion.low <= proportion.value <= proportion.high <= 1


def test_proportion_refuses_impossible_counts():
    with pytest.raises(ValueError, match="total=0 must be at least 1"):
        Proportion(0, 0)
    with pytest.raises(ValueError, match=r"correct=3 must lie in 0\.\.total=2"):
        Proportion(3, 2)


def test_proportion_reads_as_in_a_table():
    assert str(Proportion(1, 2)) == "50.0 % [9.5, 90.5]"


def test_model_report_counts_the_worst_case_and_classes():
    clean = np.array([True, True, True, False])
    attacks = {
        "a": AttackRecord(np.array([True, False, True, False]), 3),
        "b": AttackRecord(np.array([True, True, False, False]), 3),
    }
    report = ModelReport(np.array([0, 0, 1, 1]), clean, attacks, survivors_only=False)
    assert report.worst_case.tolist() == [True, False, False, False]
    assert {name: p.correct for name, p in report.accuracies.items()} == {"clean": 3, "a": 2, "b": 2, "worst_case": 1}
    assert {label: p.correct for label, p in report.by_class("a").items()} == {0: 1, 1: 1}
    assert list(ModelReport(report.labels, clean, {}, survivors_only=True).accuracies) == ["clean"]


def test_an_attack_of_a_cascade_was_run_on_what_bounded_ones_before_it_left():
    clean = np.array([True, True, True, False])
    attacks = {
        "a": AttackRecord(np.array([True, False, True, False]), 3),
        "near": AttackRecord(np.zeros(4, bool), 3, nearest=Nearest("l2", np.ones(4))),
        "b": AttackRecord(np.array([True, False, False, False]), 2),
    }
    cascade = ModelReport(np.zeros(4, np.int32), clean, attacks, survivors_only=True)
    each = dataclasses.replace(cascade, survivors_only=False)
    assert {name: int(cascade.attacked(name).sum()) for name in attacks} == {"a": 3, "near": 3, "b": 2}
    assert all(each.attacked(name).tolist() == clean.tolist() for name in attacks)
