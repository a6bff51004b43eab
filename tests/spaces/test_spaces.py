"""The guarantees of the spaces, one property each; projections against Dykstra's algorithm in float64."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spa_jax import EDITS, Example, attribute, chain, per_example, universal
from spa_jax.edits import brightness
from spa_jax.spaces import LInf, l1, l2, latent, linf, victim_gradient
from spa_jax.spaces.base import require_space
from spa_jax.trees import pytree
from spa_jax.types import SeenVictim
from spa_jax.victims import as_victim
from tests.analytic_victims import SIZE, images, linear, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH = 256
NOISES = {"linf": linf, "l2": l2, "l1": l1}
RADII = {"linf": 0.3, "l2": 0.7, "l1": 1.5}
SPACES = {name: make(RADII[name]) for name, make in NOISES.items()} | {
    "attribute": attribute("rotation", -30, 20),
    "latent": latent(lambda z, example: example.image + z.reshape(SIZE), 16, 0.8),
    "chain": chain(turn=attribute("rotation", -30, 20), light=attribute("brightness"), noise=linf(0.3)),
}


@jax.jit
def project(space, v, x):
    return jax.vmap(space.project)(v, Example(x))


@jax.jit
def start(space, keys, x):
    return jax.vmap(space.init)(keys, Example(x))


@jax.jit
def apply(space, v, x):
    return jax.vmap(space.apply)(v, Example(x))


def keys(seed=0, batch=BATCH):
    return jax.random.split(jax.random.key(seed), batch)


def norms(norm, noise):
    flat = np.asarray(noise, np.float64).reshape(len(noise), -1)
    return np.linalg.norm(flat, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)


def far_points(space, x, seed=5):
    """Variables far outside of the set, in every direction."""
    leaves, tree = jax.tree.flatten(start(space, keys(), x))
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-2, 2, (BATCH,))
    grown = [rng.normal(size=leaf.shape) * 30 * scale.reshape((BATCH,) + (1,) * (leaf.ndim - 1)) for leaf in leaves]
    return jax.tree.unflatten(tree, [jnp.asarray(leaf, jnp.float32) for leaf in grown])


def assert_in_set(name, space, v, x):
    """Membership, checked in float64 from the definition of each set."""
    changed = np.asarray(apply(space, v, x), np.float64)
    assert changed.min() >= 0 and changed.max() <= 1
    if name in NOISES:
        assert np.all(norms(name, v) <= RADII[name] * (1 + 2e-6))
        assert np.all(norms(name, changed - np.asarray(x, np.float64)) <= RADII[name] * (1 + 2e-6) + 1e-6)
    elif name == "latent":
        assert np.all(np.linalg.norm(np.asarray(v, np.float64), axis=1) <= 0.8 * (1 + 1e-6))
    elif name == "attribute":
        assert np.all((v >= -30) & (v <= 20))
    else:
        assert np.all((v["turn"] >= -30) & (v["turn"] <= 20))
        edits = {name: member for name, member in space.members().items() if name != "noise"}
        edited = apply(chain(**edits), {name: v[name] for name in edits}, x)
        assert np.all(norms("linf", changed - np.asarray(edited, np.float64)) <= 0.3 + 1e-6)


# --- what every space guarantees ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_starts_and_projections_lie_in_the_set_and_in_the_unit_range(name):
    space, x = SPACES[name], images(batch=BATCH)
    assert_in_set(name, space, start(space, keys(), x), x)
    assert_in_set(name, space, project(space, far_points(space, x), x), x)


@pytest.mark.parametrize("name", SPACES)
def test_projection_is_idempotent_and_leaves_inner_points_alone(name):
    space, x = SPACES[name], images(batch=BATCH)
    once = project(space, far_points(space, x), x)
    inside = start(space, keys(), x)
    tolerance = 1e-6 if name == "latent" else 0
    chex.assert_trees_all_close(project(space, once, x), once, rtol=tolerance, atol=tolerance)
    if name == "chain":  # another program made the start, and rounds the edited image in its own way
        tolerance = 1e-6
    chex.assert_trees_all_close(project(space, inside, x), inside, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SPACES)
def test_identity_leaves_the_image_alone_bit_for_bit(name):
    space, x = SPACES[name], images(batch=BATCH)
    identity = per_example(space).identity(Example(x))
    np.testing.assert_array_equal(apply(space, identity, x), x)
    jax.tree.map(np.testing.assert_array_equal, project(space, identity, x), identity)


@pytest.mark.parametrize("name", SPACES)
def test_the_same_key_gives_the_same_start_and_another_key_another(name):
    space, x = SPACES[name], images(batch=BATCH)
    first, again, other = (start(space, keys(seed), x) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
        assert np.mean(np.asarray(a) != np.asarray(b)) > 0.3
    reversed_batch = start(space, keys(1)[::-1], x[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[::-1], b), first, reversed_batch)


@pytest.mark.parametrize("name", NOISES)
def test_zero_radius_is_the_identity(name):
    space, x = NOISES[name](0.0), images(batch=BATCH)
    for v in (start(space, keys(), x), project(space, far_points(space, x), x)):
        np.testing.assert_array_equal(v, np.zeros_like(v))


def test_zero_range_and_zero_latent_radius_are_the_identity():
    x = images(batch=BATCH)
    stills = (
        latent(SPACES["latent"].decode.func, 16, 0.0),
        chain(turn=attribute("rotation", 0, 0), light=attribute("brightness", 0, 0), noise=linf(0.0)),
    )
    for still in stills:
        for v in (start(still, keys(), x), project(still, far_points(still, x), x)):
            np.testing.assert_array_equal(apply(still, v, x), x)


# --- noise ----------------------------------------------------------------------------------------------------------


def onto_l1_ball(v, radius):
    """Sort-based projection (Duchi et al. 2008), [n, d]."""
    size = np.sort(np.abs(v), axis=1)[:, ::-1]
    excess = np.cumsum(size, axis=1) - radius[:, None]
    count = np.arange(1, v.shape[1] + 1)
    last = np.sum(size * count > excess, axis=1) - 1
    threshold = np.maximum(excess[np.arange(len(v)), last] / (last + 1), 0)
    return np.sign(v) * np.maximum(np.abs(v) - threshold[:, None], 0)


def onto_l1_ball_and_box(v, x, radius):
    """The exact projection of one v [d] onto ball and [-x, 1 - x], in float64.

    The norm falls piecewise linearly in the multiplier, with kinks where a pixel leaves the box or reaches 0.
    """
    v, x = np.asarray(v, np.float64), np.asarray(x, np.float64)
    room = np.where(v > 0, 1 - x, x)

    def size(multiplier):
        return np.minimum(np.maximum(np.abs(v) - multiplier, 0), room)

    if radius == 0 or size(0).sum() <= radius:
        return np.sign(v) * size(0) * (radius > 0)
    kinks = np.unique(np.concatenate([[0], np.abs(v), np.maximum(np.abs(v) - room, 0)]))
    norms = np.array([size(kink).sum() for kink in kinks])
    last = np.flatnonzero(norms >= radius)[-1]
    slope = (norms[last + 1] - norms[last]) / (kinks[last + 1] - kinks[last])
    return np.sign(v) * size(kinks[last] + (radius - norms[last]) / slope)


def onto_l2_ball(v, radius):
    return v * np.minimum(1, radius / np.maximum(np.linalg.norm(v, axis=1), 1e-300))[:, None]


def dykstra(v, x, onto_ball, radius, iterations=3000):
    """The nearest point of ball and box by alternating projections; no multiplier, no bisection."""
    v, x = (np.asarray(a, np.float64).reshape(len(v), -1) for a in (v, x))
    ball_rest, box_rest, point = np.zeros_like(v), np.zeros_like(v), v
    for _ in range(iterations):
        on_ball = onto_ball(point + ball_rest, radius)
        ball_rest = point + ball_rest - on_ball
        point = np.clip(on_ball + box_rest, -x, 1 - x)
        box_rest = on_ball + box_rest - point
    return point


@pytest.mark.parametrize(("name", "onto_ball"), [("l2", onto_l2_ball), ("l1", onto_l1_ball)])
def test_projection_onto_ball_and_box_is_the_exact_one(name, onto_ball):
    rng = np.random.default_rng(0)
    x, radius = images(seed=1, batch=BATCH), np.full(BATCH, RADII[name])
    v = jnp.asarray(rng.normal(size=x.shape) * 10 ** rng.uniform(-1.5, 0.7, (BATCH, 1, 1, 1)), jnp.float32)
    ours = project(NOISES[name](RADII[name]), v, x)
    np.testing.assert_allclose(np.asarray(ours).reshape(BATCH, -1), dykstra(v, x, onto_ball, radius), atol=2e-5)
    assert 0.1 < np.mean(np.isclose(norms(name, ours), radius, rtol=1e-4)) < 0.95, "both constraints should be at work"


@settings(max_examples=60)
@given(
    v=hnp.arrays(np.float32, SIZE, elements=st.floats(-30, 30, width=32)),
    x=hnp.arrays(np.float32, SIZE, elements=st.floats(0, 1, width=32)),
    radius=st.floats(0.015625, 15, width=32),
)
def test_the_l1_projection_is_the_nearest_point_by_the_kinks_of_its_multiplier(v, x, radius):
    ours = project(l1(radius), *(np.broadcast_to(a, (BATCH, *SIZE)) for a in (v, x)))
    exact = onto_l1_ball_and_box(v.ravel(), x.ravel(), radius)
    np.testing.assert_allclose(np.ravel(ours[0]), exact, atol=1e-5)


@pytest.mark.parametrize("name", ["l2", "l1"])
def test_a_projection_has_a_gradient(name):
    """Of the pixels that are neither cut by the box nor shrunk to 0, as if the multiplier were a constant."""
    x, space = images(batch=BATCH), NOISES[name](RADII[name])
    v = far_points(space, x)
    slope = np.asarray(jax.grad(lambda v: jnp.sum(project(space, v, x)))(v))
    found = np.asarray(project(space, v, x))
    assert np.isfinite(slope).all() and (slope != 0).any()
    cut = (found == -np.asarray(x)) | (found == 1 - np.asarray(x))
    assert (slope[cut & (found != 0)] == 0).all()


def test_projection_onto_the_cube_is_the_exact_one():
    x = images(batch=BATCH)
    v = far_points(linf(0.3), x)
    exact = np.clip(np.asarray(v, np.float64), np.maximum(-0.3, -np.asarray(x)), np.minimum(0.3, 1 - np.asarray(x)))
    np.testing.assert_allclose(project(linf(0.3), v, x), exact, atol=1e-7)


nasty = hnp.arrays(np.float32, SIZE, elements=st.floats(-1e4, 1e4, width=32))
pixels = hnp.arrays(np.float32, SIZE, elements=st.floats(0, 1, width=32))


@pytest.mark.parametrize("name", NOISES)
@settings(max_examples=60)
@pytest.mark.filterwarnings("ignore:radius=.*larger than the range of pixels")
@example(v=np.full(SIZE, 2.0**-40, np.float32), x=np.zeros(SIZE, np.float32), radius=0.0)
@given(v=nasty, x=pixels, radius=st.floats(0, 20, width=32))
def test_projection_holds_ball_and_box_at_once_for_any_floats(name, v, x, radius):
    space, x, v = NOISES[name](float(radius)), *(np.broadcast_to(a, (BATCH, *SIZE)) for a in (x, v))
    once = project(space, v, x)
    assert np.all(norms(name, once) <= radius * (1 + 2e-6) + 1e-30)
    assert np.all((np.asarray(once) >= -np.asarray(x)) & (np.asarray(once) <= 1 - np.asarray(x)))
    np.testing.assert_array_equal(project(space, once, x), once)


@pytest.mark.parametrize("name", NOISES)
def test_direction_is_one_radius_long_and_the_steepest(name):
    space = NOISES[name](RADII[name])
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=SIZE)
    step = np.asarray(space.direction(jnp.asarray(gradient, jnp.float32)), np.float64)
    np.testing.assert_allclose(norms(name, step[None]), RADII[name], rtol=1e-5)
    rivals = rng.normal(size=(500, *SIZE))
    rivals = rivals / norms(name, rivals)[:, None, None, None] * RADII[name]
    assert np.sum(step * gradient) >= np.max(np.sum(rivals * gradient, axis=(1, 2, 3)))
    np.testing.assert_array_equal(space.direction(jnp.zeros(SIZE)), np.zeros(SIZE))


@pytest.mark.parametrize("space", [linf(0.3), l2(0.3), l1(0.3), SPACES["latent"]], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e15])
def test_direction_does_not_depend_on_the_size_of_the_gradient(space, scale):
    gradient = weights()
    np.testing.assert_allclose(space.direction(gradient * scale), space.direction(gradient), rtol=1e-5)


def test_sparse_direction_moves_the_asked_share_of_pixels():
    gradient = jnp.arange(1.0, 101.0).reshape(10, 10, 1)
    step = l1(2.0, sparsity=0.9).direction(gradient)
    np.testing.assert_allclose(np.flatnonzero(step), np.arange(90, 100))
    np.testing.assert_allclose(step[step > 0], 0.2, rtol=1e-6)


def test_random_starts_fill_the_balls_evenly():
    """In d dimensions, uniform points have (norm / radius)^d uniform in [0, 1]; the box is far away."""
    x = jnp.full((BATCH, *SIZE), 0.5, jnp.float32)
    for name, make in NOISES.items():
        noise = start(make(0.25), keys(), x)
        share = (norms(name, noise) / 0.25) ** x[0].size
        np.testing.assert_allclose(np.quantile(share, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.1)


# --- attributes and latents -----------------------------------------------------------------------------------------


def test_an_attribute_takes_the_documented_range_of_its_edit():
    space = attribute("contrast")
    assert (space.low, space.high, space.identity_value) == (0.7, 1.3, 1.0)
    assert attribute("rotation", high=5).low == EDITS["rotation"].low


def test_an_attribute_of_ones_own_function_stays_an_image():
    space = attribute(lambda image, value: image + value, -3, 3)
    x = images(batch=BATCH)
    changed = apply(space, jnp.linspace(-3, 3, BATCH), x)
    assert changed.min() == 0 and changed.max() == 1
    np.testing.assert_allclose(changed, jax.vmap(brightness)(x, jnp.linspace(-3, 3, BATCH)))


def test_a_step_of_an_attribute_is_half_its_range():
    space = attribute("rotation", -30, 20)
    np.testing.assert_allclose(space.direction(jnp.array([-1e-9, 0.0, 7.0])), [-25, 0, 25])


def test_a_decoder_may_read_label_and_gradient():
    w, x = weights(), images()

    def decode(z, e):
        return e.image + z[0] * victim_gradient(e, e.image) * (1 + e.label.astype(jnp.float32))

    space, seen = latent(decode, 1, 0.1), SeenVictim(as_victim(linear(w), x[1:2], inline=True))
    example = Example(x[1], jnp.int32(1), key=jax.random.key(0), predict=seen)
    changed = jax.jit(lambda z: space.apply(z, example))(jnp.array([0.1]))
    unit_gradient = -np.asarray(w) / np.linalg.norm(w)
    np.testing.assert_allclose(changed, np.clip(x[1] + 0.1 * 2 * unit_gradient, 0, 1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"Example\.predict=None"):
        victim_gradient(Example(x[1]), x[1])


# --- composition ----------------------------------------------------------------------------------------------------


def test_a_chain_applies_its_spaces_in_the_order_given_also_behind_jit():
    x, v = images(batch=1), {"z": jnp.array([0.3]), "a": jnp.array([0.5])}
    z, a = attribute("brightness", -1, 1), attribute("contrast", 0.5, 1.5)
    clean = np.asarray(x, np.float64)
    lit = np.clip(clean + 0.3, 0, 1)
    np.testing.assert_allclose(apply(chain(z=z, a=a), v, x), (lit + lit.mean()) / 2, atol=1e-6)
    np.testing.assert_allclose(apply(chain(a=a, z=z), v, x), np.clip((clean + clean.mean()) / 2 + 0.3, 0, 1), atol=1e-6)


def test_noise_of_a_chain_is_bounded_around_the_edited_image():
    space = chain(light=attribute("brightness", 0, 0.8), noise=linf(0.1))
    x = jnp.zeros((BATCH, *SIZE))
    v = project(space, {"light": jnp.full((BATCH,), 0.8), "noise": jnp.full(x.shape, -9.0)}, x)
    np.testing.assert_allclose(v["noise"], -0.1)
    np.testing.assert_allclose(apply(space, v, x), 0.7, rtol=1e-6)
    from_black = project(space, {"light": jnp.zeros(BATCH), "noise": jnp.full(x.shape, -9.0)}, x)
    np.testing.assert_array_equal(from_black["noise"], 0)


@pytest.mark.parametrize("make", NOISES.values())
def test_a_pixel_that_noise_has_put_on_a_bound_keeps_its_gradient_despite_rounding(make):
    """The edited image is computed twice, so noise may overshoot by an ulp; the way back has to stay open."""
    x = jnp.array([0.04, 0.5, 0.96, 0.3, 0.3]).reshape(5, 1, 1)
    noise = jnp.array([-0.04 - 4e-9, 0.1, 0.04 + 1e-7, 0.9, -0.9]).reshape(5, 1, 1)
    inward = jnp.array([1.0, 1.0, -1.0, -1.0, 1.0]).reshape(5, 1, 1)
    gradient = jax.grad(lambda v: jnp.sum(inward * make(1.0).apply(v, Example(x))))(noise)
    np.testing.assert_array_equal(np.ravel(gradient), [1, 1, -1, 0, 0])


def test_sparse_noise_does_not_push_pixels_against_a_bound():
    x, away = jnp.array([0.0, 1.0, 0.5]).reshape(3, 1, 1), jnp.array([-1.0, 1.0, 1.0]).reshape(3, 1, 1)
    gradient = jax.grad(lambda v: jnp.sum(away * l1(1.0).apply(v, Example(x))))(jnp.zeros((3, 1, 1)))
    np.testing.assert_array_equal(np.ravel(gradient), [0, 0, 1])


def test_members_of_a_chain_start_independently():
    twins = start(chain(a=linf(0.3), b=linf(0.3)), keys(), jnp.full((BATCH, *SIZE), 0.5))
    assert abs(np.corrcoef(np.ravel(twins["a"]), np.ravel(twins["b"]))[0, 1]) < 0.2


def test_a_grid_visits_every_combination_once_and_stays_in_the_box():
    space = chain(a=attribute("rotation", -0.3, 0.2), b=attribute("brightness", -0.1, 0.7), noise=linf(0.1))
    assert space.grid_axes == 2 and linf(0.1).grid_axes == 0
    v = space.identity(Example(images()[0]))
    points = jax.jit(jax.vmap(lambda i: space.at_grid_point(v, i, 7)))(jnp.arange(49))
    expected = np.array([[a, b] for b in np.linspace(-0.1, 0.7, 7) for a in np.linspace(-0.3, 0.2, 7)])
    np.testing.assert_allclose(np.stack([points["a"], points["b"]], 1), expected, atol=1e-6)
    for name, low, high in (("a", -0.3, 0.2), ("b", -0.1, 0.7)):
        assert np.all((points[name] >= np.float32(low)) & (points[name] <= np.float32(high)))
    assert np.all(points["noise"] == 0)


# --- lifts ----------------------------------------------------------------------------------------------------------


def test_a_universal_lift_shares_one_set_of_variables():
    x = images(batch=BATCH)
    lifted = universal(chain(light=attribute("brightness"), noise=linf(0.4)))

    @jax.jit
    def run(key, x):
        examples = Example(x)
        v = lifted.project(jax.tree.map(lambda leaf: leaf * 3, lifted.init(key, examples)), examples)
        return v, lifted.apply(v, examples), lifted.apply(lifted.identity(examples), examples)

    v, changed, unchanged = run(jax.random.key(0), x)
    assert v["light"].shape == () and v["noise"].shape == SIZE
    assert np.max(np.abs(v["noise"])) == np.float32(0.4)
    edited = np.clip(x + v["light"], 0, 1)
    np.testing.assert_allclose(changed, np.clip(edited + v["noise"][None], 0, 1), atol=1e-6)
    np.testing.assert_array_equal(unchanged, x)


def test_shared_variables_start_from_no_image_in_particular():
    lifted = universal(chain(light=attribute("brightness"), noise=linf(0.4)))
    starts = [lifted.init(jax.random.key(0), Example(images(seed, batch=2 + seed))) for seed in (0, 1)]
    chex.assert_trees_all_equal(*starts)


def test_shared_variables_are_judged_and_moved_by_the_weighted_mean():
    values, weight = jnp.array([1.0, 2.0, 30.0]), jnp.array([3.0, 1.0, 0.0])
    examples, lifted = Example(images(batch=3), weight=weight), universal(linf(0.4))
    assert lifted.summarise(values, examples) == (3 * 1 + 1 * 2) / 4
    assert lifted.summarise(values > 1, examples) == 0.25
    assert lifted.summarise(values, examples.replace(weight=None)) == 11
    assert lifted.summarise(values, examples.replace(weight=0 * weight)) == 0
    seen, gradient, count = lifted.gradient(lambda v, probe: (values * v + 5 * probe, "seen"), jnp.float32(2), examples)
    assert (seen, gradient) == ("seen", 1.25)
    np.testing.assert_array_equal(count, [5 * 0.75, 5 * 0.25, 0])
    own = per_example(linf(0.4))
    np.testing.assert_array_equal(own.summarise(values, examples), values)
    np.testing.assert_array_equal(own.gradient(lambda v, _: (values * v, None), jnp.ones(3), examples)[1], values)
    broken = jnp.array([1.0, jnp.nan, 30.0])
    assert lifted.summarise(broken, examples) == 1 and jnp.isnan(lifted.summarise(broken * jnp.nan, examples))
    bad = jnp.array([jnp.inf, jnp.nan, 2.0])
    np.testing.assert_array_equal(own.gradient(lambda v, _: (bad * v, None), jnp.ones(3), examples)[1], [0, 0, 2])


# --- what a space says about itself ---------------------------------------------------------------------------------


def test_every_space_names_its_members():
    assert list(SPACES["chain"].members()) == ["turn", "light", "noise"]
    named = {name: list(space.members()) for name, space in SPACES.items() if name != "chain"}
    assert named == {
        "linf": ["noise"], "l2": ["noise"], "l1": ["noise"], "attribute": ["rotation"], "latent": ["latent"]
    }  # fmt: skip
    assert universal(SPACES["chain"]).members() == SPACES["chain"].members()


def test_a_scaled_space_has_a_share_of_every_radius_and_of_every_range_about_its_identity():
    assert [SPACES[name].scaled(0.5).radius for name in NOISES] == [0.15, 0.35, 0.75]
    assert l1(1.0, sparsity=0.9).scaled(0.5).sparsity == 0.9
    contrast = attribute("contrast", 0.5, 2.0).scaled(0.5)
    assert (contrast.low, contrast.high, contrast.identity_value) == (0.75, 1.5, 1.0)
    turn, light, noise = per_example(SPACES["chain"]).scaled(0.1).members().values()
    assert (turn.low, turn.high) == (-3, 2) and np.isclose(light.high, 0.02) and np.isclose(noise.radius, 0.03)
    assert SPACES["latent"].scaled(0.5).radius == 0.4


@pytest.mark.parametrize("space", [0.1, "linf", linf, LInf], ids=["number", "name", "constructor", "class"])
def test_what_is_no_space_is_refused(space):
    with pytest.raises(ValueError, match=r"space=.* must be a space, such as"):
        require_space(space)
    for lift in (per_example, universal, lambda space: chain(noise=space)):
        with pytest.raises((ValueError, TypeError), match="space"):
            lift(space)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NOISES.values())
@pytest.mark.parametrize("radius", [-0.1, float("nan"), "0.1", jnp.array([0.1, 0.2]), None])
def test_a_radius_must_be_a_number_of_at_least_zero(make, radius):
    with pytest.raises((ValueError, TypeError), match="radius"):
        make(radius)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attribute("rotation", 5, -5), r"low=5\.0 must not be larger than high=-5\.0"),
        (lambda: attribute("rotation", 5, 10), r"identity=0\.0 must lie within \[low=5\.0, high=10\.0\]"),
        (lambda: attribute("rotatoin"), r"rotatoin.*rotation"),
        (lambda: attribute(brightness), r"low=None, high=None.*both bounds"),
        (lambda: l1(1.0, sparsity=1.0), r"sparsity=1\.0 must be in \[0, 1\)"),
        (lambda: latent(lambda z, e: e.image, 0, 1.0), r"dim=0 must be an integer of at least 1"),
        (lambda: latent(lambda z, e: e.image, 3, -1.0), r"radius=-1\.0"),
        (lambda: chain(), r"chain\(\) needs at least one space"),
    ],
)
def test_bad_spaces_are_refused_with_value_and_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- edits of several values, edits that read the image -----------------------------------------------------------


def two_lights(image, values):
    """Rows brightened by the first value, columns by the second."""
    return image + 0.1 * values[0] * jnp.eye(*image.shape[:2])[..., None] + 0.01 * values[1]


@pytree
class Reader:
    """An edit that sets the mean of an image, and counts on its own mean being prepared."""

    gain: Any

    def prepare(self, image):
        return jnp.mean(image)

    def read(self, image, prepared=None):
        return self.gain * (jnp.mean(image) if prepared is None else prepared)

    def __call__(self, image, value, prepared=None):
        return image + value / self.gain - (jnp.mean(image) if prepared is None else prepared)


def test_an_attribute_of_several_values_stays_in_its_box():
    space, example = attribute(two_lights, (-1.0, -2.0), (1.0, 3.0)), Example(jnp.full((4, 4, 1), 0.5))
    drawn = jax.vmap(lambda key: space.init(key, example))(jax.random.split(jax.random.key(0), 200))
    assert drawn.shape == (200, 2)
    assert np.all(drawn >= np.array([[-1.0, -2.0]])) and np.all(drawn <= np.array([[1.0, 3.0]]))
    assert np.all(np.ptp(np.asarray(drawn), axis=0) > np.array([1.8, 4.5]))
    np.testing.assert_array_equal(space.project(jnp.array([-9.0, 9.0]), example), [-1, 3])
    np.testing.assert_array_equal(space.direction(jnp.array([-0.1, 7.0])), [-1, 2.5])
    np.testing.assert_array_equal(space.apply(space.identity(example), example), example.image)


def test_a_grid_over_several_values_visits_every_combination():
    space = attribute(two_lights, (-1.0, -2.0), (1.0, 2.0))
    assert space.grid_axes == 2
    visited = {tuple(map(float, space.at_grid_point(jnp.zeros(2), jnp.int32(i), 3))) for i in range(9)}
    assert visited == {(a, b) for a in (-1.0, 0.0, 1.0) for b in (-2.0, 0.0, 2.0)}


def test_what_an_edit_prepares_is_computed_once_and_only_for_the_first_of_a_chain():
    image = jnp.full((4, 4, 1), 0.25)
    space = chain(level=attribute(Reader(jnp.float32(8)), 0.0, 6.0), noise=linf(0.1))
    example = Example(image, prepared=space.prepare(Example(image)))
    np.testing.assert_allclose(example.prepared, 0.25)
    identity = space.identity(example)
    np.testing.assert_allclose(identity["level"], 2.0)
    np.testing.assert_allclose(space.apply(identity | {"level": jnp.float32(4)}, example), 0.5)
    late = chain(light=attribute("brightness"), level=attribute(Reader(jnp.float32(8)), 0.0, 6.0))
    assert late.prepare(Example(image)) is None
    np.testing.assert_allclose(late.identity(example)["level"], 2.0)


def test_a_shrunk_box_of_a_reading_edit_lies_about_the_images_own_value():
    example = Example(jnp.full((4, 4, 1), 0.25))
    space = attribute(Reader(jnp.float32(8)), 0.0, 6.0)
    half = space.scaled(0.5)
    np.testing.assert_allclose(half.project(jnp.float32(9), example), 4.0)
    np.testing.assert_allclose(half.project(jnp.float32(-9), example), 1.0)
    np.testing.assert_allclose(half.direction(jnp.float32(1)), 1.5)
    np.testing.assert_allclose(space.scaled(0.0).project(jnp.float32(9), example), 2.0)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ((0.0,), (1.0, 1.0), "vectors of one length"),
        ((0.0, 2.0), (1.0, 1.0), "must not be larger"),
        ("a", 1.0, "low='a'"),
    ],
)
def test_wrong_boxes_of_several_values_are_named(low, high, message):
    with pytest.raises(ValueError, match=message):
        attribute(two_lights, low, high)
