"""Composite attacks against an exhaustive search over all orders, and what a round of them does."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import Example, attack_from_config, attribute, caa, chain, make_attack, restarts, spa
from spa_jax.errors import ConfigError
from spa_jax.losses import margin
from spa_jax.solvers import component_wise, projected_gradient
from spa_jax.spaces import linf, order_of
from tests.attack_cases import assert_consistent

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
LIGHT = {"times": (0.8, 1.25), "shift": (-0.1, 0.1), "power": (0.8, 1.25)}
RADIUS = 0.05
BATCH = 12
Y = jnp.arange(BATCH) % 2
X = jnp.asarray(np.random.default_rng(0).uniform(0.3, 0.5, (BATCH, 3, 3, 1)), jnp.float32)


def times(image, factor):
    return image * factor


def shift(image, amount):
    return image + amount


def power(image, exponent):
    return image**exponent


EDITS = {"times": (times, 1.0), "shift": (shift, 0.0), "power": (power, 1.0)}
ATTRIBUTES = {name: attribute(EDITS[name][0], *LIGHT[name], identity=EDITS[name][1]) for name in EDITS}


def victim(images):
    """Class 0 is a dark image."""
    light = images.mean((1, 2, 3)) - 0.4
    return jnp.stack([-light, light], axis=-1)


def exhaustive():
    """The largest margin of each image over all orders of the four links and all corners of their ranges.

    Every link is monotone in value and image, so the optimum of an order lies in a corner.
    """
    changes = {
        "times": lambda x, corner: x * LIGHT["times"][corner],
        "shift": lambda x, corner: x + LIGHT["shift"][corner],
        "power": lambda x, corner: x ** LIGHT["power"][corner],
        "noise": lambda x, corner: x + (2 * corner - 1) * RADIUS,
    }
    sign = np.where(np.asarray(Y) == 0, 1, -1)
    found = {}
    for order in itertools.permutations(changes):
        values = []
        for corners in itertools.product((0, 1), repeat=4):
            x = np.asarray(X, np.float64)
            for name, corner in zip(order, corners, strict=True):
                x = np.clip(changes[name](x, corner), 0, 1)
            values.append(2 * sign * (x.mean((1, 2, 3)) - 0.4))
        found[order] = np.max(values, axis=0)
    return found


BY_ORDER = exhaustive()
OPTIMUM = np.max(list(BY_ORDER.values()), axis=0)
NAMES = (*EDITS, "noise")


def test_the_order_matters_here():
    assert np.all(OPTIMUM - np.min(list(BY_ORDER.values()), axis=0) > 0.02)
    best = {order: set(np.flatnonzero(OPTIMUM - values < 1e-9)) for order, values in BY_ORDER.items()}
    assert all(len(images) < BATCH for images in best.values()), "one order is best for all images"


def test_the_scheduled_order_reaches_the_optimum_over_all_orders():
    result = caa(RADIUS, ATTRIBUTES, 6, order_steps=30, loss="margin")(KEY, victim, X, Y)
    np.testing.assert_allclose(result.value, OPTIMUM, atol=2e-3)
    assert np.all(result.value <= OPTIMUM + 1e-5)
    orders = [tuple(NAMES[i] for i in order) for order in np.asarray(order_of(result.variables["order"]))]
    reached = [BY_ORDER[order][i] for i, order in enumerate(orders)]
    assert np.all(reached >= np.asarray(result.value) - 1e-5), "an order cannot do better than its own optimum"
    assert_consistent(result, victim, Y, loss=margin)


def test_a_fixed_order_reaches_the_optimum_of_that_order():
    result = caa(RADIUS, ATTRIBUTES, 6, "fixed", 2, loss="margin")(KEY, victim, X, Y)
    np.testing.assert_allclose(result.value, BY_ORDER[NAMES], atol=2e-3)
    assert "order" not in result.variables


def test_random_orders_are_searched_anew_in_every_round():
    values = [caa(RADIUS, ATTRIBUTES, 6, "random", n, loss="margin")(KEY, victim, X, Y).value for n in (1, 12)]
    assert np.mean(values[1]) > np.mean(values[0]) + 0.003
    assert np.all(values[1] <= OPTIMUM + 1e-5)


@pytest.mark.parametrize("solver", ["apgd", "projected_gradient"])
def test_the_joint_attack_moves_the_order_with_everything_else(solver):
    attack = spa(RADIUS, ATTRIBUTES, 30, order="scheduled", solver=solver, loss="margin")
    result = restarts(attack, 12)(KEY, victim, X, Y)
    np.testing.assert_allclose(result.value, OPTIMUM, atol=2e-3)
    assert_consistent(result, victim, Y, loss=margin)


def test_the_joint_attack_keeps_the_order_that_it_has_drawn():
    attack = spa(RADIUS, ATTRIBUTES, 30, order="random", start="none", loss="margin")
    result = attack(KEY, victim, X, Y)
    drawn = attack.init(KEY, victim, X, Y).variables["order"]
    np.testing.assert_array_equal(order_of(result.variables["order"]), order_of(drawn))
    optima = [BY_ORDER[tuple(NAMES[j] for j in order)][i] for i, order in enumerate(np.asarray(order_of(drawn)))]
    np.testing.assert_allclose(result.value, optima, atol=1e-4)
    with pytest.raises(ValueError, match="start='grid' with order='random'"):
        spa(RADIUS, ATTRIBUTES, order="random", start="grid")


def test_links_move_one_after_the_other_and_later_ones_are_not_applied_yet():
    space = chain(times=ATTRIBUTES["times"], shift=ATTRIBUTES["shift"], noise=linf(RADIUS))
    solver = component_wise(0.5, 2)
    attack = make_attack(space, margin, solver, 2 * solver.passes(3))
    state = attack.init(KEY, victim, X, Y)
    seen = []
    for _ in range(attack.num_steps):
        state = attack.step(state, victim, X, Y)
        seen.append({name: np.asarray(own).reshape(BATCH, -1) for name, own in state.variables.items()})
    clean = {"times": 1.0, "shift": 0.0, "noise": 0.0}
    for first, pass_number in itertools.product((0, solver.passes(3)), range(6)):
        v = seen[first + pass_number]
        for place, name in enumerate(space.names):
            if place > pass_number // 2:
                np.testing.assert_array_equal(v[name], clean[name])
            before = seen[first + pass_number - 1] if pass_number else None
            moves = before is not None and place == (pass_number - 1) // 2
            if before is not None and not moves and place < (pass_number - 1) // 2:
                np.testing.assert_array_equal(v[name], before[name])
    assert np.abs(seen[6]["noise"]).max() > 0 and np.abs(seen[7]["noise"]).max() == 0


def test_its_steps_are_the_passes_of_all_rounds():
    attack = caa(RADIUS, ATTRIBUTES, 3, order_steps=2)
    assert attack.num_steps == 2 * (1 + 4 * 3)
    assert caa(8 / 255).num_steps == 305


def test_the_edited_images_lack_the_noise_alone():
    result = caa(RADIUS, ATTRIBUTES, 3, order_steps=1)(KEY, victim, X, Y)
    assert np.abs(result.without["noise"] - result.x).max() > 0.01
    attack = make_attack(chain(**ATTRIBUTES), margin, projected_gradient(0.1), 1)
    assert set(attack.members()) == set(EDITS)
    values = {name: result.variables[name] for name in EDITS}
    for i, order in enumerate(np.asarray(order_of(result.variables["order"]))):
        image = X[i]
        for name in (NAMES[j] for j in order if NAMES[j] != "noise"):
            image = ATTRIBUTES[name].apply(values[name][i], Example(image))
        np.testing.assert_allclose(result.without["noise"][i], image, atol=1e-6)


def test_a_config_names_it_and_its_options_are_checked():
    spec = {"name": "caa", "radius": 0.1, "attributes": {"contrast": [0.8, 1.2]}, "order": "random", "num_steps": 2}
    assert attack_from_config(spec).num_steps == 5
    with pytest.raises(ConfigError, match="order='sorted'"):
        attack_from_config(spec | {"order": "sorted"})
    with pytest.raises(ValueError, match="order_steps=0"):
        caa(0.1, order_steps=0)
    with pytest.raises(ConfigError, match="ordering"):
        attack_from_config(spec | {"ordering": "random"})
    with pytest.raises(ValueError, match="component_wise moves the links of a chain"):
        make_attack(linf(0.1), margin, component_wise(), 3)(KEY, victim, X, Y)
