"""Universal training by config, to the report and to a stored perturbation."""

import json

import numpy as np
import pytest

from spa_jax.data import load_dataset
from spa_jax.errors import ConfigError
from spa_jax.runs.experiment import check_config, make_learner
from spa_jax.runs.loop import train_and_evaluate
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

UAP = {"name": "uap", "radius": 0.2}


def universal_config(**changes):
    config = tiny_config(recipe={"name": "universal", "attack": UAP | {"name": "cb_uap"}}, **changes)
    config["training"] = config["training"] | {"num_epochs": 1.0}
    config["evaluation"] = config["evaluation"] | {
        "attacks": {},
        "select_by": "clean",
        "universal": {
            "attacks": {"UAP": UAP, "to some": UAP | {"loss": "cross_entropy"}},
            "targets": {"to some": [3, 4]},
            "num_images": 40,
            "image_counts": [16],
            "batch_size": 16,
            "num_epochs": 1,
        },
    }
    return config


def test_a_run_ends_with_the_report_of_universal_perturbations(tmp_path):
    shown = train_and_evaluate(universal_config(), tmp_path)
    assert "to some" in shown
    found = json.loads((tmp_path / "report" / "universal.json").read_text())
    assert [record["target"] for record in found["models"]["tiny"]["to some"]] == [3, 4]
    assert [record["crafting_images"] for record in found["curves"]["tiny"]["UAP"]] == [16]
    assert np.sum(found["models"]["tiny"]["UAP"][0]["flow"]) == 40
    assert (tmp_path / "report" / "universal_tiny.png").stat().st_size > 1000
    assert (tmp_path / "report" / "report.md").exists()


def test_perturbations_made_against_a_baseline_are_shown_to_the_others(tmp_path):
    config = universal_config(baselines=({"name": "before", "recipe": "standard"},))
    config["evaluation"]["universal"] |= {"transfer_from": "before", "image_counts": []}
    train_and_evaluate(config, tmp_path)
    found = json.loads((tmp_path / "report" / "universal.json").read_text())
    made, moved = found["models"]["before"]["to some"], found["transferred"]["tiny"]["to some"]
    assert [record["target"] for record in moved] == [3, 4] and found["transferred"]["before"] == {}
    assert [record["passes"] for record in moved] == [record["passes"] for record in made]
    assert "to some, made against before" in (tmp_path / "report" / "universal.md").read_text()
    config["evaluation"]["universal"] |= {"transfer_from": "befor"}
    with pytest.raises(ConfigError, match=r"transfer_from='befor' must be a baseline.*did you mean 'before'"):
        check_config(config)


REGION = {"name": "region", "model": {"part": "base"}, "radius": 0.2, "targets": [3, 12]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": {"UAP": [3, 10]}}, r"evaluation.universal.targets.UAP holds 10: classes must lie in \[0, 9\]"),
        (
            {"attacks": {"UAP": UAP | {"classes": 12}}, "targets": {}},
            "evaluation.universal.attacks.UAP: bank of size=12",
        ),
        ({"recipe": REGION}, r"config.recipe.targets holds 12: classes must lie in \[0, 9\]"),
        ({"recipe": {"name": "universal", "attack": UAP | {"classes": 3}}}, "config.recipe.attack: bank of size=3"),
    ],
)
def test_classes_that_are_not_there_are_refused_before_training(change, message, tmp_path):
    config = universal_config()
    if "recipe" in change:
        base = {"name": "base", "recipe": "standard"}
        config |= change | {"parts": {"base": {"model": "base"}}, "baselines": (base,)}
    else:
        config["evaluation"]["universal"] |= change
    with pytest.raises(ConfigError, match=message):
        train_and_evaluate(config, tmp_path)
    assert not list(tmp_path.rglob("checkpoints"))


def test_the_schedule_counts_the_updates_of_all_replays():
    pgd = {"name": "pgd", "radius": 0.1, "num_steps": 1}
    config = check_config(tiny_config(recipe={"name": "free", "attack": pgd, "replays": 4}))
    config |= {"schedule": {"name": "one_cycle", "peak": 1.0}, "optimizer": {"name": "sgd", "momentum": 0.0}}
    optimizer, params, sizes = (
        make_learner(config, load_dataset("digits"), 5).optimizer,
        {"w": np.zeros(1, np.float32)},
        [],
    )
    state = optimizer.init(params)
    for _ in range(20):
        updates, state = optimizer.update({"w": np.ones(1, np.float32)}, state, params)
        sizes.append(abs(float(updates["w"][0])))
    assert max(sizes) == pytest.approx(1.0, abs=0.1) and np.argmax(sizes) > 5 and sizes[-1] < 0.1
