"""Data sets by name."""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

from spa_jax.configuration import check_type
from spa_jax.data import arrays, celeb_a, digits, folder, rotated_mnist, shapes, synthetic, tfds_source, tiny_imagenet
from spa_jax.data.types import Dataset
from spa_jax.errors import suggest

Source = Callable[..., Dataset]

_TFDS_NAMES = (
    "beans",
    "cats_vs_dogs",
    "cifar10",
    "cifar100",
    "emnist",
    "eurosat",
    "fashion_mnist",
    "food101",
    "imagenet_resized",
    "imagenette",
    "kmnist",
    "mnist",
    "oxford_flowers102",
    "oxford_iiit_pet",
    "patch_camelyon",
    "stanford_dogs",
    "stl10",
    "svhn_cropped",
    "tf_flowers",
)

SOURCES: dict[str, Source] = {
    "celeb_a": celeb_a.load,
    "coloured_shapes": shapes.load,
    "digits": digits.load,
    "folder": folder.load,
    "imagenet2012": functools.partial(tfds_source.load, dataset="imagenet2012", test_split="validation"),
    "npz": arrays.load,
    "rotated_digits": rotated_mnist.load_rotated_digits,
    "rotated_mnist": rotated_mnist.load_rotated_mnist,
    "synthetic": synthetic.load,
    "tfds": tfds_source.load,
    "tiny_imagenet": tiny_imagenet.load,
    **{name: functools.partial(tfds_source.load, dataset=name) for name in _TFDS_NAMES},
}
"""The data sets that a config may name, and what loads each."""


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    validation_size: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Dataset:
    """Load a data set by its name.

    Args:
        name: a key of `SOURCES`: digits, rotated_digits, rotated_mnist, coloured_shapes, synthetic, folder, npz,
            tiny_imagenet, imagenet2012, many sets of tensorflow-datasets by their name there (celeb_a among them), and
            tfds for any other, named by the option `dataset`.
        data_dir: where prepared data lie; ignored by sources whose data come with the package.
        validation_size: number of training examples held out for validation; None: the source's default.
        seed: in 0..2**32 - 1, decides which examples those are. It never changes the test images.
        options: what the source itself takes; the docstring of its function in `SOURCES` says what.

    Raises:
        ValueError: the name or an option is unknown (the valid ones are listed), an option is missing or of another
            type, a value breaks its rule, or the data do, as in `Dataset`.
        DataNotFoundError: the data are not there; the message says how to prepare them.
    """
    if name not in SOURCES:
        raise ValueError(f"name={name!r} is not a data set{suggest(name, SOURCES)}")
    source = SOURCES[name]
    common = {"data_dir": data_dir, "validation_size": validation_size, "seed": seed}
    parameters = _open_parameters(source)
    _check_options(name, options, set(parameters) - set(common))
    given = {key: value for key, value in common.items() if value is not None and key in parameters} | options
    missing = [
        key for key, parameter in parameters.items() if parameter.default is parameter.empty and key not in given
    ]
    if missing:
        raise ValueError(f"data set {name!r} needs {', '.join(missing)}")
    for key, value in given.items():
        check_type(value, parameters[key].annotation, key)
    return source(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def _open_parameters(source: Source) -> dict[str, inspect.Parameter]:
    fixed = source.keywords if isinstance(source, functools.partial) else {}
    return {key: value for key, value in inspect.signature(source).parameters.items() if key not in fixed}


def _check_options(name: str, options: dict[str, Any], valid: set[str]) -> None:
    for option, value in options.items():
        if option not in valid:
            raise ValueError(f"{option}={value!r} is not an option of data set {name!r}{suggest(option, valid)}")
