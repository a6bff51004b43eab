"""A folder of PNG or JPEG images, one directory a class."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spa_jax.data.images import ImageSize, checked_size, decode_image, read_size
from spa_jax.data.splitting import complete_splits
from spa_jax.data.streaming import MEMORY_LIMIT, open_splits
from spa_jax.data.types import Batch, Dataset, ImageShape, LabelArray
from spa_jax.errors import DataNotFoundError

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLITS = ("train", "validation", "test")


def load(
    *,
    data_dir: str | os.PathLike,
    validation_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    image_size: ImageSize | None = None,
    color: bool = True,
    memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
    """Load images laid out as `data_dir/CLASS/*.png`, or as `data_dir/train/CLASS/*.png` with `test`, `validation`.

    Classes are the directories of the training images in sorted order; images may lie deeper in them. Splits that are
    not there are held out of the training images, stratified by class, as in `complete_splits`. Images stay in memory
    or are read on demand, as in `open_splits`.

    Args:
        data_dir: the folder.
        validation_size: images held out for validation; None: one tenth, or the folder `validation`.
        test_size: images held out for the test; None: one fifth, or the folder `test`.
        seed: in 0..2**32 - 1, decides which images validate.
        image_size: side, or (height, width), to which images are scaled and cropped about their centre; None: as they
            are, which needs all to be of one size.
        color: whether images have three channels or are grey with one.
        memory_limit: in bytes; the default, 1 GiB, is our choice.

    Raises:
        DataNotFoundError: `data_dir` is not a directory, or has no directory for a class.
        ValueError: a class is empty or unknown to the training images, a file cannot be read (when it is read), images
            differ in size and `image_size` is None, or an argument breaks its rule.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataNotFoundError(f"data_dir={str(data_dir)!r} is not a directory (looked in {root.absolute()})")
    roots = {split: root / split for split in _SPLITS if (root / split).is_dir()}
    roots = roots if "train" in roots else {"train": root}
    class_names = directory_names(roots["train"])
    listings = {split: list_classes(path, class_names) for split, path in roots.items()}
    size = _common_size(listings) if image_size is None else checked_size(image_size)
    image_shape = (*size, 3 if color else 1)
    found = open_splits(
        {split: FileRecords(paths, labels, image_shape) for split, (paths, labels) in listings.items()},
        image_shape,
        memory_limit,
        labels={split: labels for split, (_, labels) in listings.items()},
    )
    splits = complete_splits(found, validation_size=validation_size, seed=seed, test_size=test_size)
    return Dataset(
        name=root.name, image_shape=image_shape, num_classes=len(class_names), class_names=class_names, **splits
    )


@dataclass(frozen=True, eq=False)
class FileRecords:
    """Image files with their labels, decoded to one shape on demand.

    Attributes:
        paths: of PNG or JPEG files.
        labels: int32, one a file.
        image_shape: height, width and channels of every image, scaled and cropped as in `decode_image`.
    """

    paths: Sequence[Path]
    labels: LabelArray
    image_shape: ImageShape

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Batch:
        """Decode one file."""
        height, width, channels = self.image_shape
        image = decode_image(self.paths[index], channels, (height, width))
        return {"image": image, "label": self.labels[index]}

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Decode several files."""
        return [self[index] for index in indices]


def directory_names(directory: Path) -> tuple[str, ...]:
    """The names of the directories in a directory, hidden ones left out, sorted: its classes.

    Raises:
        DataNotFoundError: no file was found.
    """
    names = sorted(path.name for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataNotFoundError(f"{directory.absolute()} has no directory; there must be one for each class")
    return tuple(names)


def list_classes(directory: Path, class_names: tuple[str, ...]) -> tuple[list[Path], LabelArray]:
    """The PNG and JPEG files of every class, at any depth of its directory, sorted, and their labels.

    Raises:
        ValueError: a class has no image, or there is a directory that names none.
    """
    unknown = set(directory_names(directory)) - set(class_names)
    if unknown:
        raise ValueError(f"{directory} has classes without training images: {', '.join(sorted(unknown))}")
    listings = [_list_class(directory / name) for name in class_names]
    labels = np.repeat(np.arange(len(class_names), dtype=np.int32), [len(paths) for paths in listings])
    return [path for paths in listings for path in paths], labels


def _list_class(directory: Path) -> list[Path]:
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"class {directory.name!r} is empty: {directory.absolute()} has no {', '.join(_SUFFIXES)}")
    return paths


def _common_size(listings: dict[str, tuple[list[Path], LabelArray]]) -> tuple[int, int]:
    first, *others = (path for paths, _ in listings.values() for path in paths)
    common = read_size(first)
    for path in others:
        if (size := read_size(path)) != common:
            raise ValueError(
                f"image_size=None, but images vary in size, {first} is {common} and {path} is {size} (height, width); "
                "give image_size"
            )
    return common
