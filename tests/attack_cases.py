"""Attacks, a victim and inputs that several tests share, and what every result must fulfil."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import Example, apgd_ce, fgsm, pgd, spa
from spa_jax.losses import cross_entropy
from tests.analytic_victims import images, labels, mlp, weights

KEY = jax.random.key(0)
BATCH = 8
X, Y = images(batch=BATCH), jnp.arange(BATCH) % 3
MLP = mlp()
W = weights()
INNER, TWO = images(low=0.35, high=0.65, batch=BATCH), labels(BATCH)

PGD = pgd(0.1, 5)
APGD = apgd_ce(0.1, 12)
SPA = spa(0.05, [{"name": "rotation", "low": -20, "high": 20}, "contrast"], 5)
ATTACKS = {"pgd": PGD, "apgd": APGD, "spa": SPA}
PGD_AND_SLOW_SPA = ["pgd", pytest.param("spa", marks=pytest.mark.slow)]
FGSM = fgsm(0.1)


def strength(result):
    """What attacks are compared by: fooled first, then the loss."""
    return list(zip(np.asarray(result.success).tolist(), np.asarray(result.value).tolist(), strict=True))


def assert_never_weaker(result, other, tolerance=1e-5):
    for (success, value), (other_success, other_value) in zip(strength(result), strength(other), strict=True):
        assert (success, value + tolerance) >= (other_success, other_value)


def judged(images, victim=MLP, y=Y, target=None, loss=cross_entropy):
    """The strength of images: value and success as an attack would report them."""
    logits = victim(images)
    hit = np.argmax(logits, axis=-1) != y if target is None else np.argmax(logits, axis=-1) == target
    return Strength(loss(logits, Example(images, y, target)), hit)


class Strength:
    def __init__(self, value, success):
        self.value, self.success = value, success


def assert_consistent(result, victim, y, loss=cross_entropy, target=None):
    """Value and success are those of the returned images."""
    expected = judged(result.x, victim, y, target, loss)
    np.testing.assert_allclose(result.value, expected.value, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.success, expected.success)
    assert np.min(result.x) >= 0 and np.max(result.x) <= 1


LIGHT = {"brightness": {"low": -0.1, "high": 0.1}}
LIGHT_GAIN = 0.1 * abs(np.sum(np.asarray(W, np.float64)))
NOISE_GAIN = 0.2 * np.sum(np.abs(np.asarray(W, np.float64)))
