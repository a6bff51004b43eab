"""MART and smoothed labels against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import Example
from spa_jax.training.outer import outer_from_spec

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
BATCH, CLASSES = 24, 6
CLEAN, ATTACKED = (RNG.normal(size=(BATCH, CLASSES)) * 3 for _ in range(2))
LABELS = RNG.integers(0, CLASSES, BATCH)
ROWS = np.arange(BATCH)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def values(outer, clean=CLEAN, attacked=ATTACKED, labels=LABELS, **share):
    logits = {"clean": jnp.asarray(clean, jnp.float32), "attacked": jnp.asarray(attacked, jnp.float32)}
    return outer_from_spec(outer)(logits, Example(None, label=jnp.asarray(labels)), **share)


def smoothed(probabilities, smoothing):
    log_p = np.log(probabilities)
    return -(1 - smoothing) * log_p[ROWS, LABELS] - smoothing * log_p.mean(1)


def mart(clean, attacked, beta, smoothing=0.0):
    p, q = softmax(clean), softmax(attacked)
    rivals = np.array([np.delete(row, label).max() for row, label in zip(q, LABELS, strict=True)])
    divergence = np.sum(p * (np.log(p) - np.log(q)), axis=1)
    return smoothed(q, smoothing) - np.log(1 - rivals) + beta * divergence * (1 - p[ROWS, LABELS])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_mart_is_its_formula(beta, smoothing):
    found = values({"name": "mart", "beta": beta, "label_smoothing": smoothing})
    np.testing.assert_allclose(found, mart(CLEAN, ATTACKED, beta, smoothing), rtol=2e-5)


def test_the_gradient_of_mart_goes_through_both_images_and_its_weight():
    def mean(clean, attacked):
        return jnp.sum(values("mart", clean, attacked))

    found = jax.jit(jax.grad(mean, (0, 1)))(jnp.asarray(CLEAN, jnp.float32), jnp.asarray(ATTACKED, jnp.float32))
    step = 1e-5
    for side, gradient in enumerate(found):
        pair = [CLEAN, ATTACKED]
        expected = np.zeros_like(CLEAN)
        for k in range(CLASSES):
            up, down = (
                mart(*(own + sign * step * (i == side) * np.eye(CLASSES)[k] for i, own in enumerate(pair)), 5.0)
                for sign in (1, -1)
            )
            expected[:, k] = (up - down) / (2 * step)
        np.testing.assert_allclose(gradient, expected, atol=2e-4)


def test_mart_stays_finite_for_certain_answers():
    certain = 200.0 * np.eye(CLASSES)
    labels = np.zeros(CLASSES, int)

    def total(clean, attacked):
        return jnp.sum(values("mart", clean, attacked, labels))

    value, gradient = jax.value_and_grad(total, (0, 1))(jnp.asarray(certain), jnp.asarray(certain[::-1].copy()))
    assert np.isfinite(value) and all(np.all(np.isfinite(part)) for part in gradient)


def test_attacked_images_that_do_not_count_leave_nothing_of_mart():
    np.testing.assert_array_equal(values("mart", attacked_share=0.0), 0)


@pytest.mark.parametrize("name", ["cross_entropy", "trades", "mart"])
def test_smoothed_labels_change_the_cross_entropy_alone(name):
    plain, soft = (values({"name": name, "label_smoothing": smoothing}) for smoothing in (0.0, 0.3))
    shown = softmax(CLEAN if name == "trades" else ATTACKED)
    np.testing.assert_allclose(soft - plain, smoothed(shown, 0.3) - smoothed(shown, 0.0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("outer", "message"),
    [
        ({"name": "mart", "beta": -1.0}, r"beta=-1\.0 must be 0 or larger"),
        ({"name": "mart", "batch_norm": "alone"}, "batch_norm='alone' must be one of together, apart"),
        ({"name": "trades", "label_smoothing": 2.0}, r"label_smoothing=2\.0 must be in \[0, 1\]"),
        ({"name": "cross_entropy", "label_smoothing": -0.1}, r"label_smoothing=-0\.1 must be in \[0, 1\]"),
    ],
)
def test_broken_rules_are_named(outer, message):
    with pytest.raises(ValueError, match=message):
        outer_from_spec(outer)
