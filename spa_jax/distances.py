"""How far images lie apart, per example: norms, PSNR and SSIM; and how varied several noises on one image are.

All take images [b, h, w, c] in [0, 1] and return [b]. They are for measuring: pure, `jit`-able, in float32 at least.
"""

from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spa_jax.numerics import at_least_float32
from spa_jax.types import Scalar, Values
from spa_jax.validation import require_number

AnyImages: TypeAlias = Float[Array | np.ndarray, "_ _ _ _"]
"""Images [b, h, w, c], of JAX or NumPy."""

SSIM_WINDOW = 11
"""Side of the Gaussian window of SSIM, in pixels (Wang et al. 2004)."""
_SSIM_SIGMA = 1.5
_SSIM_K1, _SSIM_K2 = 0.01, 0.03
_OVER_PIXELS = (1, 2, 3)


def linf(x: AnyImages, y: AnyImages) -> Values:
    """The largest change of a pixel's channel, on the [0, 1] scale.

    Raises:
        ValueError: the shapes differ.
    """
    return jnp.max(jnp.abs(_difference(x, y)), axis=_OVER_PIXELS)


def l2(x: AnyImages, y: AnyImages) -> Values:
    """The Euclidean distance over all pixels and channels.

    Raises:
        ValueError: the shapes differ.
    """
    return jnp.sqrt(jnp.sum(_difference(x, y) ** 2, axis=_OVER_PIXELS))


def l1(x: AnyImages, y: AnyImages) -> Values:
    """The sum of absolute changes over all pixels and channels.

    Raises:
        ValueError: the shapes differ.
    """
    return jnp.sum(jnp.abs(_difference(x, y)), axis=_OVER_PIXELS)


def psnr(x: AnyImages, y: AnyImages) -> Values:
    """Peak signal-to-noise ratio in decibels, -10 log10 of the mean squared difference; infinite for equal images.

    Raises:
        ValueError: the shapes differ.
    """
    return -10 * jnp.log10(jnp.mean(_difference(x, y) ** 2, axis=_OVER_PIXELS))


def ssim(x: AnyImages, y: AnyImages) -> Values:
    """Structural similarity (Wang et al. 2004): 1 for equal images, at least -1.

    Their settings: a Gaussian window of 11x11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03, range 1, means
    and variances weighted by the window. The index is averaged over the windows that lie wholly inside of the image
    (their code does the same) and over channels, each channel taken by itself (the customary extension to colour).

    Images smaller than 11 pixels to a side get, our choice, the largest window of odd side that fits, the same Gaussian
    cut off and normalised to sum 1: 7x7 for digits of 8x8. Such values compare among themselves, not with those of
    larger images.

    Raises:
        ValueError: the shapes differ.
    """
    x, y = _checked(x, y)
    size = _window(min(x.shape[1:3]))
    rows = _moments((x, y), (jnp.zeros_like(x),) * 3, 1, size)
    (mean_x, mean_y), (variance_x, covariance, variance_y) = _moments(*rows, 2, size)
    light = (2 * mean_x * mean_y + _SSIM_K1**2) / (mean_x**2 + mean_y**2 + _SSIM_K1**2)
    structure = (2 * covariance + _SSIM_K2**2) / (variance_x + variance_y + _SSIM_K2**2)
    return jnp.mean(light * structure, axis=_OVER_PIXELS)


def noise_diversity(noises: Float[Array, "draws b h w c"], radius: Scalar) -> Values:
    """How much several noises on one image differ: the mean distance of a pixel in two of them, in radii.

    The mean runs over all pairs of draws, pixels and channels. It is 0 where all draws are equal and at most about 1:
    signs drawn at random, independently for every pixel, have 1 in expectation, uniform noise in the cube 2/3.

    Args:
        noises: several draws for each image, x' - A(x, a).
        radius: of the noise's l-infinity ball, larger than 0.

    Raises:
        ValueError: fewer than two draws, or a radius that is not positive.
    """
    draws = noises.shape[0]
    if draws < 2:
        raise ValueError(f"noises.shape={noises.shape!r} must hold at least 2 draws on its first axis")
    radius = require_number("radius", radius, "larger than 0", lambda r: r > 0)
    # Sorted, the sum over pairs |a - b| is a weighted sum: the k-th smallest is the larger one of k pairs.
    weights = jnp.asarray([2 * k - draws + 1 for k in range(draws)], noises.dtype)
    over_pairs = jnp.tensordot(weights, jnp.sort(noises, axis=0), 1) / (draws * (draws - 1) / 2)
    return jnp.mean(over_pairs, axis=_OVER_PIXELS) / radius


def _difference(x: Any, y: Any) -> Any:
    x, y = _checked(x, y)
    return x - y


def _checked(x: Any, y: Any) -> tuple[Any, Any]:
    if x.shape != y.shape:
        raise ValueError(f"x.shape={x.shape!r} and y.shape={y.shape!r} must be the same")
    dtype = at_least_float32(np.promote_types(x.dtype, y.dtype))
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def _window(side: int) -> int:
    return min(SSIM_WINDOW, side - 1 + side % 2)


def _moments(
    means: tuple[Any, ...], spreads: tuple[Any, ...], axis: int, size: int
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Means and (co)variances within windows of lines along one axis, from those of the lines' parts.

    Variances of parts and of their means add up (law of total variance). E[x^2] - E[x]^2 would lose in float32 what
    K2 needs in bright, even regions.
    """
    offsets = jnp.arange(size) - size // 2
    weights = jnp.exp(-(offsets.astype(jnp.float32) ** 2) / (2 * _SSIM_SIGMA**2))
    weights = weights / jnp.sum(weights)
    starts = jnp.arange(means[0].shape[axis] - size + 1)
    index = starts[:, None] + jnp.arange(size)[None, :]

    def mean(windows: Any) -> Any:
        shape = [1] * windows.ndim
        shape[axis + 1] = size
        return jnp.sum(windows * weights.reshape(shape), axis=axis + 1)

    x, y = (jnp.take(part, index, axis=axis) for part in means)
    xx, xy, yy = (mean(jnp.take(part, index, axis=axis)) for part in spreads)
    mean_x, mean_y = mean(x), mean(y)
    dx, dy = x - jnp.expand_dims(mean_x, axis + 1), y - jnp.expand_dims(mean_y, axis + 1)
    return (mean_x, mean_y), (xx + mean(dx * dx), xy + mean(dx * dy), yy + mean(dy * dy))
