"""Curves against closed forms, and that a curve is one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import fab, fgsm, fmn, pgd
from spa_jax.data.types import Split
from spa_jax.evaluation import accuracy_by_attribute, accuracy_by_radius, evaluate, robustness_curve
from spa_jax.parallel import data_mesh

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_accuracy_by_radius_of_a_linear_victim_counts_the_margins(linear_victim, split, margins):
    radii = [0.01, 0.002, 0.005, 0.0]
    curve = accuracy_by_radius(linear_victim, split, fgsm, radii, name="fgsm", key=KEY, batch_size=32)
    assert (curve.kind, curve.name, curve.values, curve.total) == ("radius", "fgsm", (0.0, 0.002, 0.005, 0.01), 101)
    assert list(curve.correct) == [int((margins > radius).sum()) for radius in curve.values]
    assert [p.correct for p in curve.accuracies] == list(curve.correct)


def test_one_run_of_a_minimal_norm_attack_is_the_whole_curve(linear_victim, split, margins):
    """Of a linear victim of unit slopes in l1, the distance in linf is the margin."""
    found = robustness_curve(linear_victim, split, fmn("linf"), key=KEY, batch_size=32)
    distances = np.maximum(margins, 0)
    assert found.norm == "linf"
    np.testing.assert_allclose(found.distances, distances, rtol=5e-3, atol=1e-6)
    np.testing.assert_allclose(found.median, np.median(distances), rtol=5e-3)
    for radius in (0.0, 0.002, 0.005, 1.0):
        assert abs(found.accuracy(radius).correct - (margins > radius).sum()) <= 1
    curve = found.curve("fmn")
    assert (curve.kind, curve.name, curve.total) == ("nearest", "fmn (linf)", 101)
    assert curve.values[0] == 0 and curve.values[-1] == found.distances.max()
    assert curve.correct[0] == (margins > 0).sum() and curve.correct[-1] == 0


def test_what_is_out_of_reach_is_infinitely_far_and_what_is_wrong_at_no_distance(split):
    """A victim that always answers class 1: half of the labels are wrong as they are, and no image fools the others."""

    def stubborn(x):
        return jnp.stack([jnp.zeros(len(x)), jnp.ones(len(x)) + 0 * x.sum((1, 2, 3))], axis=-1)

    found = robustness_curve(stubborn, split, fab("l2", num_steps=2), key=KEY, batch_size=64)
    np.testing.assert_array_equal(found.distances, np.where(split.labels == 1, np.inf, 0))
    assert found.median == (np.inf if np.mean(split.labels == 1) > 0.5 else 0)
    assert found.curve("fab").values == (0.0,)


def test_an_attack_at_any_distance_takes_nothing_from_those_after_it(linear_victim, split, margins):
    attacks = {"fmn": fmn("linf", num_steps=30), "pgd": pgd(0.005), "near": fmn("linf", 0.005)}
    report = evaluate(linear_victim, split, attacks, key=KEY, batch_size=32, sanity=False)
    assert list(report.conditions) == ["clean", "pgd", "near", "worst_case"]
    assert report.attacks["fmn"].attacked == report.attacks["pgd"].attacked == (margins > 0).sum()
    assert report.accuracies["worst_case"].correct == (margins > 0.005).sum()
    assert report.attacks["near"].nearest is None
    assert [curve.name for curve in report.drawn_curves] == ["fmn (linf)"]


def test_only_attacks_that_look_for_the_nearest_image_have_such_a_curve(linear_victim, split):
    for attack in (pgd(0.1), fmn(radius=0.5)):
        with pytest.raises(ValueError, match="must look for the nearest image at any distance"):
            robustness_curve(linear_victim, split, attack, key=KEY, batch_size=32)


def test_a_whole_curve_is_one_program(linear_victim, split):
    batches = []

    def logits(weights, images):
        batches.append(len(images))
        return linear_victim.func(weights, images)

    victim = jax.tree_util.Partial(logits, linear_victim.args[0])
    options = {"name": "fgsm", "key": KEY, "batch_size": 32}
    accuracy_by_radius(victim, split, fgsm, [0.001], **options)
    batches.clear()
    accuracy_by_radius(victim, split, fgsm, [0, 1e-3, 2e-3, 0.5, 1], **options)
    assert batches == []


def bright_logits(threshold, images):
    """Class 1 where the mean pixel exceeds the threshold."""
    score = jnp.mean(images, axis=(1, 2, 3)) - threshold
    return jnp.stack([jnp.zeros_like(score), score], axis=-1)


@pytest.mark.parametrize("mesh", [None, "one"])
def test_accuracy_by_attribute_counts_every_value(mesh):
    """Uniform images of level i / 100, all labelled 1: brighter by s, those with i / 100 + s > 0.5 are right."""
    levels = np.arange(10, 80, dtype=np.float32) / 100
    split = Split(np.ones((70, 4, 4, 1), np.float32) * levels[:, None, None, None], np.ones(70, np.int32))
    victim = jax.tree_util.Partial(bright_logits, jnp.asarray(0.5))
    values = [0.105, -0.105, 0.0]
    mesh = data_mesh(jax.devices()[:1]) if mesh else None
    curve = accuracy_by_attribute(victim, split, "brightness", values, key=KEY, batch_size=32, mesh=mesh)
    assert curve.values == (-0.105, 0.0, 0.105)
    assert list(curve.correct) == [int((levels + value > 0.5).sum()) for value in curve.values]
    assert (curve.kind, curve.name, curve.total) == ("attribute", "brightness", 70)


def test_default_grid_spans_the_range_with_the_identity(linear_victim, split):
    curve = accuracy_by_attribute(linear_victim, split, "contrast", key=KEY, batch_size=128)
    assert (curve.values[0], curve.values[-1]) == pytest.approx((0.7, 1.3))
    assert 1.0 in curve.values


def test_bad_arguments_are_named(linear_victim, split):
    options = {"key": KEY, "batch_size": 32}
    with pytest.raises(ValueError, match="radii must not be empty"):
        accuracy_by_radius(linear_victim, split, fgsm, [], name="fgsm", **options)
    with pytest.raises(ValueError, match=r"radius=-0.1 must be 0 or larger"):
        accuracy_by_radius(linear_victim, split, fgsm, [-0.1], name="fgsm", **options)
    with pytest.raises(ValueError, match="finite"):
        accuracy_by_attribute(linear_victim, split, "rotation", [float("nan")], **options)
    with pytest.raises(ValueError, match="finite"):
        accuracy_by_attribute(linear_victim, split, "rotation", [], **options)
    with pytest.raises(ValueError, match="RGB"):
        accuracy_by_attribute(linear_victim, split, "hue", [0.1], **options)
