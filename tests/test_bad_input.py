"""Bad input of every kind gives one error that names value and rule, and leaves no half-written directory behind."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spa_jax
from spa_jax.errors import CheckpointError, ConfigError, DataNotFoundError
from spa_jax.runs.checkpoints import Checkpoints
from spa_jax.runs.loop import train_and_evaluate
from tests.training.conftest import tiny_config


def _changed(path, value):
    config = copy.deepcopy(tiny_config())
    *parents, last = path.split(".")
    node = config
    for name in parents:
        node = node[name]
    node[last] = value
    return config


SPA = {"name": "spa", "radius": 0.1, "num_steps": 1}
BAD_CONFIGS = {
    "misspelt key": ("traning", {}, ConfigError, "config.traning is unknown.*did you mean 'training'"),
    "misspelt nested key": ("training.num_epoch", 3, ConfigError, "config.training.num_epoch is unknown"),
    "wrong type": ("training.batch_size", "big", ConfigError, r"config.training.batch_size='big' must be int"),
    "unknown attack": (
        "evaluation.attacks.PGD",
        {"name": "pdg"},
        ConfigError,
        "'pdg' is not a known attack.*did you mean 'pgd'",
    ),
    "unknown attack key": (
        "evaluation.attacks.PGD",
        {"name": "pgd", "radius": 0.1, "num_stepz": 1},
        ConfigError,
        "num_stepz is unknown.*num_steps",
    ),
    "unknown model": ("model", {"name": "small_cn"}, ValueError, "'small_cn' is not a model.*did you mean 'small_cnn'"),
    "unknown model option": ("model.widht", 3, ValueError, "widht=3 is not an option.*'width'"),
    "unknown data set": ("data", {"name": "digit"}, ValueError, "'digit' is not a data set.*did you mean 'digits'"),
    "unknown recipe": ("recipe", {"name": "spa"}, ConfigError, "'spa' is not a known recipe"),
    "unknown optimizer": ("optimizer", {"name": "sdg"}, ConfigError, "'sdg' is not a known optimizer"),
    "unknown engine": (
        "training.engine",
        "xmap",
        ConfigError,
        "config.training.engine='xmap' must be one of jit, pmap",
    ),
    "negative radius": ("evaluation.attacks.PGD.radius", -0.1, ValueError, r"radius=-0.1 must be .*0 or larger"),
    "zero steps": ("evaluation.attacks.PGD.num_steps", 0, ValueError, "num_steps=0 must be an integer of at least 1"),
    "low above high": (
        "evaluation.attacks.PGD",
        SPA | {"attributes": {"rotation": {"low": 9.0, "high": -9.0}}},
        ValueError,
        "low=9.0 must not be larger than high=-9.0",
    ),
    "hue of grey images": (
        "evaluation.attacks.PGD",
        SPA | {"attributes": ["hue"]},
        ValueError,
        r"hue: image.shape=\(8, 8, 1\) must be \[h, w, 3\]",
    ),
    "missing data": (
        "data",
        {"name": "mnist", "data_dir": "/nowhere"},
        DataNotFoundError,
        "/nowhere.*download_and_prepare",
    ),
    "batch the devices cannot share": (
        "training.batch_size",
        100,
        ValueError,
        "batch_size=100 must be divisible by the 8 devices",
    ),
    "batch larger than the data": ("training.batch_size", 4000, ValueError, "batch_size=4000.*at most 1200"),
    "no validation examples": (
        "data",
        {"name": "digits", "validation_size": 0},
        ValueError,
        "data='digits' holds no validation examples.*data.validation_size, 1 or more",
    ),
    "no step at all": ("training.num_epochs", 0.01, ValueError, "num_epochs=0.01 must give at least one step"),
    "averaging out of range": ("training.ema_decay", 1.0, ValueError, r"ema_decay=1.0 must be in \[0, 1\)"),
    "zero deviation": ("normalization", {"mean": 0.5, "std": 0.0}, ValueError, "std=0.0 must be larger than 0"),
    "two models of one name": ("baselines", [{"name": "tiny"}], ConfigError, "'tiny' stands for two models"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_config_is_refused_before_anything_is_written(case, tmp_path):
    path, value, error, message = BAD_CONFIGS[case]
    with pytest.raises(error, match=f"(?s){message}"):
        train_and_evaluate(_changed(path, value), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"workdir='.*file/run' cannot be written"):
        train_and_evaluate(tiny_config(), tmp_path / "file" / "run")


def test_a_corrupt_checkpoint_is_named(tmp_path):
    state = {"w": jnp.ones(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, config={})
    for file in (tmp_path / "checkpoints" / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match="checkpoints"):
        checkpoints.restore(state)


def _first_pixels(images):
    return images.reshape(len(images), -1)[:, :10]


IMAGES = jnp.full((2, 6, 6, 1), 0.5)
LABELS = jnp.zeros(2, jnp.int32)
BAD_CALLS = {
    "images beyond one": ({"images": IMAGES * 4}, r"images.max\(\)=2: pixels must lie in \[0, 1\]"),
    "uint8 images": ({"images": jnp.zeros((2, 6, 6, 1), jnp.uint8)}, "images.dtype=uint8 must be floating.*/ 255.0"),
    "wrong rank": ({"images": IMAGES[0]}, r"images.shape=\(6, 6, 1\) must have rank 4"),
    "NaN": ({"images": IMAGES.at[0, 0, 0, 0].set(jnp.nan)}, "images must not hold NaN"),
    "empty batch": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "must not be empty"),
    "label out of range": ({"labels": LABELS + 10}, r"labels.max\(\)=10: classes must lie in \[0, 9\]"),
    "label beyond 32 bits": ({"labels": np.array([0, 2**32])}, r"labels.max\(\)=4294967296: classes"),
    "labels of another length": ({"labels": LABELS[:1]}, r"labels.shape=\(1,\) must be \(2,\)"),
    "float labels": ({"labels": jnp.zeros(2)}, "labels.dtype=float32 must be an integer dtype"),
    "target out of range": ({"target": LABELS + 10}, r"target.max\(\)=10: classes must lie in \[0, 9\]"),
    "weights of another length": ({"weight": jnp.ones(3)}, r"weight.shape=\(3,\) must be \(2,\)"),
    "no key": ({"key": 0}, r"key=0 must be a key: make one with jax.random.key"),
    "no logits": ({"victim": lambda x: x}, r"has shape \(2, 6, 6, 1\), must be logits"),
    "two outputs": ({"victim": lambda x: (x, x)}, r"the victim returns tuple, must be logits"),
    "a victim of keys": ({"victim": lambda keys, x: _first_pixels(x)}, r"randomized\(victim\)"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_of_an_attack_is_refused(case):
    arguments, message = BAD_CALLS[case]
    good = {"key": jax.random.key(0), "victim": _first_pixels, "images": IMAGES, "labels": LABELS}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        spa_jax.fgsm(0.1)(**(good | arguments))


def test_rounding_errors_outside_of_the_unit_range_are_no_mistake():
    result = spa_jax.fgsm(0.1)(jax.random.key(0), _first_pixels, IMAGES.at[0, 0, 0, 0].set(-3e-8), LABELS)
    assert float(np.min(result.x)) >= 0
