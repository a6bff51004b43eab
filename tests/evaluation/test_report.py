"""The report: what it says, that it can be read back, and that it is written whole."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from spa_jax import fgsm
from spa_jax.evaluation import (
    AttackRecord,
    AttributeValues,
    Check,
    Curve,
    Distance,
    ModelReport,
    Nearest,
    Sheet,
    SheetRow,
    evaluate,
    read_report,
    write_report,
)

OPTIONS = {
    "title": "A title",
    "dataset": "made up, test split",
    "seed": 3,
    "config": {"a": 1, "b": (2.5, float("inf"))},
}


def model_report(seed=0, **changes):
    rng = np.random.default_rng(seed)
    clean = rng.uniform(size=40) < 0.9
    attacks = {
        "pgd": AttackRecord(
            clean & (rng.uniform(size=40) < 0.5), int(clean.sum()), 2, 1.25, {"type": "LInf", "radius": 0.1}, broken=3
        ),
        "fmn": AttackRecord(
            np.zeros(40, bool), int(clean.sum()), nearest=Nearest("l2", np.where(clean, np.arange(40) / 10, 0.0))
        ),
        "joint": AttackRecord(
            clean & (rng.uniform(size=40) < 0.2),
            int(clean.sum()),
            0,
            2.5,
            {"type": "Spa"},
            {name: Distance(0.0625, 0.25) for name in ("linf_from_edited", "linf", "l2", "ssim")},
            {"rotation": AttributeValues(rng.uniform(-10, 10, 9).astype(np.float32), -10.0, 10.0)},
        ),
    }
    checks = (
        Check("deterministic", True, "all is well", "nothing", {"logits_differ": 0.0}),
        Check("gradients", False, "there are none", "look for them", {"share": 1.0}),
    )
    curves = (Curve("radius", "pgd", (0.0, 0.1), (36, 12), 40), Curve("attribute", "rotation", (-1.0, 1.0), (3, 4), 40))
    report = ModelReport(np.arange(40, dtype=np.int32) % 3, clean, attacks, False, checks, curves)
    return dataclasses.replace(report, **changes)


def sheet():
    images = np.zeros((2, 4, 4, 1), np.float32)
    return Sheet("joint", np.array([0, 1]), [SheetRow("clean", images, np.array([0, 2]), ["", ""])])


@pytest.fixture
def written(tmp_path):
    models = {"standard": model_report(0), "spa | mine": model_report(1)}
    text = write_report(models, tmp_path / "new" / "report", **OPTIONS, sheets={"standard": sheet()})
    return models, tmp_path / "new" / "report", text


def test_what_was_written_can_be_read_back(written):
    models, directory, _ = written
    read = read_report(directory / "report.json")
    assert list(read) == list(models)
    for name, report in models.items():
        again = read[name]
        np.testing.assert_array_equal(again.labels, report.labels)
        for condition, correct in report.conditions.items():
            np.testing.assert_array_equal(again.conditions[condition], correct)
        assert again.checks == report.checks
        assert [tuple(curve.correct) for curve in again.curves] == [curve.correct for curve in report.curves]
        assert again.attacks["pgd"].parameters == report.attacks["pgd"].parameters
        assert again.attacks["joint"].distances == report.attacks["joint"].distances
        values = report.attacks["joint"].attributes["rotation"]
        np.testing.assert_allclose(again.attacks["joint"].attributes["rotation"].values, values.values, rtol=1e-5)
        assert (again.attacks["joint"].attributes["rotation"].low, values.high) == (-10, 10)
        pgd = again.attacks["pgd"]
        assert (pgd.invalid, pgd.seconds, pgd.broken) == (2, 1.25, 3)


def test_json_is_strict_and_holds_everything(written):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    models, directory, _ = written
    content = json.loads((directory / "report.json").read_text(), parse_constant=refuse)
    assert (content["seed"], content["num_examples"], content["config"]) == (3, 40, {"a": 1, "b": [2.5, "inf"]})
    assert content["versions"]["jax"] == jax.__version__
    standard = content["models"]["standard"]
    share = models["standard"].accuracies["joint"]
    assert standard["accuracies"]["joint"]["accuracy"] == share.value
    assert standard["accuracies"]["joint"]["interval"] == [share.low, share.high]
    by_class = models["standard"].by_class("pgd")
    assert {int(k): v["correct"] for k, v in standard["by_class"]["pgd"].items()} == {
        k: v.correct for k, v in by_class.items()
    }
    assert len(standard["clean"]) == 40


def test_markdown_says_what_was_measured(written):
    models, directory, _ = written
    text = (directory / "report.md").read_text()
    assert text.startswith("# A title\n\n40 examples of made up, test split, seed 3.\n")
    cells = [str(report.accuracies["joint"]) for report in models.values()]
    assert re.search(rf"\| joint \|.*{re.escape(cells[0])}.*{re.escape(cells[1])}", text)
    assert "**standard, gradients**: there are none. What to do: look for them." in text
    assert re.search(r"standard, pgd\*\*: 2 of \d+ images were not in \\\[0, 1\\\] and count as no success", text)
    assert re.search(r"standard, pgd\*\*: 3 of \d+ attacked images.*not finite and count as misclassified", text)
    assert "its row is its own accuracy" in text
    assert "- pgd: `LInf(radius=0.1)`" in text
    assert '"b": [' in text
    assert r"spa \| mine" in text


def test_the_card_says_how_far_images_were_moved(written):
    _, directory, _ = written
    card = (directory / "report.md").read_text().split("## Card of standard")[1].split("## Card of")[0]
    assert "| joint | 0.0625 (0.25) | 0.0625 (0.25) | 0.0625 (0.25) | 0.0625 (0.25) |" in card
    assert "| pgd | 0." not in card


def test_a_report_of_an_earlier_version_is_read(written):
    _, directory, _ = written
    content = json.loads((directory / "report.json").read_text())
    for model in content["models"].values():
        for record in model["attacks"].values():
            del record["distances"], record["attributes"], record["broken"]
    (directory / "old.json").write_text(json.dumps(content))
    assert read_report(directory / "old.json")["standard"].attacks["joint"].distances == {}


def test_every_linked_picture_is_there(written):
    _, directory, _ = written
    linked = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (directory / "report.md").read_text())
    assert sorted(linked) == [
        "accuracy_by_attribute.png",
        "accuracy_by_nearest.png",
        "accuracy_by_radius.png",
        "attribute_values.png",
        "sheet.png",
    ]
    assert {path.name for path in directory.iterdir()} == {"report.md", "report.html", "report.json", *linked}
    assert json.loads((directory / "report.json").read_text())["pictures"] == linked


def test_the_table_is_printed_and_returned(tmp_path, capsys):
    models = {f"model {i}": model_report(i, curves=()) for i in range(5)}
    text = write_report(models, tmp_path, **OPTIONS)
    assert capsys.readouterr().out == text
    for report in models.values():
        for accuracy in report.accuracies.values():
            assert str(accuracy) in text
    assert "worst case" in text
    assert "warnings: 15, see report.md" in text


def test_a_cascade_is_called_one(tmp_path):
    models = {"only": model_report(survivors_only=True, checks=(), curves=())}
    text = write_report(models, tmp_path, **OPTIONS)
    assert "after joint" in text
    markdown = (tmp_path / "report.md").read_text()
    assert "ran as a cascade" in markdown
    assert "No sanity checks ran" not in markdown
    written = {"report.md", "report.html", "report.json", "attribute_values.png", "accuracy_by_nearest.png"}
    assert {path.name for path in tmp_path.iterdir()} == written


def test_distances_of_the_nearest_images_are_told_and_read_back(written):
    models, directory, _ = written
    markdown = (directory / "report.md").read_text()
    median = np.median(models["standard"].attacks["fmn"].nearest.distances)
    assert "## Nearest images that fool" in markdown and f"| standard | fmn | l2 | {median:.4g} | 100.0 % |" in markdown
    assert "after fmn" not in markdown and "| fmn | " not in markdown.split("## Nearest")[0]
    assert "Nearest images that fool" in (directory / "report.html").read_text()
    again = read_report(directory / "report.json")["standard"].attacks["fmn"].nearest
    assert again.norm == "l2" and again.median == median
    np.testing.assert_allclose(again.distances, models["standard"].attacks["fmn"].nearest.distances)


def test_an_infinite_median_is_told_and_read_back(tmp_path):
    far = AttackRecord(np.ones(40, bool), 40, nearest=Nearest("linf", np.where(np.arange(40) < 15, 0.1, np.inf)))
    write_report({"m": model_report(attacks={"fab": far})}, tmp_path, **OPTIONS)
    assert "| m | fab | linf | infinite | 37.5 % |" in (tmp_path / "report.md").read_text()
    found = json.loads((tmp_path / "report.json").read_text())["models"]["m"]["attacks"]["fab"]["nearest"]
    assert found["median"] is None
    assert read_report(tmp_path / "report.json")["m"].attacks["fab"].nearest.median == np.inf


def test_models_may_have_different_attacks_and_many_classes(tmp_path):
    labels = np.arange(40, dtype=np.int32)
    some = model_report(labels=labels)
    models = {"a": some, "b": dataclasses.replace(some, attacks={"pgd": some.attacks["pgd"]}, checks=())}
    write_report(models, tmp_path, **OPTIONS, class_names=[f"class {i}" for i in range(40)])
    card = (tmp_path / "report.md").read_text().split("## Card of a")[1].split("## Card of b")[0]
    assert card.count("| class ") == 20 + 1


def test_an_evaluation_becomes_a_report(tmp_path, linear_victim, split):
    report = evaluate(linear_victim, split, {"fgsm": fgsm(0.005)}, key=jax.random.key(0), batch_size=32)
    write_report({"linear": report}, tmp_path, **OPTIONS)
    again = read_report(tmp_path / "report.json")["linear"]
    np.testing.assert_array_equal(again.worst_case, report.worst_case)
    assert "LInf(radius=0.005)" in (tmp_path / "report.md").read_text()


def test_an_old_report_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write_report({"a": model_report(curves=())}, tmp_path, **OPTIONS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ValueError, match=r"cannot be written: disk full"):
        write_report({"a": model_report(1, curves=())}, tmp_path, **OPTIONS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="must hold at least one"):
        write_report({}, tmp_path, **OPTIONS)
    other = model_report(labels=np.zeros(40, np.int32))
    with pytest.raises(ValueError, match="'a' and 'b' were judged on different examples"):
        write_report({"a": model_report(), "b": other}, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="'a' and 'b' were judged with different survivors_only"):
        write_report({"a": model_report(), "b": model_report(survivors_only=True)}, tmp_path, **OPTIONS)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"directory='.*file.*' cannot be written"):
        write_report({"a": model_report(curves=())}, tmp_path / "file" / "report", **OPTIONS)
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ValueError, match="is not a report"):
        read_report(tmp_path / "file")
