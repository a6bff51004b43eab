"""Models made of parts: trained one after the other, frozen in the state of those that use them, resumed whole."""

import dataclasses

import jax
import numpy as np
import pytest

from spa_jax.errors import ConfigError
from spa_jax.parallel import data_mesh
from spa_jax.runs import loop
from spa_jax.runs.checkpoints import load_variables
from spa_jax.runs.experiment import check_config, load_data, make_experiment, training_order, variants
from spa_jax.runs.parts import TrainedPart
from tests.training.conftest import stop_requested_at, tiny_config

ADAM = {"optimizer": {"name": "adam"}, "schedule": {"name": "constant", "peak": 1e-3}}
NOISE = {"part": "generator", "num_steps": 1}
SPA = {
    "name": "spa",
    "radius": 0.1,
    "attributes": {"rotation": {"low": -20.0, "high": 20.0}},
    "noise": NOISE,
    "solver": "projected_gradient",
    "start": "none",
    "num_steps": 1,
    "keep": "last",
}


def joint_config(**changes):
    """A classifier trained with its generator."""
    config = tiny_config(
        recipe={
            "name": "adversarial",
            "outer": "spa",
            "attack": SPA,
            "generator": {"radius": 0.1, "num_steps": 1},
        },
        networks={"generator": {"model": {"name": "noise_generator", "width": 2, "latent_dim": 2}, **ADAM}},
    )
    config["training"] = config["training"] | {"num_epochs": 1.0}
    config["evaluation"] = config["evaluation"] | {"selection_attack": SPA, "attacks": {"joint": SPA}}
    config["parts"] = {"generator": {"model": "tiny", "network": "generator"}}
    return config | changes


def _train(config, workdir):
    loop.train_models(check_config(config), workdir)
    return load_variables(workdir / "tiny", step="latest")


@pytest.mark.slow
def test_generator_and_classifier_go_on_bit_identically(tmp_path):
    whole = _train(joint_config(), tmp_path / "whole")
    assert whole.variables["networks"]["generator"]["params"]
    with stop_requested_at(2), pytest.raises(loop.Interrupted, match="step=2 of 5, saved"):
        _train(joint_config(), tmp_path / "stopped")
    resumed = _train(joint_config(), tmp_path / "stopped")
    for a, b in zip(jax.tree.leaves(resumed.variables), jax.tree.leaves(whole.variables), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_regressor_is_trained_and_chosen_by_its_error(tmp_path):
    config = tiny_config(
        data={"name": "rotated_digits", "angle_range": (-40.0, 40.0)},
        model={"name": "small_cnn", "width": 2, "hidden": 8, "convs_per_stage": 1, "num_classes": 1},
        recipe={"name": "regressor", "centre": (0.0,), "scale": (20.0,)},
        **ADAM,
    )
    found = _train(config, tmp_path)
    lines = (tmp_path / "tiny" / "metrics.jsonl").read_text().splitlines()
    assert sum("absolute_error" in line and "validation" in line for line in lines) == 3
    assert found.variables["params"]["logits"]["kernel"].shape[-1] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": {"generator": {"model": "tinny"}}}, r"config.parts.generator.model='tinny' .* did you mean 'tiny'"),
        ({"parts": {"generator": {"modle": "tiny"}}}, "config.parts.generator.modle is unknown"),
        (
            {"parts": None, "networks": None},
            "config: part='generator' is neither in parts nor in networks",
        ),
        ({"networks": {"generator": {"model": {}, **ADAM, "step": 1}}}, "config.networks.generator.step is unknown"),
    ],
)
def test_parts_that_are_not_there_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_config(joint_config(**changes))


def test_an_option_that_no_generator_has_is_named():
    spec = SPA | {"noise": NOISE | {"num_step": 3}}
    config = joint_config()
    config["evaluation"] = config["evaluation"] | {"attacks": {"joint": spec}}
    with pytest.raises(ConfigError, match="num_step is unknown"):
        check_config(config)


def test_a_network_that_the_model_does_not_train_is_named(tmp_path):
    config = joint_config(parts={"other": {"model": "tiny", "network": "critic"}})
    config["recipe"] = config["recipe"] | {"attack": SPA | {"noise": NOISE | {"part": "other"}}}
    with pytest.raises(ConfigError, match="network='critic' is not a network of 'tiny'"):
        loop.train_models(check_config(config), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_baseline_may_drop_the_networks():
    config = joint_config(baselines=({"name": "plain", "recipe": {"name": "standard"}, "networks": None},))
    assert variants(check_config(config))["plain"]["networks"] is None


def test_models_are_trained_after_those_they_need_and_not_after_namesakes_of_other_runs(tmp_path):
    config = check_config(tiny_config())
    experiment = make_experiment(config, load_data(config), data_mesh())

    def needing(path):
        return dataclasses.replace(experiment, parts={"part": TrainedPart(path, None, lambda variables: variables, {})})

    models = {
        "first": needing(tmp_path / "last"),
        "second": needing(tmp_path / "elsewhere" / "last"),
        "last": needing(tmp_path / "last"),
    }
    assert training_order(models, tmp_path) == ["second", "last", "first"]
    models["last"] = needing(tmp_path / "first")
    with pytest.raises(ConfigError, match="first, last need each other"):
        training_order(models, tmp_path)


def test_an_attacker_trained_for_each_victim_needs_no_attacker_of_its_own(tmp_path, monkeypatch):
    """A part has the report's attacks from the config, but only classifiers are judged by them."""
    drawn = {"name": "noise", "radius": 0.1, "noise": NOISE | {"part": "attacker"}, "num_steps": 1}
    config = tiny_config(parts={"attacker": {"model": "attacker_of_{victim}"}})
    config["evaluation"] = config["evaluation"] | {"attacks": {"drawn": drawn}}
    attacker = {
        "name": "attacker_of_tiny",
        "model": {"name": "noise_generator", "width": 2, "latent_dim": 2},
        "recipe": {"name": "noise_generator", "victim": {"part": "victim"}, "radius": 0.1, "num_steps": 1},
        "parts": {"victim": {"model": "tiny"}},
        **ADAM,
    }
    trained = []
    monkeypatch.setattr(loop, "train", lambda experiment, directory, extend: trained.append(directory.name))
    loop.train_models(check_config(config | {"baselines": (attacker,)}), tmp_path)
    assert trained == ["tiny", "attacker_of_tiny"]


def test_the_box_of_a_learned_edit_may_leave_zero_out():
    """Whatever the edit reads is the value that leaves an image alone; only training tells what that is."""
    learned = {"part": "manipulator", "low": (-40.0, 1.8), "high": (40.0, 3.5)}
    attack = SPA | {"attributes": {"handwriting": learned}}
    config = joint_config(parts={"manipulator": {"model": "manipulator", "workdir": "elsewhere"}})
    config["evaluation"] = config["evaluation"] | {"attacks": {"joint": attack}}
    config = check_config(config)
    make_experiment(config, load_data(config), data_mesh())
    config["evaluation"]["attacks"]["joint"]["attributes"] = {"handwriting": learned | {"high": (40.0, 1.0)}}
    with pytest.raises(ValueError, match=r"low=.* must not be larger than high"):
        check_config(config)
