"""Made-up images in the shape and format of a data set, to run the path of a set that is not at hand."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from spa_jax.data.ordering import Stream, random_bits, uniform
from spa_jax.data.splitting import complete_splits
from spa_jax.data.types import AttributeInfo, Dataset, ImageShape, Split

FORMATS: dict[str, tuple[ImageShape, int]] = {
    "digits": ((8, 8, 1), 10),
    "mnist": ((28, 28, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "rotated_mnist": ((32, 32, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "svhn_cropped": ((32, 32, 3), 10),
    "tiny_imagenet": ((64, 64, 3), 200),
    "celeb_a": ((218, 178, 3), 2),
    "celeb_a_64": ((64, 64, 3), 2),
    "celeb_a_128": ((128, 128, 3), 2),
    "imagenette": ((160, 160, 3), 10),
}
_WAVES = 3
_MAX_CYCLES = 3
_CONTRAST = (0.2, 0.35)
_NOISE = 0.3
_ATTRIBUTE_CONTRAST = 0.2


def load(
    *,
    like: str = "cifar10",
    image_shape: ImageShape | None = None,
    num_classes: int | None = None,
    attributes: Sequence[str] = (),
    train_size: int = 1000,
    test_size: int = 200,
    validation_size: int | None = None,
    seed: int = 0,
    content_seed: int = 0,
) -> Dataset:
    """Make images whose class shows in a pattern of smooth waves, of varying contrast, under noise.

    Classes are balanced. Every attribute is -1 or +1, independent of the class and of the others, and shows as a
    pattern of its own or its negative. The images are a pure function of the format, the sizes, the number of
    attributes and `content_seed`. A nearest-mean classifier learns them, so no accuracy on them says anything about a
    model.

    Args:
        like: the data set whose shape and number of classes to take, a key of `FORMATS`.
        image_shape: height, width and channels, in place of those of `like`.
        num_classes: in place of that of `like`.
        attributes: names of binary attributes; none by default.
        train_size: number of images to learn from and to validate with.
        test_size: number of images to test with.
        validation_size: number of images out of `train_size` that validate; None: one tenth.
        seed: in 0..2**32 - 1, decides which.
        content_seed: in 0..2**32 - 1, decides the images.

    Raises:
        ValueError: an argument breaks its rule; for `like` the valid names are listed.
    """
    if like not in FORMATS:
        raise ValueError(f"like={like!r} is not a known format; valid: {', '.join(FORMATS)}")
    shape = image_shape or FORMATS[like][0]
    num_classes = FORMATS[like][1] if num_classes is None else num_classes
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape={shape}; it must be (height, width, channels), each 1 or more")
    if min(num_classes, train_size, test_size) < 1:
        raise ValueError(f"{num_classes=}, {train_size=}, {test_size=}; each must be 1 or more")
    patterns = np.stack([_pattern(shape, Stream.PATTERN, content_seed, label) for label in range(num_classes)])
    marks = _marks(shape, content_seed, len(attributes))
    found = {
        "train": _make_split(patterns, marks, train_size, content_seed, 0),
        "test": _make_split(patterns, marks, test_size, content_seed, 1),
    }
    return Dataset(
        name=f"synthetic_{like}",
        image_shape=shape,
        num_classes=num_classes,
        class_names=tuple(f"pattern {label}" for label in range(num_classes)),
        attributes=tuple(AttributeInfo(name, "-1 or +1") for name in attributes),
        **complete_splits(found, validation_size=validation_size, seed=seed),
    )


def _pattern(shape: ImageShape, stream: Stream, *seeds: int) -> Float[np.ndarray, "h w c"]:
    height, width, channels = shape
    draws = uniform(3 * _WAVES * channels, stream, *seeds).reshape(3, _WAVES, channels)
    down, right = _MAX_CYCLES * (2 * draws[:2] - 1)
    rows, columns = np.arange(height)[:, None, None, None] / height, np.arange(width)[:, None, None] / width
    return np.cos(2 * math.pi * (rows * down + columns * right + draws[2])).mean(axis=2)


def _marks(shape: ImageShape, seed: int, count: int) -> Float[np.ndarray, "count h w c"]:
    marks = [_pattern(shape, Stream.ATTRIBUTE, seed, 0, index) for index in range(count)]
    return _ATTRIBUTE_CONTRAST * np.reshape(marks, (count, *shape)) / math.sqrt(max(count, 1))


def _make_split(
    patterns: Float[np.ndarray, "k h w c"],
    marks: Float[np.ndarray, "m h w c"],
    size: int,
    seed: int,
    number: int,
) -> Split:
    labels = np.arange(size, dtype=np.int32) % len(patterns)
    low, high = _CONTRAST
    contrasts = low + (high - low) * uniform(size, Stream.PATTERN, seed, len(patterns) + number)
    signs = _signs(size, len(marks), seed, number)
    shape = patterns.shape[1:]
    noise = _noise(size * math.prod(shape), seed, number).reshape(size, *shape)
    images = np.empty((size, *shape), np.uint8)
    for index, label in enumerate(labels):
        pixels = 0.5 + contrasts[index] * patterns[label] + _NOISE * (noise[index] / 255 - 0.5)
        pixels += np.tensordot(signs[index], marks, axes=1)
        images[index] = np.rint(255 * np.clip(pixels, 0, 1))
    return Split(images, labels, signs if len(marks) else None)


def _signs(size: int, count: int, seed: int, number: int) -> Float32[np.ndarray, "size count"]:
    draws = uniform(size * count, Stream.ATTRIBUTE, seed, 1, number).reshape(size, count)
    return np.where(draws < 0.5, -1, 1).astype(np.float32)


def _noise(size: int, seed: int, number: int) -> np.ndarray:
    return random_bits(-(-size // 8), Stream.PIXEL, seed, number).view(np.uint8)[:size]
