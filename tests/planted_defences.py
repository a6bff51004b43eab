"""Defences that mislead attacks instead of withstanding them, around one small network trained on the embedded digits.

Each is a victim whose accuracy under attack is too high, but for `undefended` and `trained_on_pgd`, which are honest.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from spa_jax import pgd, randomized
from spa_jax.data.digits import load
from spa_jax.data.types import Split

RADIUS = 0.1
HIDDEN, STEPS = 64, 200


def split():
    """96 test images in [0, 1] with their labels."""
    test = load().test.subset(np.arange(96))
    return Split(test.images.astype(np.float32) / np.float32(255), test.labels)


def hidden(params, images):
    inner, bias, _ = params
    return (images - 0.5).reshape(len(images), -1) @ inner + bias[None]


def mlp(params, images):
    return jax.nn.relu(hidden(params, images)) @ params[2]


@functools.lru_cache
def trained(attacked=False):
    """The weights of the network: trained on clean images, or on those that PGD makes at each step."""
    data = load().train
    images = jnp.asarray(data.images, jnp.float32) / 255
    labels = jnp.asarray(data.labels)
    rng = np.random.default_rng(0)
    shapes = (64, HIDDEN), (HIDDEN,), (HIDDEN, 10)
    params = [jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32) for shape in shapes]
    attack, rule = pgd(RADIUS, 5, keep="last"), optax.adam(1e-2)

    @jax.jit
    def step(carry, key):
        params, state = carry
        seen = attack(key, Partial(mlp, params), images, labels).x if attacked else images

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(mlp(params, seen), labels).mean()

        with jax.numpy_dtype_promotion("standard"):
            updates, state = rule.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, rule.init(params)), jax.random.split(jax.random.key(0), STEPS))
    return params


def undefended(params, images):
    return mlp(params, images)


def quantiser(params, images):
    return mlp(params, jnp.floor(4 * images) / 4)


def times_1000(params, images):
    return 1000 * mlp(params, images)


def squashed(params, images):
    return 10 * jax.nn.softmax(50 * mlp(params, images))


def noise_and_resize(params, keys, images):
    """Gaussian noise, then the image drawn at a random scale between 0.9 and 1.1 about its centre."""

    def change(key, image):
        noise_key, scale_key = jax.random.split(key)
        scale = jnp.full(2, jax.random.uniform(scale_key, (), minval=0.9, maxval=1.1))
        noisy = image + 0.1 * jax.random.normal(noise_key, image.shape)
        return jax.image.scale_and_translate(noisy, image.shape, (0, 1), scale, 4 * (1 - scale), "linear")

    return mlp(params, jax.vmap(change)(keys, images))


def median(images):
    """Of the 3 x 3 pixels around each."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    around = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.sort(jnp.stack(around), axis=0)[4]


def median_detached(params, images, kept=0.0):
    return mlp(params, kept * images + jax.lax.stop_gradient(median(images) - kept * images))


def median_with_a_thousandth(params, images):
    return median_detached(params, images, kept=1e-3)


def sine_shatter(params, images):
    return mlp(params, images + 0.02 * jnp.sin(1000 * images))


def dct_quantiser(params, images):
    n = jnp.arange(8, dtype=jnp.float32)
    basis = jnp.cos(jnp.pi / 8 * (n[None] + 0.5) * n[:, None]) * jnp.where(n == 0, 1 / jnp.sqrt(8.0), 0.5)[:, None]
    coefficients = jnp.einsum("ki,bijc,lj->bklc", basis, images, basis)
    return mlp(params, jnp.einsum("ki,bklc,lj->bijc", basis, jnp.round(2 * coefficients) / 2, basis))


def temperature(params, images):
    return mlp(params, images) / 1000


def tiny_float16(params, images):
    return (mlp(params, images) / 10000).astype(jnp.float16)


def log_softmax_float16(params, images):
    return jnp.log(jax.nn.softmax(mlp(params, images).astype(jnp.float16)))


def one_hot(params, images):
    return jax.nn.one_hot(jnp.argmax(mlp(params, images), axis=-1), 10)


def batch_norm_in_training_mode(params, shift, scale, images):
    """BatchNorm between the layers; its scale and shift undo the statistics of the training images."""
    before = hidden(params, images)
    mean, std = before.mean(axis=0, keepdims=True), before.std(axis=0, keepdims=True)
    return jax.nn.relu(scale * (before - mean) / (std + 1e-3) + shift) @ params[2]


def norm_of_zero_columns(params, images):
    """Columns are brought nearer to unit length. Where one is black the value is fine, and the gradient NaN."""
    length = jnp.sqrt(jnp.sum(images**2, axis=1, keepdims=True))
    return mlp(params, 0.9 * images + 0.1 * images / jnp.where(length > 0, length, 1))


def nan_off_the_8_bit_grid(params, images):
    levels = 255 * images
    is_image = jnp.all(jnp.abs(levels - jnp.round(levels)) < 1e-3, axis=(1, 2, 3))
    return jnp.where(is_image[:, None], mlp(params, images), jnp.nan)


def victim(defence):
    """The defence around the trained network."""
    if defence is noise_and_resize:
        return randomized(Partial(defence, trained()))
    if defence is batch_norm_in_training_mode:
        seen = hidden(trained(), jnp.asarray(load().train.images, jnp.float32) / 255)
        return Partial(defence, trained(), seen.mean(axis=0, keepdims=True), seen.std(axis=0, keepdims=True))
    return Partial(defence, trained())
