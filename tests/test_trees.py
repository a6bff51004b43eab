"""Structures that tell classes apart, and loops of the host."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from spa_jax import ddn, fmn, make_attack
from spa_jax.attacks import base
from spa_jax.models import from_nnx
from spa_jax.spaces import l2, linf
from spa_jax.trees import jit_by_kinds, one_ahead, pytree, static
from spa_jax.victims import as_victim

KEY, X, Y = jax.random.key(0), jnp.full((2, 4, 4, 1), 0.5), jnp.arange(2)


def two_of(register):
    """Two classes of one form and one name that do different things, both registered as pytrees in one way."""

    def scaled(scale):
        class Scaled:
            weight: jax.Array

            def __call__(self, images):
                return scale * self.weight * images.reshape(len(images), -1)[:, :3]

        return register(Scaled)

    return scaled(-1), scaled(1)


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


def test_a_class_may_be_a_dataclass_before():
    @pytree
    @dataclasses.dataclass(frozen=True)
    class Ball:
        radius: float

    assert jax.tree.leaves(Ball(2.0)) == [2.0]


def test_a_field_must_be_an_argument_of_the_constructor():
    class Ball:
        radius: float
        twice: float = dataclasses.field(init=False)

    with pytest.raises(ValueError, match=r"fields=\['twice'\] of Ball must be arguments of its constructor"):
        pytree(Ball)


@pytest.mark.parametrize(("one", "other"), [(linf, l2), (lambda r: ddn(r, 2), lambda r: fmn("l2", r, 2))])
def test_spaces_and_attacks_of_one_form_do_not_share_a_program(one, other):
    assert jax.tree.structure(one(0.1)) != jax.tree.structure(other(0.1))


@pytest.mark.parametrize("register", [as_jax_does, flax.struct.dataclass])
def test_victims_of_users_classes_of_one_form_do_not_share_a_program(register):
    one, other = (kind(jnp.ones(())) for kind in two_of(register))
    seen = [as_victim(victim, X, inline=False) for victim in (one, other)]
    assert jax.tree.structure(seen[0]) != jax.tree.structure(seen[1])
    assert jax.tree.structure(seen[0]) == jax.tree.structure(as_victim(type(one)(jnp.zeros(())), X, inline=False))


def differs(network):
    """Whether victims of two classes are told apart, and those of one class are not."""
    dark, light = two_of(as_jax_does)
    one, other, again = (as_victim(network(kind(jnp.ones(()))), X, inline=False) for kind in (dark, light, dark))
    return jax.tree.structure(one) != jax.tree.structure(other) and jax.tree.structure(one) == jax.tree.structure(again)


def test_parts_of_nnx_modules_are_told_apart():
    class Network(nnx.Module):
        def __init__(self, part):
            self.part, self.options = nnx.data(part), {"depth": 1}  # not hashable

        def __call__(self, images):
            return self.part(images)

    assert differs(lambda part: Partial(*from_nnx(Network(part))))


def test_arguments_of_callbacks_are_told_apart():
    def host(part, images):
        return np.asarray(part(images))

    def callback(part):
        return lambda x: jax.pure_callback(host, jax.ShapeDtypeStruct((len(x), 3), x.dtype), part, x)

    assert differs(callback)


def test_a_jit_by_kinds_calls_the_program_of_each_class():
    @jit_by_kinds
    def logits(victim, images):
        return victim(images)

    for _ in range(150):  # with `jax.jit` about one pair in a hundred is confused
        for victim, sign in zip(two_of(as_jax_does), (-1, 1), strict=True):
            np.testing.assert_array_equal(np.sign(logits(victim(jnp.ones(())), X)), sign)


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
