"""Checkpoints: what comes back is what was saved, or an error or warning says why not."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spa_jax.errors import CheckpointError, ConfigError
from spa_jax.runs.checkpoints import Checkpoints, check_config, load_variables, prepare_workdir
from tests.runs.full_disk import files_of_at_most

CONFIG = {"attack": {"name": "pgd", "radius": 8 / 255, "box": (0, 1)}, "seed": 0}


@flax.struct.dataclass
class TrainState:
    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    key: jax.Array
    ema: dict | None = None


def make_state(seed: int = 0, width: int = 3) -> TrainState:
    key = jax.random.key(seed)
    params = {
        "conv/0": {"kernel": jax.random.normal(key, (2, width)), "bias": jnp.zeros(width, jnp.bfloat16)},
        "list": [jnp.arange(width), jnp.array(True)],
    }
    optimizer = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adam)(learning_rate=0.1), optax.trace(0.9))
    with jax.numpy_dtype_promotion("standard"):  # optax compares the types of all leaves
        return TrainState(jnp.int32(seed), params, {}, optimizer.init(params["conv/0"]), key)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def save(workdir, steps, **options):
    with Checkpoints(workdir, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), config=CONFIG)


def steps_on_disk(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def data_files(workdir, step: int) -> list[Path]:
    """The files that hold array values, largest first."""
    files = [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.parent.name == "d"]
    return sorted(files, key=lambda path: -path.stat().st_size)


def moved(workdir: Path) -> Path:
    """The same files elsewhere: within one process, TensorStore may answer for a known path from its cache."""
    return workdir.rename(workdir.with_name(f"{workdir.name}-moved"))


def flip_bytes(path: Path, offset: int, count: int = 8):
    content = bytearray(path.read_bytes())
    for index in range(offset, min(offset + count, len(content))):
        content[index] ^= 0xFF
    path.write_bytes(bytes(content))


def test_everything_comes_back_bit_for_bit(tmp_path):
    state = make_state(7)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.best_step is None
        checkpoints.save(7, state, config=CONFIG)
    with Checkpoints(tmp_path) as checkpoints:
        restored, step = checkpoints.restore(jax.eval_shape(make_state))
        assert checkpoints.config() == {"attack": {"name": "pgd", "radius": 8 / 255, "box": [0, 1]}, "seed": 0}
    assert step == checkpoints.latest_step == 7
    assert_same(restored, state)


def test_buffers_may_be_donated_while_the_save_is_under_way(tmp_path):
    state = {"w": jnp.arange(2_000_000.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, config={})
        jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)(state))
        restored, _ = checkpoints.restore({"w": jax.ShapeDtypeStruct((2_000_000,), jnp.float32)})
    np.testing.assert_array_equal(restored["w"], np.arange(2_000_000, dtype=np.float32))


def test_a_restored_state_can_be_donated(tmp_path):
    save(tmp_path, [1])
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(make_state())
    kernel = restored.params["conv/0"]["kernel"]
    jax.jit(lambda x: x + 1, donate_argnums=0)(kernel)
    assert kernel.is_deleted()


def test_the_last_steps_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, num_last=1) as checkpoints:
        for step, metric in enumerate([0.1, 0.9, 0.3, None, float("nan"), 0.9, 0.2], start=1):
            checkpoints.save(step, {"x": jnp.ones(step)}, config={}, metric=metric)
        assert (checkpoints.latest_step, checkpoints.best_step) == (7, 6)
    assert steps_on_disk(tmp_path) == [6, 7]
    with Checkpoints(tmp_path, num_last=1) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (7, 6)
        checkpoints.save(8, {"x": jnp.ones(8)}, config={}, metric=1.0)
        assert (checkpoints.latest_step, checkpoints.best_step) == (8, 8)
    assert steps_on_disk(tmp_path) == [8]


def test_without_a_metric_the_newest_are_kept(tmp_path):
    save(tmp_path, range(1, 6))
    assert steps_on_disk(tmp_path) == [4, 5]


def test_steps_must_increase(tmp_path):
    save(tmp_path, [5])
    with Checkpoints(tmp_path) as checkpoints:
        for step in (5, 4):
            with pytest.raises(CheckpointError, match=rf"step={step} must come after the newest checkpoint .* 5"):
                checkpoints.save(step, make_state(), config={})


def test_going_on_from_an_older_step_leaves_the_newer_ones_behind(tmp_path):
    save(tmp_path, [1, 2, 3], num_last=3)
    with Checkpoints(tmp_path, num_last=3) as checkpoints:
        _, step = checkpoints.restore(make_state(), step=1)
        assert step == checkpoints.latest_step == 1
        assert steps_on_disk(tmp_path) == [1, 2, 3]
        checkpoints.save(2, make_state(20), config={})
        assert checkpoints.latest_step == 2
    assert steps_on_disk(tmp_path) == [1, 2]
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(make_state())[0], make_state(20))


def test_another_number_of_devices(tmp_path):
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("needs 8 simulated devices (jax_num_cpu_devices)")

    def spread(count):
        mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])
        return {
            "sharded": NamedSharding(mesh, PartitionSpec("data")),
            "replicated": NamedSharding(mesh, PartitionSpec()),
            "key": NamedSharding(mesh, PartitionSpec()),
        }

    values = {"sharded": jnp.arange(16.0), "replicated": jnp.arange(3), "key": jax.random.key(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(values, spread(8)), config={})
        for count in (8, 2, 1):
            template = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), values, spread(count)
            )
            restored, _ = checkpoints.restore(template)
            assert_same(restored, values)
            assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)} == {count}
    for sharding, count in ((None, 1), (spread(2)["key"], 2)):
        loaded = load_variables(tmp_path, sharding=sharding).variables
        assert_same(loaded, values)
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(loaded)} == {count}


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_newest_step_is_passed_over_with_a_warning(tmp_path, harm):
    save(tmp_path / "run", [1, 2])
    workdir = moved(tmp_path / "run")
    for path in data_files(workdir, 2):
        if harm == "flip":
            flip_bytes(path, path.stat().st_size // 2)
        elif harm == "truncate":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.unlink()
    with Checkpoints(workdir) as checkpoints:
        with pytest.warns(UserWarning, match=r"damaged checkpoints in .* passed over: step 2: \w+"):
            restored, step = checkpoints.restore(make_state())
            assert step == checkpoints.latest_step == 1
        assert_same(restored, make_state(1))
        checkpoints.save(2, make_state(22), config=CONFIG)
    with Checkpoints(workdir) as checkpoints:
        assert_same(checkpoints.restore(make_state())[0], make_state(22))


@pytest.mark.slow
def test_no_single_damaged_file_yields_wrong_numbers(tmp_path):
    save(tmp_path / "good", [1, 2])
    folder = tmp_path / "good" / "checkpoints" / "2"
    for index, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        for harm in ("truncate", "remove"):
            workdir = tmp_path / f"{index}-{harm}"
            shutil.copytree(tmp_path / "good", workdir)
            victim = workdir / path.relative_to(tmp_path / "good")
            victim.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) if harm == "truncate" else victim.unlink()
            with Checkpoints(workdir) as checkpoints, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                restored, step = checkpoints.restore(make_state())
            assert_same(restored, make_state(step))
            shutil.rmtree(workdir)


def test_flipped_bytes_anywhere_in_the_values_are_found(tmp_path):
    state = {"w": jax.random.normal(jax.random.key(0), (5000,))}
    workdir = tmp_path / "run"
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(1, state, config={})
    found = 0
    for offset in np.linspace(0, data_files(workdir, 1)[0].stat().st_size - 1, 6).astype(int):
        workdir = moved(workdir)
        values = data_files(workdir, 1)[0]
        flip_bytes(values, int(offset), 1)
        try:
            with Checkpoints(workdir) as checkpoints:
                restored, _ = checkpoints.restore(state)
            assert_same(restored, state)
        except CheckpointError as error:
            assert "step 1: " in str(error)
            found += 1
        flip_bytes(values, int(offset), 1)
    assert found >= 5


def test_an_edited_description_is_damage(tmp_path):
    save(tmp_path, [1])
    description = tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    description.write_text(description.read_text().replace('"seed": 0', '"seed": 1'))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=r"step 1: .*description"):
        checkpoints.config()
    with pytest.raises(CheckpointError, match=r"step 1: .*description"):
        load_variables(tmp_path)


def test_no_good_step_is_an_error_that_names_directory_and_causes(tmp_path):
    save(tmp_path, [1, 2])
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "state")
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    (tmp_path / "checkpoints" / "2").mkdir()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(make_state())
    assert f"no good checkpoint in {tmp_path / 'checkpoints'}" in str(error.value)
    assert "step 2: " in str(error.value)
    assert "step 1: " in str(error.value)
    assert isinstance(error.value, ValueError)


def test_a_step_asked_for_is_not_replaced_by_another(tmp_path):
    save(tmp_path / "run", [1, 2])
    workdir = moved(tmp_path / "run")
    for path in data_files(workdir, 2):
        path.unlink()
    with Checkpoints(workdir) as checkpoints:
        with pytest.raises(CheckpointError, match=r"no good checkpoint in .*: step 2: "):
            checkpoints.restore(make_state(), step=2)
        with pytest.raises(CheckpointError, match=r"no checkpoint step=9 in .*; steps there: \[1, 2\]"):
            checkpoints.restore(make_state(), step=9)


def test_an_empty_directory_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match="there is no checkpoint in"):
        checkpoints.restore(make_state())


def test_a_checkpoint_of_another_model_lists_the_leaves_that_differ(tmp_path):
    save(tmp_path, [1, 2])
    other = make_state(width=4)
    other = other.replace(ema={"w": jnp.zeros(2)}, params={"conv/0": other.params["conv/0"]})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(other)
    message = str(error.value)
    assert "checkpoint 2 of" in message
    assert "belongs to another model" in message
    assert "ema.w: stored no, expected float32[2]" in message
    assert "params.conv/0.kernel: stored float32[2,3], expected float32[2,4]" in message
    assert "and 1 more" in message


def test_another_dtype_is_not_cast_in_silence(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)}, config={})
        with pytest.raises(CheckpointError, match=r"w: stored float32\[2\], expected bfloat16\[2\]"):
            checkpoints.restore({"w": jnp.ones(2, jnp.bfloat16)})


def test_only_arrays_and_only_data_are_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=r"a\.1=3 of the state is a int; only arrays can be saved"):
            checkpoints.save(1, {"a": (jnp.ones(1), 3)}, config={})
        with pytest.raises(CheckpointError, match=r"a of the state has dtype=float64, which JAX would not read back"):
            checkpoints.save(1, {"a": np.ones(1)}, config={})
        with pytest.raises(ConfigError, match=r"config\.f=.* is not data"):
            checkpoints.save(1, {"a": jnp.ones(1)}, config={"f": print})
        assert checkpoints.latest_step is None


def test_variables_load_without_their_structure(tmp_path):
    state = make_state(4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(3), config={"seed": 3}, metric=0.9)
        checkpoints.save(4, state, config=CONFIG, metric=0.5)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    everything = load_variables(tmp_path, step="latest")
    assert (everything.step, everything.config["seed"]) == (4, 0)
    assert_same(everything.variables["params"], state.params)
    assert_same(everything.variables["key"], state.key)
    assert everything.variables["batch_stats"] == {}
    parts = load_variables(tmp_path, names=["params", "batch_stats"])
    assert (parts.step, parts.config) == (3, {"seed": 3})
    assert_same(parts.variables, {"params": make_state(3).params, "batch_stats": {}})
    assert load_variables(tmp_path, step=4).step == 4
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_without_a_metric_the_best_variables_are_the_newest(tmp_path):
    save(tmp_path, [1, 2])
    assert load_variables(tmp_path, names=["params"]).step == 2


def test_variables_that_are_not_there_are_an_error_that_says_what_is(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        load_variables(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"no checkpoint step='best' in .*; steps there: \[\]"):
        load_variables(tmp_path)
    save(tmp_path, [1])
    with pytest.raises(CheckpointError, match=r"no checkpoint step=5 in .*; steps there: \[1\]"):
        load_variables(tmp_path, step=5)
    with pytest.raises(CheckpointError, match=r"names=\['weights'\] are not in checkpoint 1 .*'params'"):
        load_variables(tmp_path, names=["weights", "params"])


def test_damaged_variables_are_not_loaded(tmp_path):
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (5000,))}}
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, state, config={})
    workdir = moved(tmp_path / "run")
    flip_bytes(data_files(workdir, 1)[0], 9000, 64)
    with pytest.raises(CheckpointError, match=r"step 1: .*params\.w"):
        load_variables(workdir)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Task exception was never retrieved: .../orbax/checkpoint/_src/serialization.py", False),
        ('Task exception was never retrieved: OUT_OF_RANGE: Error opening "zarr3" driver', False),
        ("Task exception was never retrieved: the user's own", True),
    ],
)
def test_what_is_left_of_a_failed_read_is_silent_and_nothing_else(tmp_path, text, shown, caplog):
    save(tmp_path, [1])
    logging.getLogger("asyncio").error(text)
    assert (text in caplog.text) == shown


class FailingResponse:
    def result(self):
        raise RuntimeError("wrapped") from OSError("no space left on device")


def test_a_failed_save_is_told_on_closing_and_hides_no_other_error(tmp_path, monkeypatch):
    monkeypatch.setattr("orbax.checkpoint.v1.save_async", lambda *args, **options: FailingResponse())
    failed = pytest.raises(CheckpointError, match=r"saving step 1 in .* failed: OSError: no space left")
    with failed, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), config={})
    assert checkpoints.latest_step is None
    with pytest.raises(KeyError, match="loss") as error, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), config={})
        raise KeyError("loss")
    assert "no space left" in error.value.__notes__[0]


def test_a_full_disk_is_one_error_and_leaves_the_last_good_step(tmp_path, capfd):
    def state(step):
        return {"w": jax.random.normal(jax.random.key(step), (50_000,))}

    failed = pytest.raises(CheckpointError, match=r"saving step 2 in .* failed: .*File too large")
    with failed as error, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), config={}, metric=1.0)
        checkpoints.wait()
        with files_of_at_most(20_000):
            checkpoints.save(2, state(2), config={}, metric=2.0)
            checkpoints.wait()
    assert "\n" not in str(error.value)
    shown = capfd.readouterr()
    assert "Traceback" not in shown.err + shown.out
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (1, 1)
        assert_same(checkpoints.restore(state(1))[0], state(1))
        checkpoints.save(2, state(2), config={})
    assert steps_on_disk(tmp_path) == [1, 2]


def with_metrics(workdir, metrics):
    with Checkpoints(workdir, num_last=len(metrics)) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, make_state(step), config=CONFIG, metric=metric)
    return moved(workdir)


def description_of(workdir, step: int) -> Path:
    return workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"


def edit_metric(path):
    changed = path.read_text().replace('"metric": 0.9', '"metric": 0.2')
    assert changed != path.read_text()
    path.write_text(changed)


@pytest.mark.parametrize("harm", [edit_metric, Path.unlink, lambda path: path.write_text("")])
def test_the_best_step_does_not_move_without_a_word_when_a_metric_is_damaged(tmp_path, harm):
    workdir = with_metrics(tmp_path / "run", {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6})
    harm(description_of(workdir, 2))
    with pytest.warns(UserWarning, match=r"passed over: step 2: .*(description|METADATA).*; step 3 is used"):
        loaded = load_variables(workdir)
    assert loaded.step == 3
    assert_same(loaded.variables["params"], make_state(3).params)
    with Checkpoints(workdir) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (4, 3)


def test_a_damaged_step_does_not_cost_the_best_one(tmp_path):
    workdir = with_metrics(tmp_path / "run", {1: 0.9, 2: 0.5, 3: 0.7})
    description_of(workdir, 3).write_text("{")
    with pytest.warns(UserWarning, match="step 3: .*; step 1 is used"):
        assert load_variables(workdir).step == 1


def test_a_damaged_best_step_is_replaced_by_the_next_best(tmp_path):
    workdir = with_metrics(tmp_path / "run", {1: 0.9, 2: 0.7, 3: 0.5, 4: 0.6})
    for path in data_files(workdir, 1):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"step 1: .*; step 2 is used"):
        assert load_variables(workdir, names=["params"]).step == 2
    with Checkpoints(workdir) as checkpoints:
        with pytest.warns(UserWarning, match=r"no longer count: step 1: .*; the best is step 2"):
            _, step = checkpoints.restore(make_state())
        assert (step, checkpoints.best_step) == (4, 2)
        checkpoints.save(5, make_state(5), config=CONFIG, metric=0.1)
    assert steps_on_disk(workdir) == [2, 4, 5]


def test_a_structure_that_lost_leaves_is_damage(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"w": jnp.ones(2)}, "ema": {"w": jnp.zeros(2)}}, config={})
    structure = tmp_path / "checkpoints" / "1" / "state" / "_METADATA"
    content = json.loads(structure.read_text())
    content["tree_metadata"] = {key: leaf for key, leaf in content["tree_metadata"].items() if "ema" not in key}
    structure.write_text(json.dumps(content))
    for names in (None, ["params", "ema"]):
        with pytest.raises(CheckpointError, match=r"no good checkpoint in .*: step 1: "):
            load_variables(tmp_path, names=names)


def test_a_step_that_a_running_training_deletes_is_looked_for_no_more(tmp_path, monkeypatch):
    from orbax.checkpoint import v1

    with_metrics(tmp_path / "run", {1: 0.9, 2: 0.5})
    workdir, load = tmp_path / "run-moved", v1.load

    def deleted_while_it_is_loaded(path, template):
        if path.name == "1":
            shutil.rmtree(path)
        return load(path, template)

    monkeypatch.setattr(v1, "load", deleted_while_it_is_loaded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_variables(workdir).step == 2


def test_steps_of_an_older_version_are_refused_by_name(tmp_path):
    from orbax.checkpoint import v1

    from spa_jax.runs.checkpoints import _sealed

    v1.save(tmp_path / "checkpoints" / "1", {"w": jnp.ones(2)}, custom_metadata=_sealed({"config": {}, "leaves": {}}))
    with pytest.raises(CheckpointError, match="step 1: it was written by an older version"):
        load_variables(tmp_path)


def test_an_exception_in_the_run_completes_the_save_under_way(tmp_path):
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), config={})
        raise KeyboardInterrupt
    assert steps_on_disk(tmp_path) == [1]


def test_a_workdir_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(CheckpointError, match=r"workdir='.*file.*' cannot be written: "):
            prepare_workdir(workdir)
        with pytest.raises(CheckpointError, match="cannot be written"):
            Checkpoints(workdir)
    assert prepare_workdir(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_num_last_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="num_last=0 must be at least 1"):
        Checkpoints(tmp_path / "run", num_last=0)
    assert not (tmp_path / "run").exists()


def test_a_changed_config_is_shown_line_by_line():
    current = {"attack": {"name": "pgd", "radius": 0.1, "box": [0, 1]}, "seed": 0, "epochs": 3}
    with pytest.raises(ConfigError) as error:
        check_config(CONFIG, current)
    assert str(error.value).splitlines()[1:] == [
        f"  attack.radius: {8 / 255} -> 0.1",
        "  epochs: (absent) -> 3",
    ]
    with pytest.raises(ConfigError, match="epochs") as error:
        check_config(CONFIG, current, may_change=["attack"])
    assert "radius" not in str(error.value)
    check_config(CONFIG, current, may_change=["attack.radius", "epochs"])
    check_config(CONFIG, CONFIG)


KILLED = """
import sys
import numpy as np
from spa_jax.runs.checkpoints import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(1, 1000):
        state = {"w": np.full(4_000_000, step, np.float32)}
        print("saving", step, flush=True)
        checkpoints.save(step, state, config={})
"""


def test_a_process_killed_in_mid_save_leaves_the_last_good_step(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.strip() == "saving 3":
                break
        deadline = time.monotonic() + 60
        while not list((tmp_path / "checkpoints").glob("3.*tmp*")):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert list((tmp_path / "checkpoints").glob("*orbax-checkpoint-tmp*"))
    with Checkpoints(tmp_path) as checkpoints:
        restored, step = checkpoints.restore({"w": jax.ShapeDtypeStruct((4_000_000,), np.float32)})
        assert step >= 2
        np.testing.assert_array_equal(restored["w"], np.float32(step))
    assert not list((tmp_path / "checkpoints").glob("*orbax-checkpoint-tmp*"))
