"""The loop: bit-identical resume, checkpoints and records, a diverging loss, a config that is not the checkpoint's."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from spa_jax.errors import CheckpointError, ConfigError
from spa_jax.parallel import data_mesh
from spa_jax.runs import loop
from spa_jax.runs.checkpoints import load_variables
from spa_jax.runs.experiment import check_config, load_data, make_experiment, variants
from tests.training.conftest import stop_requested_at, tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _experiment(config):
    config = check_config(config)
    return make_experiment(variants(config)[config["name"]], load_data(config), data_mesh())


def _train(config, workdir):
    loop.train(_experiment(config), workdir)
    return load_variables(workdir, step="latest")


def _assert_identical(left, right):
    assert left.step == right.step
    for a, b in zip(jax.tree.leaves(left.variables), jax.tree.leaves(right.variables), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, _train(tiny_config(), workdir)


def test_a_run_leaves_checkpoints_and_records(uninterrupted):
    workdir, found = uninterrupted
    assert found.step == 15
    assert found.variables["ema"] is not None
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 16))
    assert [line["step"] for line in lines if line["split"] == "validation"] == [5, 10, 15]
    assert list((workdir / "tensorboard").glob("*tfevents*"))


@pytest.mark.parametrize("stop_at", [3, 5, 11])
def test_stopped_and_started_again_it_ends_bit_identical(stop_at, uninterrupted, tmp_path):
    with stop_requested_at(stop_at), pytest.raises(loop.Interrupted, match=f"step={stop_at} of 15, saved"):
        _train(tiny_config(), tmp_path)
    _assert_identical(_train(tiny_config(), tmp_path), uninterrupted[1])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 16))


def test_a_finished_run_is_left_alone(uninterrupted, monkeypatch):
    workdir, found = uninterrupted
    monkeypatch.setattr(loop, "_run", lambda *args: pytest.fail("trained again"))
    _assert_identical(_train(tiny_config(), workdir), found)


def test_another_config_is_refused_with_the_difference(uninterrupted):
    workdir, found = uninterrupted
    with pytest.raises(ConfigError, match=r"schedule.peak: 0.05 -> 0.5"):
        _train(tiny_config(schedule={"name": "cosine", "peak": 0.5}), workdir)
    _assert_identical(load_variables(workdir, step="latest"), found)


def _longer(num_epochs, **changes):
    config = tiny_config(**changes)
    return config | {"training": config["training"] | {"num_epochs": num_epochs}}


def test_going_on_for_longer_without_the_flag_is_refused_and_the_flag_named(uninterrupted):
    workdir, found = uninterrupted
    with pytest.raises(ConfigError, match=r"(?s)training.num_epochs: 3.0 -> 4.0.*add --extend"):
        _train(_longer(4.0), workdir)
    with pytest.raises(ConfigError, match=r"training.num_epochs: 3.0 -> 2.0") as error:
        loop.train(_experiment(_longer(2.0)), workdir, extend=True)
    assert "--extend" not in str(error.value)
    with pytest.raises(ConfigError, match=r"schedule.peak: 0.05 -> 0.5"):
        loop.train(_experiment(_longer(4.0, schedule={"name": "cosine", "peak": 0.5})), workdir, extend=True)
    _assert_identical(load_variables(workdir, step="latest"), found)


def test_a_finished_run_goes_on_for_longer_and_says_what_that_does_to_the_schedule(uninterrupted, tmp_path, capsys):
    for name in ("whole", "stopped"):
        shutil.copytree(uninterrupted[0], tmp_path / name)
    experiment = _experiment(_longer(4.0))
    loop.train(experiment, tmp_path / "whole", extend=True)
    rate = 0.05 * 0.5 * (1 + math.cos(math.pi * 15 / 20))
    assert (
        "tiny: extended from 15 to 20 steps (training.num_epochs=3 -> 4), which stretches the schedule: "
        f"learning rate of step 16 0 -> {rate:.4g}\n"
    ) in capsys.readouterr().out
    extended = load_variables(tmp_path / "whole", step="latest")
    assert (extended.step, extended.config["training"]["num_epochs"]) == (20, 4.0)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 21))
    with stop_requested_at(18), pytest.raises(loop.Interrupted):
        loop.train(experiment, tmp_path / "stopped", extend=True)
    _assert_identical(_train(_longer(4.0), tmp_path / "stopped"), extended)


def test_a_finished_run_whose_best_step_is_damaged_can_be_evaluated_and_goes_on(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted[0], workdir)
    best = load_variables(workdir).step
    (workdir / "checkpoints" / str(best) / "state" / "_METADATA").unlink()
    with pytest.warns(UserWarning, match=f"step {best}: .* is used"):
        assert load_variables(workdir).step != best
    with pytest.warns(UserWarning, match=f"step {best}: "):
        loop.train(_experiment(_longer(4.0)), workdir, extend=True)
    assert load_variables(workdir, step="latest").step == 20


def test_settings_of_the_evaluation_may_change(uninterrupted):
    workdir, found = uninterrupted
    config = tiny_config()
    config["evaluation"] = config["evaluation"] | {"batch_size": 100}
    _assert_identical(_train(config, workdir), found)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    config = tiny_config(optimizer={"name": "sgd", "weight_decay": 1e30}, schedule={"name": "constant", "peak": 1e30})
    with pytest.raises(loop.TrainingDiverged, match=r"loss=(nan|inf) at step \d+ .*no checkpoint before it"):
        _train(config, tmp_path)


def test_the_last_good_checkpoint_is_named_when_the_loss_is_lost(tmp_path, monkeypatch):
    batches = loop._batches

    def spoiled(experiment, start):
        for step, batch in enumerate(batches(experiment, start), start + 1):
            image = batch["image"].astype(np.float32) / 255
            yield batch | {"image": np.full_like(image, np.nan) if step >= 8 else image}

    monkeypatch.setattr(loop, "_batches", spoiled)
    with pytest.raises(loop.TrainingDiverged, match=r"loss=nan at step 8 .*last good checkpoint is step 5"):
        _train(tiny_config(), tmp_path)
    assert load_variables(tmp_path, step="latest").step == 5


def test_a_checkpoint_of_another_model_is_refused(uninterrupted):
    workdir, _ = uninterrupted
    experiment = _experiment(tiny_config(model={"name": "small_cnn", "width": 3, "hidden": 8, "convs_per_stage": 1}))
    with loop.Checkpoints(workdir) as checkpoints:
        fresh = experiment.learner.init(experiment.key, experiment.dataset.image_shape)
        with pytest.raises(CheckpointError, match="belongs to another model"):
            checkpoints.restore(fresh)
