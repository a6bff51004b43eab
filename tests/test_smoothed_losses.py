"""Losses with smoothed labels: where they help the victim, and the guards against it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import Example
from spa_jax.losses import independent_bce, smoothed_cross_entropy

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLASSES = 10
THRESHOLDS = {0.1: 0.91, 0.2: 0.82, 0.3: 0.73, 0.5: 0.55}
"""The confidence 1 - s + s / k above which a step raises the label's logit, at ten classes."""
LOSSES = {"softmax": smoothed_cross_entropy, "sigmoid": independent_bce}


def confident(kind, confidences):
    """Logits [b, k] with a probability of the label, class 3, and equal logits of all others."""
    p = np.asarray(confidences, np.float64)
    own = np.log(p / (1 - p)) + (np.log(CLASSES - 1) if kind == "softmax" else 0)
    return jnp.asarray(np.where(np.arange(CLASSES) == 3, own[:, None], 0.0), jnp.float32)


def examples(count):
    return Example(None, label=jnp.full(count, 3))


def slopes(loss, logits):
    return np.asarray(jax.grad(lambda z: jnp.sum(loss(z, examples(len(z)))))(logits))


def risk(kind, logits, gradient):
    """How fast the label's probability grows along the gradient, up to a positive factor."""
    p = np.asarray(jax.nn.softmax(logits) if kind == "softmax" else jax.nn.sigmoid(logits))
    mean = np.sum(p * gradient, axis=1) if kind == "softmax" else 0
    return gradient[:, 3] - mean


@pytest.mark.parametrize("smoothing", THRESHOLDS)
@pytest.mark.parametrize("kind", LOSSES)
def test_the_label_gains_above_its_threshold(kind, smoothing):
    threshold = THRESHOLDS[smoothing]
    logits = confident(kind, [threshold - 0.005, threshold + 0.005])
    loss = LOSSES[kind](smoothing)
    assert (slopes(loss, logits)[:, 3] > 0).tolist() == [False, True]
    assert loss.reverses(logits, examples(2)).tolist() == [False, True]


def test_under_a_softmax_the_gradient_sums_to_zero_and_under_sigmoids_it_does_not():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, CLASSES)), jnp.float32)
    for guard in ("off", "anneal"):
        np.testing.assert_allclose(slopes(smoothed_cross_entropy(0.3, guard), logits).sum(1), 0, atol=1e-6)
    expected = np.asarray(jax.nn.sigmoid(logits)).sum(1) - 1
    np.testing.assert_allclose(slopes(independent_bce(0.3), logits).sum(1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_guards_leave_unsure_examples_alone_and_never_raise_the_label(kind):
    logits = confident(kind, [0.2, 0.4, 0.74, 0.9, 0.999])
    off, clamped, annealed = (slopes(LOSSES[kind](0.3, guard), logits) for guard in ("off", "clamp", "anneal"))
    assert (off[:, 3] > 0).tolist() == [False, False, True, True, True]
    np.testing.assert_allclose(clamped, np.where(np.arange(CLASSES) == 3, np.minimum(off, 0), off), atol=1e-7)
    np.testing.assert_allclose(annealed[:2], off[:2], atol=1e-7)
    assert np.all(annealed[:, 3] < 0) and np.all(risk(kind, logits, annealed) < 0)
    assert np.all(risk(kind, logits, off)[2:] > 0)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_guard_does_not_change_the_value_but_by_its_smoothing(kind):
    logits = confident(kind, [0.4, 0.99])
    off, clamped = (LOSSES[kind](0.3, guard)(logits, examples(2)) for guard in ("off", "clamp"))
    np.testing.assert_array_equal(off, clamped)
    annealed = LOSSES[kind](0.3, "anneal")(logits, examples(2))
    half = LOSSES[kind](0.5 * 0.01 * CLASSES / (CLASSES - 1))(logits, examples(2))
    np.testing.assert_allclose(annealed, [off[0], half[1]], rtol=1e-4)


def test_bad_use_is_refused():
    for make in LOSSES.values():
        with pytest.raises(ValueError, match=r"smoothing=-0\.1 must be in \[0, 1\]"):
            make(-0.1)
        with pytest.raises(ValueError, match="guard='on' must be one of off, clamp, anneal"):
            make(0.1, "on")
