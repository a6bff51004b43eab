"""A folder of PNG, JPEG, BMP or WebP images, one directory a class."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spa_jax.data.images import ImageSize, checked_size, decode_image, read_size
from spa_jax.data.splitting import complete_splits
from spa_jax.data.streaming import MEMORY_LIMIT, open_splits
from spa_jax.data.types import Batch, Dataset, ImageShape, LabelArray
from spa_jax.errors import DataNotFoundError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_ROLES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_LOG = logging.getLogger(__name__)


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

    Splits may also be called training, val, valid and testing, in any case. Classes are the directories of the training
    images in sorted order; images may lie deeper in them. Hidden files are left out, and files of other formats are
    counted in the log. Splits that are not there are held out of the training images, stratified by class, as in
    `complete_splits`. Images stay in memory or are read on demand, as in `open_splits`.

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
        ValueError: the directories look like splits, but it is not clear which; a class is empty or unknown to the
            training images, a file cannot be read (when it is read), images differ in size and `image_size` is None, or
            an argument breaks its rule.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataNotFoundError(f"data_dir={str(data_dir)!r} is not a directory (looked in {root.absolute()})")
    roots = _split_directories(root)
    class_names = directory_names(roots["train"])
    listings = {split: list_classes(path, class_names) for split, path in roots.items()}
    _log_others(root, sum((listing.others for listing in listings.values()), Counter()))
    size = _common_size(listings) if image_size is None else checked_size(image_size)
    image_shape = (*size, 3 if color else 1)
    found = open_splits(
        {split: FileRecords(own.paths, own.labels, image_shape) for split, own in listings.items()},
        image_shape,
        memory_limit,
        labels={split: own.labels for split, own in listings.items()},
    )
    splits = complete_splits(found, validation_size=validation_size, seed=seed, test_size=test_size)
    return Dataset(
        name=root.name, image_shape=image_shape, num_classes=len(class_names), class_names=class_names, **splits
    )


@dataclass(frozen=True, eq=False)
class FileRecords:
    """Image files with their labels, decoded to one shape on demand.

    Attributes:
        paths: of the files.
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
        DataNotFoundError: it holds no directory.
    """
    names = sorted(path.name for path in directory.iterdir() if path.is_dir() and not _is_hidden(path.name))
    if not names:
        raise DataNotFoundError(f"{directory.absolute()} has no directory; there must be one for each class")
    return tuple(names)


class Listing(NamedTuple):
    """The images of a split, one class after the other, and how many files of other formats lie beside them."""

    paths: list[Path]
    labels: LabelArray
    others: Counter[str]


def list_classes(directory: Path, class_names: tuple[str, ...]) -> Listing:
    """The image files of every class, at any depth of its directory, sorted; hidden files are left out.

    Raises:
        ValueError: a class has no image, or there is a directory that names none.
    """
    unknown = set(directory_names(directory)) - set(class_names)
    if unknown:
        raise ValueError(f"{directory} has classes without training images: {', '.join(sorted(unknown))}")
    files = {name: sorted(_visible_files(directory / name)) for name in class_names}
    images = {name: [path for path in paths if path.suffix.lower() in _SUFFIXES] for name, paths in files.items()}
    for name, paths in images.items():
        if not paths:
            raise ValueError(f"class {name!r} is empty: {(directory / name).absolute()} has no {', '.join(_SUFFIXES)}")
    labels = np.repeat(np.arange(len(class_names), dtype=np.int32), [len(paths) for paths in images.values()])
    everything = (path for paths in files.values() for path in paths)
    others = Counter(path.suffix.lower() or path.name for path in everything if path.suffix.lower() not in _SUFFIXES)
    return Listing([path for paths in images.values() for path in paths], labels, others)


def _is_hidden(name: str) -> bool:
    """Whether a file or directory is none of the user's: `._0.png`, `.ipynb_checkpoints`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def _visible_files(directory: Path) -> Iterator[Path]:
    for folder, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if not _is_hidden(name)]
        yield from (Path(folder, name) for name in names if not _is_hidden(name))


def _split_directories(root: Path) -> dict[str, Path]:
    """The directories of the splits by their usual names in any case; without such, the root itself holds the classes.

    Beside other directories, one called like a split is a split where it holds directories, its classes; else it is a
    class, such as the train among vehicles.

    Raises:
        ValueError: two directories of one split, none to learn from, or names that only resemble those of splits.
    """
    names = directory_names(root)
    splits = [name for name in names if name.lower() in _ROLES]
    if len(splits) < len(names):
        splits = [name for name in splits if any(path.is_dir() for path in (root / name).iterdir())]
    by_role: dict[str, list[str]] = {}
    for name in splits:
        by_role.setdefault(_ROLES[name.lower()], []).append(name)
    resembling = {_ROLES[word] for name in names for word in re.split(r"[^a-z]+", name.lower()) if word in _ROLES}
    is_clear = len(splits) == len(by_role) and ("train" in by_role if splits else len(resembling) < 2)
    if not is_clear:
        raise ValueError(
            f"data_dir={str(root)!r} holds {', '.join(names)}, which look like splits; call one train and, where there "
            "are others, one validation and one test"
        )
    if splits and (unread := sorted(set(names) - set(splits))):
        _LOG.warning("%s: not read are the directories %s", root, ", ".join(unread))
    return {role: root / name for role, (name,) in by_role.items()} or {"train": root}


def _log_others(root: Path, others: Counter[str]) -> None:
    if others:
        counted = ", ".join(f"{number} {kind}" for kind, number in others.most_common())
        _LOG.warning("%s: not read are %s files; read are %s", root, counted, ", ".join(_SUFFIXES))


def _common_size(listings: dict[str, Listing]) -> tuple[int, int]:
    first, *others = (path for listing in listings.values() for path in listing.paths)
    common = read_size(first)
    for path in others:
        if (size := read_size(path)) != common:
            raise ValueError(
                f"image_size=None, but images vary in size, {first} is {common} and {path} is {size} (height, width); "
                "give image_size"
            )
    return common
