"""Solvers: APGD against the paper in NumPy float64, optax rules against closed forms, and what all of them share."""

from fractions import Fraction
from math import ceil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax import Example, attribute, chain, make_attack, stage, universal
from spa_jax.goals import misclassified
from spa_jax.losses import cross_entropy, margin
from spa_jax.solvers import (
    Problem,
    apgd,
    fold_in,
    grid,
    is_stronger,
    projected_gradient,
    random_search,
    steepest,
    take_turns,
)
from spa_jax.solvers.apgd import _apgd_intervals
from spa_jax.spaces import l2, linf
from spa_jax.validation import checked_keys
from spa_jax.victims import as_victim
from tests.analytic_victims import images, labels, linear, margins, mlp, mlp_parameters, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
W = weights()


def trajectory(attack, victim, x, y, start):
    """What a solver does step by step: evaluations and states, each with a leading axis of steps."""

    @jax.jit
    def run(attack, predict, x, y, start):
        keys, solver = checked_keys(KEY, x.shape[0]), attack.stages[0].solver
        problem = Problem(attack.space, Example(x, y), predict, attack.loss, attack.goal, attack.num_steps)

        def step(carry, i):
            v, state, evaluation = solver.step(problem, *carry, fold_in(keys, i))
            return (v, state), (evaluation, state)

        return jax.lax.scan(step, (start, solver.init(problem, start)), jnp.arange(attack.num_steps))[1]

    return run(attack, as_victim(victim, x, inline=False), x, y, start)


# --- APGD -----------------------------------------------------------------------------------------------------------


def paper_checkpoints(num_steps):
    """Section 3.1 of Croce & Hein 2020 in exact arithmetic."""
    shares = [Fraction(0), Fraction(22, 100)]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - Fraction(3, 100), Fraction(6, 100)))
    return sorted({ceil(share * num_steps) for share in shares if share * num_steps <= num_steps})


def value_and_gradient(parameters, x, label):
    """Cross entropy of `mlp` and its gradient, by hand."""
    inner, outer = parameters
    hidden = np.tanh((x - 0.5) @ inner)
    logits = hidden @ outer
    p = np.exp(logits - logits.max())
    p /= p.sum()
    by_logits = p - np.eye(len(p))[label]
    return -np.log(p[label]), inner @ ((1 - hidden**2) * (outer @ by_logits))


def unit(norm, gradient):
    return np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)


def onto(norm, point, x, radius):
    if norm == "linf":
        return np.clip(point, np.maximum(x - radius, 0), np.minimum(x + radius, 1))
    low, high = 0.0, 1.0
    for _ in range(100):
        share = (low + high) / 2
        inside = np.linalg.norm(np.clip(x + share * (point - x), 0, 1) - x) <= radius
        low, high = (share, high) if inside else (low, share)
    return np.clip(x + low * (point - x), 0, 1)


def paper_apgd(norm, parameters, x, label, start, radius, num_steps):
    """Algorithm 1 for one image; a restart happens at the checkpoint itself and forgets the momentum."""
    checkpoints = paper_checkpoints(num_steps)
    step, halved, previous_check = 2 * radius, False, 0
    point = before = best = start
    value, _ = value_and_gradient(parameters, point, label)
    values, steps, best_value, best_at_check = [value], [], value, value
    for k in range(num_steps):
        if k > 0 and k in checkpoints:
            rises = sum(values[i + 1] > values[i] for i in range(previous_check, k))
            too_few_rises = rises < 0.75 * (k - previous_check)
            stalled = not halved and best_at_check == best_value
            halved = too_few_rises or stalled
            if halved:
                step, point, before = step / 2, best, best
            previous_check, best_at_check = k, best_value
        steps.append(step)
        gradient = value_and_gradient(parameters, point, label)[1]
        climbed = onto(norm, point + step * unit(norm, gradient), x, radius)
        alpha = 1 if k == 0 else 0.75
        mixed = onto(norm, point + alpha * (climbed - point) + (1 - alpha) * (point - before), x, radius)
        point, before = mixed, point
        values.append(value_and_gradient(parameters, point, label)[0])
        if values[-1] > best_value:
            best, best_value = point, values[-1]
    return np.array(values[:-1]), np.array(steps)


def before_rounding_decides(values):
    """The steps before a trajectory has converged so far that rounding says whether its loss rises."""
    converged = np.flatnonzero(np.abs(np.diff(values)) < 1e-7)
    return slice(0, converged[0] + 1 if len(converged) else len(values))


@pytest.mark.parametrize(("norm", "space", "num_steps"), [("linf", linf(0.25), 40), ("l2", l2(1.5), 20)])
def test_apgd_follows_the_algorithm_of_the_paper(norm, space, num_steps):
    batch = 8
    parameters = mlp_parameters()
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(images(batch=batch)), jnp.float64)
        y = jnp.arange(batch) % 3
        rng = np.random.default_rng(2)
        flat = np.asarray(x).reshape(batch, -1)
        noise = rng.uniform(-0.25, 0.25, flat.shape)
        start = np.stack([onto(norm, a, b, space.radius) for a, b in zip(flat + noise, flat, strict=True)])
        attack = make_attack(space, cross_entropy, apgd(), num_steps)
        evaluation, state = trajectory(attack, mlp(), x, y, jnp.asarray((start - flat).reshape(x.shape)))
    expected = [
        paper_apgd(norm, parameters, flat[i], int(y[i]), start[i], space.radius, num_steps) for i in range(batch)
    ]
    final_steps = set()
    for i, (values, steps) in enumerate(expected):
        np.testing.assert_allclose(np.asarray(evaluation.value)[:, i], values, rtol=1e-6, atol=1e-8)
        compared = before_rounding_decides(values)
        final_steps.add(float(steps[compared][-1]))
        np.testing.assert_allclose(np.asarray(state.step_share)[compared, i] * 2 * space.radius, steps[compared])
    assert len(final_steps) > 1 and min(final_steps) < space.radius, "examples should differ in how often they halve"


def test_checkpoints_are_those_of_the_paper():
    assert np.flatnonzero(_apgd_intervals(100)).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    for num_steps in range(1, 120):
        intervals = _apgd_intervals(num_steps)
        ends = np.flatnonzero(intervals)
        assert ends.tolist() == paper_checkpoints(num_steps)[1:]
        assert intervals.sum() == (ends[-1] if len(ends) else 0)


# --- the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [projected_gradient(0.9), apgd()], ids=["projected_gradient", "apgd"])
def test_the_result_is_the_strongest_point_of_the_way_and_never_weaker_than_clean(solver):
    x, y = images(batch=16), jnp.arange(16) % 3
    victim = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mlp())
    attack = make_attack(linf(0.2), cross_entropy, solver, 15, random_start=False)
    result = attack(KEY, victim, x, y)
    seen, _ = trajectory(attack, victim, x, y, jnp.zeros_like(x))
    for i in range(len(y)):
        on_the_way = list(zip(np.asarray(seen.success)[:, i], np.asarray(seen.value)[:, i], strict=True))
        strongest = max(on_the_way)
        assert (bool(result.success[i]), float(result.value[i]) + 1e-5) >= (bool(strongest[0]), float(strongest[1]))
    assert np.any(np.diff(np.asarray(seen.value), axis=0) < 0), "some step should have lowered the loss"
    logits = np.asarray(victim(result.x))
    np.testing.assert_array_equal(result.success, logits.argmax(1) != y)
    np.testing.assert_allclose(result.value, cross_entropy(jnp.asarray(logits), Example(x, y)), rtol=1e-5, atol=1e-6)


def test_fooled_counts_before_loss_and_nan_never_wins():
    ranking = [(False, np.nan), (False, -1.0), (False, 3.0), (True, -2.0), (True, 5.0)]
    evaluations = [SimpleNamespace(success=jnp.array(s), value=jnp.array(v)) for s, v in ranking]
    for i, worse in enumerate(evaluations):
        for j, better in enumerate(evaluations):
            assert bool(is_stronger(better, worse)) == (j > i)
    nan_success = SimpleNamespace(success=jnp.array(True), value=jnp.array(jnp.nan))
    assert not any(is_stronger(nan_success, other) for other in evaluations)
    assert all(is_stronger(other, nan_success) for other in evaluations[1:])


def test_a_victim_that_turns_nan_does_not_spoil_the_result():
    def fragile(x):
        logits = linear(W)(x)
        return jnp.where(jnp.mean(x, axis=(1, 2, 3), keepdims=False)[:, None] > 0.6, jnp.nan, logits)

    x, y = images(low=0.4, high=0.6), labels()
    attack = make_attack(attribute("brightness", -0.2, 0.2), margin, projected_gradient(0.3), 8)
    result = attack(KEY, fragile, x, y)
    assert np.all(np.isfinite(result.value))
    assert np.all(np.asarray(result.value) >= margins(W, x, y) - 1e-5)


# --- optax rules, against closed forms: the gradient of a linear victim never changes --------------------------------

SPACE = chain(light=attribute("brightness", -0.1, 0.1), noise=linf(0.1))
X, Y = images(low=0.4, high=0.6), labels()
SIGN = 1 - 2 * np.asarray(Y)
UP = {"light": SIGN * np.sign(np.sum(np.asarray(W))), "noise": SIGN[:, None, None, None] * np.sign(W)}


def moved(rule, num_steps=3, step_size=0.01, random_start=False, solver=None):
    """How far each variable went in the direction of ascent, in radii."""
    solver = projected_gradient(step_size, rule) if solver is None else solver
    attack = make_attack(SPACE, margin, solver, num_steps, keep="last", random_start=random_start)
    variables = attack(KEY, linear(W), X, Y).variables
    return {name: np.asarray(variables[name]) * UP[name] / 0.1 for name in UP}


def assert_moved(distance, light, noise):
    np.testing.assert_allclose(distance["light"], light, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(distance["noise"], noise, rtol=1e-4, atol=1e-7)


def test_the_plain_rule_moves_step_size_radii_a_step():
    assert_moved(moved(steepest), 0.03, 0.03)
    assert_moved(moved(steepest, step_size={"light": 0.02, "noise": 0.05}), 0.06, 0.15)


def test_apgd_takes_a_first_step_for_each_variable():
    assert_moved(moved(None, 1, solver=apgd(0.02)), 0.02, 0.02)
    assert_moved(moved(None, 1, solver=apgd({"light": 0.02, "noise": 0.05})), 0.02, 0.05)


def test_momentum_accumulates_the_direction():
    assert_moved(moved(optax.sgd(1.0, momentum=0.5)), 0.01 * (1 + 1.5 + 1.75), 0.01 * (1 + 1.5 + 1.75))


def test_adam_moves_its_rate_a_step():
    with jax.numpy_dtype_promotion("standard"):  # inside of optax a float is raised to an integer power
        distance = moved(optax.adam(0.1, eps=1e-12))
    assert_moved({name: value * 0.1 for name, value in distance.items()}, 3 * 0.01 * 0.1, 3 * 0.01 * 0.1)


def test_a_schedule_counts_the_steps():
    schedule = optax.piecewise_constant_schedule(2.0, {1: 0.5, 2: 0.0})
    with jax.numpy_dtype_promotion("standard"):  # inside of optax an integer meets a float
        distance = moved(optax.sgd(schedule))
    assert_moved(distance, 0.01 * (2 + 1), 0.01 * (2 + 1))


def test_partition_gives_each_variable_its_own_rule():
    rates = optax.partition({"fast": optax.sgd(3.0), "slow": optax.sgd(0.5)}, {"light": "fast", "noise": "slow"})
    assert_moved(moved(rates), 0.09, 0.015)
    still = optax.partition({"go": optax.sgd(1.0), "hold": optax.set_to_zero()}, {"light": "hold", "noise": "go"})
    assert_moved(moved(still), 0.0, 0.03)


def test_variables_take_turns_in_the_order_given():
    rule = optax.chain(take_turns(("noise",), ("light",)), steepest)
    assert_moved(moved(rule, num_steps=3), 0.01, 0.02)


@pytest.mark.parametrize("solver", [projected_gradient(0.25), apgd()], ids=["projected_gradient", "apgd"])
def test_shared_variables_climb_the_mean_loss(solver):
    """One noise for all images: the optimum is the radius along the sign of the mean gradient."""
    y = jnp.array([0, 0, 0, 1])
    attack = make_attack(linf(0.1), margin, solver, 12, lift=universal, keep="last")
    result = attack(KEY, linear(W), X, y)
    assert result.variables.shape == X.shape[1:] and result.value.shape == y.shape
    np.testing.assert_allclose(result.variables, 0.1 * np.sign(W), atol=1e-6)
    sign = 1 - 2 * np.asarray(y)
    np.testing.assert_allclose(result.value, margins(W, X, y) + sign * 0.1 * np.sum(np.abs(W)), rtol=1e-4)


@pytest.mark.parametrize(
    "solver", [projected_gradient(0.5), apgd(), random_search(), grid(3)], ids=lambda s: type(s).__name__
)
def test_a_stage_moves_only_what_it_names(solver):
    attack = make_attack(SPACE, margin, [stage(solver, 3, moves=["light"])], keep="last")
    start = attack.init(KEY, linear(W), X, Y).variables
    found = attack(KEY, linear(W), X, Y).variables
    np.testing.assert_array_equal(found["noise"], attack.space.project(start, Example(X))["noise"])
    assert np.all(found["light"] != start["light"])


def test_a_solver_may_read_and_differentiate_the_logits():
    problem = Problem(
        make_attack(linf(0.1)).space, Example(X, Y), as_victim(linear(W), X, inline=False), margin, misclassified, 1
    )
    noise = jnp.full(X.shape, 0.01)
    np.testing.assert_allclose(problem.logits(noise, checked_keys(KEY, 4)), linear(W)(X + 0.01), rtol=1e-5)
    slope = jax.grad(lambda v: problem.logits(v, checked_keys(KEY, 4))[:, 1].sum())(noise)
    np.testing.assert_allclose(slope, np.broadcast_to(W / 2, X.shape), rtol=1e-5)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: projected_gradient(-0.1), r"rel_step_size=-0\.1 must be 0 or larger"),
        (lambda: projected_gradient({"light": 0.1, "noise": -1.0}), r"step_size=-1\.0"),
        (lambda: apgd(momentum=1.5), r"momentum=1\.5 must be in \[0, 1\]"),
        (lambda: apgd(rise_share=-0.5), r"rise_share=-0\.5 must be in \[0, 1\]"),
        (lambda: grid(0), r"points=0 must be an integer of at least 1"),
        (lambda: grid(3).num_steps(linf(0.1)), r"no attribute"),
        (
            lambda: grid(4).num_steps(chain(**{name: attribute("rotation") for name in "abcdefghi"})),
            r"grid\(points=4\) over 9 attributes has 262,144 points.*more than 100,000.*random_search",
        ),
        (lambda: apgd(rel_step_size=-1.0), r"rel_step_size=-1\.0"),
        (lambda: apgd({"light": 0.1, "noise": -1.0}), r"rel_step_size=-1\.0"),
        (lambda: take_turns(), r"at least one group"),
        (lambda: moved(optax.chain(take_turns(("noise",)), steepest)), r"leave out the variables \['light'\]"),
        (lambda: moved(steepest, step_size={"lihgt": 0.1, "noise": 0.1}), r"lihgt"),
    ],
)
def test_bad_solvers_are_refused_with_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_grid_counts_its_points():
    assert grid(4).num_steps(SPACE) == 4
    assert grid(4).num_steps(chain(a=attribute("rotation"), b=attribute("shear"))) == 16
    assert grid(10).num_steps(chain(**{name: attribute("rotation") for name in "abcde"})) == 100_000
