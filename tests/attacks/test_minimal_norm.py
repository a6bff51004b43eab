"""What all attacks share that look for the nearest image that fools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import cw, ddn, deepfool, fab, fab_t, fmn, rays, restarts, until_broken
from spa_jax.attacks.minimal_norm import DISTANCES, likely_classes
from tests.analytic_victims import ascent, images, linear, margins, mlp, shortest, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W, BATCH = jax.random.key(0), weights(), 6
X = images(batch=BATCH)
ATTACKS = {
    "cw": lambda *radius: cw(*radius, num_steps=200),
    "deepfool": lambda *radius: deepfool("linf", *radius),
    "ddn": ddn,
    "fmn": lambda *radius: fmn("linf", *radius),
    "fmn_l1": lambda *radius: fmn("l1", *radius),
    "fab": lambda *radius: fab("l2", *radius),
    "rays": lambda *radius: rays(*radius, num_steps=400),
}


def answers(x, victim=None):
    return jnp.argmax((victim or linear(W))(x), axis=-1)


def nearest(norm, y):
    return shortest(norm, ascent(W, y), X, -margins(W, X, y))


def test_impossible_classes_come_last_but_before_the_label():
    logits = jnp.array([[5.0, 3.0, -jnp.inf], [-jnp.inf, -jnp.inf, 2.0]])
    np.testing.assert_array_equal(likely_classes(logits, jnp.array([0, 2]), 3), [[1, 2], [0, 1]])


@pytest.mark.parametrize("name", ["deepfool", "fab"])
def test_a_class_that_is_impossible_is_no_obstacle(name):
    """Its logit is minus infinity, which a classifier may say of it."""
    plain = linear(W)

    def victim(x):
        return jnp.pad(plain(x), ((0, 0), (0, 1)), constant_values=-jnp.inf)

    y = answers(X)
    result = ATTACKS[name]()(KEY, victim, X, y)
    np.testing.assert_allclose(result.x, ATTACKS[name]()(KEY, plain, X, y).x, atol=1e-5)
    assert result.success.all()


@pytest.mark.parametrize("name", ATTACKS)
def test_success_counts_within_the_radius_only_and_failures_stay_clean(name):
    y, make = answers(X), ATTACKS[name]
    norm = make().norm
    radius = float(np.median(nearest(norm, y)))
    result = make(radius)(KEY, linear(W), X, y)
    distance = np.asarray(DISTANCES[norm](result.x, X))
    assert 0 < np.sum(result.success) < BATCH
    np.testing.assert_array_equal(result.success, answers(result.x) != y)
    np.testing.assert_array_equal(result.x[~result.success], X[~result.success])
    assert np.all(distance <= radius)
    np.testing.assert_allclose(result.value, np.where(result.success, -distance, -np.inf), rtol=1e-6)
    np.testing.assert_array_equal(result.variables, result.x - X)


@pytest.mark.parametrize("name", ATTACKS)
def test_images_that_are_wrong_already_are_left_alone(name):
    result = ATTACKS[name]()(KEY, linear(W), X, 1 - answers(X))
    np.testing.assert_array_equal(result.success, True)
    np.testing.assert_array_equal(result.x, X)
    np.testing.assert_array_equal(result.value, 0)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_does_not_depend_on_the_others_of_its_batch(name):
    """One of them is wrong already, so that an attack that stops at a success goes on for the others alone."""
    victim, attack = mlp(), ATTACKS[name]()
    y = answers(X, victim).at[0].add(1) % 3
    keys = jax.random.split(KEY, BATCH)
    together = attack(keys, victim, X, y)
    for i in (0, 3):
        alone = attack(keys[i : i + 1], victim, X[i : i + 1], y[i : i + 1])
        np.testing.assert_allclose(together.x[i], alone.x[0], atol=1e-3)
        np.testing.assert_array_equal(together.nonfinite.gradients[i], alone.nonfinite.gradients[0])


@pytest.mark.parametrize("name", ATTACKS)
def test_a_target_among_three_classes_is_reached(name):
    victim = mlp()
    y = answers(X, victim)
    target = (y + 1) % 3
    found = ATTACKS[name]()(KEY, victim, X, y, target)
    np.testing.assert_array_equal(found.success, True)
    np.testing.assert_array_equal(answers(found.x, victim), target)


@pytest.mark.parametrize("name", ["cw", "fmn", "fab"])
def test_an_attack_within_a_radius_may_stop_at_what_it_has_broken(name):
    y, norm = answers(X), ATTACKS[name]().norm
    radius = float(np.median(nearest(norm, y)))
    attack = ATTACKS[name](radius)
    whole, stopped = attack(KEY, linear(W), X, y), until_broken(attack, every=5)(KEY, linear(W), X, y)
    np.testing.assert_array_equal(stopped.success, whole.success)
    assert np.all(stopped.value <= whole.value)
    assert name == "fab" or np.any(stopped.value < whole.value)  # which is at its optimum after one step


def test_restarts_keep_the_nearest_success():
    victim = mlp()
    y = answers(X, victim)
    single = fab("l2", num_steps=3, random_start=True)
    keys = jax.random.split(KEY, BATCH)
    runs, repeated = restarts(single, 1)(keys, victim, X, y), restarts(single, 6)(keys, victim, X, y)
    distance = DISTANCES["l2"](repeated.x, X)
    np.testing.assert_allclose(repeated.value, np.where(repeated.success, -distance, -np.inf), rtol=1e-6)
    assert np.any(repeated.value > runs.value)


def test_fab_t_finds_the_nearest_of_fab_at_every_target():
    victim = mlp()
    y = answers(X, victim)
    aimed = fab("l2", num_steps=30).aimed()
    values = [aimed(KEY, victim, X, y, (y + shift) % 3).value for shift in (1, 2)]
    found = fab_t("l2", num_steps=30)(KEY, victim, X, y)
    np.testing.assert_allclose(found.value, np.maximum(*values), rtol=1e-4)
    radius = float(np.median(-found.value))
    within = fab_t("l2", radius, num_steps=30)(KEY, victim, X, y)
    np.testing.assert_array_equal(within.success, -found.value <= radius)
    assert np.all(within.value[within.success] >= -radius)


def test_fab_starts_half_a_radius_away_where_it_starts_at_random():
    victim, y = linear(W), answers(X)
    for norm, radius in (("linf", 0.2), ("l2", 0.5), ("l1", 2.0)):
        attack = fab(norm, radius, random_start=True)
        inner = jnp.full_like(X, 0.5)
        start = attack.init(KEY, victim, inner, y).own.points
        np.testing.assert_allclose(DISTANCES[norm](start, inner), radius / 2, rtol=1e-5)


def test_ddn_leaves_an_image_where_the_gradient_vanishes():
    """Flat around the start, and another class from a distance of 0.5 on."""

    def flat(x):
        far = jnp.linalg.norm(x - 0.5, axis=(1, 2))[:, 0] - 0.5
        return jnp.stack([jnp.zeros_like(far), jnp.where(far > 0, 1.0, -1.0)], axis=-1)

    x = jnp.full((3, 4, 4, 1), 0.5)
    found = ddn()(KEY, flat, x, jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(found.success, True)
    np.testing.assert_allclose(DISTANCES["l2"](found.x, x), 0.5, rtol=0.06)


def test_deepfool_looks_at_the_most_likely_candidates_only():
    """Class 2 is nearest and least likely: only a search among all three finds it."""
    slopes = np.stack([np.zeros(X.shape[1:]), np.ones(X.shape[1:]), -8 * np.ones(X.shape[1:])]).reshape(3, -1)

    def victim(x):
        return (x.reshape(len(x), -1) - 0.5) @ jnp.asarray(slopes.T, jnp.float32) + jnp.array([[0.0, -0.5, -1.0]])

    x, y = jnp.full((2, 4, 4, 1), 0.5), jnp.zeros(2, jnp.int32)
    few, all_three = (deepfool("linf", candidates=count)(KEY, victim, x, y) for count in (2, 3))
    np.testing.assert_array_equal(answers(few.x, victim), 1)
    np.testing.assert_array_equal(answers(all_three.x, victim), 2)
    np.testing.assert_allclose(few.value, -0.5 / 16, rtol=0.03)
    np.testing.assert_allclose(all_three.value, -1 / 128, rtol=0.03)


def test_deepfool_rests_once_all_images_fool():
    attack, victim, y = deepfool(), linear(W), answers(X)
    state = attack.init(KEY, victim, X, y)
    states = [state := attack.step(state, victim, X, y) for _ in range(12)]
    assert np.all(np.isfinite(states[-1].distance)) and states[-1].step == 12
    np.testing.assert_array_equal(states[-1].own.total, states[-2].own.total)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: deepfool("l1"), r"norm='l1' must be one of l2, linf"),
        (lambda: deepfool(overshoot=-0.1), r"overshoot=-0\.1 must be 0 or larger"),
        (lambda: deepfool(candidates=1), r"candidates=1 must be at least 2"),
        (lambda: ddn(initial_epsilon=0.0), r"initial_epsilon=0\.0 must be larger than 0"),
        (lambda: ddn(gamma=1.0), r"gamma=1\.0 must be in \(0, 1\)"),
        (lambda: fmn("l0"), r"norm='l0' must be one of"),
        (lambda: fmn(step_size=0.0), r"step_size=0\.0 must be larger than 0"),
        (lambda: fab(alpha_max=1.5), r"alpha_max=1\.5 must be in \[0, 1\]"),
        (lambda: fab(eta=0.9), r"eta=0\.9 must be 1 or larger"),
        (lambda: fab(beta=0.0), r"beta=0\.0 must be in \(0, 1\]"),
        (lambda: fab("l2", -1.0), r"radius=-1\.0 must be a radius, 0 or larger"),
        (lambda: fab(num_steps=0), r"num_steps=0 must be an integer of at least 1"),
    ],
)
def test_bad_use_is_refused_with_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
