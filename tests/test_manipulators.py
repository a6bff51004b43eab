"""The learned edit: exact in the latent space, the identity at the image's own values, a part of attacks."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import Example, attribute, chain, make_attack, spa
from spa_jax.manipulators import attributes_of, manipulator, set_attributes
from spa_jax.models import create_model, init_variables
from spa_jax.spaces import linf
from tests.analytic_victims import images, labels, linear, margins, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE = (4, 4, 1)
NAMES = ("rotation", "width", "light")
CENTRE, SCALE = (0.0, 2.5, -1.0), (30.0, 0.5, 2.0)


class Linear(nn.Module):
    """An autoencoder whose edits are known: the latent vector holds the pixels, the decoder adds to them."""

    num_attributes: int = 3

    def setup(self):
        self.subspace = self.param("subspace", nn.initializers.normal(0.7), (self.num_attributes, 16))
        self.mix = self.param("mix", nn.initializers.orthogonal(), (16, 16))

    def __call__(self, images):
        return self.decode(self.encode(images)[0])

    def encode(self, images):
        return images.reshape(len(images), -1) @ self.mix, None

    def decode(self, h):
        return (h @ self.mix.T).reshape(-1, *SIZE) * 0.9


@functools.cache
def linear_edit():
    model = Linear()
    return manipulator(model, model.init(jax.random.key(3), jnp.zeros((1, *SIZE))), CENTRE, SCALE, NAMES)


@functools.cache
def trained_like_edit(shape=(12, 12, 1)):
    model = create_model("msp", num_classes=10, input_shape=shape, num_attributes=3, width=4, latent_dim=8, hidden=16)
    return manipulator(model, init_variables(model, jax.random.key(0), shape), CENTRE, SCALE, NAMES)


# --- the subspace ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "dim"), [(1, 2), (3, 16), (7, 8)])
def test_setting_attributes_is_exact_and_moves_nothing_else_for_any_subspace(count, dim):
    rng = np.random.default_rng(count)
    subspace, h, wanted = rng.normal(size=(count, dim)), rng.normal(size=(5, dim)), rng.normal(size=(5, count))
    beside = np.linalg.svd(subspace)[2][count:]
    assert np.abs(subspace @ subspace.T - np.eye(count)).max() > 0.1
    with jax.enable_x64(True):
        moved = np.asarray(set_attributes(jnp.asarray(h), jnp.asarray(subspace), jnp.asarray(wanted)))
        read = np.asarray(attributes_of(jnp.asarray(moved), jnp.asarray(subspace)))
    assert moved.dtype == np.float64
    np.testing.assert_allclose(read, wanted, atol=1e-11)
    np.testing.assert_allclose(moved @ beside.T, h @ beside.T, atol=1e-11)
    np.testing.assert_allclose(moved, h + (wanted - h @ subspace.T) @ np.linalg.pinv(subspace).T, atol=1e-11)


def test_latent_values_are_those_asked_for_in_the_units_of_the_attributes():
    edit, image = linear_edit(), images(2, 1)[0]
    wanted = jnp.array([20.0, 2.0, 0.5])
    own = edit.read(image)
    subspace, mix = (np.asarray(edit.variables["params"][name], np.float64) for name in ("subspace", "mix"))
    h = np.asarray(image, np.float64).ravel() @ mix
    np.testing.assert_allclose(own, np.array(CENTRE) + np.array(SCALE) * (subspace @ h), rtol=1e-5)
    moved = h + np.linalg.pinv(subspace) @ ((np.asarray(wanted) - np.array(CENTRE)) / np.array(SCALE) - subspace @ h)
    expected = np.clip(0.9 * mix @ moved, 0, 1).reshape(SIZE)
    plain = dataclasses.replace(edit, residual="none")
    np.testing.assert_allclose(plain(image, wanted), expected, atol=1e-5)
    full = dataclasses.replace(edit, residual="full")
    added = np.clip(np.asarray(image, np.float64) + (0.9 * mix @ (moved - h)).reshape(SIZE), 0, 1)
    np.testing.assert_allclose(full(image, wanted), added, atol=1e-5)


def test_what_was_lost_stays_where_nothing_changes_and_fades_where_much_does():
    edit, image = linear_edit(), images(2, 1)[0]
    versions = {kind: dataclasses.replace(edit, residual=kind) for kind in ("none", "faded", "full")}
    own = edit.read(image)
    near = {kind: version(image, own + 0.01 * jnp.array(SCALE)) for kind, version in versions.items()}
    far = {kind: version(image, own + 4 * jnp.array(SCALE)) for kind, version in versions.items()}
    assert jnp.abs(near["faded"] - near["full"]).max() < 0.01 < jnp.abs(near["none"] - near["full"]).max()
    assert jnp.abs(far["faded"] - far["none"]).max() < 0.01 < jnp.abs(far["full"] - far["none"]).max()


# --- the edit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["none", "faded", "full"])
@pytest.mark.parametrize("make", [linear_edit, trained_like_edit])
def test_the_images_own_values_leave_it_bit_for_bit_whatever_is_compiled(make, residual):
    edit = dataclasses.replace(make(), residual=residual)
    x = images(4, 6, SIZE if make is linear_edit else (12, 12, 1))
    own = jax.jit(jax.vmap(lambda edit, image: edit.read(image), (None, 0)))(edit, x)
    for part, values in ((edit, own), (edit.only("width"), own[:, 1])):
        batched = jax.jit(jax.vmap(lambda edit, *arguments: edit(*arguments), (None, 0, 0)))(part, x, values)
        np.testing.assert_array_equal(batched, x)
        prepared = part.prepare(x[0])
        np.testing.assert_array_equal(part(x[0], part.read(x[0], prepared), prepared), x[0])
        np.testing.assert_array_equal(part(x[0], values[0]), x[0])


@pytest.mark.parametrize("residual", ["none", "faded", "full"])
def test_gradients_through_values_are_finite_and_those_of_differences(residual):
    edit, image, w = (
        dataclasses.replace(linear_edit(), residual=residual),
        images(5, 1, low=0.3, high=0.7)[0],
        weights(),
    )
    image = jnp.clip(image, 0.3, 0.7)

    def score(value):
        return jnp.sum(w * edit(image, value))

    start = edit.read(image) + 0.05 * jnp.array(SCALE)
    for value in (edit.read(image), start):
        assert bool(jnp.all(jnp.isfinite(jax.grad(score)(value))))
        assert bool(jnp.all(jax.grad(score)(value) != 0))
    step = 1e-2 * np.diag(np.array(SCALE, np.float32))
    slopes = [(score(start + move) - score(start - move)) / (2 * move.sum()) for move in step]
    np.testing.assert_allclose(jax.grad(score)(start), slopes, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize(
    "shape", [(12, 12, 1), pytest.param((28, 28, 1), marks=pytest.mark.slow), (9, 14, 3), (64, 64, 3)]
)
def test_edits_of_any_shape_are_images_and_the_same_compiled_or_not(shape):
    edit = trained_like_edit(shape)
    image, value = images(6, 1, shape)[0], jnp.array([20.0, 2.0, 3.0])
    edited = jax.jit(lambda edit, image, value: edit(image, value))(edit, image, value)
    assert edited.shape == shape
    assert float(edited.min()) >= 0
    assert float(edited.max()) <= 1
    assert float(jnp.abs(edited - image).max()) > 1e-4
    np.testing.assert_allclose(edited, edit(image, value), atol=1e-5)


def test_only_some_attributes_keep_the_others_at_the_images_own():
    edit, image = linear_edit(), images(7, 1)[0]
    own = edit.read(image)
    part = edit.only("light", "rotation")
    np.testing.assert_array_equal(part.read(image), own[jnp.array([2, 0])])
    np.testing.assert_array_equal(part(image, jnp.array([0.5, 20.0])), edit(image, jnp.array([20.0, own[1], 0.5])))
    single = part.only("rotation")
    assert single.read(image).shape == ()
    for value in (20.0, jnp.float32(20.0), jnp.array([20.0])):
        np.testing.assert_allclose(single(image, value), edit(image, own.at[0].set(20.0)), atol=1e-6)


def test_weights_are_leaves_so_new_ones_reuse_the_program():
    edit = linear_edit()
    traced = []

    @jax.jit
    def run(edit, image, value):
        traced.append(1)
        return edit(image, value)

    image, value = images(8, 1)[0], jnp.array([5.0, 2.0, 0.0])
    first = run(edit, image, value)
    scaled = dataclasses.replace(edit, variables=jax.tree.map(lambda leaf: 0.8 * leaf, edit.variables))
    assert bool(jnp.any(run(scaled, image, value) != first))
    run(dataclasses.replace(edit, scale=2 * edit.scale), image, value)
    assert len(traced) == 1


# --- in attacks -----------------------------------------------------------------------------------------------------


def test_the_box_of_an_image_is_widened_to_its_own_value():
    space, x = attribute(linear_edit(), (50.0, 9.0, 9.0), (60.0, 10.0, 10.0)), images(9, 1)[0]
    example = Example(x, prepared=space.prepare(Example(x)))
    own = space.identity(example)
    np.testing.assert_allclose(own, linear_edit().read(x), rtol=1e-6)
    np.testing.assert_array_equal(space.project(own, example), own)
    np.testing.assert_array_equal(space.project(own - 1, example), own)
    np.testing.assert_array_equal(space.project(own + 1000, example), jnp.array([60.0, 10.0, 10.0]))
    np.testing.assert_array_equal(space.apply(own, example), x)


def test_an_attack_finds_the_best_corner_of_a_linear_manipulator():
    edit, x, y = dataclasses.replace(linear_edit(), residual="full"), 0.4 + 0.2 * images(10), labels()
    own = jax.vmap(edit.read)(x)
    low, high = np.asarray(own.min(0) - 0.1 * np.array(SCALE)), np.asarray(own.max(0) + 0.1 * np.array(SCALE))
    attack = make_attack(attribute(edit, low, high), "margin", num_steps=10)
    found = attack(jax.random.key(0), linear(weights()), x, y)
    corners = jnp.asarray(np.stack(np.meshgrid(*np.stack([low, high], 1), indexing="ij"), -1).reshape(-1, 3))
    candidates = jax.vmap(lambda image: jax.vmap(lambda value: edit(image, value))(corners))(x)
    expected = np.max([margins(weights(), candidates[:, i], y) for i in range(len(corners))], axis=0)
    np.testing.assert_allclose(margins(weights(), found.x, y), expected, atol=1e-4)


def test_it_works_in_a_chain_with_noise_and_in_the_joint_attack():
    edit, x, y = linear_edit(), images(11), labels()
    box = attribute(edit, (-40.0, 2.0, -2.0), (40.0, 3.0, 0.0))
    joint = chain(manipulated=box, noise=linf(0.1))
    for attack in (
        make_attack(joint, "cross_entropy", num_steps=3),
        spa(0.1, {"manipulated": box}, num_steps=3),
    ):
        found = attack(jax.random.key(1), linear(weights()), x, y)
        edited = jax.vmap(edit)(x, found.variables["manipulated"])
        assert float(jnp.abs(found.x - edited).max()) <= 0.1 + 1e-5
        assert float(found.x.min()) >= 0
        assert float(found.x.max()) <= 1


# --- what is refused ------------------------------------------------------------------------------------------------


def test_broken_rules_are_named():
    edit = linear_edit()
    model, variables, image = edit.model, edit.variables, images(0, 1)[0]
    for make, message in (
        (lambda: edit.only("hue"), r"name='hue' is not an attribute of this manipulator"),
        (lambda: edit.only(), r"names=\(\) must be one or more"),
        (lambda: edit.only("light", "light"), "must be one or more different"),
        (lambda: edit(image, jnp.zeros(2)), r"value.shape=\(2,\) must hold one number for each of"),
        (lambda: manipulator(model, {"params": {}}), "no parameter 'subspace'"),
        (lambda: manipulator(model, variables, scale=(1.0, 2.0)), r"scale.shape=\(2,\)"),
        (lambda: manipulator(model, variables, scale=-1.0), "must be larger than 0"),
        (lambda: manipulator(model, variables, names=("a", "a", "b")), "3 different names"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
