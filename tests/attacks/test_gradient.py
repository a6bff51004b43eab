"""Presets against hand-written loops and closed forms, and the guarantees of every attack."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from spa_jax import (
    Example,
    apgd_ce,
    apgd_dlr,
    attack_from_config,
    attribute_attack,
    cw,
    fgsm,
    in_chunks,
    make_attack,
    mi_fgsm,
    pgd,
    randomized,
    restarts,
    spa,
    stage,
    universal,
    worst_of,
)
from spa_jax.attacks.base import START, stream
from spa_jax.losses import dlr, margin
from spa_jax.solvers import apgd, projected_gradient
from spa_jax.spaces import latent, linf
from spa_jax.validation import checked_keys
from tests.analytic_victims import SIZE, ascent, linear, margins, mlp, mlp_parameters, strongest
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
    judged,
)
from tests.solvers.test_solvers import onto, unit, value_and_gradient

pytestmark = pytest.mark.usefixtures("quick_compilation")

# --- presets against loops written by hand ---------------------------------------------------------------------------


def test_fgsm_is_one_sign_step_from_the_clean_image():
    flat = np.asarray(X, np.float64).reshape(BATCH, -1)
    gradients = [value_and_gradient(mlp_parameters(), x, y)[1] for x, y in zip(flat, np.asarray(Y), strict=True)]
    expected = np.clip(flat + 0.1 * np.sign(gradients), 0, 1).reshape(X.shape)
    result = dataclasses.replace(FGSM, keep="last")(KEY, MLP, X, Y)
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
        (pgd(0.3, 10, 0.06, random_start=False), by_hand("linf", 0.3, 0.2, 10)),
        (pgd(1.0, 10, norm="l2", random_start=False), by_hand("l2", 1.0, 0.25, 10)),
        (mi_fgsm(0.3), by_hand("linf", 0.3, 0.1, 10, decay=1.0)),
    ],
    ids=["pgd_linf", "pgd_l2", "mi_fgsm"],
)
def test_preset_follows_the_loop_written_by_hand(attack, values):
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(X), jnp.float64)
        last = dataclasses.replace(attack, keep="last")(jax.random.key(0), mlp(), x, Y)
        np.testing.assert_allclose(last.value, values[-1], rtol=1e-6)
        np.testing.assert_array_less(values[0], last.value)


def test_pgd_from_random_starts_differs_by_key_and_climbs():
    one, two = (dataclasses.replace(PGD, keep="last")(jax.random.key(seed), MLP, X, Y) for seed in (0, 1))
    assert np.any(one.variables != two.variables)
    assert np.mean(one.value) > np.mean(judged(X).value) + 0.1


def test_apgd_dlr_reaches_the_optimum_of_a_linear_victim_on_three_classes():
    def third_class_far_below(w, x):
        return jnp.pad(linear(w)(x), ((0, 0), (0, 1)), constant_values=-30.0)

    result = apgd_dlr(0.3, 12)(KEY, Partial(third_class_far_below, W), X, TWO)
    x = jnp.asarray(strongest("linf", ascent(W, TWO), X, 0.3), jnp.float32)
    np.testing.assert_allclose(result.value, dlr(third_class_far_below(W, x), Example(x, TWO)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("method", "share"), [("gradient", 1 - 1e-4), ("random", 0.2), ("grid", 1 - 1e-4)])
def test_attribute_attack_finds_the_best_brightness(method, share):
    attack = attribute_attack("brightness", -0.2, 0.2, method, 12, loss="margin")
    result = attack(KEY, linear(W), INNER, TWO)
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
    assert_never_weaker(first, judged(X))


@pytest.mark.parametrize("name", ATTACKS)
def test_zero_radius_and_zero_range_give_the_clean_image_back(name):
    np.testing.assert_array_equal(ATTACKS[name].scaled(0.0)(KEY, MLP, X, Y).x, X)


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
        return linear(W)(x)

    attack = spa(0.1, LIGHT, 4, start="draws", keep="last")
    attack(KEY, randomized(spy), X[:1], TWO[:1])
    jax.effects_barrier()
    victim_keys = {tuple(row) for data in seen for row in data}
    start_key = stream(checked_keys(KEY, 1), START)[0]
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
        attack = make_attack(space, margin, solver, 8, keep="last", random_start=False)
        return jnp.sum(attack(KEY, linear(W), INNER, TWO).value)

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
        (lambda: pgd(0.1, step_size=-1.0), r"step_size=-1\.0 must be 0 or larger, in the units of the radius"),
        (lambda: pgd(0.1, rel_step_size=-1.0), r"rel_step_size=-1\.0 must be 0 or larger, a fraction of the radius"),
        (
            lambda: pgd(0.1, step_size=0.1, rel_step_size=1.0),
            r"step_size=0\.1, rel_step_size=1\.0: give one of the two",
        ),
        (lambda: mi_fgsm(0.1, step_size=0.1, rel_step_size=1.0), r"give one of the two"),
        (
            lambda: make_attack(linf(0.1), solver=[stage(apgd(), 3, moves=["hue"])]),
            r"variables \['hue'\] are not in the",
        ),
        (lambda: make_attack(linf(0.1), without=["hue"]), r"variables \['hue'\] are not in the space; it has noise"),
        (lambda: stage(apgd(), 0), r"num_steps=0"),
        (lambda: cw().scaled(0.5), r"attack=MinimalNorm has no space"),
        (lambda: cw().with_loss(margin), r"attack=MinimalNorm has no loss"),
        (lambda: attribute_attack("rotation", method="newton"), r"method='newton' must be one of gradient, random"),
        (lambda: attribute_attack("rotation", 10, -10), r"low=10\.0 must not be larger than high=-10\.0"),
        (lambda: spa(0.1, solver="adam"), r"solver='adam' must be one of projected_gradient, apgd"),
        (lambda: spa(0.1, search="alternating"), r"search='alternating' with solver='apgd'"),
        (lambda: spa(0.1, start_points=0), r"start_points=0 must be an integer of at least 1"),
        (lambda: spa(0.1, num_steps=0), r"num_steps=0"),
        (lambda: spa(0.1, ()), r"attributes=\(\) must name at least one edit"),
        (lambda: spa(0.1, {"noise": linf(0.1)}), r"none of them twice or 'noise'"),
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
        (lambda: attack_from_config({"name": "pdg", "radius": 0.1}), r"pdg.*pgd"),
        (lambda: attack_from_config({"name": "pgd", "radius": 0.1, "steps": 3}), r"steps.*num_steps"),
    ],
)
def test_bad_attacks_are_refused_with_value_and_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("preset", "option"), [(pgd, "keep"), (spa, "keep"), (spa, "search"), (spa, "start"), (spa, "step_schedule")]
)
def test_unknown_choices_are_refused(preset, option):
    """Beside our own error, the annotation says so in these tests."""
    with pytest.raises((ValueError, TypeError), match="greedy"):
        preset(0.1, **{option: "greedy"})


# --- step sizes -----------------------------------------------------------------------------------------------------


def length(attack):
    return attack.stages[0].solver.rel_step_size


def test_step_sizes_are_in_the_units_of_the_radius_and_relative_ones_a_fraction_of_it():
    assert length(pgd(8 / 255, step_size=2 / 255)) == length(pgd(8 / 255, rel_step_size=0.25)) == 0.25
    assert length(pgd(0.5, 20, norm="l2", step_size=0.1)) == length(pgd(0.5, 20, norm="l2", rel_step_size=0.2)) == 0.2
    assert length(pgd(0.3)) == 0.25 and length(pgd(0.3, 2)) == 1 and length(pgd(0.3, 50)) == 0.05
    assert length(mi_fgsm(0.3, step_size=0.03)) == length(mi_fgsm(0.3)) == 0.1
    assert length(pgd(0.0, step_size=0.1)) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: pgd(8 / 255, 10, step_size=0.001),
        lambda: pgd(0.3, 10, rel_step_size=0.09),
        lambda: mi_fgsm(0.3, 3, rel_step_size=0.3),
        lambda: spa(8 / 255, num_steps=10, solver="projected_gradient", step_size=0.0005),
    ],
)
def test_steps_that_cannot_cross_the_ball_are_warned_about(make):
    with pytest.warns(UserWarning, match=r"steps of .* radii cannot reach the boundary of the ball"):
        make()


def test_a_step_of_zero_and_a_traced_step_are_no_reason_to_warn():
    assert length(pgd(0.3, step_size=0.0)) == 0
    relative = jax.jit(lambda radius, step: length(pgd(radius, 3, step_size=step)))
    assert relative(0.4, 0.1) == 0.25 and relative(0.0, 0.1) == 0


# --- targets --------------------------------------------------------------------------------------------------------

AIM = (Y + 1) % 3


def test_a_target_is_what_the_victim_is_made_to_answer():
    result = PGD.with_loss(margin)(KEY, MLP, X, Y, AIM)
    assert_consistent(result, MLP, Y, margin, target=AIM)
    assert np.mean(result.success) > np.mean(judged(X, target=AIM).success)


def test_two_classes_make_targeted_and_untargeted_attacks_the_same():
    attack = PGD.with_loss(margin)
    straight, aimed = attack(KEY, linear(W), X, TWO), attack(KEY, linear(W), X, TWO, 1 - TWO)
    np.testing.assert_allclose(straight.value, aimed.value, rtol=1e-5)
    np.testing.assert_array_equal(straight.success, aimed.success)


@pytest.mark.parametrize("attack", [apgd_ce(0.5, 12, norm="l2"), apgd_dlr(0.5, 12, norm="l2")], ids=["ce", "dlr"])
def test_apgd_reaches_a_target(attack):
    """DLR of eq. 7 compares a label with a target and needs four classes."""
    victim = mlp(classes=4)
    reached = attack(KEY, victim, X, Y, AIM)
    assert_consistent(reached, victim, Y, attack.loss, target=AIM)
    assert np.mean(reached.success) >= np.mean(judged(X, victim, target=AIM).success) + 0.5


# --- what an attack says about itself -------------------------------------------------------------------------------


def test_attacks_count_their_steps_and_name_their_members():
    assert [attack.num_steps for attack in (FGSM, PGD, APGD, cw(num_steps=4, search_steps=3))] == [1, 5, 12, 12]
    assert SPA.num_steps == 3**2 + 5 and list(SPA.members()) == ["rotation", "contrast", "noise"]
    assert restarts(PGD, 3).num_steps == 15 and worst_of(PGD, FGSM).num_steps == 6 and in_chunks(PGD, 2).num_steps == 5
    assert list(restarts(in_chunks(SPA, 2), 3).members()) == list(SPA.members()) and list(PGD.members()) == ["noise"]
    assert cw().members() == worst_of(PGD).members() == {}
    assert [attack.shared for attack in (PGD, cw(), worst_of(PGD), make_attack(linf(0.1), lift=universal))] == [
        False, False, False, True,
    ]  # fmt: skip


def test_scaling_and_a_new_loss_reach_into_combinators():
    combined = restarts(in_chunks(worst_of(PGD, fgsm(0.2)), 2), 2)
    inner = combined.scaled(0.5).with_loss(margin).attack.attack.attacks
    assert [attack.space.space.radius for attack in inner] == [0.05, 0.1]
    assert [attack.loss.func if isinstance(attack.loss, Partial) else attack.loss for attack in inner] == [margin] * 2
    doubled = combined.inside(lambda attack: dataclasses.replace(attack, keep="last"))
    assert [attack.keep for attack in doubled.attack.attack.attacks] == ["last", "last"]


def test_an_attack_applies_variables_to_images():
    found = PGD(KEY, MLP, X, Y)
    np.testing.assert_array_equal(PGD.apply(found.variables, MLP, X, Y), found.x)
    np.testing.assert_array_equal(in_chunks(PGD, 3).apply(found.variables, MLP, X, Y), found.x)
    with pytest.raises(ValueError, match="attack=WorstOf has no space"):
        worst_of(PGD).apply(found.variables, MLP, X, Y)
