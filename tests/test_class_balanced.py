"""The diversity objective against NumPy formulas of its terms, and the trade between rare and frequent classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import Example
from spa_jax.losses import capped_cross_entropy, class_balanced

RNG = np.random.default_rng(0)
CLASSES = 4
LOGITS, LABELS = RNG.normal(size=(6, CLASSES)) * 3, np.arange(6) % CLASSES
MASS = np.array([0.4, 0.2, 0.05, 0.0])
SHARE = MASS / MASS.sum()
OWN = np.eye(CLASSES, dtype=bool)[LABELS]
EXAMPLES = Example(jnp.zeros((6, 1, 1, 1)), jnp.asarray(LABELS))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def loss(logits=LOGITS, mass=MASS, **options):
    off = {"cap": 99.0, "calibration": 0.0, "penalty": 0.0, "adjustment": 0.0} | options
    aware = class_balanced(**off).with_off_label(jnp.asarray(mass, jnp.float32))
    return aware(jnp.asarray(logits, jnp.float32), EXAMPLES)


PLAIN = -np.log(softmax(LOGITS)[OWN])
OFF = np.where(OWN, 0, softmax(LOGITS))


def counted(share=SHARE):
    """A class of which nothing was seen counts as a hundredth of the uniform share."""
    return np.maximum(share, 0.01 / CLASSES)


def test_the_adjusted_cross_entropy_is_that_of_logits_with_the_rarity_added():
    shifted = LOGITS + np.where(OWN, 0, -0.7 * np.log(CLASSES * counted()))
    expected = -np.log(softmax(shifted)[OWN])
    np.testing.assert_allclose(loss(adjustment=0.7), expected, rtol=1e-4)
    np.testing.assert_allclose(loss(adjustment=0.7, cap=1.0), np.minimum(expected, 1), rtol=1e-4)


def test_the_reward_is_the_mean_log_probability_of_plausible_and_rare_classes():
    q = OFF * counted() ** -0.5
    q /= q.sum(1, keepdims=True)
    expected = PLAIN + 2 * np.sum(q * np.log(softmax(LOGITS)), 1)
    np.testing.assert_allclose(loss(calibration=2.0, temperature=0.5), expected, rtol=1e-4)


def test_the_penalty_is_first_order_in_what_an_example_adds_to_the_shares():
    def excess(mass):
        return np.sum(np.maximum(mass / mass.sum() - 1.5 / CLASSES, 0) ** 2)

    small = 1e-6
    slopes = [(excess(MASS + small * p) - excess(MASS - small * p)) / (2 * small) for p in OFF]
    expected = excess(MASS) + np.array(slopes)
    np.testing.assert_allclose(loss(penalty=3.0, penalise="share"), PLAIN - 3 * expected, rtol=1e-4)
    np.testing.assert_allclose(loss(penalty=3.0), PLAIN - 3 * MASS.sum() * expected, rtol=1e-4)


def test_of_classes_that_are_equally_near_the_rare_one_pulls_by_the_ratio_of_the_shares():
    logits = np.tile([0.0, 1.0, 1.0, 1.0], (6, 1))
    examples = Example(EXAMPLES.image, jnp.zeros(6, jnp.int32))
    aware = class_balanced(cap=99.0, penalty=0.0, adjustment=0.5).with_off_label(jnp.array([0.0, 0.8, 0.1, 0.1]))
    pulls = jax.grad(lambda z: jnp.sum(aware(z, examples)))(jnp.asarray(logits, jnp.float32))[0]
    assert pulls[0] < 0 and np.all(pulls[1:] > 0)
    np.testing.assert_allclose(pulls[2] / pulls[1], np.sqrt(8), rtol=1e-4)


def test_while_nothing_is_known_it_is_the_capped_cross_entropy():
    expected = capped_cross_entropy(2.0)(jnp.asarray(LOGITS, jnp.float32), EXAMPLES)
    np.testing.assert_allclose(loss(mass=np.zeros(CLASSES), cap=2.0, adjustment=0.5, penalty=1.0), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e3, 1e-3])
def test_values_and_gradients_stay_finite_where_probabilities_vanish(scale):
    options = {"calibration": 1.0, "penalty": 1.0, "adjustment": 1.0}
    for mass in (MASS, np.zeros(CLASSES), 1e-30 * MASS):
        value, gradient = jax.value_and_grad(lambda z, mass=mass: jnp.sum(loss(z, mass, **options)))(
            jnp.asarray(scale * LOGITS, jnp.float32)
        )
        assert np.isfinite(value) and np.isfinite(gradient).all()
