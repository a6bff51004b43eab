"""Random transforms and purifiers: what is hidden, what is noisy, and that every image is treated by itself."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import classifier, pgd, purify, straight_through
from spa_jax.errors import ConfigError
from spa_jax.victims import purification_stages, purifier, rt1, rt2, rt3, transform_from_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH = 6
KEYS = jax.random.split(jax.random.key(0), BATCH)
SIZES = [(8, 8, 3), (13, 9, 1), (28, 28, 1)]


def images_of(size=(8, 8, 3), batch=BATCH):
    return jax.random.uniform(jax.random.key(1), (batch, *size), minval=0.02, maxval=0.98)


class Pale(nn.Module):
    """A network that answers the masks themselves, and a share of what it was shown."""

    @nn.compact
    def __call__(self, images, masks, train=False):
        share = self.param("share", lambda key: jnp.asarray(0.25))
        return share * images + 0.5 * masks


class Sums(nn.Module):
    """Logits that are sums over halves of the pixels."""

    @nn.compact
    def __call__(self, images, train=False):
        self.param("unused", lambda key: jnp.zeros(1))
        flat = images.reshape(len(images), -1)
        return jnp.stack([flat[:, ::2].sum(1), flat[:, 1::2].sum(1)], 1)


PALE = {"params": {"share": jnp.asarray(0.25)}}
SUMS = classifier(Sums(), {"params": {"unused": jnp.zeros(1)}})


# --- what is hidden -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_exactly_the_share_of_the_blocks_is_hidden_whole(share):
    masks = np.asarray(rt1(4, share).draw(KEYS, images_of((16, 16, 1))).masks)
    blocks = masks.reshape(BATCH, 4, 4, 4, 4)
    assert set(np.unique(blocks.mean((2, 4)))) <= {0.0, 1.0}
    np.testing.assert_array_equal(masks.mean((1, 2, 3)), share)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masks", [2, 3, 4])
def test_disjoint_masks_cover_every_pixel_exactly_once(size, masks):
    drawn = rt3(grid=5, masks=masks).draw(KEYS, images_of(size))
    per_image = np.asarray(drawn.masks).reshape(BATCH, masks, *size[:2], 1)
    np.testing.assert_array_equal(per_image.sum(1), 1.0)
    counts = np.asarray(rt3(grid=5, masks=masks).draw(KEYS, images_of((5, 5, 1))).masks).sum((1, 2, 3))
    assert counts.max() - counts.min() <= 1  # blocks are shared out evenly


@pytest.mark.parametrize("size", SIZES)
def test_hidden_pixels_are_grey_and_all_others_as_they_were(size):
    images = images_of(size)
    drawn = rt1(5, 0.3).draw(KEYS, images)
    np.testing.assert_array_equal(drawn.images, np.where(drawn.masks, 0.5, images).astype(np.float32))
    np.testing.assert_array_equal(rt1(5, 0.3)(KEYS, images), drawn.images)


def test_every_block_is_hidden_as_often_as_any_other():
    keys = jax.random.split(jax.random.key(3), 4000)
    masks = rt1(3, 1 / 3).draw(keys, jnp.zeros((4000, 3, 3, 1))).masks
    np.testing.assert_allclose(masks.mean(0), 1 / 3, atol=0.03)


# --- noise ----------------------------------------------------------------------------------------------------------


def test_noise_has_its_size_inside_and_is_clipped_to_the_box():
    grey, black = jnp.full((400, 4, 4, 3), 0.5), jnp.zeros((400, 4, 4, 3))
    keys = jax.random.split(jax.random.key(2), 400)
    np.testing.assert_allclose(jnp.std(rt2(0.05, 4, 0.0)(keys, grey)), 0.05, rtol=0.03)
    wide = rt2(0.5, 4, 0.0)(keys, jnp.concatenate([grey[:200], black[:200]]))
    assert float(wide.min()) == 0.0 and float(wide.max()) == 1.0
    np.testing.assert_allclose(jnp.mean(wide[200:] == 0), 0.5, atol=0.03)  # half of all noise on black is cut off


def test_both_images_of_a_pair_meet_the_same_noise_and_mask():
    images, transform = images_of(), rt2(0.01, 4)
    near = images + 0.001
    drawn, other = transform.draw(KEYS, images), transform.draw(KEYS, near)
    np.testing.assert_array_equal(drawn.masks, other.masks)
    kept = np.broadcast_to(np.asarray(drawn.masks) == 0, images.shape) & (np.asarray(drawn.images) > 0.0)
    kept &= np.asarray(other.images) < 1.0
    np.testing.assert_allclose((other.images - drawn.images)[kept], 0.001, atol=1e-6)


# --- each image by itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [rt1(4), rt2(0.2, 4), rt3(0.2, 4)], ids=["rt1", "rt2", "rt3"])
def test_what_an_image_meets_depends_on_its_key_alone(transform):
    images, order = images_of(), jnp.asarray([4, 2, 0])

    def views(keys, images):
        return transform.draw(keys, images).images.reshape(len(images), transform.parts, *images.shape[1:])

    whole = views(KEYS, images)
    np.testing.assert_array_equal(views(KEYS[order], images[order]), whole[order])
    np.testing.assert_allclose(jax.jit(views)(KEYS[1:2], images[1:2]), whole[1:2], atol=1e-6)
    assert np.any(np.asarray(whole[0]) != np.asarray(views(KEYS[1:2], images[:1])[0]))
    system, alone = (purify(SUMS, purifier(Pale(), PALE, transform))(KEYS[i:], images[i:]) for i in (0, 3))
    np.testing.assert_allclose(system[3:], alone, rtol=1e-6)


# --- purifiers ------------------------------------------------------------------------------------------------------


def test_the_whole_answer_of_the_network_counts_under_one_mask():
    images = images_of()
    drawn = rt2(0.1, 4).draw(KEYS, images)
    np.testing.assert_allclose(
        purifier(Pale(), PALE, rt2(0.1, 4))(KEYS, images), 0.25 * drawn.images + 0.5 * drawn.masks, rtol=1e-6
    )


def test_every_pixel_of_disjoint_masks_is_one_that_the_network_filled_in():
    """Where a pixel is hidden this network answers 0.25 * 0.5 + 0.5, whatever the image is."""
    np.testing.assert_allclose(purifier(Pale(), PALE, rt3(0.1, 4))(KEYS, images_of()), 0.625, rtol=1e-6)


def test_without_a_transform_nothing_is_drawn_and_nothing_hidden():
    images = images_of()
    np.testing.assert_allclose(purifier(Pale(), PALE)(images), 0.25 * images, rtol=1e-6)
    np.testing.assert_allclose(purify(SUMS, purifier(Pale(), PALE))(images), SUMS(0.25 * images), rtol=1e-5)


def test_the_gradient_goes_through_the_system_or_straight_through():
    images, transform = images_of(), rt1(4)
    first = jax.grad(lambda images, victim: jnp.sum(victim(KEYS, images)[:, 0]))
    halves = jax.vmap(jax.random.split)(KEYS)
    shown = 1 - transform.draw(halves[:, 0], images).masks
    outer = jnp.zeros(images[0].size).at[::2].set(1.0).reshape(1, *images.shape[1:])
    system = purify(SUMS, purifier(Pale(), PALE, transform))
    np.testing.assert_allclose(first(images, system), jnp.broadcast_to(0.25 * shown, images.shape) * outer)
    through = purify(SUMS, straight_through(purifier(Pale(), PALE, transform)))
    np.testing.assert_allclose(first(images, through), jnp.broadcast_to(outer, images.shape))


def test_new_weights_and_another_sigma_reuse_the_compiled_system():
    traces = []

    @jax.jit
    def run(victim, images):
        traces.append(1)
        return victim(KEYS, images)

    for share, sigma in ((0.25, 0.1), (0.5, 0.2)):
        run(purify(SUMS, purifier(Pale(), {"params": {"share": jnp.asarray(share)}}, rt2(sigma, 4))), images_of())
    assert len(traces) == 1


def test_an_attack_on_the_system_keeps_its_ball():
    images = images_of()
    victim = purify(SUMS, purifier(Pale(), PALE, rt2(0.1, 4)))
    result = pgd(0.05, num_steps=2)(jax.random.key(5), victim, images, jnp.zeros(BATCH, jnp.int32))
    assert float(jnp.abs(result.x - images).max()) <= 0.05 + 1e-6


@pytest.mark.parametrize("transform", [rt2(0.1, 4), rt3(0.1, 4, 2)])
def test_a_purifier_shows_what_its_network_was_shown_and_made(transform):
    own = purifier(Pale(), PALE, transform)
    stages = purification_stages(own, KEYS, images_of())
    drawn = transform.draw(KEYS, images_of()).images.reshape(BATCH, transform.parts, 8, 8, 3)
    np.testing.assert_array_equal(stages["transformed"], drawn[:, 0])
    np.testing.assert_allclose(stages["purified"], own(KEYS, images_of()), atol=1e-6)
    assert list(purification_stages(purifier(Pale(), PALE), None, images_of())) == ["purified"]


def test_a_transform_alone_has_no_purified_images():
    victim = purify(SUMS, rt1(4))
    stages = purification_stages(victim, KEYS, images_of())
    assert list(stages) == ["transformed"]
    np.testing.assert_allclose(SUMS(stages["transformed"]), victim(KEYS, images_of()), rtol=1e-5)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rt1(share=1.0), r"share=1.0 must be in \[0, 1\)"),
        (lambda: rt1(grid=0), "grid=0 must be an integer of at least 1"),
        (lambda: rt2(sigma=-0.1), "sigma=-0.1 must be 0 or larger"),
        (lambda: rt3(masks=1), "masks=1 must be at least 2"),
        (lambda: rt3(grid=2, masks=5), "masks=5 must be at least 2, and at most the 4 blocks"),
        (lambda: rt3()(KEYS, images_of()), "masks=4 hide every pixel once"),
        (lambda: rt1(9)(KEYS, images_of()), "grid=9 must not exceed the sides"),
        (lambda: purifier(jnp.sin, {}), "must be a flax.linen module"),
        (lambda: purifier(Pale(), PALE, rt2), "must be a transform such as"),
    ],
)
def test_broken_rules_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_transforms_come_from_plain_data():
    assert transform_from_config(None) is None
    assert transform_from_config({"name": "rt2", "sigma": 0.1, "grid": 4}) == rt2(0.1, 4)
    with pytest.raises(ConfigError, match=r"victims\.x\.transform\.sigm is unknown to transform 'rt2'"):
        transform_from_config({"name": "rt2", "sigm": 0.1}, "victims.x.transform")
