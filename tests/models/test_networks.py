"""All networks: sizes, shapes, types, examples treated by themselves, and one batch equal on one and eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax.models import MODELS, create_model, init_variables, parameter_count

pytestmark = pytest.mark.usefixtures("quick_compilation")

PARAMETERS = [
    # He et al. 2016: 0.27M; Zagoruyko and Komodakis 2016: 36.5M; PreActResNet-18: 11.17M; LeNet-5 on MNIST: 61.7K
    ("lenet5", (28, 28, 1), {}, 61_706),
    ("small_cnn", (28, 28, 1), {"convs_per_stage": 1}, 421_642),
    ("small_cnn", (32, 32, 3), {}, 591_274),
    ("resnet20", (32, 32, 3), {}, 269_722),
    ("preact_resnet18", (32, 32, 3), {}, 11_172_170),
    ("wide_resnet28_10", (32, 32, 3), {}, 36_479_194),
    ("wide_resnet28_10", (32, 32, 3), {"depth": 34}, 46_160_474),
]
SMALL = {
    "lenet5": ((12, 14, 1), {}),
    "small_cnn": ((8, 8, 1), {"width": 4, "hidden": 16}),
    "resnet20": ((8, 8, 3), {"width": 4}),
    "preact_resnet18": ((8, 8, 3), {"width": 4}),
    "wide_resnet28_10": ((8, 8, 3), {"depth": 10, "widen_factor": 1}),
}


@functools.cache
def variables_of(name):
    shape, options = SMALL[name]
    return init_variables(create_model(name, num_classes=7, input_shape=shape, **options), jax.random.key(0), shape)


def small_network(name, batch=4, **changes):
    shape, options = SMALL[name]
    model = create_model(name, num_classes=7, input_shape=shape, **options, **changes)
    return model, variables_of(name), jax.random.uniform(jax.random.key(1), (batch, *shape))


@functools.cache
def logits_of(name):
    model, variables, images = small_network(name)
    return jax.jit(model.apply)(variables, images)


@pytest.mark.parametrize(("name", "shape", "options", "count"), PARAMETERS)
def test_number_of_parameters_is_the_published_one(name, shape, options, count):
    model = create_model(name, num_classes=10, input_shape=shape, **options)
    variables = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, *shape))), jax.random.key(0))
    assert parameter_count(variables) == count


def test_every_network_is_in_the_tables():
    no_classifiers = {"msp", "noise_generator", "patch_discriminator", "inpainter", "masked_autoencoder", "unet"}
    assert set(SMALL) == {name for name, *_ in PARAMETERS} == set(MODELS) - no_classifiers


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_finite_float32_and_treat_each_image_by_itself(name):
    model, variables, images = small_network(name)
    apply = jax.jit(model.apply)
    logits, others = apply(variables, images), apply(variables, images.at[1:].set(0.5))
    assert logits.shape == (4, 7)
    assert logits.dtype == jnp.float32
    assert bool(jnp.isfinite(logits).all())
    np.testing.assert_allclose(others[0], logits[0], rtol=1e-5, atol=1e-6)
    assert bool(jnp.any(others[1:] != logits[1:]))


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_computes_near_float32_with_float32_logits(name):
    model, variables, images = small_network(name, dtype="bfloat16")
    rounded, exact = jax.jit(model.apply)(variables, images), logits_of(name)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.05 * float(jnp.abs(exact).max()))
    assert bool(jnp.any(rounded != exact))


@pytest.mark.parametrize("name", SMALL)
def test_parameters_are_float32_also_when_computing_in_bfloat16(name):
    model, variables, images = small_network(name, dtype="bfloat16")
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)


@pytest.mark.parametrize("name", SMALL)
def test_input_gradient_equals_finite_differences(name):
    model, variables, images = small_network(name, batch=2)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
        start, direction = images.astype(jnp.float64), jax.random.normal(jax.random.key(2), images.shape, jnp.float64)
        value_and_slope = jax.jit(jax.value_and_grad(lambda x: jnp.sin(model.apply(double, x)).sum()))
        ahead, behind = (value_and_slope(start + step * direction)[0] for step in (1e-7, -1e-7))
        slope = (value_and_slope(start)[1] * direction).sum()
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-7, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet18", "wide_resnet28_10"])
def test_training_mode_updates_the_running_statistics(name):
    model, variables, images = small_network(name)
    train = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[1])
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(train(variables, images)["batch_stats"])
    assert all(bool(jnp.any(a != b)) for a, b in zip(after, before, strict=True))


def training_gradient(model, images, labels):
    def loss(variables):
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.grad(loss)


def test_gradient_of_a_training_step_is_the_same_under_pmap_with_axis_name():
    devices = jax.local_device_count()
    if devices < 2:
        pytest.skip("needs two devices")
    model, variables, images = small_network("resnet20", batch=2 * devices)
    synchronised, *_ = small_network("resnet20", axis_name="data")
    labels = jnp.arange(len(images)) % 7
    expected = jax.jit(lambda v: training_gradient(model, images, labels)(v))(variables)

    def part(variables, images, labels):
        return jax.lax.pmean(training_gradient(synchronised, images, labels)(variables), "data")

    step = jax.pmap(part, axis_name="data", in_axes=(None, 0, 0), out_axes=None)
    actual = step(variables, images.reshape(devices, 2, 8, 8, 3), labels.reshape(devices, 2))
    for mine, other in zip(jax.tree.leaves(actual["params"]), jax.tree.leaves(expected["params"]), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_too_small_images_and_wrong_ranks_are_refused(name):
    model = create_model(name, num_classes=7, input_shape=SMALL[name][0])
    with pytest.raises(ValueError, match="images of at least"):
        model.init(jax.random.key(0), jnp.zeros((1, 3, 32, 3)))
    with pytest.raises(ValueError, match="takes batches"):
        model.init(jax.random.key(0), jnp.zeros((32, 32, 3)))


@pytest.mark.parametrize("depth", [27, 4, 9])
def test_wide_resnet_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=f"depth={depth} must be 6 n"):
        create_model("wide_resnet28_10", num_classes=10, input_shape=(32, 32, 3), depth=depth)
