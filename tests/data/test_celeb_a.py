import io
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from spa_jax.data import load_dataset
from spa_jax.data.streaming import StreamedSplit

NAMES = [
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
]
SIZES = {"train": 6, "validation": 3, "test": 4}


def face(number):
    """A smooth face of one grey a number under noise, with a white margin where the central square ends."""
    pixels = np.full((218, 178, 3), 255, np.uint8)
    ramp = np.linspace(0, 100, 178)[:, None, None] + np.asarray([0, 5, 10])
    pixels[20:198] = ramp + 10 * number
    return pixels


def bits(number):
    """The attributes of a face: random, but known."""
    return dict(zip(NAMES, (np.random.default_rng(number).random(40) < 0.5).tolist(), strict=True))


@pytest.fixture(scope="module")
def faces_dir(tmp_path_factory):
    """Made-up faces in the format in which tensorflow-datasets prepares CelebA."""
    import tensorflow_datasets as tfds

    class CelebMade(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.1.0")
        MARKS: ClassVar = ("lefteye_x", "lefteye_y", "nose_x", "nose_y")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(218, 178, 3), encoding_format="png"),
                "landmarks": {mark: np.int64 for mark in self.MARKS},
                "attributes": {name: np.bool_ for name in NAMES},
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in SIZES}

        def _generate_examples(self, split):
            for number in range(SIZES[split]):
                file = io.BytesIO()
                Image.fromarray(face(number)).save(file, "PNG")
                marks = dict.fromkeys(self.MARKS, number)
                yield number, {"image": file.getvalue(), "landmarks": marks, "attributes": bits(number)}

    directory = tmp_path_factory.mktemp("celeb")
    CelebMade(data_dir=directory, file_format="array_record").download_and_prepare()
    (directory / "celeb_made").rename(directory / "celeb_a")
    return directory


def in_order(split):
    """All examples, ordered by the number that their grey tells."""
    batch = split.take(np.arange(len(split)))
    order = np.argsort(batch["image"].mean(axis=(1, 2, 3)))
    return {key: value[order] for key, value in batch.items()}


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_all_attributes_come_by_name_and_one_is_the_class(faces_dir, memory_limit):
    dataset = load_dataset("celeb_a", data_dir=faces_dir, memory_limit=memory_limit)
    assert dataset.split_sizes == SIZES and dataset.image_shape == (64, 64, 3) and dataset.name == "celeb_a"
    assert isinstance(dataset.train, StreamedSplit) == (memory_limit == 0)
    assert dataset.attribute_names == ("_5_o_Clock_Shadow", *NAMES[1:])
    assert {attribute.unit for attribute in dataset.attributes} == {"-1 or +1"}
    assert dataset.class_names == ("not Smiling", "Smiling")
    batch = in_order(dataset.train)
    expected = np.asarray([[bits(number)[name] for name in NAMES] for number in range(6)])
    np.testing.assert_array_equal(batch["attribute"], np.where(expected, 1, -1).astype(np.float32), strict=True)
    assert np.array_equal(batch["label"], expected[:, NAMES.index("Smiling")])


@pytest.mark.parametrize("size", [64, 128])
def test_the_central_square_is_scaled(faces_dir, size):
    test = in_order(load_dataset("celeb_a", data_dir=faces_dir, image_size=size).test)
    for number, image in enumerate(test["image"]):
        square = Image.fromarray(face(number)[20:198])
        expected = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
        # Antialiasing looks one pixel beyond the square, so that white shows in the outermost rows.
        np.testing.assert_array_equal(image[1:-1], expected[1:-1])
        assert np.abs(image.astype(int) - expected)[[0, -1]].max() < 40


def test_class_and_attributes_can_be_chosen(faces_dir):
    options = {"label_attribute": "Male", "attributes": ("Young", "5_o_Clock_Shadow")}
    dataset = load_dataset("celeb_a", data_dir=faces_dir, **options)
    assert dataset.class_names == ("not Male", "Male") and dataset.attribute_names == ("Young", "_5_o_Clock_Shadow")
    assert in_order(dataset.validation)["attribute"].shape == (3, 2)
    assert load_dataset("celeb_a", data_dir=faces_dir, attributes=()).attributes == ()


def test_unknown_attributes_are_errors(faces_dir):
    with pytest.raises(ValueError, match=r"'Bart' is not an attribute of celeb_a; valid: 5_o_Clock_Shadow, .*Young"):
        load_dataset("celeb_a", data_dir=faces_dir, attributes="Bart")
