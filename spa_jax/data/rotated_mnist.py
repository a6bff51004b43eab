"""Rotated MNIST, and rotated digits of scikit-learn: handwriting whose attributes are its angle and measured ones."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Shaped

from spa_jax.data import digits, tfds_source
from spa_jax.data.morphology import measure, measured_attributes
from spa_jax.data.ordering import Stream, uniform
from spa_jax.data.splitting import choose, complete_splits
from spa_jax.data.types import AttributeInfo, Dataset, ImageArray, ImageShape, Split

Degrees: TypeAlias = float | int

DEFAULT_ANGLES = (-40.0, 0.0, 40.0)
ROTATION = AttributeInfo("rotation", "degrees")
_TEST_SEED = 0


def load_rotated_mnist(
    *,
    data_dir: str | os.PathLike | None = None,
    validation_size: int | None = None,
    seed: int = 0,
    train_size: int | None = None,
    test_size: int | None = None,
    angles: Sequence[Degrees] | None = None,
    angle_range: tuple[Degrees, Degrees] | None = None,
    padded_size: int = 32,
    measured: Sequence[str] = (),
) -> Dataset:
    """Load MNIST, padded to 32x32 and rotated.

    Angles -40, 0, 40 and the size 32 are those of the authors' script of 2021 (DashanGao/SPAA), which samples the
    nearest pixel and scales the angle to [0, 1]; here sampling is bilinear and the attribute in degrees around 0.

    Args:
        data_dir: as in `tfds_source.load`.
        validation_size: MNIST images held out before they are rotated; None: one tenth.
        seed: in 0..2**32 - 1, decides which, and the angles drawn from `angle_range`.
        train_size: MNIST images to learn from and to validate with, always the same ones, stratified; None: all 60,000.
        test_size: MNIST images to test with, chosen in the same way; None: all 10,000.
        angles: as in `rotate_dataset`.
        angle_range: as in `rotate_dataset`.
        padded_size: as in `rotate_dataset`.
        measured: as in `rotate_dataset`; all of MNIST takes one core 40 seconds.

    Raises:
        DataNotFoundError: MNIST is not there; the message holds the command that prepares it.
        ValueError: an argument breaks its rule.
    """
    options: dict[str, Any] = {
        "angles": angles,
        "angle_range": angle_range,
        "padded_size": padded_size,
        "measured": measured,
    }
    _check_arguments(image_shape=(28, 28, 1), **options)
    mnist = tfds_source.load(dataset="mnist", data_dir=data_dir, validation_size=0)
    found = {
        "train": choose("train_size", mnist.train, train_size),
        "test": choose("test_size", mnist.test, test_size),
    }
    splits = complete_splits(found, validation_size=validation_size, seed=seed)
    return rotate_dataset(dataclasses.replace(mnist, **splits), seed=seed, **options)


def load_rotated_digits(
    *,
    validation_size: int = 200,
    seed: int = 0,
    angles: Sequence[Degrees] | None = None,
    angle_range: tuple[Degrees, Degrees] | None = None,
    padded_size: int = 12,
    measured: Sequence[str] = (),
) -> Dataset:
    """Load scikit-learn's digits, padded to 12x12, which holds them at every angle, and rotated.

    Args:
        validation_size: digits held out before they are rotated.
        seed: in 0..2**32 - 1, decides which, and the angles drawn from `angle_range`.
        angles: as in `rotate_dataset`.
        angle_range: as in `rotate_dataset`.
        padded_size: as in `rotate_dataset`.
        measured: as in `rotate_dataset`.

    Raises:
        ValueError: an argument breaks its rule.
    """
    options: dict[str, Any] = {
        "angles": angles,
        "angle_range": angle_range,
        "padded_size": padded_size,
        "measured": measured,
    }
    return rotate_dataset(digits.load(validation_size=validation_size, seed=seed), seed=seed, **options)


def rotate_dataset(
    dataset: Dataset,
    *,
    seed: int,
    angles: Sequence[Degrees] | None = None,
    angle_range: tuple[Degrees, Degrees] | None = None,
    padded_size: int,
    measured: Sequence[str] = (),
) -> Dataset:
    """Rotate every image of a data set in memory; the angle becomes its attribute `rotation`, the first one.

    Images are padded with zeros to a square, then turned about the centre with bilinear sampling and zeros outside. The
    angle is in degrees, counter-clockwise, 0 for the upright image: the convention of `spa_jax.edits.rotate`.
    Copies of one image stay in one split. The test images are the same for every `seed`.

    Args:
        dataset: grey or colour images, held in memory as uint8.
        seed: in 0..2**32 - 1; with `angle_range`, decides the angles of train and validation.
        angles: every image occurs once at each of them (in degrees), one copy after the other; None: -40, 0, 40.
        angle_range: (low, high) in degrees; every image occurs once, at an angle drawn uniformly from it.
        padded_size: side of the result, at least that of the images.
        measured: further attributes, in this order after `rotation`: keys of `morphology.MEASURES` (slant in degrees,
            stroke_width in pixels), measured on the image before it is turned, so that they do not depend on the angle.

    Raises:
        ValueError: a split is not held in memory as uint8; `angles` and `angle_range` are both given, one of them is
            empty, `padded_size` is too small, or `measured` has an unknown name or meets colour images.
    """
    options: dict[str, Any] = {
        "angles": angles,
        "angle_range": angle_range,
        "padded_size": padded_size,
        "measured": measured,
    }
    _check_arguments(image_shape=dataset.image_shape, **options)
    seeds = {"train": seed, "validation": seed, "test": _TEST_SEED}
    splits = {}
    for number, (name, split_seed) in enumerate(seeds.items()):
        split = getattr(dataset, name)
        if not isinstance(split, Split) or split.images.dtype != np.uint8:
            raise ValueError(f"the {name} split of {dataset.name} must be held in memory as uint8 to be rotated")
        turns = _angles_of_split(len(split), split_seed, number, angles, angle_range)
        splits[name] = _rotate_split(split, turns, padded_size, measured)
    return Dataset(
        name=f"rotated_{dataset.name}",
        image_shape=(padded_size, padded_size, dataset.image_shape[-1]),
        num_classes=dataset.num_classes,
        class_names=dataset.class_names,
        attributes=(ROTATION, *measured_attributes(measured)),
        **splits,
    )


def _check_arguments(
    *,
    image_shape: ImageShape,
    angles: Sequence[Degrees] | None,
    angle_range: tuple[Degrees, Degrees] | None,
    padded_size: int,
    measured: Sequence[str],
) -> None:
    if angles is not None and angle_range is not None:
        raise ValueError(f"angles={angles} and angle_range={angle_range} exclude each other")
    if angles is not None and len(angles) == 0:
        raise ValueError(f"angles={angles}; there must be at least one")
    if angle_range is not None and not (len(angle_range) == 2 and angle_range[0] < angle_range[1]):
        raise ValueError(f"angle_range={angle_range}; it must be (low, high) with low < high, in degrees")
    side = max(image_shape[:2])
    if padded_size < side:
        raise ValueError(f"padded_size={padded_size}; it must be at least {side}, the side of the images")
    if measured_attributes(measured) and image_shape[-1] != 1:
        raise ValueError(
            f"measured={tuple(measured)}; only grey images are measured, these have {image_shape[-1]} channels"
        )


def _angles_of_split(
    size: int,
    seed: int,
    number: int,
    angles: Sequence[Degrees] | None,
    angle_range: tuple[Degrees, Degrees] | None,
) -> Float[np.ndarray, "n copies"]:
    if angle_range is None:
        return np.tile(np.asarray(DEFAULT_ANGLES if angles is None else angles, np.float32), (size, 1))
    low, high = angle_range
    return (low + (high - low) * uniform(size, Stream.ANGLE, seed, number)).astype(np.float32)[:, None]


def _rotate_split(
    split: Split, angles: Float[np.ndarray, "n copies"], padded_size: int, measured: Sequence[str]
) -> Split:
    padded = _pad(split.images, padded_size)
    rotated = np.empty((angles.size, *padded.shape[1:]), np.uint8)
    for index, angle in enumerate(angles.flat):
        for channel in range(padded.shape[-1]):
            plane = padded[index // angles.shape[1], ..., channel]
            rotated[index, ..., channel] = np.rint(_rotate(plane.astype(np.float32), float(angle)))
    columns = [angles.reshape(-1, 1)]
    if measured:
        columns.append(np.repeat(measure(split.images, measured), angles.shape[1], axis=0))
    return Split(rotated, np.repeat(split.labels, angles.shape[1]), np.concatenate(columns, axis=1))


def _pad(images: ImageArray, size: int) -> Shaped[np.ndarray, "n side side c"]:
    height, width = images.shape[1:3]
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(images, ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0)))


def _rotate(plane: Float[np.ndarray, "side side"], degrees: float) -> Float[np.ndarray, "side side"]:
    from PIL import Image

    return np.asarray(Image.fromarray(plane).rotate(degrees, Image.Resampling.BILINEAR))
