"""Restarts, the worst of several, chunks and targets against their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spa_jax import (
    attribute_attack,
    cw,
    in_chunks,
    margin,
    pgd,
    restarts,
    targeted,
    with_fields,
    worst_of,
)
from spa_jax.inputs import checked_keys
from tests.attack_cases import (
    ATTACKS,
    BATCH,
    FGSM,
    KEY,
    MLP,
    PGD,
    SPA,
    TWO,
    W,
    X,
    Y,
    assert_consistent,
    assert_never_weaker,
    strength,
)
from tests.victims import SIZE, linear

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("name", ["pgd", "spa"])
def test_restarts_are_the_strongest_of_their_runs_however_they_are_held(name):
    attack = ATTACKS[name]
    keys = jax.random.split(KEY, BATCH)
    runs = [attack(jax.vmap(jax.random.fold_in, (0, None))(keys, i), MLP, X, Y) for i in range(3)]
    expected = [max(candidates) for candidates in zip(*(strength(run) for run in runs), strict=True)]
    for at_once in (1, 2) if name == "pgd" else (1,):
        result = restarts(attack, 3, at_once)(keys, MLP, X, Y)
        np.testing.assert_allclose(strength(result), expected, rtol=1e-5, atol=1e-5)
        assert_consistent(result, MLP, Y)
        if name == "spa":
            assert_never_weaker(result, result.edited)
            for run in runs:
                assert_never_weaker(result.edited, run.edited)
    assert restarts(attack, 1) is attack


def test_worst_of_takes_the_strongest_attack_for_each_image():
    members = (PGD, with_fields(attribute_attack("brightness"), unroll=1), FGSM)
    result = worst_of(*members)(KEY, MLP, X, Y)
    assert_consistent(result, MLP, Y, margin)
    keys = checked_keys(KEY, BATCH)
    for i, member in enumerate(members):
        alone = member(jax.vmap(jax.random.fold_in, (0, None))(keys, i), MLP, X, Y)
        assert_never_weaker(result, alone._replace(value=margin(MLP(None, alone.x), Y)))
        won = np.asarray(result.variables["winner"]) == i
        np.testing.assert_allclose(result.x[won], alone.x[won], atol=1e-6)
        jax.tree.map(np.testing.assert_allclose, result.variables["found"][i], alone.variables)


def test_a_targeted_attack_makes_the_victim_answer_the_target():
    targets = (Y + 1) % 3
    result = targeted(with_fields(PGD, loss=margin))(KEY, MLP, X, targets)
    logits = np.asarray(MLP(None, result.x))
    rows = np.arange(BATCH)
    others = np.where(np.eye(3, dtype=bool)[targets], -np.inf, logits).max(1)
    np.testing.assert_allclose(result.value, logits[rows, targets] - others, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.success, logits.argmax(1) == targets)
    before = np.mean(np.argmax(MLP(None, X), axis=-1) == targets)
    assert np.mean(result.success) > before


def test_two_classes_make_targeted_and_untargeted_attacks_the_same():
    untargeted = pgd(0.1, 5, loss="margin", unroll=1)
    straight = untargeted(KEY, linear(W), X, TWO)
    goal = targeted(untargeted)(KEY, linear(W), X, 1 - TWO)
    np.testing.assert_allclose(straight.value, goal.value, rtol=1e-5)
    np.testing.assert_array_equal(straight.success, goal.success)


def test_targeted_reaches_into_combinators():
    attack = targeted(restarts(worst_of(PGD, SPA), 2))
    assert attack.is_targeted and all(member.is_targeted for member in attack.attack.attacks)
    assert targeted(cw()).is_targeted
    assert targeted(PGD, margin).loss.func is margin


@pytest.mark.parametrize("name", ["pgd", pytest.param("spa", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [4, 3])
def test_chunks_give_what_the_whole_batch_gives(name, size):
    keys = jax.random.split(KEY, BATCH)
    whole, parts = ATTACKS[name](keys, MLP, X, Y), in_chunks(ATTACKS[name], size)(keys, MLP, X, Y)
    assert jax.tree.structure(whole) == jax.tree.structure(parts)
    np.testing.assert_allclose(whole.value, parts.value, rtol=1e-4)
    np.testing.assert_array_equal(whole.success, parts.success)


def test_a_chunk_takes_the_memory_of_its_examples():
    spread = jnp.ones((SIZE[0] * SIZE[1] * SIZE[2], 2000), jnp.float32)

    def wide(keys, x):
        return jnp.tanh(x.reshape(len(x), -1) @ spread)[:, :3]

    x, y = jnp.tile(X, (16, 1, 1, 1)), jnp.tile(Y, 16)

    def temporary(attack):
        compiled = jax.jit(lambda keys: attack.search(keys, wide, x, y)).lower(jax.random.split(KEY, len(y))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(in_chunks(PGD, 8)) < 0.5 * temporary(PGD)


def test_chunks_leave_a_sharded_batch_on_its_devices():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    rows = NamedSharding(mesh, PartitionSpec("data"))
    keys, x, y = (jax.device_put(leaf, rows) for leaf in (jax.random.split(KEY, BATCH), X, Y))
    compiled = jax.jit(in_chunks(PGD, 4).search).lower(keys, MLP, x, y).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-reduce", "all-to-all", "permute("))
    np.testing.assert_allclose(compiled(keys, MLP, x, y).value, PGD(keys, MLP, X, Y).value, rtol=1e-4)
