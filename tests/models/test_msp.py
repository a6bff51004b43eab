"""The attribute autoencoder and the patch discriminator: shapes, ranges, facts of the data kept with the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.models import create_model, init_variables

pytestmark = pytest.mark.usefixtures("quick_compilation")


def autoencoder(shape, **options):
    options = {"width": 4, "latent_dim": 6, "hidden": 8, "num_attributes": 2} | options
    model = create_model("msp", num_classes=3, input_shape=shape, **options)
    return model, init_variables(model, jax.random.key(0), shape)


@pytest.mark.parametrize("size", [4, 12, 28, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_size_are_encoded_and_decoded(size, channels):
    shape = (size, size, channels)
    model, variables = autoencoder(shape, width=2)
    x = jax.random.uniform(jax.random.key(1), (2, *shape))
    h, log_variance = model.apply(variables, x, method="encode")
    assert h.shape == log_variance.shape == (2, 6)
    decoded = model.apply(variables, x)
    assert decoded.shape == x.shape
    assert decoded.dtype == jnp.float32
    assert float(decoded.min()) >= 0
    assert float(decoded.max()) <= 1
    np.testing.assert_array_equal(decoded, model.apply(variables, h, method="decode"))
    assert model.apply(variables, h, method="classify").shape == (2, 3)


def test_the_subspace_starts_orthonormal_and_the_datas_facts_stay_with_the_weights():
    facts = {"attribute_names": ("rotation", "width"), "attribute_centre": (1.0, 2.0), "attribute_scale": (30.0, 0.5)}
    model, variables = autoencoder((12, 12, 1), **facts)
    subspace = np.asarray(variables["params"]["subspace"])
    np.testing.assert_allclose(subspace @ subspace.T, np.eye(2), atol=1e-5)
    np.testing.assert_array_equal(variables["batch_stats"]["attribute_centre"], [1.0, 2.0])
    np.testing.assert_array_equal(variables["batch_stats"]["attribute_scale"], [30.0, 0.5])
    unknown, _ = autoencoder((12, 12, 1))
    x = jax.random.uniform(jax.random.key(1), (2, 12, 12, 1))
    np.testing.assert_array_equal(unknown.apply(variables, x), model.apply(variables, x))


def test_what_classifies_does_not_change_with_the_attributes():
    from spa_jax.manipulators import set_attributes

    model, variables = autoencoder((12, 12, 1))
    h = jax.random.normal(jax.random.key(1), (4, 6))
    moved = set_attributes(h, variables["params"]["subspace"], 3 * jax.random.normal(jax.random.key(2), (4, 2)))
    logits = model.apply(variables, h, method="classify")
    np.testing.assert_allclose(model.apply(variables, moved, method="classify"), logits, atol=1e-5)


@pytest.mark.parametrize(("spectral", "depth", "side"), [(True, 2, 26), (False, 3, 54)])
def test_the_discriminator_scores_patches_of_each_image_by_itself(spectral, depth, side):
    shape = (96, 96, 3)
    model = create_model("patch_discriminator", num_classes=1, input_shape=shape, spectral=spectral, depth=depth)
    variables = init_variables(model, jax.random.key(0), shape)
    x = jax.random.uniform(jax.random.key(1), (2, *shape))
    scores, updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
    cells = 96 // 2**depth
    assert scores.shape == (2, cells, cells)
    assert bool(updates) == spectral
    gradient = jax.grad(lambda x: model.apply(variables, x)[0, cells // 2, cells // 2])(x)
    strength = np.asarray(jnp.abs(gradient[0]).sum(-1))
    reached = np.argwhere(strength > 1e-5 * strength.max())
    assert (np.ptp(reached, axis=0) + 1).tolist() == [side, side]
    np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: autoencoder((12, 12, 1), latent_dim=2), "latent_dim=2 must be larger than num_attributes=2"),
        (lambda: autoencoder((12, 12, 1), hidden=0), "hidden=0 must be an integer"),
        (lambda: autoencoder((12, 12, 1), num_attributes=0), "num_attributes=0"),
        (lambda: autoencoder((12, 12, 1), attribute_names=("a",)), r"attribute_names=\('a',\) must hold"),
        (lambda: autoencoder((3, 12, 1)), "at least 4x4"),
        (lambda: create_model("patch_discriminator", num_classes=1, input_shape=(8, 8, 1), depth=0), "depth=0"),
    ],
)
def test_broken_rules_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_of_another_size_are_refused():
    model, variables = autoencoder((12, 12, 1))
    with pytest.raises(ValueError, match=r"this MSP has image_shape=\(12, 12, 1\)"):
        model.apply(variables, jnp.zeros((1, 16, 16, 1)))
