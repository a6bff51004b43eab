import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.data import Augmentation, augment

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = jnp.arange(3 * 5 * 6 * 2, dtype=jnp.float32).reshape(3, 5, 6, 2) + 1

JITTED = jax.jit(augment, static_argnames="spec")


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def windows(image, spec):
    """All results that are possible for one image."""
    margin = (spec.crop_padding, spec.crop_padding)
    padded = np.pad(image, (margin, margin, (0, 0)), mode={"zero": "constant", "reflect": "reflect"}[spec.padding])
    height, width = image.shape[:2]
    offsets = range(2 * spec.crop_padding + 1)
    crops = [padded[top : top + height, left : left + width] for top in offsets for left in offsets]
    return crops + ([crop[:, ::-1] for crop in crops] if spec.flip else [])


@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("flip", [False, True])
def test_all_windows_occur_equally_often_and_nothing_else(padding, flip):
    spec = Augmentation(crop_padding=1, padding=padding, flip=flip)
    possible = {window.tobytes() for window in windows(np.asarray(IMAGES[0]), spec)}
    results = np.asarray(JITTED(keys(3600), jnp.repeat(IMAGES[:1], 3600, axis=0), spec))
    found, counts = np.unique([result.tobytes().hex() for result in results], return_counts=True)
    assert {bytes.fromhex(result) for result in found} == possible
    expected = 3600 / len(possible)
    assert np.sum((counts - expected) ** 2 / expected) < (26.1 if len(possible) == 9 else 40.8)


def test_result_depends_on_key_and_image_alone():
    spec = Augmentation(crop_padding=2)
    batch = JITTED(keys(3), IMAGES, spec)
    for order in (np.asarray([2, 0, 1]), np.asarray([1])):
        np.testing.assert_array_equal(JITTED(keys(3)[order], IMAGES[order], spec), batch[order])


def test_jit_and_vmap_equal_eager():
    spec = Augmentation(crop_padding=2, padding="reflect")
    eager = augment(keys(3), IMAGES, spec)
    np.testing.assert_array_equal(JITTED(keys(3), IMAGES, spec), eager)
    nested = jax.jit(jax.vmap(functools.partial(augment, spec=spec)))(keys(3)[:, None], IMAGES[:, None])
    np.testing.assert_array_equal(nested[:, 0], eager)


def test_nothing_to_do_changes_nothing():
    spec = Augmentation(crop_padding=0, flip=False)
    np.testing.assert_array_equal(augment(keys(3), IMAGES, spec), IMAGES)


def test_dtype_stays():
    assert JITTED(keys(3), IMAGES.astype(jnp.uint8), Augmentation()).dtype == jnp.uint8


@pytest.mark.parametrize(
    ("values", "message"),
    [({"crop_padding": -1}, "crop_padding=-1"), ({"padding": "wrap"}, "padding='wrap'; valid: zero, reflect")],
)
def test_wrong_values_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**values)


def test_reflection_must_fit():
    with pytest.raises(ValueError, match="crop_padding=5; to reflect, it must be less than 5"):
        augment(keys(3), IMAGES, Augmentation(crop_padding=5, padding="reflect"))
