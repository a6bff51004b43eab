"""Presets against hand-written loops and closed forms, and the guarantees of every attack."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from spa_jax import (
    apgd_dlr,
    attack_from_config,
    attribute_attack,
    cross_entropy,
    cw,
    dlr,
    in_chunks,
    kl_divergence,
    latent,
    linf,
    make_attack,
    margin,
    mi_fgsm,
    pgd,
    projected_gradient,
    restarts,
    spa,
    targeted,
    universal,
    with_fields,
    worst_of,
)
from spa_jax.inputs import checked_keys
from tests.attack_cases import (
    APGD,
    ATTACKS,
    BATCH,
    FGSM,
    INNER,
    KEY,
    LIGHT,
    MLP,
    PGD,
    PGD_AND_SLOW_SPA,
    SPA,
    TWO,
    W,
    X,
    Y,
    assert_consistent,
    assert_never_weaker,
)
from tests.test_solvers import onto, unit, value_and_gradient
from tests.victims import SIZE, ascent, linear, margins, mlp, mlp_parameters, strongest

pytestmark = pytest.mark.usefixtures("quick_compilation")

# --- presets against loops written by hand ---------------------------------------------------------------------------


def test_fgsm_is_one_sign_step_from_the_clean_image():
    flat = np.asarray(X, np.float64).reshape(BATCH, -1)
    gradients = [value_and_gradient(mlp_parameters(), x, y)[1] for x, y in zip(flat, np.asarray(Y), strict=True)]
    expected = np.clip(flat + 0.1 * np.sign(gradients), 0, 1).reshape(X.shape)
    result = with_fields(FGSM, keep="last")(KEY, MLP, X, Y)
    np.testing.assert_allclose(result.x, expected, atol=1e-6)
    assert_consistent(result, MLP, Y)
    assert_never_weaker(FGSM(KEY, MLP, X, Y), result)


def by_hand(norm, radius, step, num_steps, decay=None):
    """Values [steps + 1, b] of projected gradient ascent from the clean image, in float64."""
    rows = []
    for image, label in zip(np.asarray(X, np.float64).reshape(BATCH, -1), np.asarray(Y), strict=True):
        point, accumulated, values = image, np.zeros_like(image), []
        for _ in range(num_steps):
            value, gradient = value_and_gradient(mlp_parameters(), point, label)
            values.append(value)
            if decay is not None:
                accumulated = decay * accumulated + gradient / np.abs(gradient).sum()
                gradient = accumulated
            point = onto(norm, point + step * radius * unit(norm, gradient), image, radius)
        rows.append([*values, value_and_gradient(mlp_parameters(), point, label)[0]])
    return np.array(rows).T


@pytest.mark.parametrize(
    ("attack", "values"),
    [
        (pgd(0.3, 10, 0.2, random_start=False, unroll=1), by_hand("linf", 0.3, 0.2, 10)),
        (pgd(1.0, 10, norm="l2", random_start=False, unroll=1), by_hand("l2", 1.0, 0.25, 10)),
        (with_fields(mi_fgsm(0.3), unroll=1), by_hand("linf", 0.3, 0.1, 10, decay=1.0)),
    ],
    ids=["pgd_linf", "pgd_l2", "mi_fgsm"],
)
def test_preset_follows_the_loop_written_by_hand(attack, values):
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(X), jnp.float64)
        last = with_fields(attack, keep="last")(jax.random.key(0), mlp(), x, Y)
        np.testing.assert_allclose(last.value, values[-1], rtol=1e-6)
        np.testing.assert_array_less(values[0], last.value)


def test_pgd_from_random_starts_differs_by_key_and_climbs():
    one, two = (with_fields(PGD, keep="last")(jax.random.key(seed), MLP, X, Y) for seed in (0, 1))
    assert np.any(one.variables != two.variables)
    assert np.mean(one.value) > np.mean(cross_entropy(MLP(None, X), Y)) + 0.1


def test_apgd_dlr_reaches_the_optimum_of_a_linear_victim_on_three_classes():
    def third_class_far_below(w, keys, x):
        return jnp.pad(linear(w)(keys, x), ((0, 0), (0, 1)), constant_values=-30.0)

    result = apgd_dlr(0.3, 12, unroll=1)(KEY, Partial(third_class_far_below, W), X, TWO)
    x = strongest("linf", ascent(W, TWO), X, 0.3)
    logits = third_class_far_below(W, None, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result.value, dlr(logits, TWO), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("method", "share"), [("gradient", 1 - 1e-4), ("random", 0.2), ("grid", 1 - 1e-4)])
def test_attribute_attack_finds_the_best_brightness(method, share):
    attack = attribute_attack("brightness", -0.2, 0.2, method, 12, loss="margin")
    result = with_fields(attack, unroll=1)(KEY, linear(W), INNER, TWO)
    gain = 0.2 * abs(np.sum(np.asarray(W, np.float64)))
    assert np.all(np.asarray(result.value) >= margins(W, INNER, TWO) + share * gain)
    assert_consistent(result, linear(W), TWO, margin)


# --- guarantees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_key_gives_the_same_result_and_images_stay_in_range(name):
    first, second, other = (ATTACKS[name](jax.random.key(seed), MLP, X, Y) for seed in (0, 0, 5))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert np.any(np.asarray(first.x) != np.asarray(other.x))
    assert_consistent(first, MLP, Y)
    assert_never_weaker(first, clean_result())


def clean_result():
    logits = MLP(None, X)
    return dataclasses.make_dataclass("Clean", ["success", "value"])(
        np.argmax(logits, axis=-1) != Y, cross_entropy(logits, Y)
    )


def test_zero_radius_and_zero_range_give_the_clean_image_back():
    still = with_fields(SPA, space=spa(0.0, zero_range()).space)
    for attack in (with_fields(PGD, space=pgd(0.0).space), with_fields(APGD, space=pgd(0.0).space), still):
        np.testing.assert_array_equal(attack(KEY, MLP, X, Y).x, X)


def zero_range():
    return [{"name": "rotation", "low": 0, "high": 0}, {"name": "contrast", "low": 1, "high": 1}]


@pytest.mark.parametrize("name", PGD_AND_SLOW_SPA)
def test_a_batch_equals_its_singles(name):
    keys = jax.random.split(KEY, BATCH)
    together = ATTACKS[name](keys, MLP, X, Y)
    for i in range(0, BATCH, 3):
        alone = ATTACKS[name](keys[i : i + 1], MLP, X[i : i + 1], Y[i : i + 1])
        np.testing.assert_allclose(together.value[i : i + 1], alone.value, rtol=1e-4)
        np.testing.assert_array_equal(together.success[i : i + 1], alone.success)


@pytest.mark.parametrize("attack", [FGSM, *(pytest.param(attack, marks=pytest.mark.slow) for attack in (PGD, SPA))])
def test_compiled_equals_eager(attack):
    attack = with_fields(attack, num_steps=2)
    compiled = attack(KEY, MLP, X, Y)
    with jax.disable_jit():
        eager = attack(KEY, MLP, X, Y)
    np.testing.assert_allclose(compiled.value, eager.value, rtol=1e-4)
    np.testing.assert_allclose(compiled.x, eager.x, atol=1e-4)


@pytest.mark.parametrize("name", PGD_AND_SLOW_SPA)
def test_one_device_equals_eight(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    alone = ATTACKS[name](KEY, MLP, X, Y)
    spread = ATTACKS[name](KEY, MLP, jax.device_put(X, rows), jax.device_put(Y, rows))
    assert len(spread.x.sharding.device_set) == 8
    np.testing.assert_allclose(alone.value, spread.value, rtol=1e-4)
    np.testing.assert_array_equal(alone.success, spread.success)


def test_the_start_and_the_victim_never_share_a_key():
    """A victim that draws noise like the start's must not see the very same noise."""
    seen = []

    def spy(keys, x):
        jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(keys))
        return linear(W)(keys, x)

    attack = with_fields(spa(0.1, LIGHT, 4, unroll=1), keep="last")
    attack(KEY, spy, X[:1], TWO[:1])
    jax.effects_barrier()
    victim_keys = {tuple(row) for data in seen for row in data}
    start_key = jax.random.fold_in(checked_keys(KEY, 1)[0], attack.num_steps + 3)
    start_keys = {tuple(np.asarray(jax.random.key_data(key))) for key in [start_key, *jax.random.split(start_key)]}
    assert len(victim_keys) >= attack.num_steps and not victim_keys & start_keys


def test_a_gradient_flows_through_the_attack_to_a_learned_space():
    def decode(mix, z, example):
        return example.image + (mix @ z).reshape(SIZE)

    mix = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)) / 50, jnp.float32)

    @jax.jit
    @jax.grad
    def slope(mix):
        space, solver = latent(Partial(decode, mix), 3, 1.0), projected_gradient(1.0)
        attack = make_attack(space, margin, solver, 8, keep="last", random_start=False, unroll=1)
        return jnp.sum(attack.search(checked_keys(KEY, BATCH), linear(W), INNER, TWO).value)

    direction = np.random.default_rng(1).normal(size=mix.shape)

    def best(mix):
        return BATCH * np.linalg.norm(np.asarray(W, np.float64).ravel() @ mix)

    mix64 = np.asarray(mix, np.float64)
    expected = (best(mix64 + 1e-6 * direction) - best(mix64 - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(np.sum(np.asarray(slope(mix)) * direction), expected, rtol=0.05)


# --- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pgd(-0.1), r"radius=-0\.1 must be a radius, 0 or larger"),
        (lambda: pgd(0.1, 0), r"num_steps=0 must be an integer of at least 1"),
        (lambda: make_attack(linf(0.1), num_steps=-3), r"num_steps=-3"),
        (lambda: pgd(0.1, norm="l3"), r"norm='l3' must be one of linf, l2, l1"),
        (lambda: pgd(0.1, loss="cros_entropy"), r"loss='cros_entropy' must be one of cross_entropy, margin"),
        (lambda: pgd(0.1, loss={"name": "margin", "cap": 3}), r"loss=.*cap"),
        (lambda: make_attack(linf(0.1), 3), r"loss=3 must be callable or one of cross_entropy"),
        (lambda: make_attack(linf(0.1), "margins"), r"loss='margins' must be one of"),
        (lambda: pgd(0.1, step_size=-1.0), r"step_size=-1\.0"),
        (lambda: with_fields(make_attack(linf(0.1)), radius=3), r"radius=3: IterativeAttack has the fields.*space"),
        (lambda: attribute_attack("rotation", method="newton"), r"method='newton' must be one of gradient, random"),
        (lambda: attribute_attack("rotation", 10, -10), r"low=10\.0 must not be larger than high=-10\.0"),
        (lambda: spa(0.1, solver="adam"), r"solver='adam' must be one of projected_gradient, apgd"),
        (lambda: spa(0.1, solver="apgd", search="grid"), r"search='grid' with solver='apgd'"),
        (lambda: spa(0.1, candidates=0), r"candidates=0 must be an integer of at least 1"),
        (lambda: spa(0.1, ()), r"attributes=\(\) must name at least one edit"),
        (lambda: spa(0.1, {"noise": linf(0.1)}), r"none of them 'noise'"),
        (lambda: spa(0.1, [linf(0.1)]), r"without a name"),
        (lambda: spa(0.1, [{"name": "rotation", "lo": 3}]), r"valid keys are name, low, high"),
        (lambda: spa(0.1, ["rotatoin"]), r"rotatoin.*rotation"),
        (lambda: cw(radius=-1.0), r"radius=-1\.0"),
        (lambda: cw(search_steps=0), r"search_steps=0"),
        (lambda: cw(learning_rate=0.0), r"learning_rate=0\.0 must be larger than 0"),
        (lambda: restarts(PGD, 0), r"n=0 must be an integer of at least 1"),
        (lambda: restarts(PGD, 2, 0), r"at_once=0"),
        (lambda: restarts(make_attack(linf(0.1), lift=universal), 2), r"per-example variables"),
        (lambda: restarts(worst_of(PGD, make_attack(linf(0.1), lift=universal)), 2), r"per-example variables"),
        (lambda: in_chunks(PGD, 0), r"size=0 must be an integer of at least 1"),
        (lambda: in_chunks(make_attack(linf(0.1), lift=universal), 2), r"per-example variables"),
        (lambda: worst_of(), r"at least one attack"),
        (lambda: worst_of(PGD, targeted(PGD)), r"is_targeted=\[False, True\] must be the same"),
        (lambda: targeted(targeted(PGD)), r"targeted already"),
        (lambda: targeted(with_fields(PGD, loss=kl_divergence(jnp.zeros((1, 3))))), r"no targeted form"),
        (lambda: attack_from_config({"name": "pdg", "radius": 0.1}), r"pdg.*pgd"),
        (lambda: attack_from_config({"name": "pgd", "radius": 0.1, "steps": 3}), r"steps.*num_steps"),
    ],
)
def test_bad_attacks_are_refused_with_value_and_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("preset", [pgd, spa])
@pytest.mark.parametrize(("option", "value"), [("keep", "first"), ("search", "greedy")])
def test_unknown_choices_are_refused(preset, option, value):
    """Beside our own error, the annotation says so in these tests."""
    if preset is pgd and option == "search":
        pytest.skip("pgd has no search")
    with pytest.raises((ValueError, TypeError), match=value):
        preset(0.1, **{option: value})
