"""Attacks, a victim and inputs that several tests share, and what every result must fulfil."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import (
    apgd_ce,
    cross_entropy,
    fgsm,
    pgd,
    spa,
    with_fields,
)
from tests.victims import images, labels, mlp, weights

KEY = jax.random.key(0)
BATCH = 8
X, Y = images(batch=BATCH), jnp.arange(BATCH) % 3
MLP = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mlp())
W = weights()
INNER, TWO = images(low=0.35, high=0.65, batch=BATCH), labels(BATCH)

PGD = pgd(0.1, 5, unroll=1)
APGD = apgd_ce(0.1, 12, unroll=1)
SPA = spa(0.05, [{"name": "rotation", "low": -20, "high": 20}, "contrast"], 5, unroll=1)
ATTACKS = {"pgd": PGD, "apgd": APGD, "spa": SPA}
PGD_AND_SLOW_SPA = ["pgd", pytest.param("spa", marks=pytest.mark.slow)]
FGSM = with_fields(fgsm(0.1), unroll=1)


def strength(result):
    """What attacks are compared by: fooled first, then the loss."""
    return list(zip(np.asarray(result.success).tolist(), np.asarray(result.value).tolist(), strict=True))


def assert_never_weaker(result, other, tolerance=1e-5):
    for (success, value), (other_success, other_value) in zip(strength(result), strength(other), strict=True):
        assert (success, value + tolerance) >= (other_success, other_value)


def assert_consistent(result, victim, y, loss=cross_entropy):
    """Value and success are those of the returned images."""
    logits = victim(None, result.x)
    np.testing.assert_allclose(result.value, loss(logits, y), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.success, np.argmax(logits, axis=-1) != y)
    assert np.min(result.x) >= 0 and np.max(result.x) <= 1


LIGHT = {"brightness": {"low": -0.1, "high": 0.1}}
LIGHT_GAIN = 0.1 * abs(np.sum(np.asarray(W, np.float64)))
NOISE_GAIN = 0.2 * np.sum(np.abs(np.asarray(W, np.float64)))
