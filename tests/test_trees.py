"""Loops of the host."""

import jax

from spa_jax.trees import one_ahead


def test_a_loop_of_the_host_is_one_program_ahead(monkeypatch):
    waited_for = []
    monkeypatch.setattr(jax, "block_until_ready", waited_for.append)
    state = 0
    for asked in (1, 2, 3):
        state = one_ahead(state, asked)
    assert state == 3 and waited_for == [0, 1, 2]
