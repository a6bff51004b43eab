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
    nothing = dict.fromkeys(("train_attribute", "attribute_names", "attribute_units"))
    assert _load(tmp_path, **nothing).attributes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_image": None}, "file='mine.npz' holds .*train_label; there must be train_image"),
        ({"train_label": None}, "train_label is missing beside train_image"),
        ({"test_label": np.zeros(2)}, "holds test_label, but not test_image"),
        ({"train_image": np.zeros((40, 6, 5))}, "arrays of train: images.dtype=float64"),
        ({"train_image": np.zeros((40, 6, 5), np.uint8)}, r"arrays of train: images.shape=\(40, 6, 5\); its rank"),
        ({"train_image": np.zeros((39, 6, 5, 3), np.uint8)}, "arrays of train: images holds 39 examples, labels 40"),
        (
            {"train_image": np.zeros((0, 6, 5, 3), np.uint8), "train_label": np.zeros(0, int)},
            r"train_label.shape=\(0,\)",
        ),
        ({"train_image": np.zeros((40, 3, 8, 8), np.uint8)}, r"image_shape=\(3, 8, 8\) looks like .*channels, height"),
    ],
)
def test_broken_files_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _load(tmp_path, **changes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(40) % 2 + 0.7, "train_label holds 0.7; labels must be whole numbers"),
        (np.where(np.arange(40) == 3, np.nan, 0), "train_label holds nan; labels must be whole numbers"),
        (np.where(np.arange(40) == 3, np.inf, 0), r"train_label.max\(\)=inf; labels must be in"),
        (np.arange(40) % 2 - 1, r"train_label.min\(\)=-1, train_label.max\(\)=0; labels must be in 0\.\."),
        (np.where(np.arange(40) == 3, 2**40 + 1, 0), r"train_label.max\(\)=1099511627777; labels must be in 0\.\."),
        (np.where(np.arange(40) == 3, 2**32, 0).astype(np.uint64), r"train_label.max\(\)=4294967296; labels"),
        (np.array(["cat", "dog"] * 20), "train_label.dtype=<U3; labels must be numbers.*class_names"),
        (np.zeros((40, 2), int), r"train_label.shape=\(40, 2\); there must be one label for each image"),
        (np.where(np.arange(40) == 3, 1_000_000, 0), "largest label, 1000000, makes 1000001 classes of 40 images"),
    ],
)
def test_wrong_labels_are_refused_before_they_are_cast(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        _load(tmp_path, train_label=labels)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float64, np.float16])
def test_labels_of_every_type_that_holds_whole_numbers_are_read(tmp_path, dtype):
    dataset = _load(tmp_path, train_label=(np.arange(40) % 4).astype(dtype))
    assert dataset.train.labels.dtype == np.int32 and dataset.num_classes == 4
    counts = [np.bincount(split.labels, minlength=4) for split in (dataset.train, dataset.validation, dataset.test)]
    assert np.sum(counts, axis=0).tolist() == [10] * 4


def test_labels_have_to_be_among_the_class_names(tmp_path):
    with pytest.raises(ValueError, match=r"labels.max\(\)=3; labels must be in 0\.\.0, for num_classes=1"):
        _load(tmp_path, class_names=np.array(["cat"]))
    with pytest.raises(ValueError, match=r"class_names.shape=\(\)"):
        _load(tmp_path, class_names=np.array("cat"))
    assert _load(tmp_path, class_names=np.array(list("abcdefgh"))).num_classes == 8


def test_classes_without_names_and_training_images_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="1 of the 5 classes have no training image, the first is class 0"):
        assert _load(tmp_path, train_label=np.arange(40) % 4 + 1).num_classes == 5


def test_a_class_that_only_the_test_has_is_warned_of(tmp_path):
    own = {
        "test_image": np.ones((2, 6, 5, 3), np.uint8),
        "test_label": np.array([0, 4]),
        "test_attribute": np.ones((2, 2)),
    }
    with pytest.warns(UserWarning, match="the first is class 4"):
        assert _load(tmp_path, **own).num_classes == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 255, r"train.images.min\(\)=.*train.images.max\(\)=2.*these look like 0\.\.255: divide by 255"),
        (lambda x: 2 * x - 1, r"train.images.min\(\)=-.*these look like -1\.\.1: take \(x \+ 1\) / 2"),
        (lambda x: x * 7 - 3, r"train.images.min\(\)=.*pixels must lie in \[0, 1\]; put a normalisation into"),
        (lambda x: np.where(x > 0.9, np.nan, x), "train.images must not hold NaN"),
    ],
)
def test_float_pixels_lie_in_the_unit_range(tmp_path, change, message):
    images = np.random.default_rng(0).uniform(size=(40, 6, 5, 3))
    assert _load(tmp_path, train_image=images.astype(np.float32)).image_shape == (6, 5, 3)
    with pytest.raises(ValueError, match=message):
        _load(tmp_path, train_image=change(images).astype(np.float32))


def test_splits_of_other_shapes_are_refused(tmp_path):
    own = {
        "test_image": np.ones((2, 6, 6, 3), np.uint8),
        "test_label": np.array([0, 3]),
        "test_attribute": np.ones((2, 2)),
    }
    with pytest.raises(
        ValueError, match=r"test.images.shape=\(2, 6, 6, 3\); every split must have image_shape=\(6, 5, 3\)"
    ):
        _load(tmp_path, **own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attribute_names": np.array(["a", "b", "c"])}, "attribute_names holds 3 texts.*train_attribute has 2"),
        ({"attribute_units": np.array(["a"])}, "attribute_units holds 1 texts.*train_attribute has 2"),
        ({"train_attribute": None}, "attribute_names holds 2 texts.*train_attribute has 0"),
        ({"attribute_names": np.array(["a", "b c"])}, "name='b c'.*must be an identifier"),
        ({"attribute_names": np.array(["a", "a"])}, "their names must differ"),
        ({"train_attribute": np.array([["a", "b"]] * 40)}, "train_attribute.dtype=<U1; attributes must be numbers"),
        ({"train_attribute": np.full((40, 2), np.nan)}, "train_attribute must not hold NaN or infinity"),
    ],
)
def test_wrong_attributes_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _load(tmp_path, **changes)


def test_arrays_that_are_not_read_are_named(tmp_path):
    with pytest.warns(UserWarning, match="arrays that are not read: valid_image; read are .*validation_image"):
        _load(tmp_path, valid_image=np.zeros(3))


def test_files_of_other_kinds_are_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"file='no.npz' does not exist \(looked for /"):
        load_dataset("npz", data_dir=tmp_path, file="no.npz")
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", train_image=np.array([None]), train_label=np.zeros(1))
    np.savez(tmp_path / "whole.npz", **_arrays())
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("text.npz", "empty.npz", "one.npy", "objects.npz", "cut.npz"):
        with pytest.raises(DataNotFoundError, match=rf"^file='{name}' is not an \.npz file[^\n]*$"):
            load_dataset("npz", data_dir=tmp_path, file=name)


def test_a_file_without_arrays_is_named(tmp_path):
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"file='none.npz' holds none; there must be train_image"):
        load_dataset("npz", data_dir=tmp_path, file="none.npz")
