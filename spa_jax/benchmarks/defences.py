"""Defences that mislead attacks instead of withstanding them, to be planted around any network.

Each is a victim whose accuracy under some attack is too high, with the check of `spa_jax.evaluation.sanity_checks` that
ought to name why. They follow those that Athalye, Carlini & Wagner (2018) and Tramer et al. (2020) have broken, or
mistakes of everyday; their numbers are our choice.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from spa_jax.types import Image, Images, Key, Keys, Logits, Scalar, Victim
from spa_jax.victims import purify, randomized


class Defence(NamedTuple):
    """A defence that can be planted.

    Attributes:
        plant: of a network, a function from images to logits, and of training images [n, h, w, c] makes the victim.
        check: that ought to name what is wrong with it, without its ball; "" where nothing is.
    """

    plant: Callable[[Victim, Images], Victim]
    check: str = ""


def quantised(images: Images) -> Images:
    """Rounded down to quarters."""
    return jnp.floor(4 * images) / 4


def median(images: Images) -> Images:
    """Of the 3 x 3 pixels around each."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    around = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.sort(jnp.stack(around), axis=0)[4]


def median_detached(images: Images, kept: Scalar = 0.0) -> Images:
    """The median, of whose gradient this share of the identity's is left."""
    return kept * images + jax.lax.stop_gradient(median(images) - kept * images)


def shattered(images: Images) -> Images:
    """A quick sine on top, which the network hardly sees and whose slope is 20 times that of the image."""
    return images + 0.02 * jnp.sin(1000 * images)


def dct_quantised(images: Images) -> Images:
    """Cosine coefficients of the whole image, rounded to halves as JPEG does."""
    rows, columns = map(_cosines, images.shape[1:3])
    coefficients = jnp.round(2 * jnp.einsum("ki,bijc,lj->bklc", rows, images, columns)) / 2
    return jnp.einsum("ki,bklc,lj->bijc", rows, coefficients, columns)


def _cosines(size: int) -> Any:
    n = jnp.arange(size, dtype=jnp.float32)
    scale = jnp.sqrt(jnp.where(n == 0, 1.0, 2.0) / size)
    return jnp.cos(jnp.pi / size * (n[None] + 0.5) * n[:, None]) * scale[:, None]


def unit_columns(images: Images) -> Images:
    """Columns are brought nearer to unit length. Where one is black the value is fine, and the gradient NaN."""
    length = jnp.sqrt(jnp.sum(images**2, axis=1, keepdims=True))
    return 0.9 * images + 0.1 * images / jnp.where(length > 0, length, 1)


def noisy_and_resized(keys: Keys, images: Images) -> Images:
    """Gaussian noise, then the image drawn at a random scale between 0.9 and 1.1 about its centre."""

    def change(key: Key, image: Image) -> Image:
        noise_key, scale_key = jax.random.split(key)
        scale = jnp.full(2, jax.random.uniform(scale_key, (), minval=0.9, maxval=1.1))
        noisy = image + 0.1 * jax.random.normal(noise_key, image.shape)
        middle = (1 - scale) * jnp.asarray(image.shape[:2], jnp.float32) / 2
        return jax.image.scale_and_translate(noisy, image.shape, (0, 1), scale, middle, "linear")

    return jax.vmap(change)(keys, images)


def times_1000(network: Victim, images: Images) -> Logits:
    """Cross entropy saturates."""
    return 1000 * network(images)


def squashed(network: Victim, images: Images) -> Logits:
    """Probabilities of a sharpened softmax: the gradient of the margin rounds to 0."""
    return 10 * jax.nn.softmax(50 * network(images))


def temperature(network: Victim, images: Images) -> Logits:
    """The softmax is almost uniform."""
    return network(images) / 1000


def tiny_float16(network: Victim, images: Images) -> Logits:
    """Rounding decides."""
    return (network(images) / 10000).astype(jnp.float16)


def log_softmax_float16(network: Victim, images: Images) -> Logits:
    """Probabilities below 6e-8 become 0, and their logarithm is not finite."""
    return jnp.log(jax.nn.softmax(network(images).astype(jnp.float16)))


def one_hot(network: Victim, images: Images) -> Logits:
    """The decision alone."""
    logits = network(images)
    return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])


def nan_off_the_8_bit_grid(network: Victim, images: Images) -> Logits:
    """No answer to an image that no file of 8 bits holds."""
    levels = 255 * images
    is_image = jnp.all(jnp.abs(levels - jnp.round(levels)) < 1e-3, axis=(1, 2, 3))
    return jnp.where(is_image[:, None], network(images), jnp.nan)


def batch_norm_in_training_mode(network: Victim, shift: Any, scale: Any, images: Images) -> Logits:
    """Logits are normalised over the batch; scale and shift undo the statistics of the training images."""
    logits = network(images)
    mean, std = logits.mean(axis=0, keepdims=True), logits.std(axis=0, keepdims=True)
    return scale * (logits - mean) / (std + 1e-3) + shift


def _normalising(network: Victim, images: Images) -> Victim:
    logits = network(images)
    shift, scale = logits.mean(axis=0, keepdims=True), logits.std(axis=0, keepdims=True)
    return Partial(batch_norm_in_training_mode, network, shift, scale)


def _before(purifier: Callable[..., Images], check: str, **options: Any) -> Defence:
    return Defence(lambda network, images: purify(network, Partial(purifier, **options)), check)


def _after(scores: Callable[..., Logits], check: str) -> Defence:
    return Defence(lambda network, images: Partial(scores, network), check)


DEFENCES: Mapping[str, Defence] = {
    "quantiser": _before(quantised, "gradients"),
    "logits x 1000": _after(times_1000, "usable_logits"),
    "squashed scores": _after(squashed, "margin_gradients"),
    "noise and resize": Defence(
        lambda network, images: purify(network, randomized(Partial(noisy_and_resized))), "deterministic"
    ),
    "median, detached": _before(median_detached, "gradients"),
    "median, 1/1000 attached": _before(median_detached, "gradient_size", kept=1e-3),
    "sine": _before(shattered, "gradient_size"),
    "DCT quantiser": _before(dct_quantised, "gradients"),
    "temperature": _after(temperature, "flat_logits"),
    "tiny float16": _after(tiny_float16, "flat_logits"),
    "float16 log-softmax": _after(log_softmax_float16, "finite"),
    "one-hot": _after(one_hot, "gradients"),
    "BatchNorm of the batch": Defence(_normalising, "independent"),
    "unit columns": _before(unit_columns, "finite"),
    "NaN off the 8-bit grid": _after(nan_off_the_8_bit_grid, "finite"),
}
"""By name, in the order of the table; see `Defence`."""
UNDEFENDED = Defence(lambda network, images: network)
"""The network as it is."""
