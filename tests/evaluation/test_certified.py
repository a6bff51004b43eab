"""Certified sweeps are sound: no sampled value leaves its bounds, and the share is that of a victim that is known."""

import functools
import itertools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import EDITS, classifier, randomized
from spa_jax.data import Split
from spa_jax.evaluation.bands import Band, output_bounds
from spa_jax.evaluation.certified import certify, measure_certified, pixel_bounds
from spa_jax.evaluation.certified_report import certified_section, write_certified
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
        below, above, slope = (np.asarray(own)[None] for own in found)
        line = np.linspace(-1, 1, len(inside))[:, None, None, None] * slope
        assert np.all(inside >= below + line) and np.all(inside <= above + line), (low, high)
        width.append(float(jnp.mean(found.high - found.low)))
    if cells == 400:
        assert np.mean(width) < 0.06


def test_pixels_hardly_leave_their_chords_in_small_cells():
    """Half the cell, a quarter of the spread, but for pixels that cross a line of pixels."""
    image = images(5, 1, size=(7, 9, 1))[0]
    spread = [pixel_bounds("rotation", image, 10.0, 10.0 + width).spread - 1e-5 for width in (2.0, 1.0)]
    assert np.median(spread[0]) > 3 * np.median(spread[1]) > 1e-4
    moved = pixel_bounds("rotation", image, 10.0, 11.0).slope
    assert np.mean(np.abs(moved)) > 4 * np.mean(spread[1])
    line = pixel_bounds("contrast", image, 0.9, 1.1)
    np.testing.assert_allclose(line.spread[(image > 0.1) & (image < 0.9)], 1e-5, atol=1e-6)


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
        bounds = output_bounds(victim, Band.between(low, high))
        for _ in range(40):
            share = jnp.asarray(rng.choice([0.0, 0.5, 1.0], low.shape), jnp.float32)
            logits = victim(low + share * width)
            assert np.all(logits >= bounds.low - 1e-5) and np.all(logits <= bounds.high + 1e-5)
        spread = float(jnp.max(bounds.high - bounds.low))
        assert (spread < 1e-5) if width == 0 else (1e-4 < spread < 300 * width)


def test_bounds_of_one_layer_are_reached():
    bounds = output_bounds(linear(W), Band.between(jnp.zeros((1, 4, 4, 1)), jnp.ones((1, 4, 4, 1))))
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
        output_bounds(victim, Band.between(jnp.zeros((1, 4, 4, 1)), jnp.ones((1, 4, 4, 1))))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: 1 / x,
            "primitive='div' has an interval rule for floats alone; of a product one side, of a quotient the divisor",
        ),
        (lambda x: x / jnp.sum(x), "primitive='div'"),
        (lambda x: (300 * x).astype(jnp.int32) - 1, "primitive='sub' has an interval rule for floats alone"),
        (
            lambda x: (300 * x).astype(jnp.int8).astype(jnp.float32),
            "rule for int8, whose numbers wrap around",
        ),
        (lambda x: jnp.where(x.astype(bool), x, 1), "no interval rule for bool"),
    ],
)
def test_what_has_no_sound_rule_is_refused(function, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        output_bounds(function, Band.between(jnp.full(3, 0.5), jnp.full(3, 1.5)))


# --- sweeps ---------------------------------------------------------------------------------------------------------


@functools.lru_cache
def known():
    """Images with labels, a range of brightness, and who stands in all of it; who is near to the bound is left out.

    Brightness moves the margin of the linear victim by sum(w) a, without clipping: both ends decide.
    """
    x = images(7, 40, low=0.4, high=0.6)
    y = np.asarray(margins(W, x, np.zeros(40)) > 0, np.int32)
    slope = np.abs(np.sum(np.asarray(W, np.float64)))
    own = -margins(W, x, y)
    shift = float(np.median(own) / slope)
    assert shift < 0.4
    clear = np.abs(own - slope * shift) > 0.005
    robust = own > slope * shift
    assert 5 < robust.sum() < 35 and clear.sum() > 30
    return np.asarray(x)[clear], y[clear], shift, robust[clear]


def test_the_share_proved_is_that_of_a_victim_that_is_known():
    x, y, shift, robust = known()
    found = certify(linear(W), jnp.asarray(x), jnp.asarray(y), "brightness", -shift, shift, cells=8, splits=10)
    np.testing.assert_array_equal(found.proved, robust)
    np.testing.assert_array_equal(found.broken, ~robust)


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
        ({"images": images()[:0], "labels": jnp.zeros(0, jnp.int32)}, "images holds no image"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"images": images(), "labels": jnp.zeros(4, jnp.int32), "edit": "contrast", "low": -5.0, "high": 5.0}
    with pytest.raises(ValueError) as caught:
        certify(linear(W), **(arguments | changes))
    assert message in str(caught.value)


# --- beside a sweep -------------------------------------------------------------------------------------------------


def measured(victim, **options):
    x, y, shift, _ = known()
    options = {"points": 5, "cells": 8, "splits": 10} | options
    return measure_certified(victim, Split(x, y), "brightness", -shift, shift, key=KEY, batch_size=16, **options)


def test_a_sweep_of_both_ends_leaves_what_is_proved_of_a_victim_that_is_known():
    record, robust = measured(linear(W)), known()[3]
    np.testing.assert_array_equal(record.unbroken, robust)
    np.testing.assert_array_equal(record.certificate.proved, robust)
    assert record.correct.all() and record.reason == ""


def test_what_draws_or_has_no_rule_is_swept_alone():
    draws = measured(randomized(lambda keys, x: linear(W)(x)))
    assert draws.certificate is None and draws.reason == "the victim draws at random"
    np.testing.assert_array_equal(draws.unbroken, known()[3])
    odd = measured(lambda x: jnp.sin(linear(W)(x)))
    assert odd.certificate is None and "primitive='sin' has no interval rule" in odd.reason


def test_the_report_has_both_shares_of_each_model(tmp_path):
    models = {"linear": measured(linear(W)), "drawing": measured(randomized(lambda keys, x: linear(W)(x)))}
    section = {"attribute": "brightness", "low": -0.1, "high": 0.1, "points": 5}
    write_certified(models, section, tmp_path)
    found = json.loads((tmp_path / "certified.json").read_text())
    robust = known()[3]
    own, other = found["models"]["linear"], found["models"]["drawing"]
    assert own["proved"]["correct"] == own["unbroken"]["correct"] == robust.sum() and own["cells"] >= 8 * len(robust)
    assert other["proved"] is None and other["unbroken"] == own["unbroken"] and found["points"] == 5
    part = certified_section(models, section)
    assert "brightness from -0.1 to 0.1" in part.title
    assert f"Of {len(robust)} examples" in part.words and "at each of 5 points" in part.words
    (name, *_, proved, undecided, note), (_, _, _, nothing, _, reason) = part.rows
    assert (name, proved.correct, undecided.correct, note) == ("linear", robust.sum(), 0, "")
    assert nothing is None and reason == "the victim draws at random"
    with pytest.raises(ValueError, match=r"models=\{\} must hold at least one"):
        write_certified({}, section, tmp_path)
