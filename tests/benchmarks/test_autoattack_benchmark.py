"""AutoAttack beside that of torchattacks: what a row says, and what a config may ask for."""

import jax
import numpy as np
import pytest

from spa_jax.benchmarks import autoattack as benchmark
from spa_jax.benchmarks import run
from spa_jax.benchmarks.autoattack import check_autoattack, evaluate_ours
from spa_jax.errors import ConfigError
from spa_jax.models import create_model
from spa_jax.runs.config_files import load_config
from tests.analytic_victims import images

MODEL = {"name": "small_cnn", "width": 2, "hidden": 8, "convs_per_stage": 1, "num_classes": 5}
SIZE = (8, 8, 1)


@pytest.fixture(scope="module")
def task():
    x = images(batch=12, size=SIZE)
    model = create_model(**MODEL, input_shape=SIZE)
    variables = jax.tree.map(np.asarray, model.init(jax.random.key(0), x))
    y = np.argmax(np.asarray(model.apply(variables, x)), -1).astype(np.int32)
    return {
        "devices": 1,
        "model": MODEL,
        "variables": variables,
        "images": np.asarray(x),
        "labels": y,
        "norm": "linf",
        "seed": 0,
    }


def test_our_row_has_every_part_and_both_times(task):
    row, functions = evaluate_ours(**task, radius=1.0, give_up_after=None)
    assert not functions and (row["clean_accuracy"], row["robust_accuracy"]) == (1, 0)
    assert row["broken"] == ["APGD-CE 12", "APGD-T 0", "FAB-T 0", "Square 0"]
    assert len(row["part_s"]) == 4 and row["seconds"] > 0 < row["again_s"]


def test_another_library_is_judged_by_the_flax_network_within_the_radius(task):
    """Attacks that go too far break nothing; what is broken is not attacked again."""
    torch = pytest.importorskip("torch", reason="the bench extra is not installed")
    seen = []

    def attacks_of(module, classes):
        assert classes == MODEL["num_classes"]

        def towards(x, y, step):
            seen.append(len(x))
            x = x.clone().requires_grad_(True)
            torch.nn.functional.cross_entropy(module(x), y, reduction="sum").backward()
            return (x + step * x.grad.sign()).clamp(0, 1)

        yield "too far", lambda x, y: towards(x, y, 0.9)
        yield "near", lambda x, y: towards(x, y, 0.3)
        yield "again", lambda x, y: x

    row, _ = benchmark._in_torch(attacks_of, **task, radius=0.3)
    broken = [int(text.split()[-1]) for text in row["broken"]]
    assert broken[0] == broken[2] == 0 < broken[1] < 12
    assert seen == [12, 12] and row["robust_accuracy"] == pytest.approx(1 - broken[1] / 12)


def test_rows_are_compared_with_ours(monkeypatch):
    found = {
        "evaluate_ours": {"robust_accuracy": 0.50, "seconds": 2.0},
        "evaluate_torchattacks_autoattack": {"robust_accuracy": 0.52, "seconds": 8.0},
    }
    monkeypatch.setattr(benchmark, "_in_a_process", lambda spec: found[spec["build"].split(":")[1]])
    section = {"peers": ["torchattacks_autoattack"], "devices": 2, "give_up_after": [64]}
    theirs, ours, quick = benchmark._compared({}, section)
    assert theirs["library"] == "torchattacks_autoattack" and "times" not in theirs
    assert ours["library"] == "spa_jax" and quick["library"] == "spa_jax, giving up after 64"
    assert (ours["above"], ours["times"]) == (["-2.0"], ["0.25"])
    shown = run._table("autoattack", [theirs, ours, quick])
    assert "-2.0" in shown and "0.25" in shown


def test_the_section_is_checked(monkeypatch):
    monkeypatch.setattr(benchmark, "check_peers", lambda *_: None)  # their libraries are an extra
    section = load_config("configs/bench_autoattack.py:data=digits,images=5,seeds=0|1,norm=l2,radius=0.25")[
        "autoattack"
    ]
    check_autoattack(section)
    assert section["num_images"] == 5 and {victim["radius"] for victim in section["victims"].values()} == {0.25}
    for change, message in (
        ({"norm": "l1"}, "norm='l1'"),
        ({"devices": 0}, "devices=0"),
        ({"give_up_after": [0]}, "give_up_after=0"),
        ({"num_images": 0}, "num_im"),
    ):
        with pytest.raises(ValueError, match=message):
            check_autoattack(section | change)
    check_autoattack(section | {"norm": "l1", "peers": ("autoattack_authors",)})
    with pytest.raises(ConfigError, match=r"config.autoattack.peer is unknown"):
        check_autoattack(section | {"peer": 1})
