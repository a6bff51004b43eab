"""Every attack is pure steps on a visible state: called, stepped, scanned, mapped or resumed, the result is one."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from jax.tree_util import Partial

from spa_jax import (
    apgd_ce,
    apgd_dlr,
    attribute_attack,
    caa,
    cw,
    ddn,
    deepfool,
    fab,
    fmn,
    in_chunks,
    in_turn,
    mi_fgsm,
    multi_targeted,
    noise_attack,
    pgd,
    random_attack,
    rays,
    restarts,
    spa,
    spat,
    square,
    until_broken,
    worst_of,
)
from spa_jax.spaces import latent
from spa_jax.validation import checked_keys
from tests.analytic_victims import SIZE, images, mlp, mlp_logits

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH, DEVICES = 4, 2
X, Y, VICTIM = images(batch=BATCH), jnp.arange(BATCH) % 3, mlp()
KEYS = checked_keys(jax.random.key(0), BATCH)
MIX = jnp.asarray(np.random.default_rng(7).normal(size=(3, *SIZE)) / 10, jnp.float32)
EDITS = ["contrast"]


def decode(mix, z, example):
    return example.image + jnp.tensordot(z, mix, 1)


def shapes(radius):
    return latent(Partial(decode, MIX), 3, radius)


PGD = pgd(0.1, 3)
PROJECTED = {"solver": "projected_gradient", "step_schedule": "linear"}
ATTACKS = {
    "pgd_linf": PGD,
    "pgd_l2": pgd(0.5, 3, norm="l2"),
    "pgd_l1": pgd(2.0, 3, norm="l1"),
    "mi_fgsm": mi_fgsm(0.1, 3),
    "spat": spat(0.1, 3, mask="min"),
    "apgd_ce": apgd_ce(0.1, 6),
    "apgd_l2": apgd_ce(0.5, 6, norm="l2"),
    "apgd_dlr": apgd_dlr(0.1, 6),
    "square": square(0.1, 6),
    "square_l2": square(0.5, 6, "l2"),
    "rays": rays(num_steps=8),
    "random": random_attack(0.1, EDITS, 3),
    "caa": caa(0.1, EDITS, 2, order_steps=2),
    "cw": cw(num_steps=3, search_steps=3),
    "deepfool": deepfool(num_steps=4),
    "ddn": ddn(num_steps=4),
    "fmn": fmn("linf", num_steps=4),
    "fmn_l1": fmn("l1", num_steps=4),
    "fab": fab("l1", num_steps=4, random_start=True),
    "attribute_random": attribute_attack("contrast", method="random", num_steps=3),
    "attribute_grid": attribute_attack("contrast", method="grid", num_steps=3),
    "attribute_gradient": attribute_attack("contrast", num_steps=3),
    "latent_random": noise_attack(1.0, shapes, num_steps=3),
    "latent_gradient": noise_attack(1.0, shapes, "gradient", num_steps=3),
    "spa": spa(0.05, EDITS, 3),
    "spa_noise": spa(0.05, EDITS, 3, start="random", search="noise"),
    "spa_alternating": spa(0.05, EDITS, 3, start="draws", search="alternating", **PROJECTED),
    "spa_last": spa(0.05, EDITS, 3, start="draws", keep="last"),
    "restarts": restarts(PGD, 2),
    "in_chunks": in_chunks(PGD, 3),
    "multi_targeted": multi_targeted(PGD, 2),
    "until_broken": until_broken(PGD, 2),
    "in_turn": in_turn(PGD, until_broken(apgd_ce(0.1, 4))),
    "worst_of": worst_of(PGD, attribute_attack("contrast", num_steps=2)),
}
QUICK = {
    "pgd_l2",
    "apgd_l2",
    "deepfool",
    "fab",
    "attribute_grid",
    "latent_random",
    "spa",
    "restarts",
    "in_chunks",
    "worst_of",
    "multi_targeted",
}
"""One attack for each way of making a state and of moving it; the others are slow tests."""
BY_NAME = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in ATTACKS]
CHAOTIC = {"apgd_l2"}
"""Their images may differ where their losses do not."""


def stepped(attack, keys, x, y, victim=VICTIM):
    state = attack.init(keys, victim, x, y)
    for _ in range(attack.num_steps):
        state = attack.step(state, victim, x, y)
    return attack.result(state, victim, x, y)


def scanned(attack, keys, x, y, victim=VICTIM):
    start = attack.init(keys, victim, x, y)
    state, _ = jax.lax.scan(lambda state, _: (attack.step(state, victim, x, y), None), start, length=attack.num_steps)
    return attack.result(state, victim, x, y)


def sharded(function):
    """In `shard_map`, which checks what varies over the mesh, every argument split over two devices."""
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES])
    spec = PartitionSpec("d")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec))


def pmapped(function):
    mapped = jax.pmap(function, devices=jax.devices()[:DEVICES])
    deal = functools.partial(jax.tree.map, lambda leaf: leaf.reshape(DEVICES, -1, *leaf.shape[1:]))
    collect = functools.partial(jax.tree.map, lambda leaf: leaf.reshape(-1, *leaf.shape[2:]))
    return lambda *arrays: collect(mapped(*deal(arrays)))


def assert_same(name, found, expected):
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-4, atol=1e-4 if name in CHAOTIC else 1e-5)
    np.testing.assert_array_equal(found.success, expected.success)
    if name not in CHAOTIC:
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BY_NAME)
def test_an_attack_is_its_steps(name):
    attack = ATTACKS[name]
    expected = attack(KEYS, VICTIM, X, Y)
    assert_same(name, stepped(attack, KEYS, X, Y), expected)
    assert_same(name, jax.jit(attack)(KEYS, VICTIM, X, Y), expected)


@pytest.mark.parametrize("name", BY_NAME)
def test_states_can_be_scanned_and_vmapped(name):
    attack = ATTACKS[name]
    twice = jnp.stack([KEYS, checked_keys(jax.random.key(1), BATCH)])
    found = jax.jit(jax.vmap(lambda keys: scanned(attack, keys, X, Y)))(twice)
    for i, keys in enumerate(twice):
        assert_same(name, jax.tree.map(lambda leaf, i=i: leaf[i], found), attack(keys, VICTIM, X, Y))


def test_a_batch_of_states_takes_a_step_by_vmap_alone():
    twice = jnp.stack([KEYS, checked_keys(jax.random.key(1), BATCH)])
    states = jax.vmap(lambda keys: PGD.init(keys, VICTIM, X, Y))(twice)
    states = jax.vmap(lambda state: PGD.step(state, VICTIM, X, Y))(states)
    for i, keys in enumerate(twice):
        alone = PGD.step(PGD.init(keys, VICTIM, X, Y), VICTIM, X, Y)
        np.testing.assert_allclose(states.variables[i], alone.variables, atol=1e-6)


@pytest.mark.parametrize("radius", [0.1, jnp.float32(0.1)], ids=["python", "jax"])
def test_an_attack_is_a_function_to_be_jitted_whatever_its_numbers_are(radius):
    attack = pgd(radius, 3)
    assert_same("pgd_linf", jax.jit(attack)(KEYS, VICTIM, X, Y), PGD(KEYS, VICTIM, X, Y))
    assert hash(spa(radius, EDITS, 3, **PROJECTED)) and attack != pgd(radius, 3)


@pytest.mark.parametrize("name", BY_NAME)
def test_an_attack_runs_inside_of_shard_map_and_pmap(name):
    attack = ATTACKS[name]
    expected = attack(KEYS, VICTIM, X, Y)
    assert_same(name, sharded(lambda keys, x, y: attack(keys, VICTIM, x, y))(KEYS, X, Y), expected)
    assert_same(name, pmapped(lambda keys, x, y: attack(keys, VICTIM, x, y))(KEYS, X, Y), expected)


@pytest.mark.parametrize("name", ["pgd_l2", "spa"])
def test_steps_run_inside_of_shard_map_and_pmap(name):
    attack = ATTACKS[name]
    expected = attack(KEYS, VICTIM, X, Y)
    assert_same(name, sharded(functools.partial(scanned, attack))(KEYS, X, Y), expected)
    assert_same(name, pmapped(functools.partial(scanned, attack))(KEYS, X, Y), expected)


def test_a_plain_function_is_a_victim_everywhere():
    weights = VICTIM.args[0]

    def victim(x):
        return mlp_logits(weights, x)

    expected = PGD(KEYS, VICTIM, X, Y)

    def attack(keys, x, y):
        return PGD(keys, victim, x, y)

    for run in (attack, jax.jit(attack), sharded(attack), pmapped(attack), lambda *args: stepped(PGD, *args, victim)):
        assert_same("pgd_linf", run(KEYS, X, Y), expected)


# --- a state is data ------------------------------------------------------------------------------------------------

JOINT = ATTACKS["spa"]


def test_a_state_says_where_it_stands():
    state = JOINT.init(KEYS, VICTIM, X, Y)
    assert state.step == 0 and set(state.variables) == {"contrast", "noise"}
    after = JOINT.step(state, VICTIM, X, Y)
    assert after.step == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    chex.assert_shape([state.best.value, state.best.success], (BATCH,))
    early = JOINT.result(after, VICTIM, X, Y)
    assert np.all(np.asarray(early.value)[~np.asarray(early.success)] >= state.best.value[~np.asarray(early.success)])


def test_a_state_saved_restored_and_gone_on_with_ends_at_equal_bits(tmp_path):
    state = JOINT.init(KEYS, VICTIM, X, Y)
    for i in range(JOINT.num_steps):
        if i == 5:
            save(tmp_path / "state.npz", state)
        state = JOINT.step(state, VICTIM, X, Y)
    whole = JOINT.result(state, VICTIM, X, Y)
    state = restore(tmp_path / "state.npz", jax.eval_shape(lambda: JOINT.init(KEYS, VICTIM, X, Y)))
    assert state.step == 5
    for _ in range(5, JOINT.num_steps):
        state = JOINT.step(state, VICTIM, X, Y)
    chex.assert_trees_all_equal(JOINT.result(state, VICTIM, X, Y), whole)


def save(path, state):
    np.savez(path, *map(np.asarray, jax.tree.leaves(jax.tree.map(raw, state))))


def raw(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def restore(path, like):
    """Only the attack that made a state knows its structure: `jax.eval_shape` of `init`."""
    leaves, structure = jax.tree.flatten(like)
    with np.load(path) as saved:
        arrays = [jnp.asarray(saved[name]) for name in saved.files]
    wrapped = [
        jax.random.wrap_key_data(array) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else array
        for leaf, array in zip(leaves, arrays, strict=True)
    ]
    return jax.tree.unflatten(structure, wrapped)


IN_A_FRESH_PROCESS = """
import sys
import jax, numpy as np
from tests.attacks.test_steps import JOINT, KEYS, VICTIM, X, Y, restore, save
jax.config.update("jax_disable_most_optimizations", True)
state = restore(sys.argv[1], jax.eval_shape(lambda: JOINT.init(KEYS, VICTIM, X, Y)))
for _ in range(int(state.step), JOINT.num_steps):
    state = JOINT.step(state, VICTIM, X, Y)
save(sys.argv[2], JOINT.result(state, VICTIM, X, Y))
"""


@pytest.mark.slow
def test_another_process_goes_on_with_a_state_to_equal_bits(tmp_path):
    state = JOINT.init(KEYS, VICTIM, X, Y)
    for i in range(JOINT.num_steps):
        if i == 5:
            save(tmp_path / "state.npz", state)
        state = JOINT.step(state, VICTIM, X, Y)
    whole = JOINT.result(state, VICTIM, X, Y)
    files = [str(tmp_path / name) for name in ("state.npz", "result.npz")]
    root = Path(__file__).parents[2]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, *files], cwd=root, env=environment, check=True, timeout=120
    )
    chex.assert_trees_all_equal(restore(files[1], whole), whole)
