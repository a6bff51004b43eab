"""Certified sweeps are sound: no sampled value leaves its bounds, and the share is that of a victim that is known."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import EDITS, classifier
from spa_jax.evaluation.certified import certify, pixel_bounds
from spa_jax.evaluation.intervals import interval_bounds
from spa_jax.models import SmallCNN
from tests.analytic_victims import images, linear, margins, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W = jax.random.key(0), weights()
RANGES = {"rotation": (-40.0, 40.0), "brightness": (-0.3, 0.3), "contrast": (0.5, 1.5), "saturation": (0.0, 2.0)}


def network(size=8):
    model = SmallCNN(width=3, hidden=6, convs_per_stage=1)
    variables = model.init(jax.random.key(1), jnp.zeros((1, size, size, 1)))
    return classifier(model, variables, 0.3, 0.4)


@functools.lru_cache
def over_values(edit):
    return jax.jit(jax.vmap(EDITS[edit].function, (None, 0)))


def sampled(edit, image, low, high, count):
    return over_values(edit)(image, np.linspace(low, high, count).astype(np.float32))


@pytest.mark.parametrize("edit", RANGES)
@pytest.mark.parametrize("cells", [3, 40, 400])
def test_no_pixel_leaves_its_bounds(edit, cells):
    image = images(5, 1, size=(7, 9, 3))[0]
    ends = np.linspace(*RANGES[edit], cells + 1).astype(np.float32)
    bound = jax.jit(lambda low, high: pixel_bounds(edit, image, low, high))
    width = []
    for low, high in itertools.pairwise(ends):
        inside = sampled(edit, image, low, high, 8000 // cells)
        found = bound(low, high)
        assert np.all(inside >= found.low[None]) and np.all(inside <= found.high[None]), (low, high)
        width.append(float(jnp.mean(found.high - found.low)))
    if cells == 400:
        assert np.mean(width) < 0.06


def test_the_bounds_of_a_small_cell_are_as_wide_as_what_the_image_does():
    """In a cell of a tenth of a degree the bounds may be a few times as wide as the range of the samples."""
    image = images(5, 1, size=(7, 9, 1))[0]
    found = pixel_bounds("rotation", image, 10.0, 10.1)
    inside = sampled("rotation", image, 10.0, 10.1, 200)
    moved = float(jnp.mean(jnp.max(inside, 0) - jnp.min(inside, 0)))
    assert moved > 0.001 and float(jnp.mean(found.high - found.low)) < 4 * moved + 5e-4


@pytest.mark.parametrize("size", [8, 9])
def test_no_logit_of_a_network_leaves_its_bounds(size):
    victim = network(size)
    rng = np.random.default_rng(0)
    low = jnp.asarray(rng.uniform(0, 0.9, (4, size, size, 1)), jnp.float32)
    for width in (0.0, 0.003, 0.1):
        high = low + width
        bounds = interval_bounds(victim, low, high)
        for _ in range(40):
            share = jnp.asarray(rng.choice([0.0, 0.5, 1.0], low.shape), jnp.float32)
            logits = victim(low + share * width)
            assert np.all(logits >= bounds.low - 1e-5) and np.all(logits <= bounds.high + 1e-5)
        spread = float(jnp.max(bounds.high - bounds.low))
        assert (spread < 1e-5) if width == 0 else (1e-4 < spread < 300 * width)


def test_bounds_of_one_layer_are_reached():
    bounds = interval_bounds(linear(W), jnp.zeros((1, 4, 4, 1)), jnp.ones((1, 4, 4, 1)))
    reach = np.abs(np.asarray(W, np.float64)).sum() / 4
    centre = np.zeros(2)
    np.testing.assert_allclose(bounds.high[0], centre + reach, rtol=1e-5)
    np.testing.assert_allclose(bounds.low[0], centre - reach, rtol=1e-5)


class Odd(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return jnp.sin(nn.Dense(2)(x.reshape(len(x), -1)))


def test_a_primitive_without_a_rule_is_named():
    model = Odd()
    victim = classifier(model, model.init(KEY, jnp.zeros((1, 4, 4, 1))))
    with pytest.raises(ValueError, match="primitive='sin' has no interval rule; those with one are add"):
        interval_bounds(victim, jnp.zeros((1, 4, 4, 1)), jnp.ones((1, 4, 4, 1)))


# --- sweeps ---------------------------------------------------------------------------------------------------------


def test_the_share_proved_is_that_of_a_victim_that_is_known():
    """Brightness moves the margin of the linear victim by sum(w) a, without clipping: both ends decide."""
    x = images(7, 40, low=0.4, high=0.6)
    y = jnp.asarray((margins(W, x, np.zeros(40)) > 0), jnp.int32)
    slope = np.sum(np.asarray(W, np.float64))
    own = -margins(W, x, np.asarray(y))
    shift = float(np.median(own) / np.abs(slope))
    assert shift < 0.4
    reach = np.abs(slope) * shift
    robust = own > reach
    assert 5 < robust.sum() < 35
    clear = np.abs(own - reach) > 0.005
    assert clear.sum() > 30
    found = certify(linear(W), x, y, "brightness", -shift, shift, cells=8, splits=10)
    np.testing.assert_array_equal(found.proved[clear], robust[clear])
    np.testing.assert_array_equal(found.broken[clear], ~robust[clear])


def test_a_proof_of_a_network_holds_at_thousands_of_angles():
    victim = network()
    x = images(3, 12, size=(8, 8, 1))
    y = jnp.argmax(victim(x), axis=-1)
    found = certify(victim, x, y, "rotation", -6.0, 6.0, cells=60, splits=4)
    assert not np.any(found.proved & found.broken)
    assert found.proved.sum() >= 3 and found.cells >= 12 * 60
    answers = [np.asarray(jnp.argmax(victim(sampled("rotation", image, -6.0, 6.0, 3000)), axis=-1)) for image in x]
    stands = np.array([np.all(own == label) for own, label in zip(answers, np.asarray(y), strict=True)])
    assert np.all(stands[found.proved]), "a proof that a value refutes"
    assert np.all(~stands | found.proved | found.undecided)


def test_images_that_are_wrong_somewhere_are_broken_and_never_proved():
    victim = network()
    x = images(3, 6, size=(8, 8, 1))
    wrong = (jnp.argmax(victim(x), axis=-1) + 1) % 10
    found = certify(victim, x, wrong, "contrast", 0.8, 1.2, cells=4, splits=1)
    assert not found.proved.any() and found.broken.all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit": "hue"}, "edit='hue' must be one of rotation"),
        ({"low": 5.0}, "low=5.0, high=5.0 must be a range"),
        ({"edit": "rotation", "high": 100.0}, "of angles within 90 degrees"),
        ({"cells": 0}, "cells=0"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"edit": "contrast", "low": -5.0, "high": 5.0} | changes
    with pytest.raises(ValueError) as caught:
        certify(linear(W), images(), jnp.zeros(4, jnp.int32), **arguments)
    assert message in str(caught.value)
