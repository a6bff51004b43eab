"""Attacks from plain data."""

import jax
import pytest

from spa_jax import attack_from_config, restarts
from spa_jax.errors import ConfigError
from tests.attack_cases import PGD

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_an_attack_from_a_config_is_the_preset_it_names():
    built = attack_from_config({"name": "pgd", "radius": 0.1, "num_steps": 5, "restarts": 2, "at_once": 2})
    expected = restarts(PGD, 2, 2)
    assert jax.tree.structure(built) == jax.tree.structure(expected)
    assert jax.tree.leaves(built) == jax.tree.leaves(expected)
    assert attack_from_config({"name": "pgd", "radius": 0.1, "chunk_size": 4}).size == 4
    loss = {"name": "capped_cross_entropy", "cap": 3}
    assert attack_from_config({"name": "pgd", "radius": 0.1, "loss": loss}).loss.cap == 3
    joint = attack_from_config({"name": "spa", "radius": 0.1, "attributes": ["rotation"]})
    assert list(joint.members()) == ["rotation", "noise"]
    absolute = attack_from_config({"name": "pgd", "radius": 0.1, "step_size": 0.025})
    assert absolute.stages[0].solver.rel_step_size == 0.25


@pytest.mark.parametrize("option", ["unroll", "is_targeted", "start_candidates"])
def test_what_is_no_option_any_more_is_named(option):
    with pytest.raises(ConfigError, match=f"{option} is unknown"):
        attack_from_config({"name": "spa", "radius": 0.1, option: 1})
