"""Configs state what differs: defaults, names alone, the order that is written, and what is refused beforehand."""

import copy
import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from spa_jax.data import load_dataset
from spa_jax.errors import ConfigError
from spa_jax.runs.experiment import (
    check_config,
    evaluation_attacks,
    evaluation_batch_size,
    selection_attack,
    selects_by,
    variants,
)
from spa_jax.runs.loop import train_and_evaluate
from spa_jax.runs.settings import check_model_name, complete
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {"name": "small_cnn", "width": 2, "hidden": 8, "convs_per_stage": 1}
PGD = {"name": "pgd", "radius": 0.1, "num_steps": 2}
SHORT = {
    "data": "digits",
    "model": SMALL,
    "recipe": {"name": "adversarial", "attack": PGD | {"keep": "last"}},
    "training": {"num_epochs": 0.2, "batch_size": 240},
    "evaluation": {"attacks": {"PGD": PGD}, "num_examples": 24},
}
ROTATED = {
    "data": {"name": "rotated_digits", "angle_range": (-40.0, 40.0)},
    "model": SMALL | {"num_classes": 1},
    "recipe": {"name": "regressor", "centre": (0.0,), "scale": (20.0,)},
    "training": {"num_epochs": 0.2, "batch_size": 240},
}


def test_a_config_of_ten_lines_trains_and_is_chosen_by_the_attack_that_it_trains_with(tmp_path):
    assert "PGD" in train_and_evaluate(SHORT, tmp_path)
    assert (tmp_path / "adversarial" / "checkpoints").is_dir()
    assert "robust_accuracy" in (tmp_path / "adversarial" / "metrics.jsonl").read_text()
    assert (tmp_path / "report" / "report.md").stat().st_size


def test_a_part_that_nobody_attacks_needs_no_attack(tmp_path):
    judge = {"name": "standard", "recipe": "standard", "model": SMALL}
    train_and_evaluate(ROTATED | {"baselines": (judge,)}, tmp_path)
    assert "absolute_error" in (tmp_path / "regressor" / "metrics.jsonl").read_text()
    assert "robust_accuracy" not in (tmp_path / "standard" / "metrics.jsonl").read_text()


def test_what_is_left_out_has_its_default():
    full = check_config({"data": "digits", "model": "small_cnn", "recipe": "standard"})
    assert full == check_config(full)
    assert (full["name"], full["seed"], full["data"]) == ("standard", 0, {"name": "digits"})
    assert (full["optimizer"], full["schedule"]) == ({"name": "adam"}, {"name": "one_cycle", "peak": 3e-3})
    assert full["training"] == {
        "batch_size": 128,
        "num_epochs": 10.0,
        "engine": "jit",
        "ema_decay": 0.0,
        "attack_warmup": 0.0,
        "separate_statistics": False,
        "evaluate_every": 1,
        "start_from": None,
        "train_share": 1.0,
        "weight_perturbation": None,
    }
    assert full["evaluation"]["attacks"] == {} and full["evaluation"]["batch_size"] == 500
    assert selection_attack(full) is None and selects_by(full) == "clean"
    assert selects_by(check_config(SHORT)) == "robust" and selection_attack(check_config(SHORT))["keep"] == "last"


def test_a_batch_of_the_evaluation_is_no_larger_than_what_is_evaluated():
    full, split = check_config(SHORT), load_dataset("digits").test
    assert evaluation_batch_size(full, split) == len(split) == 397
    assert evaluation_batch_size(check_config(SHORT | {"evaluation": {"batch_size": 100}}), split) == 100


def test_a_universal_attack_of_a_recipe_does_not_choose_its_checkpoint():
    recipe = {"name": "free", "attack": {"name": "uap", "radius": 0.1}}
    full = check_config(SHORT | {"recipe": recipe, "evaluation": SHORT["evaluation"] | {"selection_attack": None}})
    assert selection_attack(full) is None and selects_by(full) == "clean"


def test_a_baseline_is_whole_and_may_name_alone_what_it_replaces():
    config = SHORT | {"baselines": ({"name": "plain", "recipe": "standard", "schedule": {"peak": 0.1}},)}
    plain = variants(check_config(config))["plain"]
    assert plain["recipe"] == {"name": "standard"}
    assert plain["schedule"] == {"name": "one_cycle", "peak": 0.1}
    assert selection_attack(plain) is None and selects_by(plain) == "clean"
    assert plain["training"] == check_config(SHORT)["training"]


@pytest.mark.parametrize("kind", [dict, ConfigDict])
def test_edits_and_attacks_keep_the_order_in_which_they_are_written(kind):
    spa = {"name": "spa", "radius": 0.0, "attributes": {"scale": {}, "rotation": {"low": -30.0, "high": 30.0}}}
    attacks = {"second": PGD, "first": PGD, "joint": spa}
    config = check_config(kind(SHORT | {"evaluation": {"attacks": attacks}}))
    assert list(config["evaluation"]["attacks"]) == ["second", "first", "joint"]
    built = evaluation_attacks(config)
    assert list(built) == ["second", "first", "joint"]
    joint = built["joint"]
    assert list(joint.members()) == ["scale", "rotation", "noise"]
    images = np.random.default_rng(0).uniform(size=(1, 8, 8, 1)).astype(np.float32)
    values = {"scale": np.full(1, 1.2, np.float32), "rotation": np.full(1, 30.0, np.float32)}
    found = joint.apply(values | {"noise": np.zeros_like(images)}, _sum, images, np.zeros(1, np.int32))
    scaled = _edited(images, "scale", 1.2)
    np.testing.assert_allclose(found, _edited(scaled, "rotation", 30.0), atol=1e-6)
    assert np.abs(found - _edited(_edited(images, "rotation", 30.0), "scale", 1.2)).max() > 1e-3


def _sum(images):
    return images.reshape(len(images), -1)[:, :3]


def _edited(images, edit, value):
    from spa_jax import EDITS

    return jax.vmap(lambda image: EDITS[edit].function(image, np.float32(value)).clip(0, 1))(images)


def test_a_run_does_not_go_on_with_its_edits_in_another_order(tmp_path):
    def config(*names):
        attack = {
            "name": "spa",
            "radius": 0.1,
            "attributes": {name: {} for name in names},
            "num_steps": 1,
            "start": "none",
        }
        return SHORT | {"recipe": {"name": "adversarial", "attack": attack}}

    train_and_evaluate(config("scale", "rotation"), tmp_path)
    train_and_evaluate(config("scale", "rotation"), tmp_path)
    with pytest.raises(ConfigError, match=r'attributes \(order\): \["scale", "rotation"\] -> \["rotation", "scale"\]'):
        train_and_evaluate(config("rotation", "scale"), tmp_path)


def _changed(changes):
    config = copy.deepcopy(tiny_config(recipe={"name": "adversarial", "attack": PGD}))
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = config
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return config


ATTACKS = "evaluation.attacks"
UAP = {"name": "uap", "radius": 0.1}
UNIVERSAL = "evaluation.universal"
REFUSED = {
    "a universal attack for each image": (
        {f"{ATTACKS}.UAP": UAP},
        "config.evaluation.attacks.UAP must have variables for each image: 'uap' belongs to evaluation.universal",
    ),
    "an ordinary attack for all images": (
        {UNIVERSAL: {"attacks": {"PGD": PGD}}},
        "config.evaluation.universal.attacks.PGD must share its variables over all images",
    ),
    "targets of nothing": (
        {UNIVERSAL: {"attacks": {"UAP": UAP}, "targets": {"PGD": "all"}}},
        "config.evaluation.universal.targets='PGD' must be one of UAP",
    ),
    "targets that are not classes": (
        {UNIVERSAL: {"attacks": {"UAP": UAP}, "targets": {"UAP": "some"}}},
        "config.evaluation.universal.targets.UAP='some' must be 'all' or some classes",
    ),
    "perturbations from test images": (
        {UNIVERSAL: {"attacks": {"UAP": UAP}, "crafting": "test"}},
        "config.evaluation.universal.crafting='test' must be one of train, validation",
    ),
    "perturbations from nothing": (
        {UNIVERSAL: {"attacks": {"UAP": UAP}, "num_images": 0}},
        "config.evaluation.universal.num_images=0 must be an integer of at least 1",
    ),
    "an unknown option of universal training": (
        {"recipe": {"name": "universal", "attack": UAP, "rounds": 2}},
        "config.recipe.rounds is unknown to recipe 'universal'",
    ),
    "no example": (
        {"evaluation.num_examples": 0},
        r"config.evaluation.num_examples=0 must be an integer of at least 1",
    ),
    "no batch": ({"evaluation.batch_size": 0}, "config.evaluation.batch_size=0 must be an integer of at least 1"),
    "a negative batch": ({"evaluation.batch_size": -3}, "config.evaluation.batch_size=-3 must be"),
    "no training batch": ({"training.batch_size": 0}, "config.training.batch_size=0 must be"),
    "a text as radius": ({"evaluation.radii": ("a",)}, "config.evaluation.radii=.*'a'.* must hold finite numbers"),
    "no radius": ({"evaluation.radii": [None]}, r"radii=\[None\] must hold finite numbers of 0 or larger"),
    "a negative radius": ({"evaluation.radii": [-0.1]}, r"radii=\[-0.1\] must hold"),
    "negative points": (
        {"evaluation.attribute_points": -1},
        "config.evaluation.attribute_points=-1 must be 0 or larger",
    ),
    "an attack called clean": ({f"{ATTACKS}.clean": PGD}, "attacks holds the name 'clean'"),
    "an attack of two lines": ({f"{ATTACKS}.a\nb": PGD}, r"attacks holds the name 'a\\nb'; it must be printable"),
    "a selection at any distance": (
        {"evaluation.selection_attack": {"name": "fmn"}},
        "selection_attack, or the recipe's attack: 'fmn' needs a radius",
    ),
    "a selection by a perturbation of all images": (
        {"evaluation.selection_attack": {"name": "uap", "radius": 0.1}},
        r"config.evaluation.selection_attack must have variables for each image: 'uap' belongs to evaluation.universal",
    ),
    "a curve of no attack": ({"evaluation.radius_attack": "PGDD"}, "radius_attack='PGDD' must be one of PGD"),
    "a curve without radius": (
        {f"{ATTACKS}.turn": {"name": "attribute", "edit": "rotation"}, "evaluation.radius_attack": "turn"},
        "config.evaluation.radius_attack='turn' must be an attack with a radius",
    ),
    "never evaluated": ({"training.evaluate_every": 0}, "config.training.evaluate_every=0 must be"),
    "evaluated before": ({"training.evaluate_every": -5}, "config.training.evaluate_every=-5 must be"),
    "a negative seed": ({"seed": -1}, "config.seed=-1 must be in 0..4294967295"),
    "a large seed": ({"seed": 2**40}, "config.seed=1099511627776 must be in 0..4294967295"),
    "training without end": (
        {"training.num_epochs": math.inf},
        "config.training.num_epochs=inf must be a finite number",
    ),
    "training for NaN": ({"training.num_epochs": math.nan}, "config.training.num_epochs=nan must be a finite number"),
    "no robust accuracy": (
        {"recipe": "standard", "evaluation.selection_attack": None, "evaluation.select_by": "robust"},
        "config.evaluation.select_by='robust' needs a selection_attack",
    ),
    "a new attack without a name": (
        {f"{ATTACKS}.PDG": {"radius": 0.2}},
        r"config.evaluation.attacks.PDG=.* is a new attack without a `name`; did you mean 'PGD'",
    ),
    "an attack out of range": (
        {f"{ATTACKS}.x": PGD | {"radius": -1.0}},
        r"config.evaluation.attacks.x: radius=-1.0 must be",
    ),
    "a regressor of nothing": (
        {"recipe": {"name": "regressor", "centre": [0.0], "scale": [1.0]}},
        "config.recipe.name='regressor' needs attributes; 'digits' has none",
    ),
    "a manipulator of nothing": (
        {"recipe": {"name": "manipulator"}, "model": "msp"},
        "config.recipe.name='manipulator' needs attributes; 'digits' has none",
    ),
    "DLR on two classes": (
        {
            "data": {"name": "synthetic", "num_classes": 2, "train_size": 480},
            f"{ATTACKS}.DLR": {"name": "apgd_dlr", "radius": 0.1},
        },
        "config.evaluation.attacks.DLR: .*3 classes",
    ),
    "DLR by its name, restarted": (
        {
            "data": {"name": "synthetic", "num_classes": 2, "train_size": 480},
            "evaluation.selection_attack": PGD | {"loss": "dlr", "restarts": 2},
        },
        "config.evaluation.selection_attack: .*3 classes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(case, tmp_path):
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        train_and_evaluate(_changed(changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_regressor_of_another_number_of_attributes_is_refused(tmp_path):
    recipe = {"name": "regressor", "centre": (0.0, 1.0), "scale": (20.0, 1.0)}
    with pytest.raises(ConfigError, match=r"centre=\[0.0, 1.0\] must hold a number for each of the 1 attributes"):
        train_and_evaluate(ROTATED | {"recipe": recipe}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


BAD_NAMES = ["", " ", ".", "..", ".hidden", "../ESC", "/etc/ESC", "a/b", "a\\b", "report", "Report", "two\nlines", "\0"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_of_models_and_parts_must_be_names_of_directories(name, tmp_path):
    part = {"model": name, "workdir": str(tmp_path)}
    for config in (
        tiny_config(name=name),
        tiny_config(baselines=[{"name": name}]),
        tiny_config(parts={name: {"model": "tiny"}}),
        tiny_config(parts={"part": part}),
    ):
        with pytest.raises(ConfigError, match=r"must be a name for a directory"):
            train_and_evaluate(config, tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_ordinary_names_pass():
    for name in ("spa", "SPA 2", "größe_1.0", "report_2", "spa-ü"):
        check_model_name(name, "config.name")


@pytest.mark.parametrize("config", [None, 3, [], "digits"])
def test_a_config_must_be_a_mapping(config):
    with pytest.raises(ConfigError, match=r"config=.* must be a mapping with the keys augmentation, baselines"):
        check_config(config)


def test_a_complete_config_stays_as_it_is():
    full = complete(tiny_config())
    assert complete(full) == full and list(complete(full)) == list(full)
