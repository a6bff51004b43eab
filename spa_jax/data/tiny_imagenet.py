"""Tiny ImageNet in the layout in which it is distributed: 200 classes of 64x64 colour images."""

import os
from pathlib import Path

import numpy as np

from spa_jax.data.folder import FileRecords, directory_names, list_classes
from spa_jax.data.images import ImageSize, checked_size
from spa_jax.data.splitting import complete_splits
from spa_jax.data.streaming import MEMORY_LIMIT, open_splits
from spa_jax.data.types import Dataset, LabelArray
from spa_jax.errors import DataNotFoundError

_ANNOTATIONS = "val_annotations.txt"
_WORDS = "words.txt"


def load(
    *,
    data_dir: str | os.PathLike,
    validation_size: int | None = None,
    seed: int = 0,
    image_size: ImageSize = 64,
    memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
    """Load the unpacked archive `tiny-imagenet-200`.

    `train/WNID/images` holds the training images; `val/images`, labelled by `val/val_annotations.txt`, tests, since the
    labels of `test` were never published. Classes are the directories of `train` in sorted order, called by the first
    word for them in `words.txt`, else by their number in WordNet. Images stay in memory or are read when a batch asks
    for them, as in `open_splits`: all of them take 1.4 GB.

    Args:
        data_dir: the directory that holds `train` and `val`.
        validation_size: training images held out for validation, stratified by class; None: one tenth.
        seed: in 0..2**32 - 1, decides which.
        image_size: side, or (height, width), to which images are scaled and cropped about their centre.
        memory_limit: in bytes; the default, 1 GiB, is our choice.

    Raises:
        DataNotFoundError: a part of the layout is not there; the message names it.
        ValueError: a class is empty or unknown, a file cannot be read (when it is read), or an argument is out of
            range.
    """
    root = Path(data_dir).expanduser()
    _require(root, "train", "val/images", f"val/{_ANNOTATIONS}")
    numbers = directory_names(root / "train")
    listings = {"train": list_classes(root / "train", numbers)[:2], "test": _annotated_images(root, numbers)}
    image_shape = (*checked_size(image_size), 3)
    found = open_splits(
        {split: FileRecords(paths, labels, image_shape) for split, (paths, labels) in listings.items()},
        image_shape,
        memory_limit,
        labels={split: labels for split, (_, labels) in listings.items()},
    )
    return Dataset(
        name="tiny_imagenet",
        image_shape=image_shape,
        num_classes=len(numbers),
        class_names=_words(root / _WORDS, numbers),
        **complete_splits(found, validation_size=validation_size, seed=seed),
    )


def _require(root: Path, *parts: str) -> None:
    for part in parts:
        if not (root / part).exists():
            raise DataNotFoundError(
                f"data_dir={str(root)!r} holds no {part} (looked in {root.absolute()}); it must be the unpacked "
                "archive tiny-imagenet-200"
            )


def _annotated_images(root: Path, numbers: tuple[str, ...]) -> tuple[list[Path], LabelArray]:
    lines = [
        line.split() for line in (root / "val" / _ANNOTATIONS).read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    label_of = {number: label for label, number in enumerate(numbers)}
    for line in lines:
        if len(line) < 2 or line[1] not in label_of:
            raise ValueError(
                f"{_ANNOTATIONS} has the line {' '.join(line)!r}; its second word must be a class of train"
            )
    labels = np.asarray([label_of[line[1]] for line in lines], np.int32)
    return [root / "val" / "images" / line[0] for line in lines], labels


def _words(path: Path, numbers: tuple[str, ...]) -> tuple[str, ...]:
    if not path.is_file():
        return numbers
    rows = (line.split("\t", maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line)
    words = {number: synonyms.split(",")[0].strip() for number, synonyms in rows}
    return tuple(words.get(number, number) for number in numbers)
