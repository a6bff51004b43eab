"""Universal perturbations: one set of variables for all images, its state carried over batches and over devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from spa_jax import Example, attribute, chain, make_attack, randomized, universal
from spa_jax.losses import cross_entropy, margin
from spa_jax.solvers import apgd, projected_gradient
from spa_jax.spaces import linf
from tests.analytic_victims import images, linear, margins, mlp, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, BATCH, DEVICES = jax.random.key(0), 8, 2
X, Y, VICTIM = images(batch=BATCH), jnp.arange(BATCH) % 3, mlp()
SPACE = chain(light=attribute("brightness"), noise=linf(0.1))
UNEVEN = jnp.array([1.0, 2.0, 1.0, 0.5, 1.0, 0.0, 0.0, 0.0])
"""Three of the second device's four images are padding."""


def over(axis_name):
    return lambda space: universal(space, axis_name)


def attack(axis_name=None, solver=None, **options):
    solver = projected_gradient(0.25) if solver is None else solver
    return make_attack(SPACE, cross_entropy, solver, 4, lift=over(axis_name), **options)


ATTACK = attack()


def run(attack, key, x, y, weight, victim=VICTIM):
    """The variables after all steps, and what they are worth on the images."""
    state = attack.init(key, victim, x, y, weight=weight)
    for _ in range(attack.num_steps):
        state = attack.step(state, victim, x, y, weight=weight)
    return attack.result(state, victim, x, y, weight=weight)


# --- over batches ---------------------------------------------------------------------------------------------------


def test_a_call_is_its_steps():
    expected = ATTACK(KEY, VICTIM, X, Y)
    chex.assert_trees_all_close(run(ATTACK, KEY, X, Y, None), expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(jax.jit(ATTACK)(KEY, VICTIM, X, Y), expected, rtol=1e-5, atol=1e-6)
    chex.assert_shape(expected.variables["noise"], X.shape[1:])
    chex.assert_shape(expected.value, (BATCH,))
    np.testing.assert_allclose(expected.value, cross_entropy(VICTIM(expected.x), Example(X, Y)), rtol=1e-5)


def test_a_state_goes_from_batch_to_batch_to_the_noise_that_is_best_for_all():
    """Two thirds of the images have label 0: the best noise is the radius along their gradient."""
    w, batches = weights(), [images(seed, batch=3, low=0.3, high=0.7) for seed in range(5)]
    y = jnp.array([0, 0, 1])
    climb = make_attack(linf(0.1), margin, projected_gradient(0.5), 5, lift=universal, keep="last")
    state = climb.init(KEY, linear(w), batches[0], y)
    for x in batches:
        state = climb.step(state, linear(w), x, y)
    np.testing.assert_allclose(state.variables, 0.1 * np.sign(w), atol=1e-6)
    fresh = images(9, batch=6, low=0.3, high=0.7)
    labels = jnp.zeros(6, jnp.int32)
    found = climb.apply(state.variables, linear(w), fresh, labels)
    np.testing.assert_allclose(margins(w, found, labels), margins(w, fresh, labels) + 0.1 * np.abs(w).sum(), rtol=1e-4)
    result = climb.result(state, linear(w), fresh, labels)
    np.testing.assert_array_equal(result.x, found)
    np.testing.assert_allclose(result.value, margins(w, found, labels), rtol=1e-4)


@pytest.mark.parametrize("solver", [projected_gradient(0.25), apgd()], ids=["projected_gradient", "apgd"])
def test_padded_examples_do_not_count(solver):
    climb = attack(solver=solver)
    padded = X.at[5:].set(images(7, batch=3))
    weight = (jnp.arange(BATCH) < 5).astype(jnp.float32)
    short, long = run(climb, KEY, X[:5], Y[:5], None), run(climb, KEY, padded, Y, weight)
    chex.assert_trees_all_close(short.variables, long.variables, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(short.value, long.value[:5], rtol=1e-4)
    other = run(climb, KEY, padded, Y, None)
    assert np.abs(other.variables["noise"] - long.variables["noise"]).max() > 1e-3


def test_a_weight_of_two_counts_like_an_image_that_is_there_twice():
    twice = run(ATTACK, KEY, jnp.concatenate([X, X[:2]]), jnp.concatenate([Y, Y[:2]]), None)
    heavy = run(ATTACK, KEY, X, Y, jnp.ones(BATCH).at[:2].set(2.0))
    chex.assert_trees_all_close(twice.variables, heavy.variables, rtol=1e-4, atol=1e-5)


def test_the_start_does_not_depend_on_the_images():
    starts = [ATTACK.init(KEY, VICTIM, x, Y).variables for x in (X, 1 - X)]
    chex.assert_trees_all_equal(*starts)
    other = ATTACK.init(jax.random.key(1), VICTIM, X, Y).variables
    assert np.any(starts[0]["noise"] != other["noise"])


def test_no_weight_at_all_moves_nothing_to_nan():
    result = run(ATTACK, KEY, X, Y, jnp.zeros(BATCH))
    chex.assert_tree_all_finite(result)


def test_one_key_for_each_image_is_refused():
    with pytest.raises(ValueError, match=r"key\.shape=\(8,\): variables that all images share take a single key"):
        ATTACK(jax.random.split(KEY, BATCH), VICTIM, X, Y)


# --- over devices ---------------------------------------------------------------------------------------------------


def sharded(function):
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES])
    rows = PartitionSpec("d")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(rows, rows, rows), out_specs=PartitionSpec()))


def pmapped(function):
    mapped = jax.pmap(function, axis_name="d", out_axes=None, devices=jax.devices()[:DEVICES])
    return lambda *arrays: mapped(*(leaf.reshape(DEVICES, -1, *leaf.shape[1:]) for leaf in arrays))


def steps(x, y, weight):
    climb = attack("d")
    start = climb.init(KEY, VICTIM, x, y, weight=weight)
    state, _ = jax.lax.scan(
        lambda state, _: (climb.step(state, VICTIM, x, y, weight=weight), None), start, length=climb.num_steps
    )
    return state.variables


def whole(x, y, weight):
    return attack("d")(KEY, VICTIM, x, y, weight=weight).variables


@pytest.mark.parametrize("function", [whole, steps], ids=["called", "scanned"])
@pytest.mark.parametrize("mapped", [sharded, pmapped])
@pytest.mark.parametrize("weight", [jnp.ones(BATCH), UNEVEN], ids=["even", "uneven"])
def test_devices_find_the_perturbation_of_one_device(function, mapped, weight):
    if function is whole:
        expected = ATTACK(KEY, VICTIM, X, Y, weight=weight).variables
    else:
        state = ATTACK.init(KEY, VICTIM, X, Y, weight=weight)
        for _ in range(ATTACK.num_steps):
            state = ATTACK.step(state, VICTIM, X, Y, weight=weight)
        expected = state.variables
    found = mapped(function)(X, Y, weight)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_device_whose_images_are_all_padding_joins_in():
    weight = (jnp.arange(BATCH) < 4).astype(jnp.float32)
    found = sharded(whole)(X, Y, weight)
    chex.assert_trees_all_close(found, ATTACK(KEY, VICTIM, X[:4], Y[:4]).variables, rtol=1e-4, atol=1e-5)


def test_a_randomized_victim_draws_the_same_wherever_an_image_lies():
    def shaken(keys, x):
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        return VICTIM(x + 0.3 * noise)

    def one(x, y, weight, axis_name="d"):
        return attack(axis_name)(KEY, randomized(shaken), x, y, weight=weight).variables

    weight = jnp.ones(BATCH)
    expected = one(X, Y, weight, None)
    chex.assert_trees_all_close(sharded(one)(X, Y, weight), expected, rtol=1e-4, atol=1e-5)
    still = ATTACK(KEY, VICTIM, X, Y).variables
    assert np.abs(still["noise"] - expected["noise"]).max() > 1e-3
