"""Training examples judged and attacks transferred by config, to the report."""

import json

import pytest

from spa_jax.errors import ConfigError
from spa_jax.runs.experiment import check_config
from spa_jax.runs.loop import train_and_evaluate
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

PGD = {"name": "pgd", "radius": 0.1, "num_steps": 2, "keep": "last"}
TRANSFER = {"name": "crafted_on", "attack": PGD, "victim": {"model": "judge"}}
SPAT = PGD | {"name": "spat", "smoothing": 0.5}


def judged_config(**changes):
    config = tiny_config(recipe={"name": "adversarial", "attack": SPAT})
    config["training"] = config["training"] | {"num_epochs": 1.0}
    config["parts"] = {"judge": {"model": "judge"}}
    config["baselines"] = (
        {"name": "judge", "seed": 7, "recipe": {"name": "adversarial", "attack": PGD}},
        {"name": "trades", "recipe": {"name": "adversarial", "attack": PGD, "outer": "trades"}},
        {"name": "standard", "recipe": "standard"},
    )
    config["evaluation"] = config["evaluation"] | {
        "attacks": {"PGD": PGD, "transfer": TRANSFER},
        "survivors_only": False,
        "training_examples": {"judge": {"part": "judge"}, "attacks": {"SPAT": SPAT}, "num_images": 40},
    }
    return config | changes


def test_a_run_ends_with_the_report_of_training_examples(tmp_path):
    shown = train_and_evaluate(judged_config(), tmp_path)
    assert "judge's accuracy" in shown and "transfer" in shown
    found = json.loads((tmp_path / "report" / "training_examples.json").read_text())["models"]
    assert {name: list(records) for name, records in found.items()} == {
        "judge": ["clean", "SPAT", "own"],
        "trades": ["clean", "SPAT", "own"],
        "standard": ["clean", "SPAT"],
        "tiny": ["clean", "SPAT", "own"],
    }
    assert all(own["judge_accuracy"]["total"] == 40 for records in found.values() for own in records.values())
    assert found["judge"]["clean"]["judge_accuracy"] == found["tiny"]["clean"]["judge_accuracy"]
    assert "reversed_clean" in (tmp_path / "tiny" / "metrics.jsonl").read_text()
    assert "reversed_clean" not in (tmp_path / "judge" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"judge": "pgd"}, "training_examples.judge='pgd'"),
        ({"judge": {"model": "judge"}}, "must name a part"),
        ({"judge": {"part": "juge"}}, "part='juge' is neither in parts nor in networks"),
        ({"judge": {"part": "judge"}, "attacks": {"own": PGD}}, "the name 'own', which stands for"),
        ({"judge": {"part": "judge"}, "attacks": {"P": PGD | {"radus": 1.0}}}, "training_examples.attacks.P.radus"),
        ({"judge": {"part": "judge"}, "num_images": 0}, "num_images=0"),
    ],
)
def test_broken_settings_are_named(section, message):
    config = judged_config()
    config["evaluation"] |= {"training_examples": section}
    with pytest.raises((ConfigError, ValueError), match=message):
        check_config(config)
