"""L1-APGD against the paper's algorithm in NumPy float64, and its guarantees; the conformance table has its optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import apgd_ce, apgd_dlr, chain, make_attack, universal
from spa_jax.losses import cross_entropy, margin
from spa_jax.solvers import l1_apgd
from spa_jax.solvers.l1_apgd import RADII, _plan
from spa_jax.spaces import l1, linf
from tests.analytic_victims import ascent, images, labels, linear, margins, mlp, mlp_parameters, strongest, weights
from tests.solvers.test_solvers import trajectory, value_and_gradient
from tests.spaces.test_spaces import onto_l1_ball_and_box

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W = jax.random.key(0), weights()


# --- the algorithm --------------------------------------------------------------------------------------------------


def l1_step(gradient, entries, radius, point):
    """Equal steps on the entries of the largest gradients; those at the bound they point to have none."""
    gradient = np.where(((point >= 1) & (gradient > 0)) | ((point <= 0) & (gradient < 0)), 0, gradient)
    smallest = np.sort(np.abs(gradient))[len(gradient) - min(max(entries, 1), len(gradient))]
    chosen = np.sign(gradient) * (np.abs(gradient) >= smallest)
    return radius * chosen / np.sum(np.abs(chosen))


def paper_l1_apgd(parameters, x, label, noise, radius, num_steps, radii):
    """Values of the loss at every step, the entries moved and the step sizes, for one image."""
    values, all_entries, all_steps = [], [], []
    lengths = [int(share * num_steps) for _, share in radii[:-1]]
    for (multiple, _), length in zip(radii, [*lengths, num_steps - sum(lengths)], strict=True):
        now = multiple * radius
        noise = onto_l1_ball_and_box(noise, x, now)
        found = np.count_nonzero(noise)
        entries, most, size, step = round(found / 1.5), round(0.2 * len(x)), len(x), now
        if found == 0 or entries > most:
            entries, found = most, size
        best, best_value, best_gradient = noise, -np.inf, None
        for i in range(length):
            value, gradient = value_and_gradient(parameters, x + noise, label)
            values.append(value)
            if value > best_value:
                best, best_value, best_gradient = noise, value, gradient
            if i > 0 and i % max(int(0.04 * length), 1) == 0:
                sparser = np.count_nonzero(best) < 0.95 * found
                found = np.count_nonzero(best)
                entries = round(found / 1.5)
                step = now if sparser else max(step / 1.5, now / 10)
                if sparser:
                    noise, gradient = best, best_gradient
            all_entries.append(entries)
            all_steps.append(step / now)
            noise = onto_l1_ball_and_box(noise + l1_step(gradient, entries, step, x + noise), x, now)
        noise = best
    return np.array(values), np.array(all_entries), np.array(all_steps)


def rounding_decides(values, ends):
    """The first step at which rounding says whether a value is the best of its radius."""
    best = -np.inf
    for i, value in enumerate(values):
        if abs(value - best) < 1e-7 * abs(value):
            return i
        best = -np.inf if ends[i] else max(best, value)
    return len(values)


@pytest.mark.parametrize("radii", [RADII, ((1.0, 1.0),)], ids=["larger_radii_first", "one_radius"])
def test_l1_apgd_follows_the_algorithm_of_the_paper(radii):
    batch, radius, num_steps, size = 6, 1.2, 30, (6, 6, 1)
    parameters = mlp_parameters(size=size)
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(images(batch=batch, size=size)), jnp.float64)
        y = jnp.arange(batch) % 3
        flat = np.asarray(x).reshape(batch, -1)
        noise = np.random.default_rng(2).normal(size=flat.shape) * 0.2
        start = np.stack([onto_l1_ball_and_box(a, b, radius) for a, b in zip(noise, flat, strict=True)])
        attack = make_attack(l1(radius), cross_entropy, l1_apgd(radii), num_steps)
        evaluation, state = trajectory(attack, mlp(size=size), x, y, jnp.asarray(start.reshape(x.shape)))
    plan = _plan(radii, num_steps)
    counted, ends = plan.scale[:-1] <= 1, plan.ends_radius[:-1]
    compared, resets = 0, 0
    for i in range(batch):
        values, entries, steps = paper_l1_apgd(parameters, flat[i], int(y[i]), start[i], radius, num_steps, radii)
        before = np.arange(num_steps) < rounding_decides(values, ends)
        found = np.asarray(evaluation.value)[:, i]
        np.testing.assert_allclose(found[counted & before], values[counted & before], rtol=1e-5)
        assert np.all(np.isneginf(found[~counted]))
        np.testing.assert_array_equal(np.asarray(state.entries)[~ends & before, i], entries[~ends & before])
        np.testing.assert_allclose(np.asarray(state.step_share)[~ends & before, i], steps[~ends & before], rtol=1e-6)
        compared += np.sum(counted & before)
        resets += np.sum(np.diff(steps[counted & before]) > 0)
    assert compared >= batch * 5 and resets > 0, "some example should have become sparser and started anew"


def test_the_radii_and_checkpoints_are_those_of_the_paper():
    plan = _plan(RADII, 100)
    assert plan.scale.tolist() == [3.0] * 30 + [2.0] * 30 + [1.0] * 41
    assert np.flatnonzero(plan.ends_radius).tolist() == [29, 59]
    assert np.flatnonzero(~plan.is_checkpoint[:100]).tolist() == [0, 30, 60]
    one = _plan(((1.0, 1.0),), 100)
    assert np.flatnonzero(one.is_checkpoint[:100]).tolist() == list(range(4, 100, 4))
    for num_steps in (1, 2, 3, 7):
        assert len(_plan(RADII, num_steps).scale) == num_steps + 1 and _plan(RADII, num_steps).scale[-1] == 1


def test_a_random_start_is_sparse_noise_that_fills_the_first_ball():
    """Evenly drawn points move every pixel; from them the attack is weaker than its authors' code."""
    size = (16, 16, 1)
    x, victim = images(batch=4, size=size), mlp(size=size)
    for radii, reach in ((RADII, 3.0), (((1.0, 1.0),), 1.0)):
        attack = make_attack(l1(2.0), cross_entropy, l1_apgd(radii), 10)
        noise = np.asarray(attack.init(KEY, victim, x, labels(4)).variables)
        np.testing.assert_allclose(np.abs(noise).sum((1, 2, 3)), reach * 2.0, rtol=1e-4)
        assert np.all(np.count_nonzero(noise, (1, 2, 3)) < 0.15 * 256)
        assert len(np.unique(noise.reshape(4, -1), axis=0)) == 4
    shared = make_attack(l1(2.0), cross_entropy, l1_apgd(), 10, lift=universal)
    assert shared.init(KEY, victim, x, labels(4)).variables.shape == size


# --- guarantees -----------------------------------------------------------------------------------------------------

X, Y = images(batch=8), labels(8)


def distances(x):
    return np.sum(np.abs(np.asarray(x, np.float64) - np.asarray(X, np.float64)), axis=(1, 2, 3))


@pytest.mark.parametrize("preset", [apgd_ce, apgd_dlr])
def test_the_presets_search_l1_by_it(preset):
    solver = preset(1.0, norm="l1").stages[0].solver
    assert solver == l1_apgd() and preset(1.0, norm="l2").stages[0].solver != solver


@pytest.mark.parametrize("steps", [0, 5, 14, 20])
def test_a_result_taken_on_the_way_through_larger_radii_lies_in_the_ball(steps):
    attack = apgd_ce(0.5, 20, norm="l1")
    state = attack.init(KEY, linear(W), X, Y)
    for _ in range(steps):
        state = attack.step(state, linear(W), X, Y)
    found = attack.result(state, linear(W), X, Y)
    assert np.all(distances(found.x) <= 0.5 * (1 + 1e-5)) and np.min(found.x) >= 0 and np.max(found.x) <= 1
    assert np.all(found.value >= cross_entropy_of(X) - 1e-6)
    if steps == 5:
        assert np.any(np.sum(np.abs(state.variables), axis=(1, 2, 3)) > 0.6), "the search should be outside by now"


def cross_entropy_of(x):
    return np.log1p(np.exp(margins(W, x, Y)))


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_few_steps_stay_in_the_ball_too(num_steps):
    found = apgd_ce(0.5, num_steps, norm="l1")(KEY, linear(W), X, Y)
    assert np.all(distances(found.x) <= 0.5 * (1 + 1e-5))
    assert np.all(found.value >= cross_entropy_of(X) - 1e-6)


def test_one_sparse_noise_for_all_images_climbs_the_mean_loss():
    """Five entries of equal gradient each: the optimum is the radius spread over the largest weights."""
    x, y = images(low=0.4, high=0.6), jnp.zeros(4, jnp.int32)
    attack = make_attack(l1(0.3), margin, l1_apgd(), 40, lift=universal)
    found = attack(KEY, linear(W), x, y)
    best = margins(W, strongest("l1", ascent(W, y), x, 0.3), y)
    gained = (np.mean(found.value) - np.mean(margins(W, x, y))) / (np.mean(best) - np.mean(margins(W, x, y)))
    assert 0.99 <= gained <= 1 + 1e-5
    assert np.sum(np.abs(found.variables)) <= 0.3 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: l1_apgd(((2.0, 1.0),)), r"radii=\(\(2\.0, 1\.0\),\) must hold multiples .*, the last one 1"),
        (lambda: l1_apgd(()), r"radii=\(\) must hold multiples"),
        (lambda: l1_apgd(((0.5, 0.5), (1.0, 0.5))), r"of at least 1"),
        (lambda: l1_apgd(((2.0, 0.5), (1.0, 0.4))), r"positive shares of the steps that sum to 1"),
        (lambda: make_attack(linf(0.1), "margin", l1_apgd())(KEY, linear(W), X, Y), r"space=LInf.*spaces\.l1 alone"),
        (
            lambda: make_attack(chain(a=l1(0.1), b=l1(0.1)), "margin", l1_apgd())(KEY, linear(W), X, Y),
            r"space=Chain.*apgd takes any space",
        ),
    ],
)
def test_bad_use_is_refused_with_value_and_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()
