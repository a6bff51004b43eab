"""Image classification sets of tensorflow-datasets, prepared as array_record, read without TensorFlow."""

import functools
import json
import keyword
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from spa_jax.data.images import ImageSize, checked_size, decode_image
from spa_jax.data.splitting import complete_splits
from spa_jax.data.streaming import MEMORY_LIMIT, open_splits
from spa_jax.data.types import AttributeInfo, Batch, Dataset, ImageShape
from spa_jax.errors import DataNotFoundError

_DEFAULT_LABEL_ATTRIBUTE = "Smiling"
_ATTRIBUTES = "attributes"
_ALL = "all"
_FORMAT = "array_record"
_INFO_FILE = "dataset_info.json"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def load(
    *,
    dataset: str,
    data_dir: str | os.PathLike | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    image_size: ImageSize | None = None,
    label_attribute: str | None = None,
    attributes: str | Sequence[str] = (),
    test_split: str | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
    """Load a set that tensorflow-datasets has prepared in its array_record format.

    Its own `train`, `validation` and `test` splits are kept, others ignored. Without a `test` split its `validation`
    split tests. What is still missing is held out of `train` as in `complete_splits`.

    The pixels of all splits are held in memory if they take at most `memory_limit` bytes, which is true of sets of the
    size of MNIST (55 MB) and CIFAR (184 MB). Larger ones are read through grain on demand.

    Args:
        dataset: its name there, with the configuration where it has several: `"mnist"`, `"imagenette/160px-v2"`.
        data_dir: directory of prepared sets; None: the environment variable TFDS_DATA_DIR, or ~/tensorflow_datasets.
        validation_size: examples held out for validation; None: one tenth, or the set's own split.
        test_size: examples held out for the test; None: one fifth, or the set's own split.
        seed: in 0..2**32 - 1, decides which examples validate.
        image_size: side, or (height, width), to which images are scaled and cropped about their centre; None: as they
            are, which needs all to be of one size.
        label_attribute: for a set with binary attributes in place of a class: the one to classify (default `Smiling`);
            class 1 has it.
        attributes: which binary attributes go into the field `attribute`, as -1 or +1: a name, several, or `"all"`.
            A name that is not a Python identifier is changed into one in `Dataset.attributes`: `_5_o_Clock_Shadow`.
        test_split: the split that tests; None: as said above.
        memory_limit: in bytes; the default, 1 GiB, is our choice.

    Raises:
        DataNotFoundError: the set is not there, or not as array_record; the message holds the command that prepares it.
        ValueError: the set has no image or class, its images vary in size and `image_size` is None, or an argument
            breaks its rule.
    """
    _silence_group_size_message()
    builder = _open(_data_directory(data_dir), dataset)
    fields = _choose_fields(dataset, builder.info, label_attribute, attributes)
    image_shape = _image_shape(dataset, builder.info.features[fields.image].shape, image_size)
    prepare = functools.partial(_prepare, dataset=dataset, fields=fields, image_shape=image_shape)
    records = {
        role: _TfdsRecords(_data_source(builder, split, fields), prepare)
        for role, split in _roles(dataset, list(builder.info.splits), test_split).items()
    }
    found = open_splits(records, image_shape, memory_limit)
    splits = complete_splits(found, validation_size=validation_size, seed=seed, test_size=test_size)
    return Dataset(
        name=dataset,
        image_shape=image_shape,
        num_classes=len(fields.class_names),
        class_names=fields.class_names,
        attributes=tuple(AttributeInfo(_identifier(name), "-1 or +1") for name in fields.attributes),
        **splits,
    )


@dataclass(frozen=True)
class _Fields:
    image: str
    label: str
    class_names: tuple[str, ...]
    label_is_attribute: bool
    attributes: tuple[str, ...]

    def label_of(self, example: Mapping[str, Any]) -> int:
        return int(example[_ATTRIBUTES][self.label] if self.label_is_attribute else example[self.label])

    def attribute_of(self, example: Mapping[str, Any]) -> Float32[np.ndarray, " m"]:
        return np.asarray([1 if example[_ATTRIBUTES][name] else -1 for name in self.attributes], np.float32)


@dataclass(frozen=True, eq=False)
class _TfdsRecords:
    source: Any
    prepare: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        return self.prepare(self.source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        return [self.prepare(example) for example in self.source.__getitems__(list(indices))]


def _prepare(example: Mapping[str, Any], dataset: str, fields: _Fields, image_shape: ImageShape) -> Batch:
    height, width, channels = image_shape
    label = fields.label_of(example)
    if not 0 <= label < len(fields.class_names):
        raise ValueError(
            f"{dataset} has an example of label={label}; labels must be in 0..{len(fields.class_names) - 1}"
        )
    image = decode_image(example[fields.image], channels, (height, width), origin=f"of {dataset}")
    prepared = {"image": image, "label": np.asarray(label, np.int32)}
    return prepared | ({"attribute": fields.attribute_of(example)} if fields.attributes else {})


def _data_directory(data_dir: str | os.PathLike | None) -> Path:
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _open(data_dir: Path, dataset: str) -> Any:
    directory = _newest_version(data_dir, dataset)
    info = json.loads((directory / _INFO_FILE).read_text())
    formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
    if _FORMAT not in formats:
        raise DataNotFoundError(
            f"dataset={dataset!r} in {directory} is stored as {formats[0]}, which only TensorFlow reads. Move it away, "
            f"then prepare it as {_FORMAT}: {_prepare_command(data_dir, dataset)}"
        )
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(directory, file_format=_FORMAT)


def _newest_version(data_dir: Path, dataset: str) -> Path:
    root = data_dir / dataset
    versions = _versions(root)
    configs = [] if versions or not root.is_dir() else sorted(path for path in root.iterdir() if _versions(path))
    if len(configs) > 1:
        valid = ", ".join(repr(f"{dataset}/{path.name}") for path in configs)
        raise ValueError(f"dataset={dataset!r} is there in several configurations; name one of {valid}")
    if configs:
        versions = _versions(configs[0])
    if not versions:
        raise DataNotFoundError(
            f"dataset={dataset!r} was not found: looked in {root.absolute()} for VERSION/{_INFO_FILE}. "
            f"Name another data_dir, or prepare it with: {_prepare_command(data_dir, dataset)}"
        )
    return versions[-1]


def _versions(directory: Path) -> list[Path]:
    found = [path.parent for path in directory.glob(f"*/{_INFO_FILE}") if _VERSION.fullmatch(path.parent.name)]
    return sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))


def _prepare_command(data_dir: Path, dataset: str) -> str:
    arguments = f"{dataset!r}, data_dir={str(data_dir.absolute())!r}, file_format={_FORMAT!r}"
    program = f"import tensorflow_datasets as tfds; tfds.builder({arguments}).download_and_prepare()"
    return f'python -c "{program}" (on a machine with internet and `pip install tensorflow tensorflow-datasets`)'


def _choose_fields(dataset: str, info: Any, label_attribute: str | None, attributes: str | Sequence[str]) -> _Fields:
    features = info.features
    image, label = _supervised_keys(info)
    known = sorted(features[_ATTRIBUTES]) if _ATTRIBUTES in features else []
    if label is None and label_attribute is None and _DEFAULT_LABEL_ATTRIBUTE in known:
        label_attribute = _DEFAULT_LABEL_ATTRIBUTE
    chosen = _chosen_attributes(attributes, known)
    for name in (*chosen, *([] if label_attribute is None else [label_attribute])):
        if name not in known:
            raise ValueError(f"{name!r} is not an attribute of {dataset}; valid: {', '.join(known) or 'none'}")
    if label_attribute is not None:
        return _Fields(image, label_attribute, (f"not {label_attribute}", label_attribute), True, chosen)
    if label is None:
        raise ValueError(f"dataset={dataset!r} has no class to learn; its features: {', '.join(features)}")
    return _Fields(image, label, tuple(features[label].names), False, chosen)


def _chosen_attributes(attributes: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    if isinstance(attributes, str):
        return tuple(known) if attributes == _ALL else (attributes,)
    return tuple(attributes)


def _identifier(name: str) -> str:
    similar = re.sub(r"\W", "_", name)
    return f"_{similar}" if not similar.isidentifier() or keyword.iskeyword(similar) else similar


def _supervised_keys(info: Any) -> tuple[str, str | None]:
    import tensorflow_datasets as tfds

    images = [key for key, feature in info.features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in info.features.items() if isinstance(feature, tfds.features.ClassLabel)]
    preferred = [*(info.supervised_keys or ()), "image", "label"]
    if not images:
        raise ValueError(f"dataset={info.name!r} has no image; its features: {', '.join(info.features)}")
    image = next((key for key in preferred if key in images), images[0])
    return image, next((key for key in preferred if key in labels), labels[0] if labels else None)


def _image_shape(dataset: str, stored: tuple[int | None, ...], image_size: ImageSize | None) -> ImageShape:
    *stored_size, channels = stored
    channels = channels or 3
    if channels not in (1, 3):
        raise ValueError(f"dataset={dataset!r} has images of {channels} channels; only 1 and 3 are read")
    if image_size is None and None in stored_size:
        raise ValueError(f"image_size=None, but the images of {dataset} vary in size; give image_size")
    return (*(stored_size if image_size is None else checked_size(image_size)), channels)


def _roles(dataset: str, splits: list[str], test_split: str | None) -> dict[str, str]:
    if "train" not in splits:
        raise ValueError(f"dataset={dataset!r} has no split 'train'; its splits: {', '.join(splits)}")
    others = [name for name in splits if name != "train"]
    if test_split is not None and test_split not in others:
        raise ValueError(f"test_split={test_split!r} cannot test; {dataset} has {', '.join(others) or 'train alone'}")
    test = test_split or next((name for name in ("test", "validation") if name in others), None)
    roles = {"train": "train", "validation": "validation", "test": test}
    return {role: split for role, split in roles.items() if split in splits and (role == "test" or split != test)}


def _data_source(builder: Any, split: str, fields: _Fields) -> Any:
    import tensorflow_datasets as tfds

    return builder.as_data_source(split, decoders={fields.image: tfds.decode.SkipDecoding()})


@functools.cache
def _silence_group_size_message() -> None:
    from absl import logging as absl_logging

    absl_logging.get_absl_logger().addFilter(_is_not_about_group_size)


def _is_not_about_group_size(record: logging.LogRecord) -> bool:
    return "was created with group size" not in str(record.msg)
