"""The report on universal perturbations: its numbers, its files and its pictures."""

import json

import numpy as np
import pytest

from spa_jax.evaluation import UniversalRecord, write_universal_report
from spa_jax.evaluation.universal_report import UniversalFindings, noise_and_words, universal_png

LABELS = np.repeat(np.arange(4), 5)


def record(shift, target=None, variables=None):
    noise = np.full((4, 4, 1), 0.1, np.float32) if variables is None else variables
    answers = np.where(np.arange(20) % 5 < shift, (LABELS + 1) % 4, LABELS)
    return UniversalRecord(LABELS, LABELS, answers, 4, noise, target, 100, 800, 1.5, {"type": "uap"})


MODELS = {
    "plain": UniversalFindings({"UAP": [record(3), record(4)], "to 1": [record(2, target=1)]}, {"UAP": [record(1)]}),
    "robust": UniversalFindings({"UAP": [record(1), record(0)], "to 1": [record(0, target=1)]}),
}


def png_size(content):
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def written(tmp_path, models=MODELS, **changes):
    options = {"title": "toy", "dataset": "toy, test split", "seed": 0, "config": {}} | changes
    return write_universal_report(models, tmp_path / "report", **options)


def test_rows_are_the_strongest_perturbation_of_each_attack(tmp_path):
    shown = written(tmp_path)
    assert "plain" in shown and "20.0 % [8.1, 41.6]" in shown
    text = (tmp_path / "report" / "universal.md").read_text()
    assert (
        "| plain | UAP | 20.0 % [8.1, 41.6] | 80.0 % | 25.0 % | 4.00 | 4.00 | 20.0 % | 80.0 | 0.0 |  | 800 | 2 |"
        in text
    )
    assert "| plain | 100.0 % | 20.0 % [8.1, 41.6] | UAP |" in text
    assert "13.3 %" in text and " at 1 |" in text
    assert "| plain | UAP | 100 | 80.0 % [58.4, 91.9] | 20.0 % |" in text
    assert "| robust | 100.0 % | 80.0 % [58.4, 91.9] | UAP |" in text


def test_json_holds_every_record(tmp_path):
    written(tmp_path)
    content = json.loads((tmp_path / "report" / "universal.json").read_text())
    plain = content["models"]["plain"]
    assert [found["accuracy"]["correct"] for found in plain["UAP"]] == [8, 4]
    assert plain["UAP"][1]["flow"] == record(4).flow.tolist()
    assert plain["to 1"][0]["target_share"]["correct"] == 2
    assert content["pictures"] == ["universal_plain.png", "universal_robust.png"]
    for name in content["pictures"]:
        assert png_size((tmp_path / "report" / name).read_bytes())[0] > 1000


def test_success_by_target_of_fresh_and_of_transferred_perturbations(tmp_path):
    found = {"to each": [record(1, target=1), record(3, target=1), record(0, target=2)], "UAP": [record(1)]}
    models = {"standard": UniversalFindings(found)}
    models["tuned"] = UniversalFindings(found, {}, {"to each": [record(0, target=1)]}, "standard")
    written(tmp_path, models)
    text = (tmp_path / "report" / "universal.md").read_text()
    assert "| model | attack | mean | highest | 1 | 2 |" in text
    assert "| standard | to each | 6.7 % | 13.3 % | 13.3 % | 0.0 % |" in text
    assert "| tuned | to each, made against standard | 0.0 % | 0.0 % | 0.0 % |  |" in text
    content = json.loads((tmp_path / "report" / "universal.json").read_text())
    assert content["transferred"]["tuned"]["to each"][0]["target"] == 1 and content["transferred"]["standard"] == {}


def test_answers_that_are_not_finite_are_told(tmp_path):
    broken = record(2)
    broken.answers[:3] = -1
    written(tmp_path, {"plain": UniversalFindings({"UAP": [record(1), broken]})})
    assert "**plain, UAP**: up to 3 of 20 perturbed images" in (tmp_path / "report" / "universal.md").read_text()
    content = json.loads((tmp_path / "report" / "universal.json").read_text())
    assert [found["broken"] for found in content["models"]["plain"]["UAP"]] == [0, 3]


def test_noise_and_words():
    noise, words = noise_and_words({"rotation": np.float32(12.345), "noise": np.zeros((4, 5, 3))})
    assert noise.shape == (4, 5, 3) and words == ["rotation 12.3"]
    bank, words = noise_and_words(np.zeros((7, 4, 5, 1)))
    assert bank.shape == (12, 15, 1) and not words
    assert noise_and_words({"hue": np.array([0.1, 0.2])}) == (None, ["hue 0.1, 0.2"])


def test_a_picture_of_attributes_alone_and_of_names_that_are_no_formula():
    png = universal_png({"cost $x$ of": record(2, variables={"rotation": np.float32(3.0)})}, "a model", list("abcd"))
    assert png_size(png)[1] > 500


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(ValueError, match="models hold no record"):
        written(tmp_path, {"plain": UniversalFindings({})})
    assert not (tmp_path / "report").exists()
