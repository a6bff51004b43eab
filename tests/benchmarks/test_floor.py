import jax
import jax.numpy as jnp
import pytest

from spa_jax import apgd_ce, classifier, cw, in_chunks, pgd, restarts, spa, worst_of
from spa_jax.benchmarks.floor import (
    Passes,
    Times,
    alternate,
    count_passes,
    measure,
    median_ratio,
    summarise,
    temporary_bytes,
)
from spa_jax.models import SmallCNN, init_variables
from tests.analytic_victims import images, labels, linear, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_measure_reports_speed_compilation_and_floor():
    found = measure(pgd(0.1, 2), linear(weights()), images(), labels(), repeats=3)
    assert set(found) == {
        "examples_per_s", "compile_s", "seconds", "cpu_seconds", "multiple_of_floor", "cpu_multiple_of_floor",
    }  # fmt: skip
    assert found["examples_per_s"] == pytest.approx(4 / found["seconds"])
    assert found["multiple_of_floor"] > 0


def test_functions_take_turns_after_one_call_each():
    calls = []
    times = alternate({name: lambda name=name: calls.append(name) for name in "AB"}, 3)
    assert "".join(calls) == "AB" * 4
    assert len(times["A"].wall) == len(times["B"].cpu) == 3


def test_repeats_must_be_positive():
    with pytest.raises(ValueError, match="repeats=0 must be at least 1"):
        alternate({}, 0)


def test_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_medians():
    assert median_ratio((2.0, 30.0, 8.0), (1.0, 10.0, 2.0)) == 3.0


def test_summary_of_known_times():
    row = summarise(Times(5.0, (1.0, 2.0, 3.0), (2.0, 2.0, 2.0)), Times(9.0, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)), 10)
    assert row["examples_per_s"] == 5.0
    assert row["compile_s"] == 3.0
    assert row["multiple_of_floor"] == row["cpu_multiple_of_floor"] == 2.0
    assert "multiple_of_floor" not in summarise(Times(5.0, (1.0,), (1.0,)), None, 10)


def test_gradients_of_composed_attacks_are_counted():
    attack = pgd(0.1, 5)
    assert count_passes(attack) == Passes(gradients=5)
    assert count_passes(restarts(attack, 3)).gradients == 15
    assert count_passes(in_chunks(attack, 2)) == Passes(gradients=5)
    assert count_passes(worst_of(attack, restarts(spa(0.1, num_steps=2), 2))) == Passes(gradients=9, forwards=34)
    assert count_passes(cw(num_steps=4, search_steps=3)).gradients == 12


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda steps: pgd(0.1, steps), id="pgd"),
        pytest.param(lambda steps: apgd_ce(0.1, steps), id="apgd"),
        pytest.param(lambda steps: spa(0.1, num_steps=steps), id="spa"),
    ],
)
def test_memory_does_not_grow_with_the_number_of_steps(make):
    model = SmallCNN(width=4, hidden=8, convs_per_stage=1)
    victim = classifier(model, init_variables(model, jax.random.key(0), (8, 8, 1)))
    x, y = jnp.full((8, 8, 8, 1), 0.5), jnp.zeros(8, jnp.int32)
    few, many = (temporary_bytes(make(steps), victim, x, y) for steps in (10, 100))
    step_counters = 100 * 8
    assert few > 8 * 8 * 8 * 4
    assert many <= few + step_counters
