"""Planted defences: what a row says, of defences whose truth is known, and what a config may ask for."""

import json
import types

import jax
import numpy as np
import pytest

from spa_jax import pgd
from spa_jax.benchmarks import planted
from spa_jax.benchmarks.defences import DEFENCES, UNDEFENDED, dct_quantised, median
from spa_jax.benchmarks.planted import check_planted, judge_defence, knowing
from spa_jax.benchmarks.run import benchmark
from spa_jax.errors import ConfigError
from spa_jax.evaluation import Proportion, evaluate
from spa_jax.evaluation.records import AttackRecord, Check, ModelReport
from spa_jax.runs.config_files import load_config
from tests import digits_network
from tests.analytic_victims import images

pytestmark = pytest.mark.usefixtures("quick_compilation")


def section(argument=""):
    return load_config(f"configs/bench_planted.py:{argument}")["planted"]


def judged(name, **options):
    network, split = digits_network.trained(), digits_network.split(32)
    options = {"parts": ["APGD-CE"], "queries": 100} | options
    return judge_defence(DEFENCES[name], network, digits_network.stored(), split, 0.15, **options)


def test_what_hides_the_decision_from_gradients_claims_all_and_keeps_little():
    row = judged("one-hot")
    assert row["pgd_20"] == row["apgd_ce"] == row["cascade"] == row["clean"] > 0.9
    assert row["true_at_most"] <= row["alone"]["transfer"] < 0.5 and row["strongest"].startswith("transfer")
    assert row["caught_by"] == "alarm" and row["cause"] == "the victim passes no gradient"
    assert {"gradients", "margin_gradients", "label_only[linf 0.15]"} <= set(row["alarms"])


def test_what_draws_is_judged_over_draws_and_by_the_cascade_for_it(monkeypatch):
    asked = {}
    flags = np.arange(32) < 16
    shares = np.where(flags, 0.25, 1.0)
    records = {name: AttackRecord(flags, 32, failed=shares) for name in ("PGD-20", "APGD-CE")}
    report = ModelReport(np.zeros(32, int), flags, records, False, draws=4, failed=shares)

    def card(*_, **options):
        asked.update(options)
        return types.SimpleNamespace(robust=Proportion(14, 32), warnings=[])

    monkeypatch.setattr(planted, "autoattack", card)
    monkeypatch.setattr(planted, "evaluate", lambda *_, **options: report)
    row = judged("noise and resize", parts=["Square"])
    assert (asked["version"], asked["parts"]) == ("rand", None)
    assert (row["true_at_most"], row["cascade"], row["pgd_20"]) == (0.375, 14 / 32, 0.5)
    assert row["caught_by"] == "cascade" and row["cause"] == "", "14 of 32 may be 12"


def alarm(name, cause):
    return Check(name, False, "", "", {}, cause)


def test_the_check_made_for_a_defence_names_it_and_no_other():
    alarms = [alarm("many_steps[linf 0.1]", "misleads"), alarm("gradient_size[linf 0.1]", "shattered")]
    assert planted._cause(DEFENCES["sine"], alarms) == "shattered"
    assert planted._cause(DEFENCES["one-hot"], alarms) == "misleads"
    assert planted._cause(UNDEFENDED, []) == ""
    assert planted._caught(DEFENCES["sine"], alarms, Proportion(50, 100), 0.3) == "alarm"
    assert planted._caught(DEFENCES["one-hot"], alarms, Proportion(50, 100), 0.3) == ""
    assert planted._caught(DEFENCES["sine"], alarms, Proportion(35, 100), 0.3) == "alarm, cascade"


def test_the_attacks_that_know_a_defence_fit_it():
    network = digits_network.trained()
    names = {}
    for name in ("one-hot", "quantiser", "noise and resize"):
        victim = DEFENCES[name].plant(network, None)
        names[name] = set(knowing(victim, network, 0.1, 10))
    common = {"transfer", "transfer, DLR", "labels alone"}
    assert names == {
        "one-hot": common,
        "quantiser": common | {"straight through"},
        "noise and resize": common | {"straight through", "mean over draws"},
    }


def test_straight_through_breaks_a_quantiser_that_has_no_gradient():
    network, split = digits_network.trained(), digits_network.split(32)
    victim = DEFENCES["quantiser"].plant(network, None)
    attacks = {"pgd": pgd(0.15, 20), "through": knowing(victim, network, 0.15, 10)["straight through"]}
    report = evaluate(victim, split, attacks, key=jax.random.key(0), batch_size=32, survivors_only=False, sanity=False)
    accuracy = {name: share.value for name, share in report.accuracies.items()}
    assert accuracy["pgd"] > 0.9 and accuracy["through"] < 0.5


def test_the_median_and_the_cosines_are_what_numpy_and_scipy_make():
    from scipy.fft import dctn, idctn
    from scipy.ndimage import median_filter

    x = images(size=(6, 8, 1))
    own = np.asarray(x, np.float64)
    np.testing.assert_allclose(median(x), np.stack([median_filter(one, (3, 3, 1), mode="nearest") for one in own]))
    rounded = idctn(np.round(2 * dctn(own, axes=(1, 2), norm="ortho")) / 2, axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(dct_quantised(x), rounded, atol=1e-5)


def test_the_section_is_checked():
    asked = section("images=5,defences=one-hot|sine,parts=APGD-CE")
    check_planted(asked)
    assert (asked["num_images"], list(asked["defences"])) == (5, ["one-hot", "sine"])
    assert list(section()["defences"]) == list(DEFENCES) and list(section()["parts"]) == []
    for change, message in (
        ({"num_images": 0}, "num_images=0"),
        ({"queries": 0}, "queries=0"),
        ({"defences": ("onehot",)}, "'onehot' is unknown; did you mean 'one-hot'"),
        ({"parts": ("APGD",)}, "parts holds 'APGD'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_planted(asked | change)
    with pytest.raises(ConfigError, match=r"config.planted.defence is unknown"):
        check_planted(asked | {"defence": 1})


@pytest.mark.slow
def test_a_config_makes_a_table(tmp_path):
    config = load_config("configs/bench_planted.py:images=16,defences=one-hot,queries=20,parts=APGD-CE")
    config["planted"]["victims"]["standard"]["num_epochs"] = 1.0
    text = benchmark(config, tmp_path)
    rows = json.loads((tmp_path / "benchmark.json").read_text())["planted"]
    assert [row["defence"] for row in rows] == ["undefended", "one-hot"] and "the victim passes no gradient" in text
    assert all(row["true_at_most"] <= min(row["pgd_20"], row["apgd_ce"], row["cascade"]) for row in rows)
