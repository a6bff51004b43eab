"""The matrix of models against attacks: trained once, judged once, summed up over seeds."""

import json
import math

import numpy as np
import pytest
from scipy.stats import t

from spa_jax.benchmarks import matrix
from spa_jax.benchmarks.heat_map import heat_map_png
from spa_jax.benchmarks.run import benchmark
from spa_jax.errors import ConfigError
from spa_jax.evaluation.records import AttackRecord, ModelReport
from spa_jax.evaluation.universal import UniversalRecord
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

PGD = {"name": "pgd", "radius": 0.1, "num_steps": 1}
RANDOM = {"name": "attribute", "edit": "rotation", "method": "random", "num_steps": 2}


UNIVERSAL = {
    "universal": {
        "attacks": {"UAP": {"name": "uap", "radius": 0.3}},
        "targets": {"UAP": (0, 1)},
        "num_images": 200,
        "num_epochs": 1,
    }
}


def _config(**changes):
    experiment = tiny_config(baselines=({"name": "pgd", "recipe": {"name": "adversarial", "attack": PGD}},))
    experiment["evaluation"] = experiment["evaluation"] | {"attacks": {"PGD": PGD, "rotation": RANDOM}, **UNIVERSAL}
    experiment["training"] = experiment["training"] | {"num_epochs": 1.0}
    panels = {"noise": {"attacks": {"none": PGD | {"radius": 0.0}}, "models": ("tiny",)}}
    data = experiment.pop("data")
    section = {"experiment": experiment, "seeds": (0, 1), "panels": panels}
    return {"name": "bench", "seed": 0, "data": data, "matrix": section | changes}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("matrix")
    text = benchmark(_config(), workdir)
    return workdir, text, json.loads((workdir / "benchmark.json").read_text())["matrix"]


def test_every_model_stands_under_every_attack(filled):
    workdir, text, rows = filled
    main = [(row["model"], row["attack"]) for row in rows if row["panel"] == "matrix"]
    attacks = ("clean", "PGD", "rotation", "UAP", "worst_case")
    assert main == [(model, attack) for model in ("pgd", "tiny") for attack in attacks]
    assert all(len(row["by_seed"]) == 2 and row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    assert "| pgd |" in text and "## noise" in text
    for picture in ("matrix.png", "noise.png"):
        assert (workdir / picture).read_bytes().startswith(b"\x89PNG")


def test_a_panel_of_no_noise_is_the_clean_accuracy(filled):
    panel = {row["attack"]: row["by_seed"] for row in filled[2] if row["panel"] == "noise"}
    main = {row["attack"]: row["by_seed"] for row in filled[2] if (row["panel"], row["model"]) == ("matrix", "tiny")}
    assert panel["none"] == panel["clean"] == main["clean"]


def test_the_column_of_universal_perturbations_is_the_strongest_and_the_worst_case_withstands_all():
    labels = np.zeros(4, int)
    pgd = AttackRecord(np.array([True, True, True, False]), attacked=4)
    report = ModelReport(labels, np.ones(4, bool), {"PGD": pgd}, survivors_only=False)
    answers = ([0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 2])
    records = [UniversalRecord(labels, labels, np.array(own), 3, {}) for own in answers]
    found = matrix.with_universal(report, {"UAP": records[:2], "CB-UAP": records[2:]})
    assert {name: share.value for name, share in found.items()} == {
        "clean": 1.0,
        "PGD": 0.75,
        "UAP": 0.5,
        "CB-UAP": 0.75,
        "worst_case": 0.25,
    }


def test_what_was_judged_is_read_and_what_has_changed_is_judged_again(filled, monkeypatch):
    workdir, text, _ = filled
    judged = []
    judge = matrix._judge
    monkeypatch.setattr(matrix, "_judge", lambda config, *rest: judged.append(config["name"]) or judge(config, *rest))
    assert benchmark(_config(), workdir) == text
    assert judged == []
    panels = {"noise": {"attacks": {"none": PGD | {"radius": 0.01}}, "models": ("tiny",)}}
    benchmark(_config(panels=panels), workdir)
    assert judged == ["tiny", "tiny"]


def test_the_interval_adds_the_spread_over_seeds_to_that_over_images():
    shares = np.array([0.5, 0.6, 0.7])
    by_images = 1.96 * math.sqrt(0.6 * 0.4 / 40_000)
    by_seeds = t.ppf(0.975, 2) * math.sqrt(0.01 / 3)
    low, high = matrix._interval(shares, 40_000)
    np.testing.assert_allclose([0.6 - low, high - 0.6], math.hypot(by_images, by_seeds), rtol=1e-3)
    low, high = matrix._interval(shares[1:2], 40_000)
    np.testing.assert_allclose([0.6 - low, high - 0.6], by_images, rtol=1e-2)


def test_no_image_of_many_is_not_known_to_be_none():
    """Wilson's bound of 0 in n at 95 % is z^2 / (n + z^2)."""
    np.testing.assert_allclose(matrix._interval(np.zeros(3), 200), (0, 1.96**2 / (200 + 1.96**2)), rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "seeds=.* must hold at least one"),
        ({"panel": {}}, "config.matrix.panel is unknown"),
        (
            {"panels": {"a": {"attacks": {"x": PGD}, "models": ("tinny",)}}},
            "'tinny' is neither a classifier nor a victim.*'tiny'",
        ),
        (
            {"panels": {"a": {"attacks": {"x": PGD | {"step": 1}}, "models": ()}}},
            "attack.*step is unknown|step is unknown",
        ),
    ],
)
def test_a_wrong_section_is_named(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        benchmark(_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_heat_map_needs_rows():
    with pytest.raises(ValueError, match=r"rows=\[\]"):
        heat_map_png([], "nothing")
