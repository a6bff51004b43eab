"""Structures that tell classes apart, and loops of the host."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import pytest

from spa_jax import ddn, fmn, make_attack
from spa_jax.attacks import base
from spa_jax.spaces import l2, linf
from spa_jax.trees import one_ahead, pytree, static
from spa_jax.victims import as_victim

KEY, X, Y = jax.random.key(0), jnp.full((2, 4, 4, 1), 0.5), jnp.arange(2)


def two_of(register):
    """Two classes of one form that do different things, both registered as pytrees in one way."""

    class Dark:
        weight: jax.Array

        def __call__(self, images):
            return -self.weight * images.reshape(len(images), -1)[:, :3]

    class Light:
        weight: jax.Array

        def __call__(self, images):
            return self.weight * images.reshape(len(images), -1)[:, :3]

    return register(Dark), register(Light)


def as_jax_does(cls):
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def test_the_structure_of_a_pytree_knows_its_class_its_numbers_paths_and_its_structure():
    @pytree
    class Ball:
        radius: float
        norm: str = static(default="l2")

    one, other = (kind(1.0) for kind in two_of(pytree))
    assert jax.tree.structure(one) != jax.tree.structure(other)
    assert jax.tree.structure(Ball(1.0)) == jax.tree.structure(Ball(2.0)) != jax.tree.structure(Ball(1.0, "linf"))
    assert jax.tree.map(lambda radius: 2 * radius, Ball(1.0, "l1")) == Ball(2.0, "l1")
    ((path, leaf),) = jax.tree_util.tree_leaves_with_path(Ball(3.0))
    assert jax.tree_util.keystr(path) == ".radius" and leaf == 3


@pytest.mark.parametrize(("one", "other"), [(linf, l2), (lambda r: ddn(r, 2), lambda r: fmn("l2", r, 2))])
def test_spaces_and_attacks_of_one_form_do_not_share_a_program(one, other):
    assert jax.tree.structure(one(0.1)) != jax.tree.structure(other(0.1))


@pytest.mark.parametrize("register", [as_jax_does, flax.struct.dataclass])
def test_victims_of_users_classes_of_one_form_do_not_share_a_program(register):
    one, other = (kind(jnp.ones(())) for kind in two_of(register))
    seen = [as_victim(victim, X, inline=False) for victim in (one, other)]
    assert jax.tree.structure(seen[0]) != jax.tree.structure(seen[1])
    assert jax.tree.structure(seen[0]) == jax.tree.structure(as_victim(type(one)(jnp.zeros(())), X, inline=False))


def test_attacks_with_users_classes_of_one_form_do_not_share_a_program(monkeypatch):
    class Doubled(type(linf(0.1))):
        def apply(self, v, example):
            return super().apply(2 * v, example)

    class Halved(type(linf(0.1))):
        def apply(self, v, example):
            return super().apply(v / 2, example)

    compiled, seen = base._compiled, set()

    def spied(*arguments, kinds, **options):
        seen.add(kinds)
        return compiled(*arguments, kinds=kinds, **options)

    monkeypatch.setattr(base, "_compiled", spied)
    for space in map(as_jax_does, (Doubled, Halved)):
        make_attack(space(0.1), num_steps=1)(KEY, two_of(pytree)[1](jnp.ones(())), X, Y)
    assert len(seen) == 2


def test_a_loop_of_the_host_is_one_program_ahead(monkeypatch):
    waited_for = []
    monkeypatch.setattr(jax, "block_until_ready", waited_for.append)
    state = 0
    for asked in (1, 2, 3):
        state = one_ahead(state, asked)
    assert state == 3 and waited_for == [0, 1, 2]
