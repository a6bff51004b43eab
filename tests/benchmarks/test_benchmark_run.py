import importlib.util
import json
from pathlib import Path

import pytest

from spa_jax.benchmarks.matrix import check_matrix
from spa_jax.benchmarks.run import SCHEMA, benchmark
from spa_jax.configuration import check_keys
from spa_jax.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORKS = {
    "tiny": {
        "model": {"name": "small_cnn", "width": 2, "hidden": 4, "convs_per_stage": 1},
        "input_shape": (4, 4, 1),
    }
}
PGD = {"name": "pgd", "radius": 0.1, "num_steps": 2}


def config(**changes):
    speed = {
        "networks": NETWORKS,
        "num_classes": 3,
        "batch_size": 8,
        "repeats": 2,
        "devices": (2, 1),
        "attacks": {"pgd": PGD, "fgsm": {"name": "fgsm", "radius": 0.1}},
        "reference": "pgd",
        "peers": (),
        "peer_attack": {"radius": 0.1, "step_size": 0.25, "num_steps": 2},
    }
    return {"name": "test", "seed": 0, "speed": speed | changes}


def test_speed_table(tmp_path):
    text = benchmark(config(), tmp_path)
    assert "| tiny    | pgd    | 2       |" in text
    assert (tmp_path / "benchmark.md").read_text() == text + "\n"
    record = json.loads((tmp_path / "benchmark.json").read_text())
    rows = {(row["attack"], row["devices"]): row for row in record["speed"]}
    assert set(rows) == {("pgd", 2), ("pgd", 1), ("fgsm", 2), ("fgsm", 1)}
    assert rows["pgd", 2]["slowdown"] == 1.0
    assert all(row["multiple_of_floor"] > 0 for row in rows.values())
    assert record["environment"]["versions"]["jax"]
    assert record["config"]["speed"]["batch_size"] == 8


def test_memory_table(tmp_path):
    memory = {"networks": NETWORKS, "num_classes": 3, "batch_size": 8, "attacks": {"pgd": PGD}, "num_steps": (2, 3)}
    benchmark({"name": "test", "seed": 0, "memory": memory}, tmp_path)
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["memory"]
    assert row["attack"] == "pgd"
    assert 0 < row["2 steps, MiB"] == pytest.approx(row["3 steps, MiB"], rel=0.05)


def test_strength_without_other_libraries(tmp_path):
    strength = {
        "model": NETWORKS["tiny"]["model"],
        "batch_size": 64,
        "learning_rate": 1e-2,
        "victims": {"standard": {"recipe": {"name": "standard"}, "num_epochs": 0.5, "radius": 0.1}},
        "num_images": 64,
        "seeds": (0, 1),
        "attacks": {"pgd": {"attack": {"name": "pgd", "num_steps": 2}, "peers": ()}},
    }
    benchmark({"name": "test", "seed": 0, "data": {"name": "digits"}, "strength": strength}, tmp_path)
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["strength"]
    assert row["library"] == "spa_jax" and row["images"] == 64
    assert len(row["by_seed"]) == 2 and row["ours_minus_theirs"] == 0.0
    assert 0 <= row["robust_accuracy"] <= row["clean_accuracy"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeat": 3}, r"config.speed.repeat is unknown; did you mean 'repeats'"),
        ({"batch_size": 0.5}, r"config.speed.batch_size=0.5 must be int"),
        ({"devices": (3,)}, r"batch_size=8 must be divisible by the 3 devices"),
        ({"devices": (99,)}, r"config.speed.devices holds 99; JAX sees 8"),
        ({"reference": "apgd"}, r"config.speed.reference='apgd' must be one of the attacks"),
        ({"peers": ("cleverhans",)}, r"peer='cleverhans' is no peer"),
        ({"attacks": {"pgd": PGD | {"step": 1}}}, r"step is unknown to attack 'pgd'"),
        ({"networks": {"a": {"model": {}}}}, r"config.speed.networks.a.input_shape is missing"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        benchmark(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_must_ask_for_something(tmp_path):
    with pytest.raises(ConfigError, match="asks for nothing: give it a section of speed, memory, strength"):
        benchmark({"name": "test", "seed": 0}, tmp_path)


def get_config(name, arg=None):
    specification = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.get_config(arg)


@pytest.mark.parametrize("name", ["bench_attacks", "bench_generator", "bench_spa", "bench_strength"])
def test_the_configs_of_the_repository_are_well_formed(name):
    check_keys(get_config(name), SCHEMA)


@pytest.mark.parametrize("arg", ["data=digits", "data=mnist_rot,epochs=2,attacker_epochs=1,seeds=0|5,images=100"])
def test_the_matrix_of_the_repository_passes_its_check(arg):
    asked = get_config("bench_spa", arg).to_dict()
    check_matrix(asked["matrix"], asked["data"])
    assert asked["matrix"]["seeds"] == ((0, 5) if "5" in arg else (0, 1, 2))
