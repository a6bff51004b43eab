"""Image distances against float64 references that share no code with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from spa_jax import distances

pytestmark = pytest.mark.usefixtures("quick_compilation")


def pair(size, channels=1, batch=3, noise=0.1, bright=False, seed=0):
    """Images and noisy copies: with flat regions at exactly 0 and 1, where SSIM is easily wrong in float32."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(batch, size, size + 2, channels))
    x[:, : size // 2] = 1.0 if bright else 0.0
    y = np.clip(x + noise * rng.normal(size=x.shape), 0, 1)
    y[:, :, : size // 2] = x[:, :, : size // 2]
    return x.astype(np.float32), y.astype(np.float32)


def reference_ssim(x, y, window):
    """Wang et al. 2004 by scipy's Gaussian filter in float64, its border cut off."""
    radius = window // 2

    def blur(plane):
        blurred = gaussian_filter(plane, 1.5, truncate=(radius + 0.25) / 1.5)
        return blurred[radius : plane.shape[0] - radius, radius : plane.shape[1] - radius]

    values = []
    for a, b in zip(np.moveaxis(x.astype(np.float64), -1, 0), np.moveaxis(y.astype(np.float64), -1, 0), strict=True):
        ma, mb = blur(a), blur(b)
        va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
        top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
        values.append(np.mean(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))))
    return np.mean(values)


def test_norms_agree_with_float64():
    x, y = pair(9, 3)
    difference = (x.astype(np.float64) - y).reshape(len(x), -1)
    np.testing.assert_allclose(distances.linf(x, y), np.abs(difference).max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(distances.l2(x, y), np.linalg.norm(difference, axis=1), rtol=1e-6)
    np.testing.assert_allclose(distances.l1(x, y), np.abs(difference).sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize(("size", "window"), [(32, 11), (11, 11), (8, 7), (4, 3), (2, 1)])
@pytest.mark.parametrize("bright", [False, True])
def test_ssim_agrees_with_float64_with_the_largest_window_that_fits(size, window, bright):
    x, y = pair(size, 3, bright=bright)
    expected = [reference_ssim(a, b, window) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(jax.jit(distances.ssim)(x, y), expected, atol=2e-6)


@pytest.mark.parametrize("noise", [0.3, 0.001])
def test_ssim_and_psnr_agree_with_scikit_image(noise):
    metrics = pytest.importorskip("skimage.metrics")
    x, y = pair(28, 3, noise=noise, bright=True)
    pairs = list(zip(x.astype(np.float64), y.astype(np.float64), strict=True))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    expected = [metrics.structural_similarity(a, b, data_range=1.0, **settings) for a, b in pairs]
    np.testing.assert_allclose(distances.ssim(x, y), expected, atol=1e-5)
    expected = [metrics.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs]
    np.testing.assert_allclose(distances.psnr(x, y), expected, rtol=1e-5)


def test_psnr_is_that_of_the_mean_squared_difference():
    x, y = pair(8)
    squared = ((x.astype(np.float64) - y) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(distances.psnr(x, y), 10 * np.log10(1 / squared), rtol=1e-5)
    assert np.all(np.isposinf(distances.psnr(x, x)))


def test_equal_images_are_equal():
    x, _ = pair(16, bright=True)
    for distance in (distances.linf, distances.l2, distances.l1):
        np.testing.assert_array_equal(distance(x, x), 0)
    np.testing.assert_allclose(distances.ssim(x, x), 1, atol=1e-6)


def test_ssim_is_symmetric_and_falls_to_minus_one_for_a_negative_without_a_mean():
    x, y = pair(16)
    np.testing.assert_allclose(distances.ssim(x, y), distances.ssim(y, x), atol=1e-6)
    board = jnp.asarray(np.indices((16, 16)).sum(axis=0) % 2, jnp.float32)[None, ..., None]
    assert float(distances.ssim(board, 1 - board)[0]) == pytest.approx(-1, abs=0.01)


def test_noise_diversity_is_the_mean_over_pairs():
    noises = np.random.default_rng(0).uniform(-0.1, 0.1, (5, 3, 4, 4, 2)).astype(np.float32)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    distances_of_pairs = [np.abs(noises[i].astype(np.float64) - noises[j]).mean(axis=(1, 2, 3)) for i, j in pairs]
    found = distances.noise_diversity(jnp.asarray(noises), 0.1)
    np.testing.assert_allclose(found, np.mean(distances_of_pairs, axis=0) / 0.1, rtol=1e-5)
    assert found.shape == (3,)


def test_noise_diversity_of_equal_and_of_random_noises():
    same = jnp.broadcast_to(jnp.asarray(pair(8)[0]), (4, 3, 8, 10, 1))
    np.testing.assert_allclose(distances.noise_diversity(same, 0.1), 0, atol=1e-5)
    signs = 0.1 * jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (2, 1, 64, 64, 3)), jnp.float32)
    assert float(distances.noise_diversity(signs, 0.1)[0]) == pytest.approx(1, abs=0.03)


def test_bad_arguments_are_named():
    x, _ = pair(8)
    for distance in (distances.linf, distances.l2, distances.l1, distances.psnr, distances.ssim):
        with pytest.raises(ValueError, match=r"x.shape=\(3, 8, 10, 1\) and y.shape=\(2, 8, 10, 1\) must be the same"):
            distance(jnp.asarray(x), jnp.asarray(x[:2]))
    with pytest.raises(ValueError, match="at least 2 draws"):
        distances.noise_diversity(jnp.asarray(x)[None], 0.1)
    with pytest.raises(ValueError, match=r"radius=0.0 must be larger than 0"):
        distances.noise_diversity(jnp.zeros((2, 1, 4, 4, 1)), 0.0)
