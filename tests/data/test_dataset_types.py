import numpy as np
import pytest

from spa_jax.data import AttributeInfo, Dataset, Split

IMAGES = np.arange(24, dtype=np.uint8).reshape(3, 2, 2, 2)
LABELS = np.asarray([2, 0, 1], np.int32)
ANGLES = np.asarray([[0.5], [-1], [2]], np.float32)


def test_take_fetches_in_the_order_asked_for():
    batch = Split(IMAGES, LABELS, ANGLES).take(np.asarray([2, 0, 2]))
    assert np.array_equal(batch["image"], IMAGES[[2, 0, 2]])
    assert batch["label"].tolist() == [1, 2, 1]
    assert batch["attribute"].tolist() == [[2], [0.5], [2]]


def test_no_attribute_no_entry():
    assert set(Split(IMAGES, LABELS).take(np.asarray([0]))) == {"image", "label"}


def test_subset_of_a_subset():
    split = Split(IMAGES, LABELS, ANGLES).subset(np.asarray([2, 1])).subset(np.asarray([1]))
    assert len(split) == 1 and split.labels.tolist() == [0] and split.attribute.tolist() == [[-1]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((IMAGES.astype(np.float64), LABELS), "images.dtype=float64"),
        ((IMAGES[0], LABELS), "images.shape"),
        ((IMAGES[:2], LABELS), "images holds 2 examples, labels 3"),
        ((IMAGES, LABELS.astype(np.int64)), "labels.dtype=int64"),
        ((IMAGES, LABELS, ANGLES[:2]), "attribute holds 2 examples, labels 3"),
        ((IMAGES, LABELS, ANGLES.astype(np.float64)), "attribute.dtype=float64"),
        ((IMAGES, LABELS, ANGLES[:, 0]), "attribute.shape=.*rank must be 2"),
    ],
)
def test_wrong_arrays_are_errors(arrays, message):
    with pytest.raises(ValueError, match=message):
        Split(*arrays)


def test_dataset_knows_its_sizes_and_names_its_classes():
    split = Split(IMAGES, LABELS)
    empty = split.subset(np.arange(0))
    assert Dataset("x", (2, 2, 2), 3, ("a", "b", "c"), split, empty, split).split_sizes == {
        "train": 3,
        "validation": 0,
        "test": 3,
    }
    with pytest.raises(ValueError, match="class_names names 2 classes, num_classes=3"):
        Dataset("x", (2, 2, 2), 3, ("a", "b"), split, empty, split)


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (("rotation",), 2, r"names \('rotation',\), but the train split holds 2 attributes"),
        (("rotation",), 0, "the train split holds 0 attributes"),
        ((), 1, r"names \(\), but the train split holds 1 attributes"),
        (("slant", "slant"), 2, "their names must differ"),
        (("stroke width",), 1, "name='stroke width'; an attribute's name must be an identifier"),
        (("class",), 1, "name='class'"),
    ],
)
def test_attributes_are_named_one_by_one(names, columns, message):
    attribute = np.zeros((3, columns), np.float32) if columns else None
    split = Split(IMAGES, LABELS, attribute)
    with pytest.raises(ValueError, match=message):
        infos = tuple(AttributeInfo(name, "degrees") for name in names)
        Dataset("x", (2, 2, 2), 3, ("a", "b", "c"), split, split, split, infos)


def test_attributes_keep_their_order():
    split = Split(IMAGES, LABELS, np.zeros((3, 2), np.float32))
    infos = (AttributeInfo("slant", "degrees"), AttributeInfo("hue", "share of the circle"))
    dataset = Dataset("x", (2, 2, 2), 3, ("a", "b", "c"), split, split, split, infos)
    assert dataset.attribute_names == ("slant", "hue")


FLOATS = (IMAGES / np.float32(255)).astype(np.float32)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (Split(IMAGES, np.asarray([0, 1, 3], np.int32)), r"test.labels.max\(\)=3; labels must be in 0\.\.2"),
        (Split(IMAGES, np.asarray([0, 1, -1], np.int32)), r"test.labels.min\(\)=-1, .*labels must be in 0\.\.2"),
        (
            Split(IMAGES[:, :1], LABELS),
            r"test.images.shape=\(3, 1, 2, 2\); every split must have image_shape=\(2, 2, 2\)",
        ),
        (Split(FLOATS * 200, LABELS), r"test.images.min\(\)=0, test.images.max\(\)=.*look like 0\.\.255"),
        (Split(FLOATS - 1, LABELS), r"test.images.min\(\)=-1, .*look like -1\.\.1"),
        (Split(FLOATS * np.float32(np.nan), LABELS), "test.images must not hold NaN"),
        (Split(IMAGES, LABELS).subset(np.arange(0)), "the test split holds no examples"),
    ],
)
def test_every_split_is_checked(test, message):
    train = Split(IMAGES, LABELS)
    with pytest.raises(ValueError, match=message):
        Dataset("x", (2, 2, 2), 3, ("a", "b", "c"), train, train, test)


def test_floats_in_the_unit_range_are_pixels_up_to_rounding():
    nearly = np.where(IMAGES == 23, np.float32(1 + 5e-7), FLOATS)
    split = Split(nearly, LABELS)
    assert Dataset("x", (2, 2, 2), 3, ("a", "b", "c"), split, split, split).num_classes == 3
