"""The SPA attack against the joint optimum of a linear victim, its stages, and the parts of its result."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import EDITS, attribute, chain, make_attack, spa
from spa_jax.losses import margin
from spa_jax.solvers import Apgd, Climbed, Grid, ProjectedGradient, RandomSearch, apgd, grid
from spa_jax.spaces import linf
from tests.analytic_victims import SIZE, linear, margins
from tests.attack_cases import (
    BATCH,
    INNER,
    KEY,
    LIGHT,
    LIGHT_GAIN,
    MLP,
    NOISE_GAIN,
    SPA,
    TWO,
    W,
    X,
    Y,
    assert_consistent,
    assert_never_weaker,
    judged,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROTATION = [{"name": "rotation", "low": -20, "high": 20}]
SPA_EDITS = [*ROTATION, "contrast"]
PG = "projected_gradient"


def gains(result):
    return np.asarray(result.value, np.float64) - margins(W, INNER, TWO)


def bright(result):
    return np.asarray(result.variables["brightness"])[:, None, None, None]


# --- the searches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "search", "solver", "share"),
    [
        ("grid", "joint", "apgd", 1.0),
        ("grid", "alternating", PG, 1.0),
        ("grid", "noise", "apgd", 1.0),
        ("random", "noise", PG, 0.5),
        ("draws", "joint", "apgd", 1.0),
        ("none", "joint", PG, 1.0),
    ],
)
def test_every_search_of_spa_reaches_the_joint_optimum(start, search, solver, share):
    step = {"rel_step_size": 0.25} if solver == PG else {}
    attribute_step = {"attribute_step_size": 0.25} if solver == PG and search != "noise" else {}
    options = {"search": search, "start": start, "solver": solver, "loss": "margin"} | step | attribute_step
    result = spa(0.2, LIGHT, 20, **options)(KEY, linear(W), INNER, TWO)
    assert np.all(gains(result) >= NOISE_GAIN + share * LIGHT_GAIN - 1e-4)
    assert np.all(gains(result) <= NOISE_GAIN + LIGHT_GAIN + 1e-4)
    np.testing.assert_allclose(result.without["noise"], np.clip(INNER + bright(result), 0, 1), atol=1e-6)
    assert_consistent(result, linear(W), TWO, margin)


COMBINATIONS = [*itertools.product(("grid", "random", "draws", "none"), ("joint", "alternating", "noise"))]


@pytest.mark.parametrize("solver", ["apgd", PG, "random_search"])
def test_every_combination_of_start_and_search_is_an_attack_or_refused(solver):
    climbs = {"apgd": Apgd, PG: ProjectedGradient, "random_search": RandomSearch}
    for start, search in COMBINATIONS:
        if search == "alternating" and solver != PG:
            with pytest.raises(ValueError, match=f"search='alternating' with solver='{solver}'.*takes turns"):
                spa(0.05, LIGHT, 3, start=start, search=search, solver=solver)
            continue
        attack = spa(0.05, LIGHT, 3, start=start, search=search, solver=solver)
        starts = {"grid": [(Grid, 17)], "random": [(RandomSearch, 9)], "draws": [(RandomSearch, 8)], "none": []}[start]
        assert [(type(own.solver), own.num_steps) for own in attack.stages] == [*starts, (climbs[solver], 3)]
        assert attack.stages[-1].moves == (("noise",) if search == "noise" else None)
        shape = jax.eval_shape(lambda x, attack=attack: attack(KEY, linear(W), x, TWO), INNER)
        chex.assert_shape([shape.x, shape.without["noise"]], INNER.shape)


def test_the_default_is_no_weaker_than_random_values_followed_by_noise_at_equal_passes():
    default, rival = (
        spa(0.2, LIGHT, 20, loss="margin"),
        spa(0.2, LIGHT, 97, start="random", search="noise", loss="margin"),
    )
    assert default.num_steps == rival.num_steps == 1 + 17 * 5 + 20
    found, other = (attack(KEY, linear(W), INNER, TWO) for attack in (default, rival))
    assert_never_weaker(found, other)
    np.testing.assert_allclose(gains(found), NOISE_GAIN + LIGHT_GAIN, atol=1e-4)
    curved = spa(0.05, SPA_EDITS, 5, start="random", search="noise")
    assert curved.num_steps == SPA.num_steps
    found, other = (attack(KEY, MLP, X, Y) for attack in (SPA, curved))
    assert np.mean(found.success) >= np.mean(other.success) and np.mean(found.value) >= np.mean(other.value)


def test_the_start_is_a_grid_while_it_is_small():
    def starts(count, **options):
        names = ("rotation", "shear", "scale", "contrast", "brightness", "blur", "translation_x")[:count]
        return [(type(own.solver), own.num_steps) for own in spa(0.1, names, 3, **options).stages[:-1]]

    assert starts(1) == [(Grid, 17)] and starts(2) == [(Grid, 9)] and starts(3) == [(Grid, 8)]
    assert starts(6) == [(Grid, 64)] and starts(7) == [(RandomSearch, 8)]
    assert starts(2, start_points=11) == [(RandomSearch, 10)], "121 points are not a small grid"
    assert starts(2, start="grid", start_points=11) == [(Grid, 121)]
    assert starts(7, start="draws", start_points=1) == []
    with pytest.raises(ValueError, match=r"grid\(points=10\) over 6 attributes has 1,000,000 points"):
        starts(6, start="grid", start_points=10)


def test_the_default_climbs_at_every_point_of_the_grid_at_a_bounded_cost():
    def passes(count, **options):
        names = ("rotation", "shear", "scale", "contrast", "brightness", "blur")[:count]
        stages = spa(0.1, names, **options).stages
        assert isinstance(stages[0].solver, Climbed)
        return [own.num_steps for own in stages]

    assert passes(1) == [1 + 17 * 10, 40] and passes(2) == [1 + 9 * 10, 40] and passes(3) == [1 + 8 * 10, 40]
    assert passes(5) == [1 + 32 * 6, 40] and passes(6) == [1 + 64 * 3, 40]
    assert passes(1, num_steps=20) == [1 + 17 * 5, 20] and passes(1, start_steps=2) == [1 + 17 * 2, 40]
    plain = [spa(0.1, solver=PG), spa(0.1, start_steps=1), spa(0.1, num_steps=7), spa(0.1, start="draws")]
    assert not any(isinstance(own.solver, Climbed) for attack in plain for own in attack.stages)


# --- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("search", "start"), [("joint", "none"), ("alternating", "draws"), ("noise", "grid")])
def test_steps_of_the_linear_schedule_shrink_and_reach_the_joint_optimum(search, start):
    options = {"search": search, "start": start, "solver": PG, "loss": "margin", "step_schedule": "linear"}
    result = spa(0.2, LIGHT, 20, **options)(KEY, linear(W), INNER, TWO)
    np.testing.assert_allclose(gains(result), NOISE_GAIN + LIGHT_GAIN, atol=1e-4)


def test_steps_of_the_linear_schedule_add_up_to_twice_the_first():
    """Of three steps they are 1, 2/3 and 1/3 of the first, where nothing is in the way."""
    options = {"start": "none", "solver": PG, "step_schedule": "linear", "keep": "last"}
    attacks = (spa(0.2, LIGHT, 3, rel_step_size=size, **options) for size in (0.35, 0.0))
    moved, start = (attack(KEY, linear(W), INNER, TWO).variables["noise"] for attack in attacks)
    free = np.abs(start) < 0.2 * (1 - 0.7)
    assert np.sum(free) > 10
    np.testing.assert_allclose(np.abs(moved - start)[free], 0.2 * 0.7, atol=1e-6)


def test_steps_start_at_the_attribute_values_of_a_grid():
    """Out of 2 points a grid picks an end of the range; with no step to take, the attack stays there."""
    still = {"solver": PG, "rel_step_size": 0.0, "attribute_step_size": 0.0, "keep": "last"}
    attack = spa(0.2, LIGHT, 1, start="grid", start_points=2, **still)
    np.testing.assert_allclose(np.abs(attack(KEY, linear(W), INNER, TWO).variables["brightness"]), 0.1, atol=1e-7)


@pytest.mark.parametrize("solver", [PG, "apgd"])
def test_joint_steps_move_on_from_there(solver):
    attack = spa(0.2, LIGHT, 20, start="grid", start_points=2, solver=solver, loss="margin")
    np.testing.assert_allclose(gains(attack(KEY, linear(W), INNER, TWO)), NOISE_GAIN + LIGHT_GAIN, atol=1e-4)
    curved = spa(0.05, SPA_EDITS, 5, solver=solver)(KEY, MLP, X, Y)
    assert np.any(np.abs(np.asarray(curved.variables["rotation"])) % 20 != 0)


def test_attribute_steps_after_a_start_on_the_attributes_are_a_tenth_of_the_noises():
    attack = spa(0.05, ROTATION, 1, start="grid", start_points=3, solver=PG, rel_step_size=1.0, keep="last")
    turned = np.asarray(attack(KEY, MLP, X, Y).variables["rotation"], np.float64)
    moved = np.min(np.abs(turned[:, None] - [-20, 0, 20]), axis=1)
    inside = np.abs(turned) < 20
    assert np.any(inside)
    np.testing.assert_allclose(moved[inside], 0.1 * 20, rtol=1e-4)
    assert np.all(moved[~inside] == 0)


def test_step_sizes_are_those_of_the_documentation():
    def sizes(**options):
        return spa(0.2, ROTATION, 10, solver=PG, **options).stages[-1].solver.rel_step_size

    assert sizes(start="none") == {"rotation": 0.25, "noise": 0.25}
    assert sizes(start="draws") == {"rotation": 0.25, "noise": 0.25}
    assert sizes(start="grid") == {"rotation": 0.025, "noise": 0.25}
    assert sizes(start="none", step_size=0.1) == {"rotation": 0.5, "noise": 0.5}
    assert sizes(start="random", rel_step_size=0.5, attribute_step_size=0.3) == {"rotation": 0.3, "noise": 0.5}
    assert sizes(start="none", step_schedule="linear") == {"rotation": 0.5, "noise": 0.5}
    by_start = {start: spa(0.2, ROTATION, start=start).stages[-1].solver.rel_step_size for start in ("grid", "none")}
    assert by_start == {"grid": {"rotation": 0.2, "noise": 2.0}, "none": {"rotation": 2.0, "noise": 2.0}}


@pytest.mark.parametrize(
    "option", [{"step_schedule": "linear"}, {"step_size": 0.1}, {"rel_step_size": 0.1}, {"attribute_step_size": 0.1}]
)
@pytest.mark.parametrize("solver", ["apgd", "random_search"])
def test_steps_that_the_solver_would_not_take_are_refused(option, solver):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.*solver='{solver}'"):
        spa(0.05, ROTATION, solver=solver, **option)


def test_the_steps_start_at_the_strongest_of_the_draws():
    options = {"num_steps": 1, "solver": PG, "rel_step_size": 0.0, "start": "draws", "attributes": LIGHT}
    found, one = (spa(0.05, start_points=n, keep="last", **options)(KEY, linear(W), INNER, TWO) for n in (6, 1))
    assert_never_weaker(found, one)
    assert np.any(np.asarray(found.variables["brightness"]) != np.asarray(one.variables["brightness"]))
    best = spa(0.05, start_points=6, **options)(KEY, linear(W), INNER, TWO)
    assert_never_weaker(best, found)
    assert_consistent(best, linear(W), TWO)


def test_random_search_draws_all_variables():
    attack = spa(0.05, LIGHT, 5, start="draws", solver="random_search", keep="last")
    found, again = (attack(jax.random.key(seed), linear(W), INNER, TWO) for seed in (0, 1))
    assert_consistent(found, linear(W), TWO)
    for name in ("brightness", "noise"):
        assert np.all(np.any(np.asarray(found.variables[name] != again.variables[name]).reshape(BATCH, -1), axis=1))


def test_a_solver_object_climbs_as_well():
    attack = spa(0.2, LIGHT, 20, solver=apgd(rel_step_size=1.0), loss="margin")
    np.testing.assert_allclose(gains(attack(KEY, linear(W), INNER, TWO)), NOISE_GAIN + LIGHT_GAIN, atol=1e-4)


# --- what it returns ------------------------------------------------------------------------------------------------


def edited(v, x):
    """The images of SPA's attributes alone, edit by edit."""
    for name, space in SPA.members().items():
        if name != "noise":
            x = jax.vmap(space.edit)(x, v[name])
    return x


def test_spa_is_never_weaker_than_the_clean_image_or_any_point_of_its_grid():
    result = SPA(KEY, MLP, X, Y)
    assert_never_weaker(result, judged(X))
    for turn, contrast in itertools.product((-20.0, 0.0, 20.0), (0.7, 1.0, 1.3)):
        v = {"rotation": jnp.full(BATCH, turn), "contrast": jnp.full(BATCH, contrast)}
        assert_never_weaker(result, judged(edited(v, X)))


def test_noise_alone_follows_a_start_that_found_no_better_attribute_value():
    """Light of either sign harms the attack; a grid that holds the identity leaves it there."""

    def afraid_of_light(w, x):
        loss = 0.3 * jnp.abs(jnp.mean(x, axis=(1, 2, 3)) - 0.5)
        return linear(w)(x) + loss[:, None] * jnp.array([[0.5, -0.5]])

    x = jnp.full((BATCH, *SIZE), 0.5, jnp.float32)
    balanced = W - jnp.mean(W)
    for options in ({"search": "noise", "start_steps": 1}, {"solver": PG, "step_schedule": "linear"}):
        attack = spa(0.01, {"light": attribute("brightness")}, 10, loss="margin", **options)
        result = attack(KEY, Partial(afraid_of_light, balanced), x, jnp.zeros(BATCH, jnp.int32))
        np.testing.assert_allclose(result.variables["light"], 0, atol=0 if "search" in options else 0.01)
        np.testing.assert_allclose(result.value, 0.01 * np.sum(np.abs(balanced)), rtol=0.2)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_parts_of_the_result_fit_together(keep):
    result = dataclasses.replace(SPA, keep=keep)(KEY, MLP, X, Y)
    without = result.without["noise"]
    np.testing.assert_allclose(without, edited(result.variables, X), atol=1e-6)
    np.testing.assert_allclose(without, SPA.apply(result.variables, MLP, X, Y, without=("noise",)), atol=1e-6)
    assert np.max(np.abs(np.asarray(result.x) - np.asarray(without))) <= 0.05 + 1e-6
    np.testing.assert_allclose(result.x, jnp.clip(without + result.variables["noise"], 0, 1), atol=1e-6)
    assert np.all(np.abs(result.variables["rotation"]) <= 20)
    assert np.all((result.variables["contrast"] >= 0.7) & (result.variables["contrast"] <= 1.3))
    assert_consistent(result, MLP, Y)


def test_any_of_the_variables_can_be_left_out():
    space = chain(light=attribute("brightness"), noise=linf(0.1))
    result = make_attack(space, num_steps=2, without=("light", "noise"))(KEY, linear(W), INNER, TWO)
    assert set(result.without) == {"light", "noise"}
    lit = INNER + result.variables["light"][:, None, None, None]
    np.testing.assert_allclose(result.without["light"], jnp.clip(INNER + result.variables["noise"], 0, 1), atol=1e-6)
    np.testing.assert_allclose(result.without["noise"], jnp.clip(lit, 0, 1), atol=1e-6)
    np.testing.assert_allclose(result.x, jnp.clip(lit + result.variables["noise"], 0, 1), atol=1e-6)


def test_a_grid_start_leaves_the_noise_at_zero_until_its_own_stage_draws_it():
    attack = dataclasses.replace(SPA, stages=SPA.stages[:1])
    assert isinstance(attack.stages[0].solver, type(grid(3)))
    result = attack(KEY, MLP, X, Y)
    np.testing.assert_array_equal(result.variables["noise"], 0)
    np.testing.assert_array_equal(result.x, result.without["noise"])


# --- attributes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attributes",
    [
        {"rotation": (-20, 20)},
        {"rotation": [-20, 20]},
        {"rotation": {"low": -20, "high": 20}},
        [{"name": "rotation", "low": -20, "high": 20}],
        {"rotation": attribute("rotation", -20, 20)},
    ],
)
def test_a_range_is_written_in_several_ways(attributes):
    space = spa(0.1, attributes).members()["rotation"]
    assert (space.low, space.high, space.identity_value) == (-20, 20, 0)


FORMS = r"names of edits, as \(\"rotation\", \"scale\"\), or a mapping .* as {\"rotation\": \(-20, 20\)}"
WRONG_ATTRIBUTES = [
    (None, f"attributes=None must be {FORMS}"),
    ("rotation", f"attributes='rotation' must be {FORMS}"),
    (20, f"attributes=20 must be {FORMS}"),
    ({"rotation": 20}, f"attributes hold 20; they must be {FORMS}"),
    ({"rotation": (-20, 0, 20)}, rf"attributes hold \(-20, 0, 20\); they must be {FORMS}"),
    ([("rotation", (-20, 20))], f"attributes hold .*; they must be {FORMS}"),
    ([attribute("rotation")], "without a name: pass a mapping"),
    ({"rotation": {"min": -20, "max": 20}}, "the valid keys are name, low, high"),
    ({"rotation": ("low", "high")}, "rotation.low='low' must be a finite number"),
    ((), "must name at least one edit"),
    (("rotation", "scale", "rotation"), "none of them twice"),
    (("rotation", "noise"), "'noise'"),
    (("turn",), "edit name='turn' .*rotation"),
    ({"scale": (0, 1.2)}, "scale.low=0 must be larger than 0"),
    ({"scale": (-1, 1.2)}, "scale.low=-1 must be larger than 0"),
    ({"blur": (-1, 1)}, "blur.low=-1 must be 0 or larger"),
    ({"shear": (-90, 90)}, "shear.low=-90 must be between -90 and 90 degrees"),
    ({"rotation": (20, -20)}, "low=20.0 must not be larger than high=-20.0"),
    ({"scale": (1.1, 1.2)}, "identity=1.0 must lie within"),
]


@pytest.mark.parametrize(("attributes", "message"), WRONG_ATTRIBUTES)
def test_wrong_attributes_are_named_in_one_line(attributes, message):
    with pytest.raises(ValueError, match=message) as error:
        spa(0.1, attributes)
    assert "\n" not in str(error.value)


def test_nine_attributes_start_at_random_and_are_no_grid():
    nine = [name for name in EDITS if name != "hue"]
    assert [type(own.solver) for own in spa(0.1, nine).stages] == [RandomSearch, Apgd]
    with pytest.raises(
        ValueError, match=r"grid\(points=9\) over 9 attributes has 387,420,489 points, one forward pass"
    ):
        spa(0.1, nine, start="grid", start_points=9)


# --- starts that are climbed from -----------------------------------------------------------------------------------


def trap(images):
    """Class 1 wins by brightness 0.1 + the first pixel's noise, or, which only noise reveals, by a dark image's second.

    Of the angles of light -0.1 and 0.1, the second one looks better without noise and leaves noise less to gain.
    """
    light = images.mean((1, 2)).squeeze(-1) - 0.5
    corner = images[:, 0, 0, 0] - images[:, 0, 1, 0]
    return jnp.stack([jnp.zeros_like(light), jnp.where(light > 0, light, 10 * corner)], axis=-1)


def test_climbing_from_the_starts_finds_the_one_that_noise_makes_the_best():
    x, y = jnp.full((4, 4, 4, 1), 0.5), jnp.zeros(4, jnp.int32)
    common = {"start_points": 2, "num_steps": 10, "loss": "margin"}
    plain = spa(0.05, {"brightness": (-0.1, 0.1)}, search="noise", start_steps=1, **common)(KEY, trap, x, y)
    climbing = spa(0.05, {"brightness": (-0.1, 0.1)}, search="noise", start_steps=4, **common)(KEY, trap, x, y)
    np.testing.assert_allclose(plain.variables["brightness"], 0.1)
    np.testing.assert_allclose(plain.value, 0.15, atol=1e-5)
    np.testing.assert_allclose(climbing.variables["brightness"], -0.1)
    np.testing.assert_allclose(climbing.value, 1.0, atol=1e-4)


def test_every_point_of_a_grid_is_climbed_from_with_fresh_noise():
    """What each pass sees: the clean image, then for each value of the grid `steps` images, their noise anew."""
    attack = spa(0.05, {"brightness": (-0.1, 0.1)}, 3, start_points=3, start_steps=2)
    assert attack.num_steps == 1 + 3 * 2 + 3
    state = attack.init(KEY, linear(W), INNER, TWO)
    seen = []
    for _ in range(6):
        state = attack.step(state, linear(W), INNER, TWO)
        seen.append(state.variables)
    values = [float(np.unique(v["brightness"]).item()) for v in seen]
    np.testing.assert_allclose(values, [-0.1, -0.1, 0.0, 0.0, 0.1, 0.1], atol=1e-7)
    starts = [np.asarray(v["noise"]) for v in seen[::2]]
    assert all(np.mean(a == b) < 0.3 for a, b in itertools.combinations(starts, 2))
    with pytest.raises(ValueError, match="start_steps=2 with start='none'"):
        spa(0.05, LIGHT, start="none", start_steps=2)
