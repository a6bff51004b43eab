"""Randomised victims are judged over several fresh draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import pgd, randomized
from spa_jax.data.types import Split
from spa_jax.evaluation import evaluate, read_report, write_report

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
PGD = {"pgd": pgd(0.1, 2)}


@randomized
def coin(keys, images):
    """Answers 0 with probability 0.7 where an image is dark, always where it is bright."""
    is_bright = jnp.mean(images, axis=(1, 2, 3)) > 0.5
    heads = jax.vmap(lambda key: jax.random.bernoulli(key, 0.7))(keys) | is_bright
    return jnp.stack([heads, ~heads], axis=-1).astype(images.dtype)


@pytest.fixture(scope="module")
def split():
    """400 dark images, then 100 bright ones."""
    images = np.concatenate([np.full((400, 2, 2, 1), 0.2), np.full((100, 2, 2, 1), 0.8)]).astype(np.float32)
    return Split(images, np.zeros(500, np.int32))


@pytest.fixture(scope="module")
def report(split):
    return evaluate(coin, split, PGD, key=KEY, batch_size=250, survivors_only=False, judge_draws=8, sanity=False)


def test_the_share_of_draws_that_fail_is_that_of_the_victims_coin(report):
    assert report.draws == 8
    dark, bright = report.failed[:400], report.failed[400:]
    np.testing.assert_array_equal(bright, 0)
    assert abs(np.mean(dark) - 0.3) < 4 * np.sqrt(0.21 / 3200)
    assert set(np.round(8 * dark).astype(int)) <= set(range(9))
    np.testing.assert_array_equal(report.failed[report.clean] < 1, True)
    np.testing.assert_array_equal(report.failed[~report.clean] > 0, True)
    always, ever = 0.8 * 0.7**8 + 0.2, 0.8 * (1 - 0.3**8) + 0.2
    clean = report.over_draws["clean"]
    assert abs(clean.mean - 0.76) < 0.03 and abs(clean.always - always) < 0.05 and abs(clean.ever - ever) < 0.02


def test_of_attacks_those_misclassified_before_count_as_wrong_in_every_draw(report):
    failed = report.attacks["pgd"].failed
    np.testing.assert_array_equal(failed[~report.clean], 1)
    np.testing.assert_array_equal(failed[400:], 0)
    attacked = failed[:400][report.clean[:400]]
    assert abs(np.mean(attacked) - 0.3) < 4 * np.sqrt(0.21 / 8 / len(attacked))
    worst = report.over_draws["worst_case"]
    assert worst.mean <= min(report.over_draws[name].mean for name in ("clean", "pgd"))
    assert worst.always <= worst.mean <= worst.ever


def test_the_first_draw_decides_and_does_not_depend_on_how_many_follow(report, split):
    single = evaluate(coin, split, PGD, key=KEY, batch_size=100, survivors_only=False, judge_draws=1, sanity=False)
    np.testing.assert_array_equal(single.clean, report.clean)
    np.testing.assert_array_equal(single.attacks["pgd"].correct, report.attacks["pgd"].correct)
    assert single.draws == 1 and single.failed is None and single.over_draws == {}


def test_a_deterministic_victim_is_judged_once(split):
    def steady(images):
        return jnp.stack([jnp.ones(len(images)), jnp.zeros(len(images))], axis=-1) + 0 * images[:, 0, 0]

    found = evaluate(steady, split, PGD, key=KEY, batch_size=250, sanity=False)
    assert found.draws == 1 and found.attacks["pgd"].failed is None


def test_draws_are_in_the_report_and_come_back(report, split, tmp_path):
    write_report({"coin": report}, tmp_path, title="t", dataset="d", seed=0, config={})
    text = (tmp_path / "report.md").read_text()
    one, mean = np.mean(report.attacks["pgd"].correct), report.over_draws["pgd"].mean
    assert f"| coin | pgd | 8 | {100 * one:.1f} % | {100 * mean:.1f} % |" in text.partition("## Over fresh draws")[2]
    again = read_report(tmp_path / "report.json")["coin"]
    assert again.draws == 8 and again.over_draws.keys() == report.over_draws.keys()
    np.testing.assert_allclose(again.failed, report.failed, atol=1e-6)
    np.testing.assert_allclose(again.attacks["pgd"].failed, report.attacks["pgd"].failed, atol=1e-6)
