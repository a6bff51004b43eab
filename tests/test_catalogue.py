"""Attacks from plain data."""

import jax
import pytest

from spa_jax import (
    attack_from_config,
    restarts,
)
from tests.attack_cases import (
    PGD,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_an_attack_from_a_config_is_the_preset_it_names():
    built = attack_from_config({"name": "pgd", "radius": 0.1, "num_steps": 5, "restarts": 2, "at_once": 2})
    expected = restarts(PGD, 2, 2)
    assert jax.tree.structure(built) == jax.tree.structure(expected)
    assert jax.tree.leaves(built) == jax.tree.leaves(expected)
    assert attack_from_config({"name": "pgd", "radius": 0.1, "chunk_size": 4}).size == 4
    loss = {"name": "capped_cross_entropy", "cap": 3}
    assert attack_from_config({"name": "pgd", "radius": 0.1, "loss": loss}).loss.cap == 3
    assert attack_from_config({"name": "spa", "radius": 0.1, "attributes": ["rotation"]}).unroll == 1
