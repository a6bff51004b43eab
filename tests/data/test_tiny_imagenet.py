import numpy as np
import pytest
from PIL import Image

from spa_jax.data import load_dataset
from spa_jax.data.streaming import StreamedSplit
from spa_jax.errors import DataNotFoundError

NUMBERS = ("n01443537", "n01629819", "n02814533")
TRAIN_COUNT, TEST_COUNT = 5, 4


def level(split, label, number):
    """The grey of an image, by which it can be told."""
    return 100 * (split == "val") + 30 * label + 5 * number


def save(path, grey, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (64, 64), grey if mode == "L" else (grey,) * 3).save(path, "JPEG", quality=95)


@pytest.fixture
def root(tmp_path):
    """A small copy of the layout of tiny-imagenet-200; one image of each class is grey, as there."""
    for label, number in enumerate(NUMBERS):
        for index in range(TRAIN_COUNT):
            path = tmp_path / "train" / number / "images" / f"{number}_{index}.JPEG"
            save(path, level("train", label, index), "L" if index == 0 else "RGB")
        (tmp_path / "train" / number / f"{number}_boxes.txt").write_text(f"{number}_0.JPEG\t0\t10\t63\t58\n")
    lines = []
    for index in range(3 * TEST_COUNT):
        label = (2 * index + 1) % 3
        save(tmp_path / "val" / "images" / f"val_{index}.JPEG", level("val", label, index // 3))
        lines.append(f"val_{index}.JPEG\t{NUMBERS[label]}\t0\t32\t44\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    save(tmp_path / "test" / "images" / "test_0.JPEG", 250)
    (tmp_path / "wnids.txt").write_text("".join(f"{number}\n" for number in reversed(NUMBERS)))
    words = "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02814533\tbeach wagon, station wagon\n"
    (tmp_path / "words.txt").write_text(words)
    return tmp_path


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_the_layout_is_read(root, memory_limit):
    dataset = load_dataset("tiny_imagenet", data_dir=root, memory_limit=memory_limit, validation_size=3)
    assert dataset.split_sizes == {"train": 12, "validation": 3, "test": 12}
    assert dataset.image_shape == (64, 64, 3) and dataset.name == "tiny_imagenet"
    assert dataset.class_names == ("goldfish", "n01629819", "beach wagon")
    assert isinstance(dataset.train, StreamedSplit) == (memory_limit == 0)
    test = dataset.test.take(np.arange(12))
    assert test["label"].tolist() == [(2 * index + 1) % 3 for index in range(12)]
    expected = [level("val", label, index // 3) for index, label in enumerate(test["label"])]
    assert np.abs(test["image"].mean(axis=(1, 2, 3)) - expected).max() < 1.5
    parts = [split.take(np.arange(len(split))) for split in (dataset.train, dataset.validation)]
    labels = np.concatenate([part["label"] for part in parts])
    greys = np.concatenate([part["image"].mean(axis=(1, 2, 3)) for part in parts])
    assert np.bincount(parts[1]["label"]).tolist() == [1, 1, 1]
    wanted = sorted((label, level("train", label, index)) for label in range(3) for index in range(TRAIN_COUNT))
    assert np.abs(np.asarray(sorted(zip(labels, greys, strict=True))) - wanted).max() < 1.5


def test_without_words_a_class_is_called_by_its_number(root):
    (root / "words.txt").unlink()
    assert load_dataset("tiny_imagenet", data_dir=root).class_names == NUMBERS


def test_images_can_be_scaled(root):
    assert load_dataset("tiny_imagenet", data_dir=root, image_size=32).test.images.shape == (12, 32, 32, 3)


@pytest.mark.parametrize("part", ["train", "val/images", "val/val_annotations.txt"])
def test_a_missing_part_is_named(root, part):
    (root / part).rename(root / "elsewhere")
    with pytest.raises(DataNotFoundError, match=f"holds no {part}.*tiny-imagenet-200"):
        load_dataset("tiny_imagenet", data_dir=root)


def test_an_unknown_class_in_the_annotations_is_an_error(root):
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99999999\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"has the line 'val_0.JPEG n99999999 .*must be a class of train"):
        load_dataset("tiny_imagenet", data_dir=root)
