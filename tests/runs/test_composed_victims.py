"""Victims of a config: checked before anything is read, then judged, attacked and stored as the models are."""

import json

import numpy as np
import pytest

from spa_jax.errors import ConfigError
from spa_jax.parallel import data_mesh
from spa_jax.runs.experiment import check_config, data_loader
from spa_jax.runs.loop import train_models
from spa_jax.runs.reporting import report_models
from spa_jax.runs.victims import Lineup
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

PGD = {"name": "pgd", "radius": 0.1, "num_steps": 2}
SHAKEN = {"name": "purify", "victim": {"model": "tiny"}, "purifier": {"name": "rt2", "sigma": 0.1, "grid": 4}}
VICTIMS = {
    "shaken": SHAKEN,
    "voted": {"name": "majority_vote", "victim": {"victim": "shaken"}, "n": 3},
    "fixed": {"name": "fixed_draw", "victim": {"victim": "shaken"}},
}
BPDA = {
    "name": "crafted_on",
    "attack": PGD,
    "victim": {"name": "eot", "victim": {"name": "bypassed", "victim": "attacked"}, "n": 2},
}
TRANSFER = {"name": "crafted_on", "attack": PGD, "victim": {"model": "tiny"}, "restarts": 2}


def config_with(victims=VICTIMS, **attacks):
    config = tiny_config(training={"batch_size": 240, "num_epochs": 0.2}, victims=victims)
    attacks = {"PGD": PGD, **attacks}
    smaller = {"num_examples": 16, "batch_size": 16, "judge_draws": 2}
    config["evaluation"] |= {"attacks": attacks, "survivors_only": False, **smaller}
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    config = check_config(config_with(BPDA=BPDA, transfer=TRANSFER))
    train_models(config, workdir)
    return config, workdir


def test_victims_are_reported_beside_the_model_under_every_attack(trained):
    _, workdir = trained
    config = check_config(config_with({name: VICTIMS[name] for name in ("shaken", "fixed")}, BPDA=BPDA))
    shown = report_models(config, workdir, data_loader(), data_mesh())
    found = json.loads((workdir / "report" / "report.json").read_text())["models"]
    assert list(found) == ["tiny", "shaken", "fixed"]
    assert all(list(own["attacks"]) == ["PGD", "BPDA"] for own in found.values())
    text = (workdir / "report" / "report.md").read_text()
    assert "shaken" in shown and "CraftedOn" in text
    assert "- shaken: the model tiny behind the transform rt2\n- fixed: one fixed draw (seed 0) of the victim" in text
    deterministic = {
        name: {c["name"]: c["passed"] for c in own["checks"]}["deterministic"] for name, own in found.items()
    }
    assert deterministic == {"tiny": True, "shaken": False, "fixed": True}


def test_a_surrogate_is_made_of_what_is_attacked(trained):
    config, workdir = trained
    lineup = Lineup(config, workdir, data_loader()(config), data_mesh())
    assert lineup.names == ["tiny", *VICTIMS]
    attacks = lineup.attacks("shaken")
    surrogate = attacks["BPDA"].surrogate
    assert surrogate.draws == 2
    assert surrogate.victim.victim is lineup.victim("tiny")
    assert surrogate.victim.purifier.purifier.sigma == 0.1
    assert lineup.attacks("tiny")["BPDA"].surrogate.victim is lineup.victim("tiny")
    assert lineup.victim("voted").victim is lineup.victim("shaken")
    assert attacks["transfer"].attack.surrogate is lineup.victim("tiny")


def test_a_purifier_is_told_with_the_transform_of_its_training(trained):
    config, workdir = trained
    recipe = {"name": "purifier", "transform": {"name": "rt2", "sigma": 0.1}}
    purifier = {"name": "unet", "model": {"name": "unet", "width": 4, "depth": 1}, "recipe": recipe}
    purified = SHAKEN | {"purifier": {"part": "unet"}}
    victims = {"own": purified, "other": purified | {"purifier": {"part": "unet", "transform": {"name": "rt1"}}}}
    changes = {"victims": victims, "baselines": [purifier], "parts": {"unet": {"model": "unet"}}}
    lineup = Lineup(check_config({**config_with(), **changes}), workdir, data_loader()(config), data_mesh())
    assert lineup.in_words() == {
        "own": "the model tiny behind the purifier unet (transform rt2)",
        "other": "the model tiny behind the purifier unet (transform rt1)",
    }


def test_what_was_trained_before_victims_were_named_is_judged_with_them(trained):
    """Victims may change between a checkpoint and the config that goes on from it."""
    _, workdir = trained
    config = check_config(config_with({"twice": {"name": "eot", "victim": SHAKEN, "n": 2}}))
    train_models(config, workdir)
    assert "twice" in Lineup(config, workdir, data_loader()(config), data_mesh()).names


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_with({"tiny": SHAKEN}), "victims holds the name 'tiny', which a model has"),
        (config_with({"../a": SHAKEN}), r"victims='../a' must be a name for a directory"),
        (config_with({"a": {"model": "tinny"}}), "victims.a.model='tinny' is not a classifier.*'tiny'"),
        (config_with({"a": {"victim": "b"}}), "victims.a.victim='b' is not a victim of this config"),
        (
            config_with({"a": {"victim": "b"}, "b": {"name": "eot", "victim": {"victim": "a"}, "n": 2}}),
            "made of each other",
        ),
        (config_with({"a": "attacked"}), "'attacked' stands for the victim of an attack only"),
        (config_with({"a": {"name": "eot", "victim": SHAKEN, "n": 0}}), "config.victims.a: n=0 must be an integer"),
        (config_with({"a": SHAKEN | {"purifier": {"part": "p"}}}), "part='p' is neither in parts nor in networks"),
        (
            config_with(x=TRANSFER | {"victim": {"model": "z"}}),
            "attacks.x.victim.model='z' is not a classifier",
        ),
        (config_with(x=TRANSFER | {"steps": 2}), "evaluation.attacks.x.steps is unknown"),
        (config_with(x=TRANSFER | {"attack": PGD | {"radus": 1}}), "evaluation.attacks.x.attack.radus is unknown"),
        (
            config_with(x={"name": "crafted_on", "attack": {"name": "uap", "radius": 0.1}, "victim": "attacked"}),
            "'uap'",
        ),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_read(config, message):
    with pytest.raises(ConfigError, match=message):
        check_config(config)


def test_attacks_on_surrogates_belong_to_the_evaluation():
    config = config_with()
    config["evaluation"] = config["evaluation"] | {"selection_attack": TRANSFER}
    with pytest.raises(ConfigError, match=r"evaluation.selection_attack is crafted on a surrogate"):
        check_config(config)


def test_worst_of_is_an_attack_of_a_config(trained):
    _, workdir = trained
    both = {"name": "worst_of", "attacks": [PGD, BPDA]}
    config = check_config(config_with({"shaken": SHAKEN}, both=both))
    lineup = Lineup(config, workdir, data_loader()(config), data_mesh())
    assert [type(own).__name__ for own in lineup.attacks("shaken")["both"].attacks] == ["IterativeAttack", "CraftedOn"]
    assert np.isfinite(lineup.attacks("shaken")["both"].num_steps)
