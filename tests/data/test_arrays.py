"""Arrays of one's own in a .npz file."""

import numpy as np
import pytest

from spa_jax.data import load_dataset
from spa_jax.errors import DataNotFoundError


def _arrays(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "train_image": rng.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8),
        "train_label": np.arange(40) % 4,
        "train_attribute": rng.normal(size=(40, 2)),
        "attribute_names": np.array(["gloss", "tilt"]),
        "attribute_units": np.array(["shares", "degrees"]),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def _load(tmp_path, **changes):
    np.savez(tmp_path / "mine.npz", **_arrays(**changes))
    return load_dataset("npz", data_dir=tmp_path, file="mine.npz")


def test_what_is_in_the_file_is_in_the_data_set(tmp_path):
    dataset = _load(tmp_path)
    assert dataset.name == "mine" and dataset.image_shape == (6, 5, 3) and dataset.num_classes == 4
    assert dataset.split_sizes == {"train": 29, "validation": 3, "test": 8}
    assert [(info.name, info.unit) for info in dataset.attributes] == [("gloss", "shares"), ("tilt", "degrees")]
    assert dataset.train.take(np.arange(3))["attribute"].shape == (3, 2)


def test_own_splits_and_names_are_kept(tmp_path):
    own = {"test_image": np.ones((2, 6, 5, 3), np.uint8), "test_label": np.array([0, 3])}
    own |= {"test_attribute": np.zeros((2, 2)), "class_names": np.array(["a", "b", "c", "d"])}
    dataset = _load(tmp_path, **own)
    assert len(dataset.test) == 2 and dataset.class_names == ("a", "b", "c", "d")


def test_attributes_are_numbered_where_they_have_no_names(tmp_path):
    dataset = _load(tmp_path, attribute_names=None, attribute_units=None)
    assert dataset.attribute_names == ("attribute_0", "attribute_1")


def test_images_need_no_attributes(tmp_path):
    assert _load(tmp_path, train_attribute=None).attributes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_image": None}, "there must be train_image"),
        ({"train_label": None}, "train_label is missing beside train_image"),
        ({"train_image": np.zeros((40, 6, 5))}, "images.dtype=float64"),
    ],
)
def test_broken_files_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _load(tmp_path, **changes)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"file='no.npz' does not exist \(looked for /"):
        load_dataset("npz", data_dir=tmp_path, file="no.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(DataNotFoundError, match=r"is not an \.npz file"):
        load_dataset("npz", data_dir=tmp_path, file="text.npz")
