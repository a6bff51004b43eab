"""Universal perturbations crafted on one split and measured on another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import deepfool_uap, pgd, uap
from spa_jax.data.types import Split
from spa_jax.evaluation import (
    UniversalRecord,
    boundary_points,
    clean_answers,
    craft,
    evaluate_universal,
    measure_transfer,
    measure_universal,
    worst_record,
)
from spa_jax.parallel import data_mesh
from tests.analytic_victims import images, linear, margins, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W = jax.random.key(0), weights()
ATTACK = uap(0.1, rel_step_size=0.5)


def split(count=20, seed=0, low=0.3, high=0.7, one_class=True):
    x = np.asarray(images(seed, batch=count, low=low, high=high))
    return Split(x, np.zeros(count, np.int32) if one_class else (np.arange(count) % 2).astype(np.int32))


def mesh(count):
    return data_mesh(jax.devices()[:count])


def test_crafting_goes_over_the_data_to_the_optimum():
    state = craft(ATTACK, linear(W), split(), key=KEY, batch_size=8, num_epochs=2, mesh=mesh(2))
    assert state.step == 4
    np.testing.assert_allclose(state.variables, 0.1 * np.sign(W), atol=1e-6)


@pytest.mark.parametrize("devices", [1, 4])
def test_devices_do_not_matter(devices):
    data = split(one_class=False)
    found = [
        craft(uap(0.1, random_start=True), linear(W), data, key=KEY, batch_size=8, mesh=mesh(n)) for n in (devices, 2)
    ]
    np.testing.assert_allclose(found[0].variables, found[1].variables, atol=1e-6)


def test_fewer_images_than_devices_are_left_to_one():
    state = craft(ATTACK, linear(W), split(1), key=KEY, batch_size=8, num_epochs=2, mesh=mesh(2))
    np.testing.assert_allclose(state.variables, 0.1 * np.sign(W), atol=1e-6)


def test_a_target_leaves_its_own_class_out():
    seen = []

    def victim(x):
        seen.append(x.shape)
        return linear(W)(x)

    data = split(one_class=False)
    attack = uap(0.1, loss="cross_entropy", rel_step_size=0.5)
    state = craft(attack, victim, data, key=KEY, batch_size=32, num_epochs=3, target=1, mesh=mesh(2))
    assert (10, 4, 4, 1) in seen
    np.testing.assert_allclose(state.variables, 0.1 * np.sign(W), atol=1e-6)


def test_what_is_measured_is_what_the_victim_answers():
    data = split(30, seed=3, low=0.4, high=0.6)
    noise = jnp.asarray(0.1 * np.sign(W))
    record = measure_universal(ATTACK, linear(W), data, noise, key=KEY, batch_size=8, mesh=mesh(2))
    expected = (margins(W, data.images + 0.1 * np.sign(W), data.labels) > 0).astype(int)
    np.testing.assert_array_equal(record.answers, expected)
    np.testing.assert_array_equal(record.clean, margins(W, data.images, data.labels) > 0)
    assert record.num_classes == 2
    np.testing.assert_allclose(record.accuracy.value, 1 - expected.mean())
    np.testing.assert_allclose(record.fooling_ratio.value, np.mean(record.clean != expected))


def test_evaluation_crafts_anew_for_every_seed_and_target():
    attacks = {"UAP": uap(0.1, random_start=True), "to each": uap(0.1, loss="cross_entropy", rel_step_size=0.5)}
    found = evaluate_universal(
        linear(W),
        split(one_class=False),
        split(10, 5, one_class=False),
        attacks,
        key=KEY,
        batch_size=8,
        num_epochs=2,
        seeds=2,
        targets={"to each": (0, 1)},
        mesh=mesh(2),
    )
    assert {name: len(records) for name, records in found.items()} == {"UAP": 2, "to each": 4}
    assert [record.target for record in found["to each"]] == [0, 1, 0, 1]
    assert np.any(found["UAP"][0].variables != found["UAP"][1].variables)
    assert found["UAP"][0].passes == 32 and found["UAP"][0].crafting_images == 20
    for record, sign in zip(found["to each"][:2], (-1, 1), strict=True):
        np.testing.assert_allclose(record.variables, 0.1 * sign * np.sign(W), atol=1e-6)
    worst = worst_record([*found["UAP"], *found["to each"]])
    assert worst.accuracy.value == min(r.accuracy.value for records in found.values() for r in records)


def bright_is_nan(x):
    """NaN instead of an answer to images whose first pixel is brighter than 0.6."""
    return jnp.where(x[:, :1, 0, 0] > 0.6, jnp.nan, linear(W)(x))


def test_what_is_not_finite_counts_as_misclassified_and_as_no_answer():
    data, noise = split(30, seed=3, one_class=False), jnp.asarray(0.1 * np.sign(W)).at[0, 0].set(0.1)
    first = np.asarray(data.images)[:, 0, 0, 0]
    record = measure_universal(ATTACK, bright_is_nan, data, noise, key=KEY, batch_size=8, target=1, mesh=mesh(2))
    expected = (margins(W, np.clip(data.images + np.asarray(noise), 0, 1), np.zeros(30)) > 0).astype(int)
    broken = first + 0.1 > 0.6
    np.testing.assert_array_equal(record.answers, np.where(broken, -1, expected))
    np.testing.assert_array_equal(record.clean == -1, first > 0.6)
    assert 0 < record.broken == broken.sum() < 30
    assert record.accuracy.correct == np.sum(~broken & (expected == data.labels))
    others = data.labels != 1
    assert record.target_share.correct == np.sum(~broken & (expected == 1) & others)
    assert record.target_share.total == others.sum()
    assert record.flow.sum() == 30 - record.broken
    assert record.top_share == pytest.approx(np.bincount(expected[~broken]).max() / (~broken).sum())


def test_a_victim_that_answers_nothing_has_no_accuracy_left():
    def silent(x):
        return linear(W)(x) * jnp.nan

    record = measure_universal(ATTACK, silent, split(), jnp.zeros((4, 4, 1)), key=KEY, batch_size=8, mesh=mesh(2))
    assert record.accuracy.correct == 0 and record.broken == 20 and record.fooling_ratio.correct == 0
    assert record.flow.sum() == 0 and record.top_share == 0 and record.effective_labels == 1
    with pytest.raises(ValueError, match="classifies no image of another class correctly"):
        boundary_points(silent, split(), 1, 5, key=KEY, batch_size=8, mesh=mesh(2))


def test_the_images_as_they_are_are_shown_once():
    shown = []

    def victim(x):
        jax.debug.callback(lambda first: shown.append(float(first)), x[0, 0, 0, 0])
        return linear(W)(x)

    data = split(8, seed=3)
    first = float(data.images[0, 0, 0, 0])
    evaluate_universal(
        victim, split(), data, {"a": uap(0.1, random_start=True)}, key=KEY, batch_size=8, seeds=3, mesh=mesh(1)
    )
    jax.effects_barrier()
    assert np.sum(np.isclose(shown, first, atol=1e-7)) == 1
    clean = clean_answers(linear(W), data, key=KEY, batch_size=8, mesh=mesh(1))
    with pytest.raises(ValueError, match="clean holds 8 answers, must be one for each of the 20 images of split"):
        evaluate_universal(linear(W), split(), split(), {"a": ATTACK}, key=KEY, batch_size=8, clean=clean, mesh=mesh(1))


# --- the numbers ----------------------------------------------------------------------------------------------------


def record(answers, labels, clean=None, target=None):
    labels, answers = np.asarray(labels), np.asarray(answers)
    return UniversalRecord(labels, labels if clean is None else np.asarray(clean), answers, 4, None, target)


def test_numbers_of_one_dominant_label():
    found = record([3] * 8, [0, 0, 1, 1, 2, 2, 3, 3])
    assert found.accuracy.value == 0.25 and found.fooling_ratio.value == 0.75
    assert found.top_share == 1 and found.label_entropy == 0
    assert found.effective_labels == found.effective_wrong_labels == 1
    assert found.class_minimum == 0 and found.class_spread == pytest.approx(np.std([0, 0, 0, 1]))
    assert found.smallest_drop == 0
    np.testing.assert_array_equal(found.flow, [[0, 0, 0, 2]] * 4)
    gained = record([3] * 8, [0, 0, 1, 1, 2, 2, 3, 3], clean=[0, 0, 1, 2, 2, 2, 3, 0])
    assert gained.smallest_drop == -0.5


def test_numbers_of_answers_spread_evenly():
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    found = record((labels + 1) % 4, labels)
    assert found.label_entropy == pytest.approx(1) and found.effective_labels == pytest.approx(4)
    assert found.effective_wrong_labels == pytest.approx(4)
    assert found.smallest_drop == 1
    correct = record(labels, labels)
    assert correct.effective_labels == pytest.approx(4)
    assert correct.effective_wrong_labels == 1


def test_share_of_a_target_counts_the_other_classes():
    assert record([1, 1, 2, 1], [0, 1, 2, 3], target=1).target_share.value == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="target=None"):
        record([1], [0]).target_share  # noqa: B018


# --- near the boundary ----------------------------------------------------------------------------------------------


def test_boundary_points_are_the_smallest_margins_of_what_is_classified_correctly():
    data = split(40, seed=4, one_class=False)
    gaps = -margins(W, data.images, data.labels)
    found = boundary_points(linear(W), data, 1, 5, key=KEY, batch_size=16, mesh=mesh(2))
    usable = np.flatnonzero((gaps > 0) & (data.labels == 0))
    np.testing.assert_array_equal(found, usable[np.argsort(gaps[usable])][:5])
    assert len(boundary_points(linear(W), data, 1, 100, key=KEY, batch_size=16, mesh=mesh(2))) == len(usable)


@pytest.mark.parametrize(
    ("target", "count", "message"),
    [
        (0, 5, "target=0: the victim classifies no image of another class correctly"),
        (2, 5, r"classes must lie in \[0, 1\]"),
        (1, 0, "count=0 must be an integer of at least 1"),
    ],
)
def test_boundary_points_that_cannot_be_are_refused(target, count, message):
    with pytest.raises(ValueError, match=message):
        boundary_points(linear(W), split(), target, count, key=KEY, batch_size=16, mesh=mesh(2))


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (pgd(0.1), {}, "attack has variables for each image"),
        (ATTACK, {"num_epochs": 0}, "num_epochs=0 must be an integer of at least 1"),
        (ATTACK, {"split": split(0)}, "the crafting set is empty"),
        (ATTACK, {"target": 0}, "the crafting set is empty without target=0"),
        (uap(0.1, classes=3), {}, "bank of size=3 by 'label': the victim has 2 classes, one set for each"),
        (ATTACK, {"target": 5, "split": split(one_class=False)}, r"target.max\(\)=5: classes must lie in \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused(attack, options, message):
    options = {"split": split(), "batch_size": 8, "key": KEY, "mesh": mesh(2)} | options
    with pytest.raises(ValueError, match=message):
        craft(attack, linear(W), options.pop("split"), **options)


def test_transferred_perturbations_keep_their_cost_and_are_answered_by_the_other_victim():
    data, common = split(10, 5, one_class=False), {"key": KEY, "batch_size": 8, "mesh": mesh(2)}
    attacks = {"a": ATTACK}
    found = evaluate_universal(linear(W), split(), data, attacks, num_epochs=2, **common)
    moved = measure_transfer(attacks, found, linear(-W), data, **common)["a"][0]
    noise = found["a"][0].variables
    np.testing.assert_array_equal(moved.answers, margins(-W, data.images + noise, np.zeros(10)) > 0)
    np.testing.assert_array_equal(moved.clean, margins(-W, data.images, np.zeros(10)) > 0)
    assert moved.passes == found["a"][0].passes == 32 and moved.variables is noise


def test_targets_of_an_attack_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="name attacks that are not there; there are a"):
        evaluate_universal(
            linear(W), split(), split(), {"a": ATTACK}, key=KEY, batch_size=8, targets={"b": (0,)}, mesh=mesh(2)
        )


def test_targets_that_are_not_classes_are_refused_before_anything_is_crafted():
    def count(what, done, total):
        raise AssertionError(what)

    with pytest.raises(ValueError, match=r"targets\['b'\] holds 2: classes must lie in \[0, 1\] for 2 classes"):
        evaluate_universal(
            linear(W),
            split(),
            split(),
            {"a": ATTACK, "b": ATTACK},
            key=KEY,
            batch_size=8,
            targets={"b": (0, 2)},
            mesh=mesh(2),
            on_batch=count,
        )


def test_the_slow_reference_takes_all_images_as_one_batch():
    state = craft(deepfool_uap(0.2, success_share=0.5), linear(W), split(), key=KEY, batch_size=20, mesh=mesh(1))
    assert state.rate >= 0.5
