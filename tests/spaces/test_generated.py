"""Generated noise: never outside of its ball, the recursion against NumPy, its gradients against finite differences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import Example, attribute, chain, in_chunks, make_attack, noise_attack, spa
from spa_jax.losses import cross_entropy
from spa_jax.models import NoiseGenerator, init_variables
from spa_jax.solvers import projected_gradient, random_search
from spa_jax.spaces.generated import add_noise, generated_noise, painter, recursive_noise, victim_look
from spa_jax.types import SeenVictim
from spa_jax.victims import as_victim
from tests.analytic_victims import images, labels, mlp, mlp_logits, mlp_parameters

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (4, 4, 1)
X, Y = images(batch=4), labels(4)
VICTIM = mlp()
PREDICT = as_victim(VICTIM, X, inline=False)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A generator of a few numbers in any precision; it needs no Flax."""

    latent_dim: int = 3

    def apply(self, variables, images, gradient, noise, labels, z, train=False, mutable=None):
        w = variables["params"]
        style = jnp.einsum("bd,dhwc->bhwc", z, w["style"]) + w["class"][labels][:, None, None, None]
        direction = jnp.tanh(style + w["gradient"] * gradient - 0.3 * noise + 0.5 * images)
        if not mutable:
            return direction
        return direction, {"batch_stats": jax.tree.map(lambda count: count + 1, variables["batch_stats"])}


def toy_params(dtype=jnp.float32, seed=5):
    random = np.random.default_rng(seed)
    draws = {"style": random.normal(size=(3, *SHAPE)), "class": random.normal(size=3), "gradient": 4.0}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), draws)


def toy_noise(radius=0.2, params=None, **options):
    return generated_noise(Toy(), {"params": toy_params() if params is None else params}, radius, **options)


@functools.cache
def network(dtype=None, gain=1.0):
    """A network whose directions are near -1 and 1 for a large gain, so that noise reaches its bounds."""
    variables = init_variables(NoiseGenerator(width=2), jax.random.key(0), SHAPE)
    out = variables["params"]["out"]
    params = variables["params"] | {"out": jax.tree.map(lambda leaf: gain * leaf, out)}
    return NoiseGenerator(width=2, dtype=dtype), variables | {"params": params}


def at_random(space, num_steps=2, **options):
    return make_attack(space, solver=random_search(), num_steps=num_steps, **options)


def applied(space, z, x=X, y=Y, victim=VICTIM):
    predict = SeenVictim(as_victim(victim, x, inline=True))
    return jax.vmap(lambda z, x, y: space.apply(z, Example(x, y, predict=predict)))(z, x, y)


# --- guarantees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_thousand_examples_stay_in_the_ball_and_in_the_image_box(dtype):
    radii = [0.0, 1e-6, 1.0, *np.random.default_rng(0).uniform(0, 0.5, 7)]
    reached = []
    for seed, radius in enumerate(radii):
        x, y = images(seed, batch=100), labels(100)
        space = generated_noise(*network(dtype, gain=300.0), jnp.float32(radius), num_steps=6)
        with jax.numpy_dtype_promotion("standard"):  # flax mixes bfloat16 with float32 statistics
            found = at_random(space, 1, keep="last")(jax.random.key(seed), VICTIM, x, y)
        change = np.abs(np.asarray(found.x, np.float64) - np.asarray(x, np.float64))
        assert change.max() <= radius + 1e-6
        assert found.x.min() >= 0 and found.x.max() <= 1
        reached.append(change.max() / max(radius, 1e-12))
    assert reached[0] == 0 and min(reached[2:]) > 0.95


def test_no_latent_and_no_radius_are_the_identity():
    z = jax.random.normal(jax.random.key(0), (4, 3))
    np.testing.assert_array_equal(applied(toy_noise(), jnp.zeros((4, 3))), X)
    np.testing.assert_array_equal(applied(toy_noise(0.0), z), X)
    assert bool(jnp.any(applied(toy_noise(), z) != X))


def test_a_search_that_starts_without_noise_leaves_it():
    attack = make_attack(toy_noise(), num_steps=2, random_start=False, keep="last")
    found = attack(jax.random.key(0), VICTIM, X, Y)
    assert bool(jnp.any(found.variables != 0, axis=-1).all())


def test_examples_do_not_depend_on_each_other():
    attack = at_random(generated_noise(*network(), 0.2))
    keys = jax.random.split(jax.random.key(0), 4)
    together = attack(keys, VICTIM, X, Y)
    others = attack(keys, VICTIM, X.at[1:].set(0.3), Y.at[1:].set(2))
    np.testing.assert_allclose(others.x[0], together.x[0], atol=1e-6)
    alone = attack(keys[:1], VICTIM, X[:1], Y[:1])
    np.testing.assert_allclose(alone.x[0], together.x[0], atol=1e-6)


def test_the_same_key_gives_the_same_noise_and_another_key_another():
    attack = at_random(generated_noise(*network(), 0.2), 1, keep="last")
    first, again, other = (attack(jax.random.key(seed), VICTIM, X, Y).x for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert bool(jnp.any(first != other))


def test_compiled_and_eager_noise_are_equal():
    z = jax.random.normal(jax.random.key(0), (4, 3))
    compiled = jax.jit(lambda z: applied(toy_noise(), z))(z)
    with jax.disable_jit():
        eager = applied(toy_noise(), z)
    np.testing.assert_allclose(compiled, eager, atol=1e-6)


def test_new_weights_radii_and_step_shares_do_not_recompile():
    traces = []

    def counted(parameters, x):
        traces.append(x.shape)
        return mlp_logits(parameters, x)

    def attack(seed, **numbers):
        return at_random(toy_noise(params=toy_params(seed=seed), **numbers))

    victim = Partial(counted, VICTIM.args[0])
    attack(0)(jax.random.key(0), victim, X, Y)
    once = len(traces)
    attack(1, radius=0.1, step_share=0.5, latent_radius=2.0)(jax.random.key(1), victim, X, Y)
    assert len(traces) == once > 0


def test_a_scaled_attack_paints_in_a_smaller_ball():
    attack = at_random(toy_noise(0.4, step_share=1.0), 1, keep="last")
    change = jnp.abs(attack.scaled(0.25)(jax.random.key(0), VICTIM, X, Y).x - X).max()
    np.testing.assert_allclose(change, 0.1, rtol=1e-4)


def test_noise_behind_an_attribute_is_bounded_around_the_edited_image():
    light = attribute("brightness", -0.3, 0.3)
    attack = make_attack(chain(light=light, noise=toy_noise(0.1)), num_steps=3, keep="last")
    found = attack(jax.random.key(0), VICTIM, X, Y)
    edited = jax.vmap(lambda v, x: light.apply(v, Example(x)))(found.variables["light"], X)
    assert float(jnp.abs(found.x - edited).max()) <= 0.1 + 1e-6
    assert float(jnp.abs(found.x - X).max()) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -0.1}, "radius=-0.1 must be"),
        ({"num_steps": 0}, "num_steps=0 must be"),
        ({"step_share": 0.0}, "step_share=0.0 must be"),
        ({"latent_radius": -1.0}, "radius=-1.0 must be"),
    ],
)
def test_broken_rules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        toy_noise(**options)


def test_outside_of_an_attack_there_is_no_gradient_to_read():
    with pytest.raises(ValueError, match="predict=None"):
        toy_noise().apply(jnp.ones(3), Example(X[0], Y[0]))


# --- the recursion --------------------------------------------------------------------------------------------------


def by_hand(x, y, z, params, radius, steps, share):
    """The recursion in float64 with finite-difference gradients of the victim; also each mini-step's cross entropy."""
    inner, outer = mlp_parameters()

    def losses(x):
        logits = np.tanh((x.reshape(len(x), -1) - 0.5) @ inner) @ outer
        peak = logits.max(-1)
        return np.log(np.exp(logits - peak[:, None]).sum(-1)) + peak - logits[np.arange(len(x)), y]

    noise, every, seen = np.zeros_like(x), [], []
    for _ in range(steps):
        images, raw = np.clip(x + radius * noise, 0, 1), np.zeros_like(x)
        seen.append(losses(images))
        for pixel in np.ndindex(x.shape[1:]):
            step = np.zeros(x.shape[1:])
            step[pixel] = 1e-6
            raw[(slice(None), *pixel)] = (losses(images + step) - losses(images - step)) / 2e-6
        gradient = raw / np.sqrt((raw**2).sum((1, 2), keepdims=True))
        style = np.einsum("bd,dhwc->bhwc", z, params["style"]) + params["class"][y][:, None, None, None]
        direction = np.tanh(style + params["gradient"] * gradient - 0.3 * noise + 0.5 * x)
        noise = np.clip(noise + share * direction, -1, 1)
        every.append(noise)
    return np.array(every), np.array(seen)


def recursion(params, z, x=X, victim=VICTIM, train=False, **options):
    y = Y.astype(jnp.int32)
    statistics = {"count": jnp.zeros(())} if train else None
    paint = painter(Toy(), y, z, params, train)
    return recursive_noise(
        paint, victim_look(as_victim(victim, x, inline=True), None, y), x, 0.2, statistics=statistics, **options
    )


def test_recursion_is_the_numpy_one():
    z = jax.random.normal(jax.random.key(0), (4, 3))
    found = recursion(toy_params(), z, num_steps=5, step_share=0.4)
    arrays = [np.asarray(array, np.float64) for array in (X, z)]
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), toy_params())
    every, seen = by_hand(arrays[0], np.asarray(Y), arrays[1], params, 0.2, 5, 0.4)
    np.testing.assert_allclose(found.every, every, atol=1e-4)
    np.testing.assert_allclose(found.seen, seen, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.noise, found.every[-1])


def test_statistics_go_through_all_mini_steps():
    counted = recursion(toy_params(), jnp.ones((4, 3)), train=True, num_steps=7).statistics
    assert int(counted["count"]) == 7


def loss_of(params, z, **options):
    found = recursion(params, z, num_steps=4, **options)
    last = victim_look(PREDICT, None, Y)(add_noise(X, found.noise, 0.2))[1]
    return found.seen.sum() + last.sum() + found.every.sum()


def test_computing_anew_changes_no_gradient():
    z = jax.random.normal(jax.random.key(0), (4, 3))
    gradients = (jax.jit(jax.grad(functools.partial(loss_of, remat=remat), (0, 1))) for remat in (False, True))
    kept, anew = (gradient(toy_params(), z) for gradient in gradients)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(anew), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_computing_anew_leaves_the_victim_out():
    def victim(x):
        return jax.lax.erf(x.reshape(len(x), -1)[:, :3])

    def loss(params):
        found = recursion(params, jnp.ones((4, 3)), victim=victim, num_steps=4)
        return found.seen.sum() + found.noise.sum()

    program = jax.jit(jax.grad(loss)).lower(toy_params()).compile().as_text()
    assert program.count(" erf(") == 1


def test_the_cross_entropy_that_look_tells_has_the_victims_gradient():
    look = victim_look(PREDICT, None, Y)
    plain = lambda x: cross_entropy(VICTIM(x), Example(x, Y))  # noqa: E731
    np.testing.assert_allclose(look(X)[1], plain(X), rtol=1e-6)
    ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(X) for f in (lambda x: look(x)[1], plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


# --- through the victim's gradient ----------------------------------------------------------------------------------


def slope_and_difference(through_gradient):
    """The derivative of the loss along a direction of z, by autodiff and by a central difference, in float64."""
    with jax.enable_x64(True):
        x, y = images(low=0.3, high=0.7)[:1].astype(jnp.float64), Y[:1]
        victim = Partial(mlp_logits, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), mlp_parameters()))
        space = toy_noise(0.2, toy_params(jnp.float64), num_steps=3, through_gradient=through_gradient)
        z, direction = jnp.array([[0.3, -0.2, 0.5]]), jnp.array([[1.0, 2.0, -1.0]])

        @jax.jit
        def loss(t):
            changed = applied(space, z + t * direction, x, y, victim)
            return cross_entropy(victim(changed), Example(x, y)).sum()

        return float(jax.grad(loss)(0.0)), float((loss(1e-6) - loss(-1e-6)) / 2e-6)


def test_only_the_gradient_through_the_victims_gradient_is_the_whole_one():
    slope, difference = slope_and_difference(through_gradient=True)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    held, _ = slope_and_difference(through_gradient=False)
    assert abs(held - difference) > 1e-3 * abs(difference)


def test_random_latents_attack_and_so_do_optimised_ones():
    space = toy_noise(0.3)
    drawn = at_random(space, 10)(jax.random.key(0), VICTIM, X, Y)
    climbed = make_attack(space, solver=projected_gradient(0.25), num_steps=10)(jax.random.key(0), VICTIM, X, Y)
    clean = cross_entropy(VICTIM(X), Example(X, Y))
    assert bool((drawn.value >= clean).all()) and bool((climbed.value >= clean).all())
    assert drawn.value.sum() > clean.sum() + 0.1


def test_with_a_target_the_generator_leads_away_from_the_label_and_the_search_picks():
    targets = (Y + 1) % 3
    found = at_random(toy_noise(0.3, num_steps=2), 1, keep="last")(jax.random.key(0), VICTIM, X, Y, targets)
    np.testing.assert_allclose(found.x, applied(toy_noise(0.3, num_steps=2), found.variables), atol=1e-6)
    np.testing.assert_allclose(found.value, -cross_entropy(VICTIM(found.x), Example(X, targets)), atol=1e-6)
    np.testing.assert_array_equal(found.success, jnp.argmax(VICTIM(found.x), axis=-1) == targets)


def test_the_joint_attack_knows_its_edited_images_in_chunks_too():
    """A chunk's edited images once were the clean ones."""
    make = functools.partial(generated_noise, Toy(), {"params": toy_params()}, num_steps=2)
    attack = spa(0.1, {"brightness": {"low": -0.3, "high": 0.3}}, 2, noise=make, start="random", start_points=2)
    keys = jax.random.split(jax.random.key(0), 4)
    whole, parts = attack(keys, VICTIM, X, Y), in_chunks(attack, 3)(keys, VICTIM, X, Y)
    for result in (whole, parts):
        lit = jnp.clip(X + result.variables["brightness"][:, None, None, None], 0, 1)
        np.testing.assert_allclose(result.without["noise"], lit, atol=1e-6)
        assert float(jnp.abs(result.without["noise"] - X).max()) > 0.01
        assert float(jnp.abs(result.x - lit).max()) <= 0.1 + 1e-6
    np.testing.assert_allclose(whole.value, parts.value, rtol=1e-3)


def test_the_preset_is_the_attack_of_its_parts():
    make = functools.partial(generated_noise, Toy(), {"params": toy_params()})
    preset, parts = noise_attack(0.2, make, num_steps=2), at_random(make(0.2))
    assert jax.tree.structure(preset) == jax.tree.structure(parts)
    assert list(preset.members()) == ["latent"]
