"""Attacks that stop at broken examples, against the same attacks that go on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spa_jax import (
    apgd_ce,
    in_chunks,
    multi_targeted,
    pgd,
    randomized,
    restarts,
    spa,
    square,
    until_broken,
    worst_of,
)
from spa_jax.attacks.base import Hosted
from spa_jax.attacks.survivors import batch_ladder, put_rows, take_rows
from spa_jax.validation import checked_keys
from tests.analytic_victims import images, mlp
from tests.attack_cases import KEY

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH = 40
VICTIM, X = mlp(classes=5), images(batch=BATCH)
Y = jnp.argmax(VICTIM(X), -1)
KEYS = checked_keys(KEY, BATCH)
ATTACKS = {
    "apgd": apgd_ce(0.07, 25),
    "pgd_l2": pgd(0.25, 12, norm="l2", loss="margin"),
    "square": square(0.08, 40),
    "restarts": restarts(pgd(0.07, 6), 3),
    "multi_targeted": multi_targeted(pgd(0.07, 6, loss="margin"), 3),
    "spa": spa(0.06, ["contrast"], 6),
}


def watch(monkeypatch, method="move"):
    sizes, call = [], Hosted.call

    def counted(self, attack, name, *arguments, **options):
        sizes.extend([len(arguments[-1].image)] if name == method or name == "advance" else [])
        return call(self, attack, name, *arguments, **options)

    monkeypatch.setattr(Hosted, "call", counted)
    return sizes


@pytest.mark.parametrize("name", ATTACKS)
def test_what_stands_is_as_without_stopping_and_what_falls_has_fallen(name, monkeypatch):
    attack = ATTACKS[name]
    plain = attack(KEYS, VICTIM, X, Y)
    fallen = np.asarray(plain.success)
    assert 0.6 < fallen.mean() < 1
    sizes = watch(monkeypatch)
    stopped = until_broken(attack, 3)(KEYS, VICTIM, X, Y)
    assert set(sizes) <= {40, 32, 16} and sizes[-1] == 16 and len(sizes) == attack.num_steps
    np.testing.assert_array_equal(stopped.success, fallen)
    np.testing.assert_allclose(stopped.x[~fallen], plain.x[~fallen], atol=1e-6)
    np.testing.assert_allclose(stopped.value[~fallen], plain.value[~fallen], rtol=1e-4, atol=1e-6)
    assert np.all(np.argmax(VICTIM(stopped.x), -1)[fallen] != np.asarray(Y)[fallen])


@pytest.mark.parametrize("name", ["apgd", "restarts"])
def test_compiled_and_stepped_it_finds_what_it_finds_when_the_batch_shrinks(name):
    attack = until_broken(ATTACKS[name], 4)
    called = attack(KEYS, VICTIM, X, Y)
    state = attack.init(KEYS, VICTIM, X, Y)
    for _ in range(attack.num_steps):
        state = attack.step(state, VICTIM, X, Y)
    for found in (attack.result(state, VICTIM, X, Y), jax.jit(attack)(KEYS, VICTIM, X, Y)):
        np.testing.assert_array_equal(found.success, called.success)
        np.testing.assert_allclose(found.x, called.x, atol=1e-6)


def test_an_attack_ends_when_everything_has_fallen(monkeypatch):
    sizes = watch(monkeypatch)
    assert until_broken(pgd(1.0, 50, loss="margin"), 5)(KEYS, VICTIM, X, Y).success.all()
    assert len(sizes) < 25


def test_a_broken_example_moves_no_more():
    attack = until_broken(pgd(0.3, 30, loss="margin"), 1)
    state = attack.init(KEYS, VICTIM, X, Y)
    for _ in range(15):
        state = attack.step(state, VICTIM, X, Y)
    assert state.stopped.all()
    after = attack.step(state, VICTIM, X, Y)
    np.testing.assert_array_equal(after.own.variables, state.own.variables)
    assert after.own.step == state.own.step + 1 == 16


def test_targets_weights_and_a_plain_victim_go_with_their_examples():
    aim, attack = (Y + 1) % 5, pgd(0.2, 8, loss="margin")
    plain = attack(KEYS, lambda x: VICTIM(x), X, Y, aim)
    stopped = until_broken(attack, 2)(KEYS, lambda x: VICTIM(x), X, Y, aim, weight=jnp.ones(BATCH))
    standing = ~np.asarray(plain.success)
    assert 0.1 < standing.mean() < 0.9
    np.testing.assert_array_equal(stopped.success, plain.success)
    np.testing.assert_allclose(stopped.x[standing], plain.x[standing], atol=1e-6)


def test_a_victim_that_draws_is_attacked_to_the_end(monkeypatch):
    def noisy(keys, x):
        noise = jax.vmap(lambda key, image: jax.random.normal(key, image.shape))(keys, x)
        return VICTIM(x + 0.1 * noise)

    victim, attack = randomized(noisy), pgd(0.1, 6)
    plain = attack(KEYS, victim, X, Y)
    sizes = watch(monkeypatch)
    stopped = until_broken(attack, 2)(KEYS, victim, X, Y)
    assert sizes == [BATCH] * 6
    np.testing.assert_allclose(stopped.x, plain.x, atol=1e-6)
    np.testing.assert_array_equal(stopped.success, plain.success)


def test_devices_keep_equal_shares(monkeypatch):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    keys, x, y = (jax.device_put(leaf, rows) for leaf in (KEYS, X, Y))
    sizes = watch(monkeypatch)
    found = until_broken(ATTACKS["pgd_l2"], 3)(keys, VICTIM, x, y)
    assert sizes[-1] == 16 and found.x.sharding.is_equivalent_to(rows, 4)
    np.testing.assert_array_equal(found.success, ATTACKS["pgd_l2"](KEYS, VICTIM, X, Y).success)


def test_rows_are_taken_and_put_back_where_they_were():
    tree = {"keys": KEYS, "x": X, "flags": Y > 1, "step": jnp.int32(3)}
    part = take_rows(tree, np.array([3, 7, 30]), 16, X)
    assert part["x"].shape[0] == 16 and part["step"] == 3
    np.testing.assert_array_equal(part["x"][:3], X[np.array([3, 7, 30])])
    changed = put_rows(tree, np.array([3, 7, 30]), part | {"x": part["x"] + 1, "step": jnp.int32(4)})
    expected = np.array(X)
    expected[[3, 7, 30]] += 1
    np.testing.assert_array_equal(changed["x"], expected)
    np.testing.assert_array_equal(jax.random.key_data(changed["keys"]), jax.random.key_data(KEYS))
    assert changed["step"] == 4


def test_a_batch_shrinks_to_few_sizes():
    assert batch_ladder(500) == [500, 256, 128, 64, 32, 16]
    assert batch_ladder(64) == [64, 32, 16]
    assert batch_ladder(5) == [5]
    assert batch_ladder(192, 12) == [192, 96, 48, 24] and batch_ladder(192, 16) == [192, 128, 64, 32, 16]
    attack = until_broken(multi_targeted(PGD := pgd(0.1, 2)))
    assert attack.batch_sizes(40) == {40, 32, 16} and PGD.batch_sizes(40) == {40}


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda: until_broken(pgd(0.1), 0), "every=0"),
        (lambda: until_broken(pgd(0.1, keep="last")), "attack=IterativeAttack does not say"),
        (lambda: until_broken(in_chunks(pgd(0.1), 4)), "attack=InChunks does not say"),
        (lambda: until_broken(worst_of(pgd(0.1))), "attack=WorstOf does not say"),
    ],
)
def test_an_attack_that_does_not_tell_is_refused(attack, message):
    with pytest.raises(ValueError, match=message):
        attack()
