import itertools
import json
from pathlib import Path

import pytest

from spa_jax import attack_from_config
from spa_jax.benchmarks import device, run
from spa_jax.benchmarks.device import check_device
from spa_jax.benchmarks.generator import check_generator
from spa_jax.benchmarks.matrix import check_matrix
from spa_jax.benchmarks.run import SCHEMA, benchmark
from spa_jax.benchmarks.speed import check_speed
from spa_jax.benchmarks.workers import WorkerError, time_in_turns
from spa_jax.configuration import check_keys, named
from spa_jax.errors import ConfigError
from spa_jax.runs.config_files import load_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORKS = {
    "tiny": {
        "model": {"name": "small_cnn", "width": 2, "hidden": 4, "convs_per_stage": 1},
        "stock": "cnn",
        "input_shape": (4, 4, 1),
    }
}
PGD = {"name": "pgd", "radius": 0.1, "num_steps": 2}
TRAINING = {"attack": PGD, "networks": ("tiny",), "peers": ()}
GRID = {"name": "attribute", "edit": "rotation", "method": "grid", "num_steps": 3}


def config(**changes):
    speed = {
        "networks": NETWORKS,
        "forms": ("stock",),
        "num_classes": 3,
        "batch_size": 8,
        "repeats": 2,
        "devices": (2, 1),
        "attacks": {"pgd": PGD, "grid": GRID},
        "peers": (),
        "peer_attack": "pgd",
        "apart": False,
    }
    return {"name": "test", "seed": 0, "speed": speed | changes}


def test_speed_table(tmp_path):
    text = benchmark(config(), tmp_path)
    assert "| tiny    | pgd  | stock | 2       |" in text
    assert (tmp_path / "benchmark.md").read_text() == text + "\n"
    record = json.loads((tmp_path / "benchmark.json").read_text())
    rows = {(row["work"], row["form"], row["devices"]): row for row in record["speed"]}
    assert set(rows) == set(itertools.product(("pgd", "grid"), ("stock",), (2, 1)))
    assert rows["pgd", "stock", 2]["slowdown"] == 1.0
    assert all(row["multiple_of_floor"] > 0 and row["first_s"] > 0 for row in rows.values())
    assert record["environment"]["versions"]["jax"]
    assert record["config"]["speed"]["batch_size"] == 8


def test_training_steps_have_rows_of_their_own(tmp_path):
    changes = {"forms": ("zoo", "stock"), "devices": (2,), "attacks": {}, "peer_attack": None, "training": TRAINING}
    benchmark(config(**changes), tmp_path)
    rows = json.loads((tmp_path / "benchmark.json").read_text())["speed"]
    assert [(row["work"], row["form"]) for row in rows] == [("training step", "zoo"), ("training step", "stock")]
    assert all(row["multiple_of_floor"] > 0 for row in rows)


@pytest.mark.slow
def test_each_thing_is_timed_in_a_process_of_its_own():
    section = config()["speed"]
    common = {
        "build": "spa_jax.benchmarks.cells:attack_cell",
        "section": section,
        "network": "tiny",
        "attack": PGD,
        "seed": 0,
    }
    taken = time_in_turns({devices: {**common, "devices": devices} for devices in (1, 2)}, 2)
    for found in taken.values():
        assert list(found.times) == ["run", "prepared gradients", "plain gradients"]
        assert len(found.times["run"].wall) == 2 and found.times["run"].first > max(found.times["run"].wall)
        assert found.facts["passes"] == {"gradients": (2, 2), "forwards": (0, 0)}


def test_an_error_in_another_process_is_told():
    with pytest.raises(WorkerError, match=r"No module named 'spa_jax\.benchmarks\.cell'"):
        time_in_turns({"a": {"build": "spa_jax.benchmarks.cell:attack_cell"}}, 1)


def test_rows_are_written_as_they_come(tmp_path, monkeypatch):
    def measure(config, workdir):
        yield {"network": "a"}
        assert json.loads((tmp_path / "benchmark.json").read_text())["speed"] == [{"network": "a"}]
        raise KeyboardInterrupt

    monkeypatch.setitem(run.MEASUREMENTS, "speed", measure)
    with pytest.raises(KeyboardInterrupt):
        benchmark(config(), tmp_path)
    assert "| a " in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize(("limit", "skipped"), [(60.0, False), (0.0, True)])
def test_device_table(limit, skipped, tmp_path):
    network = {"tiny": {name: NETWORKS["tiny"][name] for name in ("model", "input_shape")}}
    section = {
        "networks": {},
        "small_networks": network,
        "num_classes": 3,
        "batch_size": 64,
        "small_batch_size": 4,
        "dtypes": ("float32",),
        "attacks": {"PGD": PGD},
        "work": ("attack", "training"),
        "repeats": 1,
        "time_limit": limit,
    }
    text = benchmark({"name": "test", "seed": 0, "device": section}, tmp_path)
    rows = json.loads((tmp_path / "benchmark.json").read_text())["device"]
    assert [(row["work"], row["dtype"], row["batch_size"]) for row in rows] == [
        ("attack", "float32", 4),
        ("training", "float32", 4),
    ]
    for row in rows:
        assert ("time limit of 0 s" in text) == skipped == ("skipped" in row)
        assert skipped or (row["multiple_of_floor"] > 0 and row["peak_share"] is None and row["teraflops_per_s"] > 0)


def test_peaks_are_known_by_the_device_kind():
    kinds = ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "cpu"]
    assert [device._peak(kind, "bfloat16") for kind in kinds] == [989.4e12, 756e12, 312e12, None]


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
        ({"forms": ("own",)}, r"config.speed.forms: 'own' is unknown; valid: stock, zoo"),
        ({"peers": ("cleverhans",)}, r"peer='cleverhans' is unknown"),
        (
            {"training": {"attack": PGD, "networks": ("big",), "peers": ()}},
            r"training.networks: 'big' is unknown.*tiny",
        ),
        (
            {"training": {"attack": PGD, "networks": (), "peers": ("jax",)}},
            r"peer='jax' is unknown.*torch_loop_training",
        ),
        ({"networks": {"tiny": NETWORKS["tiny"] | {"stock": "vgg"}}}, r"stock='vgg' is not a stock network.*resnet20"),
        ({"attacks": {"pgd": PGD | {"step": 1}}}, r"step is unknown to attack 'pgd'"),
        ({"networks": {"a": {"model": {}}}}, r"config.speed.networks.a.input_shape is missing"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        benchmark(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_must_ask_for_something(tmp_path):
    with pytest.raises(ConfigError, match="no section to measure; give it one of speed, memory, strength"):
        benchmark({"name": "test", "seed": 0}, tmp_path)


def get_config(name, arg=""):
    return load_config(f"{CONFIGS / name}.py:{arg}")


BENCHMARKS = [
    "bench_attacks",
    "bench_autoattack",
    "bench_composite",
    "bench_device",
    "bench_generator",
    "bench_optimum",
    "bench_planted",
    "bench_spa",
    "bench_strength",
    "bench_universal",
]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_configs_of_the_repository_are_well_formed(name):
    asked = get_config(name)
    check_keys(asked, SCHEMA)
    for section, check in {"speed": check_speed, "device": check_device, "generator": check_generator}.items():
        if asked.get(section):
            check(asked[section] | ({"peers": (), "training": None} if section == "speed" else {}))


def test_the_composite_attacks_of_the_repository_cost_about_the_same():
    asked = get_config("bench_composite", "seeds=0|3")
    check_matrix(asked["matrix"], named(asked["data"]))
    attacks = {
        name: attack_from_config(own) for name, own in asked["matrix"]["experiment"]["evaluation"]["attacks"].items()
    }
    joint = 4 * (30 / 3 + 66)
    passes = {name: joint if name.startswith("joint") else attack.num_steps for name, attack in attacks.items()}
    assert attacks["joint, fixed order"].num_steps == 4 * (29 + 66)
    assert max(passes.values()) - min(passes.values()) <= 2


@pytest.mark.parametrize("arg", ["", "data=mnist,seeds=4,epochs=1"])
def test_the_searches_of_the_repository_cost_what_their_names_say(arg):
    asked = get_config("bench_optimum", arg)
    check_matrix(asked["matrix"], named(asked["data"]))
    attacks = asked["matrix"]["experiment"]["evaluation"]["attacks"]
    steps = {name: attack_from_config(own).num_steps for name, own in attacks.items()}
    assert steps["exhaustive"] == 3 * (1 + 81 * 21 + 1)
    for name, own in attacks.items():
        starts = 0 if own.get("start") == "none" else steps[name] // own.get("restarts", 1) - own.get("num_steps", 40)
        climbs = name.startswith("default") or own.get("start_steps", 1) > 1
        forward = 0 if climbs else starts * own.get("restarts", 1)
        passes = steps[name] - forward + forward / 3
        assert name == "exhaustive" or name.endswith(f"({passes:.0f})"), (name, passes)


@pytest.mark.parametrize("arg", ["data=digits", "data=mnist_rot,epochs=2,attacker_epochs=1,seeds=0|5,images=100"])
def test_the_matrix_of_the_repository_passes_its_check(arg):
    asked = get_config("bench_spa", arg)
    check_matrix(asked["matrix"], named(asked["data"]))
    assert list(asked["matrix"]["seeds"]) == ([0, 5] if "5" in arg else [0, 1, 2])
