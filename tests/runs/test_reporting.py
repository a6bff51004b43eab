"""Evaluating what was trained: by the same network, with the difference named where it is another one."""

import json
import re
import shutil

import pytest

from spa_jax.errors import CheckpointError, ConfigError
from spa_jax.parallel import data_mesh
from spa_jax.runs.experiment import check_config, data_loader
from spa_jax.runs.loop import train_models
from spa_jax.runs.reporting import report_models
from tests.training.conftest import tiny_config


def _config(**changes):
    changes = {"training": {"batch_size": 240, "num_epochs": 0.2}, **changes}
    return check_config(tiny_config(**changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    train_models(_config(), workdir)
    return workdir


def _report(config, workdir):
    return report_models(config, workdir, data_loader(), data_mesh())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "small_cnn", "width": 3, "hidden": 8, "convs_per_stage": 1}}, "model.width: 2 -> 3$"),
        ({"model": {"name": "small_cnn", "width": 2, "hidden": 8}}, "model.convs_per_stage: 1 -> 2$"),
        ({"model": {"name": "lenet5"}, "data": {"name": "rotated_digits"}}, 'model.name: "small_cnn" -> "lenet5"'),
        ({"normalization": {"mean": 0.5}}, r"normalization: null -> \(absent\); normalization.mean: \(absent\) -> 0.5"),
    ],
)
def test_another_network_is_refused_with_the_difference(changes, message, trained):
    with pytest.raises(ConfigError, match=f"tiny was trained as another network .*{message}"):
        _report(_config(**changes), trained)
    assert not (trained / "report").exists()


def test_data_of_another_shape_are_refused_with_the_difference(trained):
    with pytest.raises(CheckpointError, match=r"of another network: params.\S+ is \(.*\) in the checkpoint, \(.*\) in"):
        _report(_config(data={"name": "rotated_digits"}), trained)


def test_options_written_out_and_another_precision_are_the_same_network(trained):
    model = {"name": "small_cnn", "width": 2, "hidden": 8, "convs_per_stage": 1, "dtype": "bfloat16"}
    assert "PGD" in _report(_config(model=model), trained)


@pytest.mark.parametrize("count", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_page_has_as_many_images_as_the_config_says(count, trained):
    config = _config()
    config["evaluation"] = config["evaluation"] | {"examples_per_class": count, "num_examples": 60}
    _report(config, trained)
    page = (trained / "report" / "report.html").read_text("utf-8")
    assert ("No images were kept" in page) is (count == 0)
    found = re.search(r'id="explorer-data">(.*?)</script>', page)
    if count == 0:
        assert found is None
        return
    (attack,) = json.loads(found[1])["models"][0]["attacks"]
    for label, (fooled, attacked) in attack["counts"].items():
        own = [row[2] for row in attack["rows"] if str(row[1]) == label]
        assert own == [1] * min(fooled, count) + [0] * min(attacked - fooled, count)


def _with_autoattack(**section):
    config = _config()
    options = {"radius": 0.1, "parts": ["APGD-CE"], "num_examples": 20} | section
    return check_config(config | {"evaluation": config["evaluation"] | {"autoattack": options}})


def test_autoattack_leaves_a_card_for_each_model_and_goes_on_where_it_was(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    config = _with_autoattack(claimed={"tiny": 1.0})
    shown = _report(config, workdir)
    card = json.loads((workdir / "report/autoattack/tiny.json").read_text())
    assert (card["model"], card["data"], card["images"], card["radius"], card["claimed"]) == (
        "tiny", "digits", 20, 0.1, 1.0,
    )  # fmt: skip
    assert [part["name"] for part in card["parts"]] == ["APGD-CE"] and card["overclaimed"]
    (row,) = [line for line in shown.splitlines() if "standard, linf 0.1" in line]
    assert "tiny" in row and "APGD-CE" in row and " 20 " in row
    for name in ("report.md", "report.html"):
        written = (workdir / "report" / name).read_text()
        assert "standard, linf 0.1" in written and "100.0 % is claimed" in written and "APGD-CE" in written
    _report(config, workdir)
    assert json.loads((workdir / "report/autoattack/tiny.json").read_text())["seconds"] == card["seconds"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"claimed": {"tony": 0.5}}, "claimed.tony is not a model or victim of the config; did you mean 'tiny'"),
        ({"claimed": {"tiny": 50.0}}, "claimed.tiny=50"),
        ({"parts": ["APGD"]}, "parts holds 'APGD'"),
        ({"version": "quick"}, "version='quick'"),
        ({"num_examples": 0}, "num_examples=0"),
        ({"radios": 0.1}, "evaluation.autoattack.radios is unknown"),
    ],
)
def test_a_wrong_section_of_autoattack_is_named(section, message, trained):
    with pytest.raises(ConfigError, match=message):
        _report(_with_autoattack(**section), trained)


def _with_certified(**section):
    config = _config()
    options = {"attribute": "brightness", "low": -0.01, "high": 0.01, "points": 3, "num_images": 20} | section
    return check_config(config | {"evaluation": config["evaluation"] | {"certified": options}})


def test_what_is_proved_of_each_model_stands_beside_the_sweep(trained):
    shown = _report(_with_certified(cells=4), trained)
    found = json.loads((trained / "report/certified.json").read_text())
    own = found["models"]["tiny"]
    assert own["proved"]["correct"] + own["undecided"]["correct"] <= own["unbroken"]["total"] == 20
    assert own["proved"]["correct"] <= own["unbroken"]["correct"] <= own["clean"]["correct"]
    assert own["cells"] >= 4 * 20 and own["reason"] == ""
    for name in ("report.md", "report.html"):
        written = (trained / "report" / name).read_text()
        assert "brightness from -0.01 to 0.01" in written and "at each of 3 points" in written
    assert "brightness from -0.01 to 0.01" in shown


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"attribute": "hue"}, "attribute='hue' must be one of rotation"),
        ({"low": 1.0}, "low=1.0, high=0.01 must be a range"),
        ({"points": 0}, "points=0"),
        ({"num_images": 0}, "num_images=0"),
        ({"point": 3}, "evaluation.certified.point is unknown"),
    ],
)
def test_a_wrong_section_of_certified_is_refused_before_training(section, message):
    with pytest.raises(ConfigError, match=message):
        _with_certified(**section)
