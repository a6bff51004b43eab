"""The loop: bit-identical resume, checkpoints and records, a diverging loss, a config that is not the checkpoint's."""

import json

import jax
import numpy as np
import pytest

from spa_jax.errors import CheckpointError, ConfigError
from spa_jax.parallel import data_mesh
from spa_jax.runs import loop
from spa_jax.runs.checkpoints import load_variables
from spa_jax.runs.experiment import check_config, load_data, make_experiment, variants
from tests.training.conftest import stop_requested_at, tiny_config


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
