"""Images to look at: which are kept, that they are those of the verdict, and that memory stays bounded."""

import jax
import numpy as np
import pytest

from spa_jax import attribute_attack, fgsm, pgd, spa
from spa_jax.data.types import Split
from spa_jax.evaluation import evaluate
from spa_jax.evaluation.gallery import Collector, Sighting
from spa_jax.types import Result

pytestmark = pytest.mark.usefixtures("quick_compilation")


def sightings(count=200, classes=7, size=4, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(3, count, size, size, 1)).astype(np.float32)
    fooled = rng.uniform(size=count) < 0.5
    labels = rng.integers(0, classes, count).astype(np.int32)
    closeness = rng.normal(size=count).astype(np.float32)
    index = np.sort(rng.choice(10 * count, count, replace=False)).astype(np.int32)
    return Sighting(index, labels, fooled, labels, labels, closeness, *images, {"rotation": closeness})


def collected(seen, per_class, batch=13, is_image=None):
    collector = Collector(per_class)
    keep = np.ones(len(seen.index), bool) if is_image is None else is_image
    for start in range(0, len(seen.index), batch):
        part = slice(start, start + batch)
        collector.add(jax.tree.map(lambda leaf, part=part: leaf[part], seen), keep[part])
    return collector.gallery({"rotation": ["rotation"]}, True)


def expected(seen, per_class):
    """By plain loops: indices of each class's first fooled examples, then of its survivors of the largest loss."""
    chosen = []
    for label in sorted(set(seen.label.tolist())):
        own = [i for i in range(len(seen.index)) if seen.label[i] == label]
        fooled = [i for i in own if seen.fooled[i]]
        survivors = sorted((i for i in own if not seen.fooled[i]), key=lambda i: -seen.closeness[i])
        chosen += fooled[:per_class] + survivors[: (per_class + 1) // 2]
    return [int(seen.index[i]) for i in chosen]


@pytest.mark.parametrize("per_class", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 13, 500])
def test_the_first_fooled_and_the_closest_survivors_are_kept(per_class, batch):
    seen = sightings()
    found = collected(seen, per_class, batch).sighting
    assert found.index.tolist() == expected(seen, per_class)
    rows = np.searchsorted(seen.index, found.index)
    np.testing.assert_array_equal(found.attacked, seen.attacked[rows])
    np.testing.assert_array_equal(found.attributes["rotation"], seen.attributes["rotation"][rows])


def test_a_thinner_gallery_is_chosen_by_the_same_rule():
    seen = sightings()
    full = collected(seen, 5)
    assert full.thinned(2).sighting.index.tolist() == expected(seen, 2)
    few = full.thinned(5, 9).sighting
    assert len(few.index) == 9
    assert set(few.label.tolist()) == set(range(7))  # the first of each class before the second of any


@pytest.mark.parametrize("batch", [50, 5000])
def test_the_number_of_images_is_bounded_and_no_class_is_preferred(batch):
    seen = sightings(count=3000, classes=300, size=1)
    found = collected(seen, 8, batch).sighting
    assert len(found.index) == 400
    first = {}
    for i, label in enumerate(seen.label.tolist()):
        if seen.fooled[i]:
            first.setdefault(label, int(seen.index[i]))
    assert set(first.values()) <= set(found.index.tolist())


def test_large_images_are_reduced_by_the_mean_of_blocks():
    seen = sightings(count=2, classes=1, size=230)
    found = collected(seen, 2).sighting
    assert found.clean.shape[1:] == (76, 76, 1)
    row = int(np.flatnonzero(seen.index == found.index[0])[0])
    np.testing.assert_allclose(found.clean[0, 0, 0, 0], seen.clean[row, :3, :3, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(found.attacked[0, 75, 2, 0], seen.attacked[row, 225:228, 6:9, 0].mean(), rtol=1e-5)


def test_what_is_no_image_is_left_out_and_an_infinite_loss_is_closest():
    seen = sightings(count=6, classes=1)
    seen = seen._replace(fooled=np.zeros(6, bool), closeness=np.array([0, np.nan, np.inf, 1, 2, 3], np.float32))
    is_image = np.array([True, True, True, True, True, False])
    assert collected(seen, 4, is_image=is_image).sighting.index.tolist() == seen.index[[2, 4]].tolist()
    assert collected(seen, 4, is_image=np.zeros(6, bool)) is None


def _evaluated(victim, split, attacks, **options):
    options = {"key": jax.random.key(0), "batch_size": 32, "sanity": False, "survivors_only": False} | options
    return evaluate(victim, split, attacks, **options)


def test_an_evaluation_keeps_what_it_has_judged(linear_victim, split):
    attacks = {"pgd": pgd(0.02, num_steps=3), "joint": spa(0.01, {"rotation": (-20, 20)}, num_steps=2)}
    report = _evaluated(linear_victim, split, attacks, examples_per_class=3)
    plain = _evaluated(linear_victim, split, attacks)
    for name, record in report.attacks.items():
        np.testing.assert_array_equal(record.correct, plain.attacks[name].correct)
        assert plain.attacks[name].gallery is None
        seen, gallery = record.gallery.sighting, record.gallery
        np.testing.assert_array_equal(seen.fooled, ~record.correct[seen.index])
        np.testing.assert_array_equal(seen.clean, split.images[seen.index])
        np.testing.assert_array_equal(seen.label, split.labels[seen.index])
        own_answers = np.argmax(linear_victim(seen.attacked), axis=-1)
        np.testing.assert_array_equal(seen.answer, own_answers)
        np.testing.assert_array_equal(seen.fooled, own_answers != seen.label)
        first = [np.flatnonzero((split.labels == c) & report.clean & ~record.correct)[:3] for c in (0, 1)]
        assert seen.index[seen.fooled].tolist() == np.concatenate(first).tolist()
        assert np.abs(gallery.noise).max() <= 0.02 + 1e-6
        assert gallery.moves_noise
    joint = report.attacks["joint"].gallery
    assert joint.names == {"rotation": ["rotation"]} and joint.numbers.shape == (len(joint), 1)
    assert np.abs(joint.numbers).max() <= 20
    np.testing.assert_array_equal(
        joint.sighting.edited_answer, np.argmax(linear_victim(joint.sighting.edited), axis=-1)
    )
    assert report.attacks["pgd"].gallery.names == {}


def test_the_numbers_stand_in_the_order_of_the_attack(linear_victim, split):
    attack = spa(0.01, {"rotation": (-20, 20), "brightness": (-0.1, 0.1)}, num_steps=1, start="none")
    gallery = _evaluated(linear_victim, split, {"both": attack}, examples_per_class=2).attacks["both"].gallery
    assert list(gallery.names) == ["rotation", "brightness"]
    for column, name in enumerate(gallery.names):
        np.testing.assert_array_equal(gallery.numbers[:, column], gallery.sighting.attributes[name])
    assert not np.allclose(gallery.numbers[:, 0], gallery.numbers[:, 1])


def test_an_attack_of_attributes_alone_has_no_noise(linear_victim, split):
    attacks = {"turned": attribute_attack("rotation", -20, 20, num_steps=5)}
    gallery = _evaluated(linear_victim, split, attacks, examples_per_class=2).attacks["turned"].gallery
    assert not gallery.moves_noise and gallery.names == {"rotation": ["rotation"]}
    np.testing.assert_array_equal(gallery.noise, 0)


def test_the_survivors_are_those_of_the_largest_loss(linear_victim, split, margins):
    """Of FGSM with the margin on a linear victim the loss is radius minus distance: the closest come first."""
    report = _evaluated(linear_victim, split, {"fgsm": fgsm(0.003, loss="margin")}, examples_per_class=4)
    seen = report.attacks["fgsm"].gallery.sighting
    for label in (0, 1):
        kept = seen.index[~seen.fooled & (seen.label == label)].tolist()
        standing = np.flatnonzero((margins > 0.003) & (split.labels == label))
        assert kept == standing[np.argsort(margins[standing])][:2].tolist()


def test_images_out_of_range_are_not_shown(linear_victim, split):
    def careless(key, victim, images, labels):
        return Result(images + 2.0, {}, images[:, 0, 0, 0], labels == labels)

    report = _evaluated(
        linear_victim, Split(split.images[:40], split.labels[:40]), {"c": careless}, examples_per_class=2
    )
    assert report.attacks["c"].invalid > 0 and report.attacks["c"].gallery is None


def test_a_negative_number_of_examples_is_named(linear_victim, split):
    with pytest.raises(ValueError, match="examples_per_class=-1 must be 0 or larger"):
        _evaluated(linear_victim, split, {}, examples_per_class=-1)
