"""Your own arrays: images, labels and attributes of any kind in one .npz file."""

import os
import zipfile
from pathlib import Path

import numpy as np

from spa_jax.data.splitting import complete_splits
from spa_jax.data.types import AttributeInfo, Dataset, Split
from spa_jax.errors import DataNotFoundError

_SPLITS = ("train", "validation", "test")


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
    `attribute_units` [m]; without them, classes and attributes are numbered.

    Args:
        file: the path of the file, relative to `data_dir` where that is given.
        data_dir: a directory.
        validation_size: images held out for validation; None: one tenth, or the file's own.
        test_size: images held out for the test; None: one fifth, or the file's own.
        seed: in 0..2**32 - 1, decides which images validate.

    Raises:
        DataNotFoundError: the file does not exist or is not an .npz file.
        ValueError: an array is missing or has another type or shape, or an argument breaks its rule.
    """
    path = Path(data_dir or ".").expanduser() / Path(file).expanduser()
    if not path.is_file():
        raise DataNotFoundError(f"file={os.fspath(file)!r} does not exist (looked for {path.absolute()})")
    try:
        with np.load(path) as content:
            arrays = dict(content)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise DataNotFoundError(f"file={os.fspath(file)!r} is not an .npz file of arrays: {error}") from error
    if "train_image" not in arrays:
        raise ValueError(f"file={os.fspath(file)!r} holds {', '.join(sorted(arrays))}; there must be train_image")
    found = {split: _split(arrays, split) for split in _SPLITS if f"{split}_image" in arrays}
    splits = complete_splits(found, validation_size=validation_size, seed=seed, test_size=test_size)
    names = _texts(arrays, "class_names", 1 + max(int(split.labels.max(initial=0)) for split in found.values()))
    return Dataset(
        name=path.stem,
        image_shape=found["train"].images.shape[1:],
        num_classes=len(names),
        class_names=names,
        attributes=_attributes(arrays, found["train"]),
        **splits,
    )


def _split(arrays: dict[str, np.ndarray], split: str) -> Split:
    if f"{split}_label" not in arrays:
        raise ValueError(f"{split}_label is missing beside {split}_image")
    attribute = arrays.get(f"{split}_attribute")
    if attribute is not None:
        attribute = np.asarray(attribute, np.float32)
    return Split(arrays[f"{split}_image"], arrays[f"{split}_label"].astype(np.int32), attribute)


def _texts(arrays: dict[str, np.ndarray], name: str, count: int) -> tuple[str, ...]:
    return tuple(map(str, arrays[name])) if name in arrays else tuple(map(str, range(count)))


def _attributes(arrays: dict[str, np.ndarray], train: Split) -> tuple[AttributeInfo, ...]:
    if train.attribute is None:
        return ()
    count = train.attribute.shape[1]
    names = tuple(map(str, arrays["attribute_names"])) if "attribute_names" in arrays else None
    names = names or tuple(f"attribute_{i}" for i in range(count))
    units = _texts(arrays, "attribute_units", 0) or ("",) * count
    return tuple(AttributeInfo(name, unit) for name, unit in zip(names, units, strict=True))
