"""Restarts, the worst of several and chunks against their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spa_jax import apgd_dlr, attribute_attack, in_chunks, pgd, restarts, worst_of
from spa_jax.attacks.base import RUN, stream
from spa_jax.losses import kl_divergence, margin
from spa_jax.validation import checked_keys
from tests.analytic_victims import SIZE, mlp
from tests.attack_cases import (
    ATTACKS,
    BATCH,
    FGSM,
    KEY,
    MLP,
    PGD,
    X,
    Y,
    assert_consistent,
    assert_never_weaker,
    judged,
    strength,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("name", ["pgd", "spa"])
def test_restarts_are_the_strongest_of_their_runs_however_they_are_held(name):
    attack = ATTACKS[name]
    keys = jax.random.split(KEY, BATCH)
    runs = [attack(stream(keys, RUN, i), MLP, X, Y) for i in range(3)]
    expected = [max(candidates) for candidates in zip(*(strength(run) for run in runs), strict=True)]
    for at_once in (1, 2) if name == "pgd" else (1,):
        repeated = restarts(attack, 3, at_once)
        for result in (repeated(keys, MLP, X, Y), *([jax.jit(repeated)(keys, MLP, X, Y)] if name == "pgd" else [])):
            np.testing.assert_allclose(strength(result), expected, rtol=1e-5, atol=1e-5)
            assert_consistent(result, MLP, Y)
        if name == "spa":
            edited = attack.apply(result.variables, MLP, X, Y, without=("noise",))
            np.testing.assert_allclose(result.without["noise"], edited, atol=1e-6)
    assert restarts(attack, 1) is attack


def test_worst_of_takes_the_strongest_attack_for_each_image():
    members = (PGD, attribute_attack("brightness"), FGSM)
    result = worst_of(*members)(KEY, MLP, X, Y)
    assert_consistent(result, MLP, Y, margin)
    keys = checked_keys(KEY, BATCH)
    for i, member in enumerate(members):
        alone = member(stream(keys, RUN, i), MLP, X, Y)
        assert_never_weaker(result, judged(alone.x, loss=margin))
        won = np.asarray(result.variables["winner"]) == i
        np.testing.assert_allclose(result.x[won], alone.x[won], atol=1e-6)
        jax.tree.map(np.testing.assert_allclose, result.variables["found"][i], alone.variables)


def test_targets_reach_every_member_of_a_combination():
    victim, aim = mlp(classes=4), (Y + 1) % 3
    combined = restarts(worst_of(PGD, in_chunks(apgd_dlr(0.3, 5), 4)), 2)
    result = combined(KEY, victim, X, Y, aim)
    assert_consistent(result, victim, Y, margin, target=aim)
    assert np.mean(result.success) > np.mean(judged(X, victim, target=aim).success)


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

    def wide(x):
        return jnp.tanh(x.reshape(len(x), -1) @ spread)[:, :3]

    x, y = jnp.tile(X, (16, 1, 1, 1)), jnp.tile(Y, 16)

    def temporary(attack):
        compiled = jax.jit(lambda keys: attack(keys, wide, x, y)).lower(jax.random.split(KEY, len(y))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(in_chunks(PGD, 8)) < 0.5 * temporary(PGD)


def test_chunks_leave_a_sharded_batch_on_its_devices():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    rows = NamedSharding(mesh, PartitionSpec("data"))
    keys, x, y = (jax.device_put(leaf, rows) for leaf in (jax.random.split(KEY, BATCH), X, Y))
    compiled = jax.jit(in_chunks(PGD, 4)).lower(keys, MLP, x, y).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-reduce", "all-to-all", "permute("))
    np.testing.assert_allclose(compiled(keys, MLP, x, y).value, PGD(keys, MLP, X, Y).value, rtol=1e-4)


def test_chunks_deal_out_targets_weights_and_reference_logits():
    """TRADES on chunks needs the reference of each chunk's own examples."""
    keys, reference = jax.random.split(KEY, BATCH), MLP(X)
    attack = pgd(0.1, 3, loss="kl_divergence")
    whole = attack(keys, MLP, X, Y, reference=reference)
    parts = in_chunks(attack, 3)(keys, MLP, X, Y, reference=reference, weight=jnp.ones(BATCH))
    np.testing.assert_allclose(whole.value, parts.value, rtol=1e-4, atol=1e-6)
    assert_consistent(
        parts, MLP, Y, lambda logits, examples: kl_divergence(logits, examples.replace(reference=reference))
    )
    aim = (Y + 1) % 3
    whole, parts = (run(keys, MLP, X, Y, aim) for run in (PGD, in_chunks(PGD, 3)))
    np.testing.assert_allclose(whole.value, parts.value, rtol=1e-4)
    np.testing.assert_array_equal(whole.success, parts.success)


def test_a_plain_function_is_traced_for_the_batches_that_it_will_see():
    sizes = []

    def victim(x):
        sizes.append(len(x))
        return MLP(x)

    keys = jax.random.split(KEY, BATCH)
    found = in_chunks(PGD, 3)(keys, victim, X, Y)
    assert set(sizes) == {3}
    np.testing.assert_allclose(found.value, PGD(keys, MLP, X, Y).value, rtol=1e-4)
