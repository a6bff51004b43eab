"""Every config is whole and right; those for accelerators take a few steps on images made in their data's format."""

from pathlib import Path

import numpy as np
import pytest

from spa_jax.parallel import data_mesh
from spa_jax.runs.config_files import load_config
from spa_jax.runs.experiment import check_config, load_data, make_experiment
from spa_jax.runs.loop import train_and_evaluate

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
EXPERIMENTS = [path for path in CONFIGS if not path.stem.startswith(("bench", "common"))]


def _config(path, arg=""):
    return load_config(f"{path}:{arg}")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_config_passes_its_own_check_and_opens_with_its_command(path):
    check_config(_config(path))
    assert f"python launch/train.py --config configs/{path.name} --workdir" in path.read_text().split('"""')[1]


def test_unseen_attacks_on_purification_pass_the_check():
    path = next(path for path in EXPERIMENTS if path.stem == "mnist_atop")
    config = _config(path, "unseen,transforms=rt2")
    check_config(config)
    assert config["baselines"][-1]["name"] == "pgd" and {"l1", "l2", "StAdv"} < set(config["evaluation"]["attacks"])


def test_arguments_of_a_config_reach_it():
    path = next(path for path in EXPERIMENTS if path.stem == "digits_spa")
    config = _config(path, "epochs=2,baselines=false")
    assert config["training"]["num_epochs"] == 2.0 and config["baselines"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["celeba_spa", "tiny_imagenet_spa"])
def test_a_config_of_data_not_at_hand_runs_to_its_report_on_made_images(name, tmp_path):
    config = _config(next(path for path in EXPERIMENTS if path.stem == name), "made=true,width=2,epochs=1")
    config["data"] |= {"train_size": 40, "test_size": 8, "validation_size": 8}
    config["training"] |= {"batch_size": 16}
    config["evaluation"] |= {"batch_size": 8, "attribute_points": 0, "radii": None}
    for spec in config["evaluation"]["attacks"].values():
        spec.update({key: 1 for key in ("num_steps", "restarts") if key in spec})
    train_and_evaluate(config, tmp_path)
    assert (tmp_path / "report" / "report.md").stat().st_size
    assert (tmp_path / "report" / "manipulator" / "manipulation.md").exists() == (name == "celeba_spa")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_gat", "cifar10_pgd", "cifar10_spa"])
def test_an_accelerator_config_takes_steps_on_made_images(name):
    config = _config(next(path for path in EXPERIMENTS if path.stem == name))
    config["data"] = {"name": "synthetic", "like": "cifar10", "train_size": 32, "test_size": 16, "validation_size": 16}
    config["training"] |= {"batch_size": 16, "num_epochs": 1.0}
    config["model"]["width"] = 8
    config["recipe"]["attack"] |= {"num_steps": 1} | ({"step_size": 8 / 255} if name == "cifar10_pgd" else {})
    config = check_config(config)
    dataset = load_data(config)
    experiment = make_experiment(config, dataset, data_mesh())
    engine = experiment.engine
    state = engine.place_state(experiment.learner.init(experiment.key, dataset.image_shape))
    batch = {
        **dataset.train.take(np.arange(16)),
        "mask": np.ones(16, bool),
        "index": np.arange(16, dtype=np.int32),
    }
    for _ in range(2):
        state, metrics = engine.step(state, engine.place_batch(batch), engine.place_state(experiment.key))
        assert np.isfinite(metrics["loss"])
