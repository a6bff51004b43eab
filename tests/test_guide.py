"""Every snippet of the guide runs, in order and in one directory."""

import re
from pathlib import Path

import jax
import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


def _after_the_first_example(page):
    """The names that the first example of a page leaves, run as in a program of one's own."""
    names = {}
    (block, *_) = re.findall(r"```python\n(.*?)```", (GUIDE.parent / f"{page}.md").read_text(), flags=re.DOTALL)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(block, page, "exec"), names)
    return names


def test_the_example_of_semantics_preserving_training_runs():
    metrics = _after_the_first_example("spat")["metrics"]
    assert 0 <= metrics["reversed_clean"] <= 1 and metrics["loss"] > 0


def test_the_example_of_edits_in_any_order_runs():
    names = _after_the_first_example("composite")
    assert sorted(names["spaces"].order_of(names["result"].variables["order"])[0].tolist()) == [0, 1, 2]
    assert names["joint"].num_steps == 8 + 40


@pytest.mark.usefixtures("quick_compilation")
def test_the_example_of_autoattack_makes_a_card(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    card = _after_the_first_example("autoattack")["card"]
    assert [part.name for part in card.parts] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    assert card.clean.total == 32 and str(card) in capsys.readouterr().out
    assert len(list(tmp_path.glob("runs/autoattack/linf_0.0313725_standard_*/card.json"))) == 1


def test_the_example_of_universal_perturbations_runs():
    names = _after_the_first_example("universal")
    assert names["perturbed"].shape == (64, 8, 8, 1)
    assert names["state"].step == 4


def test_the_example_of_purifiers_runs():
    names = {}
    (block, *_) = re.findall(r"```python\n(.*?)```", (GUIDE.parent / "atop.md").read_text(), flags=re.DOTALL)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(block, "atop", "exec"), names)
    assert names["bpda"].x.shape == names["result"].x.shape == (8, 12, 12, 1)
    assert names["alone"].is_randomized and names["system"].is_randomized


def test_the_snippets_about_victims_that_draw_run():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (GUIDE.parent / "stochastic.md").read_text(), flags=re.DOTALL):
        exec(compile(block, "stochastic", "exec"), names)
    assert names["result"].success.shape == names["voted"].success.shape == (8,)


@pytest.mark.slow
def test_the_snippets_of_the_guide_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL):
        exec(compile(block, "guide", "exec"), names)
    assert "standard" in capsys.readouterr().out
    for run in ("hardened", "learned"):
        assert (tmp_path / f"runs/{run}/report/report.md").stat().st_size
    assert (tmp_path / "runs/manipulator/report/manipulator/manipulation.md").stat().st_size
