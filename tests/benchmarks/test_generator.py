import pytest

from spa_jax.benchmarks.generator import check_generator, time_generator
from spa_jax.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_compilation")

VICTIM = {"name": "small_cnn", "width": 2, "hidden": 4, "convs_per_stage": 1}
SECTION = {
    "networks": {"tiny": {"model": VICTIM, "input_shape": (8, 8, 1)}},
    "generator": {"width": 4},
    "num_classes": 3,
    "batch_size": 8,
    "radius": 0.1,
    "num_steps": 10,
    "repeats": 1,
}


def test_every_step_has_its_times_and_memory_that_hardly_grows_with_mini_steps():
    attack, training = time_generator(SECTION, 0)
    assert (attack["step"], training["step"]) == ("attack", "training")
    for row in (attack, training):
        assert row["multiple_of_passes"] > 0 and row["examples_per_s"] > 0
    assert training["MiB, 10 steps"] < 2 * training["MiB, 1 step"] < training["MiB, 10 steps, kept"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "repeats=0 must be"),
        ({"radius": -1.0}, "radius=-1.0 must be"),
        ({"num_step": 3}, "config.generator.num_step is unknown"),
        ({"generator": {"widht": 4}}, "did you mean 'width'"),
        ({"networks": {"tiny": {"model": VICTIM}}}, "networks.tiny.input_shape is missing"),
    ],
)
def test_wrong_sections_are_named(changes, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        check_generator(SECTION | changes)
