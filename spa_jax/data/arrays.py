"""Your own arrays: images, labels and attributes of any kind in one .npz file."""

import os
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from spa_jax.data.splitting import complete_splits
from spa_jax.data.types import AttributeInfo, Dataset, LabelArray, Split
from spa_jax.errors import DataNotFoundError, listed

_SPLITS = ("train", "validation", "test")
_PARTS = ("image", "label", "attribute")
_NAMES = ("class_names", "attribute_names", "attribute_units")
_NUMBERS = "biuf"


def load(
    *,
    file: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a .npz file of arrays, as `numpy.savez_compressed` writes it.

    For each split there is `SPLIT_image` [n, h, w, c] (uint8, or float32 in [0, 1]), `SPLIT_label` [n] and, if the
    images have attributes, `SPLIT_attribute` [n, m]. `train` must be there; `test` and `validation` are held out of it
    where they are not, as in `complete_splits`. The file may further hold `class_names` [k], `attribute_names` [m] and
    `attribute_units` [m]; without them, attributes are numbered, and so are classes, from 0 to the largest label.

    Args:
        file: the path of the file, relative to `data_dir` where that is given.
        data_dir: a directory.
        validation_size: images held out for validation; None: one tenth, or the file's own.
        test_size: images held out for the test; None: one fifth, or the file's own.
        seed: in 0..2**32 - 1, decides which images validate.

    Warns:
        UserWarning: the file holds other arrays, or classes without names have no training image.

    Raises:
        DataNotFoundError: the file does not exist or is not an .npz file.
        ValueError: an array is missing or has another type or shape; labels are not whole numbers from 0, more than
            `class_names` or, without it, than images; attributes are not finite; or an argument breaks its rule.
    """
    path = Path(data_dir or ".").expanduser() / Path(file).expanduser()
    if not path.is_file():
        raise DataNotFoundError(f"file={os.fspath(file)!r} does not exist (looked for {path.absolute()})")
    try:
        arrays = _read(path)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise DataNotFoundError(f"file={os.fspath(file)!r} is not an .npz file of arrays: {error}") from error
    _check_names(os.fspath(file), arrays)
    found = {split: _split(arrays, split) for split in _SPLITS if f"{split}_image" in arrays}
    splits = complete_splits(found, validation_size=validation_size, seed=seed, test_size=test_size)
    names = _texts(arrays, "class_names") if "class_names" in arrays else _numbered_classes(found)
    attribute = found["train"].attribute
    return Dataset(
        name=path.stem,
        image_shape=found["train"].images.shape[1:],
        num_classes=len(names),
        class_names=names,
        attributes=_attributes(arrays, 0 if attribute is None else attribute.shape[1]),
        **splits,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        content = np.load(file)
        if isinstance(content, np.ndarray):
            raise ValueError("it is one array, as numpy.save writes it; write all with numpy.savez_compressed")
        with content:
            return dict(content)


def _check_names(file: str, arrays: dict[str, np.ndarray]) -> None:
    if "train_image" not in arrays:
        raise ValueError(f"file={file!r} holds {listed(arrays)}; there must be train_image")
    for name in arrays:
        split, _, part = name.partition("_")
        if split in _SPLITS and part in _PARTS and f"{split}_image" not in arrays:
            raise ValueError(f"file={file!r} holds {name}, but not {split}_image")
    known = {f"{split}_{part}" for split in _SPLITS for part in _PARTS} | set(_NAMES)
    if unknown := set(arrays) - known:
        warnings.warn(
            f"file={file!r} holds arrays that are not read: {listed(unknown)}; read are {listed(known)}", stacklevel=4
        )


def _split(arrays: dict[str, np.ndarray], split: str) -> Split:
    if f"{split}_label" not in arrays:
        raise ValueError(f"{split}_label is missing beside {split}_image")
    labels = _checked_labels(f"{split}_label", arrays[f"{split}_label"])
    attribute = arrays.get(f"{split}_attribute")
    if attribute is not None:
        attribute = _checked_attribute(f"{split}_attribute", attribute)
    try:
        return Split(arrays[f"{split}_image"], labels, attribute)
    except ValueError as error:
        raise ValueError(f"arrays of {split}: {error}") from error


def _checked_labels(name: str, labels: np.ndarray) -> LabelArray:
    """Labels of any type that holds whole numbers as int32, checked before they are cast."""
    if labels.dtype.kind not in _NUMBERS:
        raise ValueError(f"{name}.dtype={labels.dtype}; labels must be numbers, their names go into class_names")
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"{name}.shape={labels.shape}; there must be one label for each image, and at least one")
    broken = labels[labels != np.floor(labels)] if labels.dtype.kind == "f" else labels[:0]
    if len(broken):
        raise ValueError(f"{name} holds {broken[0]}; labels must be whole numbers")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high > np.iinfo(np.int32).max:
        raise ValueError(f"{name}.min()={low}, {name}.max()={high}; labels must be in 0..2**31 - 1")
    return labels.astype(np.int32)


def _checked_attribute(name: str, attribute: np.ndarray) -> np.ndarray:
    if attribute.dtype.kind not in _NUMBERS:
        raise ValueError(f"{name}.dtype={attribute.dtype}; attributes must be numbers")
    if not np.isfinite(attribute).all():
        raise ValueError(f"{name} must not hold NaN or infinity")
    return attribute.astype(np.float32)


def _numbered_classes(found: dict[str, Split]) -> tuple[str, ...]:
    """Names of the classes up to the largest label, of which there are at most as many as images."""
    largest, images = max(int(split.labels.max()) for split in found.values()), sum(map(len, found.values()))
    if largest >= images:
        raise ValueError(
            f"the largest label, {largest}, makes {largest + 1} classes of {images} images; number the classes from 0 "
            "without gaps, or name all of them in class_names"
        )
    missing = np.setdiff1d(np.arange(largest + 1), found["train"].labels)
    if len(missing):
        warnings.warn(
            f"{len(missing)} of the {largest + 1} classes have no training image, the first is class {missing[0]}; "
            "name the classes in class_names if that is right",
            stacklevel=4,
        )
    return tuple(map(str, range(largest + 1)))


def _texts(arrays: dict[str, np.ndarray], name: str) -> tuple[str, ...]:
    if arrays[name].ndim != 1:
        raise ValueError(f"{name}.shape={arrays[name].shape}; it must hold one text after the other")
    return tuple(map(str, arrays[name].astype(str)))


def _attributes(arrays: dict[str, np.ndarray], count: int) -> tuple[AttributeInfo, ...]:
    texts = {"attribute_names": tuple(f"attribute_{i}" for i in range(count)), "attribute_units": ("",) * count}
    for name in texts:
        texts[name] = _texts(arrays, name) if name in arrays else texts[name]
        if len(texts[name]) != count:
            raise ValueError(f"{name} holds {len(texts[name])} texts, but train_attribute has {count} attributes")
    return tuple(AttributeInfo(name, unit) for name, unit in zip(*texts.values(), strict=True))
