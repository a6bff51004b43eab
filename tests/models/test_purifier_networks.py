"""Networks of purifiers: images in [0, 1] of any size, each by itself, and what a mask means to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.models import create_model, init_variables

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {
    "unet": {"width": 4, "depth": 2},
    "masked_autoencoder": {"patch_size": 3, "width": 8, "depth": 2, "decoder_depth": 1, "heads": 2},
    "inpainter": {"width": 4},
}
SHAPE = (7, 9, 3)


@functools.cache
def made(name, **changes):
    model = create_model(name, num_classes=7, input_shape=SHAPE, **SMALL[name] | changes)
    return model, init_variables(model, jax.random.key(0), SHAPE)


def views(batch=4):
    images = jax.random.uniform(jax.random.key(1), (batch, *SHAPE))
    masks = jnp.zeros((batch, *SHAPE[:2], 1)).at[:, :3, :6].set(1.0)
    return jnp.where(masks == 1, 0.5, images), masks


@pytest.mark.parametrize("name", SMALL)
def test_images_are_completed_in_range_and_each_by_itself(name):
    model, variables = made(name)
    images, masks = views()
    apply = jax.jit(model.apply)
    out, other = apply(variables, images, masks), apply(variables, images.at[1:].set(0.3), masks.at[1:].set(0))
    assert out.shape == images.shape and out.dtype == jnp.float32
    assert float(out.min()) >= 0 and float(out.max()) <= 1
    np.testing.assert_allclose(other[0], out[0], rtol=1e-5, atol=1e-6)
    assert np.any(np.asarray(other[1]) != np.asarray(out[1]))
    assert np.any(np.asarray(apply(variables, images, 0 * masks)) != np.asarray(out))  # the mask is read


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_computes_near_float32(name):
    (model, variables), (rounded, _) = made(name), made(name, dtype="bfloat16")
    out = jax.jit(rounded.apply)(variables, *views())
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, jax.jit(model.apply)(variables, *views()), atol=0.05)


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in SMALL), ("unet", {"skips": False})])
def test_one_image_can_be_learned_by_heart(name, changes):
    """Without skips too: the bottleneck has room for one image."""
    model, variables = made(name, **changes)
    images, masks = views(1)
    target = images.at[:].set(jnp.where(masks == 1, 0.9, images))
    optimizer = optax.adam(1e-2)

    def loss(variables):
        return jnp.mean(jnp.abs(model.apply(variables, images, masks) - target))

    @jax.jit
    def learn(variables, opt_state):
        def step(carry, _):
            value, gradient = jax.value_and_grad(loss)(carry[0])
            updates, opt_state = optimizer.update(gradient, carry[1])
            return (optax.apply_updates(carry[0], updates), opt_state), value

        return jax.lax.scan(step, (variables, opt_state), length=400)[1]

    with jax.numpy_dtype_promotion("standard"):
        values = learn(variables, optimizer.init(variables))
    assert values[-20:].mean() < 0.25 * values[:5].mean()


def test_what_is_hidden_whole_says_nothing_to_a_masked_autoencoder():
    model, variables = made("masked_autoencoder")
    images, masks = views()
    apply = jax.jit(model.apply)
    other = apply(variables, images.at[:, :3, :6].set(0.1), masks)  # two whole patches of 3x3 pixels
    np.testing.assert_allclose(other, apply(variables, images, masks), atol=1e-6)
    partly = masks.at[:, 0, 0].set(0)
    seen = apply(variables, images.at[:, 0, 0].set(0.1), partly) - apply(variables, images, partly)
    assert float(jnp.abs(seen).max()) > 1e-4


def test_the_fine_pass_of_an_inpainter_sees_the_coarse_image_only_where_pixels_are_hidden():
    model, variables = made("inpainter")
    images, masks = views()
    _, sown = model.apply(variables, images, masks, mutable=["intermediates"])
    (coarse,) = sown["intermediates"]["coarse"]
    assert coarse.shape == images.shape
    alone, _ = made("inpainter", refined=False)
    params = {"coarse_pass": variables["params"]["coarse_pass"]}
    np.testing.assert_allclose(alone.apply({"params": params}, images, masks), coarse, atol=1e-6)
    params = {"coarse_pass": variables["params"]["fine_pass"]}
    filled = jnp.where(masks == 1, coarse, images)
    fine = model.apply(variables, images, masks)
    np.testing.assert_allclose(alone.apply({"params": params}, filled, masks), fine, atol=1e-6)


def test_plain_convolutions_have_half_the_weights():
    count = lambda name, **changes: sum(x.size for x in jax.tree.leaves(made(name, **changes)[1]))  # noqa: E731
    assert 0.45 < count("inpainter", gated=False) / count("inpainter") < 0.55


@pytest.mark.parametrize("name", SMALL)
def test_wrong_inputs_are_refused(name):
    model, variables = made(name)
    images, masks = views()
    with pytest.raises(ValueError, match=r"masks.shape=.* must be \(4, 7, 9, 1\)"):
        model.apply(variables, images, masks[:2])
    with pytest.raises(ValueError, match="takes batches of images"):
        model.apply(variables, images[0], masks[0])


def test_a_width_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="width=10 must be a multiple of 4 and of heads=2"):
        create_model("masked_autoencoder", num_classes=7, input_shape=SHAPE, width=10, heads=2)
