import io
import json
import logging
import shutil
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from spa_jax.data import AttributeInfo, eval_batches, load_dataset, train_batch
from spa_jax.data.streaming import StreamedSplit
from spa_jax.errors import DataNotFoundError

ATTRIBUTES = ("Male", "Smiling", "Young")


def png(pixels):
    """Encode uint8 [h, w] or [h, w, 3] as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def numbered_image(number, height=6, width=5):
    """A grey image by which its number can be told."""
    pixels = np.full((height, width), number, np.uint8)
    pixels[0, 0] = 255 - number
    return pixels


def _base():
    import tensorflow_datasets as tfds

    class Base(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        sizes: ClassVar = {"train": 40, "test": 12}

        def _info(self):
            features = tfds.features.FeaturesDict(self.features())
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in self.sizes}

        def _generate_examples(self, split):
            for number in range(self.sizes[split]):
                yield number, self.example(number)

    return Base


def _builders():
    import tensorflow_datasets as tfds

    base = _base()

    class TinyGrey(base):
        """40 + 12 grey images of one size; image and label follow from `number`."""

        def features(self):
            return {
                "number": tfds.features.Scalar(np.int64),
                "image": tfds.features.Image(shape=(6, 5, 1)),
                "label": tfds.features.ClassLabel(names=["even", "odd"]),
            }

        def example(self, number):
            return {"number": number, "image": png(numbered_image(number)), "label": number % 2}

    class TinyFaces(base):
        """Colour images of two sizes without a class but with binary attributes; three splits."""

        sizes: ClassVar = {"train": 10, "validation": 4, "test": 6}

        def features(self):
            return {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "attributes": {name: np.bool_ for name in ATTRIBUTES},
            }

        def example(self, number):
            pixels = np.full((12 + 4 * (number % 2), 10, 3), number, np.uint8)
            bits = {name: bool(number >> place & 1) for place, name in enumerate(ATTRIBUTES)}
            return {"image": png(pixels), "attributes": bits}

    class TinyAlone(TinyGrey):
        """Only a train split."""

        sizes: ClassVar = {"train": 20}

    class TinyWordy(base):
        """No class at all."""

        sizes: ClassVar = {"train": 2}

        def features(self):
            return {"image": tfds.features.Image(shape=(6, 5, 1)), "caption": tfds.features.Text()}

        def example(self, number):
            return {"image": png(numbered_image(number)), "caption": "a word"}

    return TinyGrey, TinyFaces, TinyAlone, TinyWordy


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    """Directory of the prepared sets tiny_grey, tiny_faces, tiny_alone and tiny_wordy."""
    directory = tmp_path_factory.mktemp("tfds")
    for builder in _builders():
        builder(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


def load(tfds_dir, dataset, **options):
    return load_dataset("tfds", data_dir=tfds_dir, dataset=dataset, **options)


def all_of(split):
    return split.take(np.arange(len(split)))


def grey_numbers(split):
    images = all_of(split)["image"]
    numbers = images[:, 1, 1, 0].astype(int)
    for image, number in zip(images, numbers, strict=True):
        assert np.array_equal(image[..., 0], numbered_image(number))
    return numbers


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_every_image_comes_once_with_its_label(tfds_dir, memory_limit):
    dataset = load(tfds_dir, "tiny_grey", memory_limit=memory_limit)
    assert dataset.split_sizes == {"train": 36, "validation": 4, "test": 12}
    assert (dataset.image_shape, dataset.num_classes, dataset.class_names) == ((6, 5, 1), 2, ("even", "odd"))
    train, validation, test = map(grey_numbers, (dataset.train, dataset.validation, dataset.test))
    assert sorted([*train, *validation]) == list(range(40)) and sorted(test) == list(range(12))
    for split in (dataset.train, dataset.validation, dataset.test):
        batch = all_of(split)
        assert np.array_equal(batch["label"], batch["image"][:, 1, 1, 0] % 2)
        assert batch["label"].dtype == np.int32 and batch["image"].dtype == np.uint8


def test_a_set_over_the_memory_limit_streams_the_same_examples(tfds_dir):
    pixels = 52 * 30
    held, streamed = (load(tfds_dir, "tiny_grey", validation_size=0, memory_limit=pixels - i) for i in (0, 1))
    assert not isinstance(held.train, StreamedSplit) and isinstance(streamed.train, StreamedSplit)
    for first, second in zip(eval_batches(held.test, 5), eval_batches(streamed.test, 5), strict=True):
        for key in first:
            np.testing.assert_array_equal(first[key], second[key], strict=True)
    first, second = (train_batch(split, 7, seed=1, step=11) for split in (held.train, streamed.train))
    np.testing.assert_array_equal(first["image"], second["image"])


def test_validation_is_stratified_in_memory(tfds_dir):
    dataset = load(tfds_dir, "tiny_grey", validation_size=10)
    assert np.bincount(dataset.validation.labels).tolist() == [5, 5]


def test_binary_attributes_make_labels_and_attribute(tfds_dir):
    dataset = load(tfds_dir, "tiny_faces", image_size=8, attributes="Male")
    assert dataset.class_names == ("not Smiling", "Smiling") and dataset.attributes == (
        AttributeInfo("Male", "-1 or +1"),
    )
    assert dataset.split_sizes == {"train": 10, "validation": 4, "test": 6}
    assert dataset.image_shape == (8, 8, 3)
    batch = all_of(dataset.train)
    numbers = batch["image"][:, 4, 4, 0].astype(int)
    assert np.array_equal(batch["label"], numbers >> ATTRIBUTES.index("Smiling") & 1)
    assert np.array_equal(batch["attribute"], 2.0 * (numbers[:, None] & 1) - 1)
    assert batch["attribute"].dtype == np.float32


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_several_attributes(tfds_dir, memory_limit):
    options = {"image_size": (6, 4), "label_attribute": "Young", "attributes": ("Smiling", "Male")}
    dataset = load(tfds_dir, "tiny_faces", memory_limit=memory_limit, **options)
    batch = all_of(dataset.test)
    numbers = batch["image"][:, 3, 2, 0].astype(int)
    assert batch["image"].shape == (6, 6, 4, 3) and dataset.class_names == ("not Young", "Young")
    assert np.array_equal(batch["label"], numbers >> 2 & 1)
    assert np.array_equal(batch["attribute"], 2.0 * np.stack([numbers >> 1 & 1, numbers & 1], axis=1) - 1)


def test_a_train_split_alone_gives_up_a_test_split(tfds_dir):
    assert load(tfds_dir, "tiny_alone").split_sizes == {"train": 15, "validation": 1, "test": 4}
    assert load(tfds_dir, "tiny_alone", test_size=10).split_sizes == {"train": 9, "validation": 1, "test": 10}


def test_named_test_split(tfds_dir):
    dataset = load(tfds_dir, "tiny_faces", image_size=8, test_split="validation")
    assert dataset.split_sizes == {"train": 9, "validation": 1, "test": 4}


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("tiny_faces", {}, "image_size=None, but the images of tiny_faces vary in size"),
        ("tiny_faces", {"image_size": 0}, "image_size=0"),
        (
            "tiny_faces",
            {"image_size": 8, "attributes": "Bald"},
            "'Bald' is not an attribute of tiny_faces; valid: Male, Smiling, Young",
        ),
        ("tiny_faces", {"image_size": 8, "label_attribute": "Bald"}, "'Bald' is not an attribute of tiny_faces"),
        (
            "tiny_faces",
            {"image_size": 8, "validation_size": 3},
            "validation_size=3, but this set has a validation split",
        ),
        ("tiny_grey", {"attributes": "Bald"}, "'Bald' is not an attribute of tiny_grey; valid: none"),
        ("tiny_grey", {"test_split": "dev"}, "test_split='dev' cannot test; tiny_grey has test"),
        ("tiny_grey", {"test_split": "train"}, "test_split='train'"),
        ("tiny_grey", {"memory_limit": -1}, "memory_limit=-1"),
        ("tiny_grey", {"validation_size": 40}, "validation_size=40"),
        ("tiny_wordy", {}, "dataset='tiny_wordy' has no class to learn; its features: .*caption"),
    ],
)
def test_wrong_arguments_are_errors(tfds_dir, dataset, options, message):
    with pytest.raises(ValueError, match=message):
        load(tfds_dir, dataset, **options)


def test_missing_data_say_where_and_how(tmp_path):
    with pytest.raises(DataNotFoundError) as error:
        load_dataset("cifar100", data_dir=tmp_path)
    message = str(error.value)
    assert str(tmp_path / "cifar100") in message
    assert (
        f"tfds.builder('cifar100', data_dir='{tmp_path}', file_format='array_record').download_and_prepare()" in message
    )


def test_the_default_directory_is_that_of_tensorflow_datasets(tfds_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    assert load_dataset("tfds", dataset="tiny_grey").split_sizes["test"] == 12
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataNotFoundError, match=str(tmp_path / "tensorflow_datasets" / "mnist")):
        load_dataset("mnist")


def test_tfrecord_data_are_refused_with_the_way_out(tfds_dir, tmp_path):
    directory = tmp_path / "tiny_grey" / "1.0.0"
    directory.mkdir(parents=True)
    info = json.loads((tfds_dir / "tiny_grey" / "1.0.0" / "dataset_info.json").read_text())
    (directory / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(DataNotFoundError, match=r"is stored as tfrecord, which only TensorFlow reads.*array_record"):
        load(tmp_path, "tiny_grey")


def test_the_newest_version_is_read(tfds_dir, tmp_path):
    for version in ("1.0.0", "9.0.0", "10.0.0"):
        shutil.copytree(tfds_dir / "tiny_grey" / "1.0.0", tmp_path / "tiny_grey" / version)
    for version in ("1.0.0", "9.0.0"):
        (tmp_path / "tiny_grey" / version / "features.json").unlink()
    assert load(tmp_path, "tiny_grey").split_sizes["test"] == 12


def test_configurations(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "tiny_grey", tmp_path / "tiny_grey" / "small")
    assert load(tmp_path, "tiny_grey").split_sizes["test"] == 12
    assert load(tmp_path, "tiny_grey/small").split_sizes["test"] == 12
    shutil.copytree(tfds_dir / "tiny_grey", tmp_path / "tiny_grey" / "tall")
    with pytest.raises(ValueError, match="several configurations; name one of 'tiny_grey/small', 'tiny_grey/tall'"):
        load(tmp_path, "tiny_grey")


def test_no_word_about_group_size_and_others_pass(tfds_dir, caplog):
    from absl import logging as absl_logging

    logger = absl_logging.get_absl_logger()
    load(tfds_dir, "tiny_grey")
    logger.error("File %s was created with group size %s. Grain requires group size 1", "a", 8)
    logger.error("something else")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == ["something else"]
