"""Coloured shapes whose attributes are known exactly, because they are drawn from them.

Our own set, in the spirit of dSprites (Matthey, Higgins, Hassabis and Lerchner, 2017): the class is the shape, hue,
scale, position and rotation are independent and uniform, and nothing wraps around.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from spa_jax.data.ordering import Stream, uniform
from spa_jax.data.splitting import complete_splits
from spa_jax.data.types import AttributeInfo, Dataset, Split

Points = Float64[np.ndarray, "*grid 2"]
Distances = Float64[np.ndarray, "*grid"]

FACTORS: dict[str, tuple[str, float, float]] = {
    "hue": ("turns", 0.0, 0.7),
    "scale": ("sides", 0.4, 0.7),
    "position_x": ("sides", -0.15, 0.15),
    "position_y": ("sides", -0.15, 0.15),
    "rotation": ("degrees", -30.0, 30.0),
}
_SATURATION, _VALUE = 0.85, 0.9
_GREYS = (0.12, 0.28)
_SLOPE = 0.06
_PLAIN = (0.5 * sum(_GREYS), 0.0, 0.0)
_CHUNK = 500
_MIN_SIZE = 8


def load(
    *,
    size: int = 32,
    train_size: int = 10000,
    test_size: int = 2000,
    validation_size: int | None = None,
    seed: int = 0,
    content_seed: int = 0,
) -> Dataset:
    """Draw antialiased shapes of one colour on a dark grey ground, whose grey and slight slope are not attributes.

    Attributes, in this order: hue, scale, position_x, position_y, rotation, in the units of `render`, each drawn
    uniformly and independently from its range in `FACTORS`. Classes are balanced: ellipse, heart, square, star and
    triangle. The ranges are our choice: hue stops at violet, so that it does not meet red again; within 30 degrees a
    star, the most symmetric shape, is not yet its own neighbour; and every shape lies inside the image. The images are
    a pure function of the sizes and `content_seed`.

    Args:
        size: height and width of the images, 8 or more.
        train_size: number of images to learn from and to validate with.
        test_size: number of images to test with.
        validation_size: number of images out of `train_size` that validate; None: one tenth.
        seed: in 0..2**32 - 1, decides which.
        content_seed: in 0..2**32 - 1, decides the images.

    Raises:
        ValueError: an argument breaks its rule.
    """
    _check_size(size)
    if min(train_size, test_size) < 1:
        raise ValueError(f"{train_size=}, {test_size=}; each must be 1 or more")
    found = {
        "train": _make_split(train_size, size, content_seed, 0),
        "test": _make_split(test_size, size, content_seed, 1),
    }
    return Dataset(
        name="coloured_shapes",
        image_shape=(size, size, 3),
        num_classes=len(SHAPES),
        class_names=tuple(SHAPES),
        attributes=tuple(AttributeInfo(name, unit) for name, (unit, _, _) in FACTORS.items()),
        **complete_splits(found, validation_size=validation_size, seed=seed),
    )


def render(
    shape_index: int,
    factors: Float[np.ndarray, "5"],
    *,
    size: int = 32,
    background: tuple[float, float, float] = _PLAIN,
) -> Float32[np.ndarray, "size size 3"]:
    """Draw one shape in [0, 1]: a pure function, which takes values beyond the ranges of `load` too.

    Args:
        shape_index: the class, an index into `SHAPES`.
        factors: hue in turns from red over green (1/3) and blue (2/3); scale, the diameter of the circle around the
            shape, in sides of the image; position_x to the right and position_y down, of that circle's centre from the
            image's, in sides; rotation counter-clockwise in degrees.
        size: height and width, 8 or more.
        background: its grey at the centre, and how much brighter it grows from left to right and from top to bottom.

    Raises:
        ValueError: `shape_index`, `size` or the number of factors is out of range.
    """
    _check_size(size)
    if not 0 <= shape_index < len(SHAPES):
        raise ValueError(f"shape_index={shape_index}; it must be in 0..{len(SHAPES) - 1}")
    if len(factors) != len(FACTORS):
        raise ValueError(f"factors={factors}; it must hold {len(FACTORS)} numbers: {', '.join(FACTORS)}")
    shapes = np.asarray([shape_index])
    return _draw(shapes, np.asarray(factors, np.float64)[None], np.asarray([background], np.float64), size)[0]


def _make_split(count: int, size: int, seed: int, number: int) -> Split:
    labels = np.arange(count, dtype=np.int32) % len(SHAPES)
    _, low, high = (np.asarray(column) for column in zip(*FACTORS.values(), strict=True))
    draws = uniform(count * len(FACTORS), Stream.FACTOR, seed, number).reshape(count, -1)
    factors = (low + (high - low) * draws).astype(np.float32)
    backgrounds = _random_backgrounds(count, seed, number)
    images = np.empty((count, size, size, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        drawn = _draw(labels[part], factors[part].astype(np.float64), backgrounds[part], size)
        images[part] = np.rint(255 * drawn)
    return Split(images, labels, factors)


def _random_backgrounds(count: int, seed: int, number: int) -> Float64[np.ndarray, "n 3"]:
    draws = uniform(count * 3, Stream.BACKGROUND, seed, number).reshape(count, 3)
    low, high = np.asarray([_GREYS, (-_SLOPE, _SLOPE), (-_SLOPE, _SLOPE)]).T
    return low + (high - low) * draws


def _draw(
    shapes: Int[np.ndarray, " n"],
    factors: Float64[np.ndarray, "n 5"],
    backgrounds: Float64[np.ndarray, "n 3"],
    size: int,
) -> Float32[np.ndarray, "n size size 3"]:
    offsets = (np.arange(size) + 0.5) / size - 0.5
    grey, to_right, to_bottom = backgrounds.T[..., None, None]
    ground = grey + to_right * offsets + to_bottom * offsets[:, None]
    coverage = _coverage(shapes, factors, offsets)[..., None]
    pixels = (1 - coverage) * ground[..., None] + coverage * _rgb(factors[:, 0])[:, None, None, :]
    return np.clip(pixels, 0, 1).astype(np.float32)


def _coverage(
    shapes: Int[np.ndarray, " n"], factors: Float64[np.ndarray, "n 5"], offsets: Float64[np.ndarray, " size"]
) -> Float64[np.ndarray, "n size size"]:
    """The share of every pixel that the shape covers, from its distance to the outline, which is taken as straight."""
    points = _shape_coordinates(factors, offsets)
    distances = np.empty(points.shape[:-1])
    for index, distance in enumerate(SHAPES.values()):
        distances[shapes == index] = distance(points[shapes == index])
    in_pixels = distances * (factors[:, 1, None, None] / 2 * len(offsets))
    return np.clip(0.5 - in_pixels, 0, 1)


def _shape_coordinates(factors: Float64[np.ndarray, "n 5"], offsets: Float64[np.ndarray, " size"]) -> Points:
    """Where each pixel's centre lies, as (right, down), in the coordinates in which the shape fills the unit circle."""
    _, scale, position_x, position_y, rotation = factors.T[..., None, None]
    cosine, sine = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    right, down = offsets - position_x, offsets[:, None] - position_y
    turned = np.stack([cosine * right - sine * down, sine * right + cosine * down], axis=-1)
    return turned / (scale / 2)[..., None]


def _rgb(hue: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 3"]:
    """HSV to RGB at the one saturation and value of this set."""
    distance_from_channel = np.abs((hue[:, None] * 6 - np.asarray([0, 2, 4]) + 3) % 6 - 3)
    return _VALUE * (1 - _SATURATION * np.clip(distance_from_channel - 1, 0, 1))


# Distances to the outline, negative inside; each shape fills the circle of radius 1 about the origin.


def _ellipse(points: Points, radii: tuple[float, float] = (1.0, 0.55)) -> Distances:
    """To first order in the distance, which is all that antialiasing needs."""
    level = np.maximum(np.linalg.norm(points / radii, axis=-1), 1e-9)
    slope = np.maximum(np.linalg.norm(points / np.square(radii), axis=-1), 1e-9)
    return (level - 1) * level / slope


def _heart(points: Points) -> Distances:
    """A square on its corner, and a disc on each of its upper sides."""
    tip, half = 1.0, 0.793  # with which the circle around it is that of radius 1 about the origin
    centre = tip - half
    diamond = _polygon(points, ((0.0, tip), (half, centre), (0.0, centre - half), (-half, centre)))
    mirrored = np.stack([np.abs(points[..., 0]), points[..., 1]], axis=-1)
    disc = np.linalg.norm(mirrored - (half / 2, centre - half / 2), axis=-1) - half / math.sqrt(2)
    return np.minimum(diamond, disc)


def _polygon(points: Points, vertices: tuple[tuple[float, float], ...]) -> Distances:
    """Exact: the least distance to an edge, its sign from the number of edges that a ray to the right crosses."""
    squared = np.full(points.shape[:-1], np.inf)
    inside = np.zeros(points.shape[:-1], bool)
    right, down = points[..., 0], points[..., 1]
    for (x, y), (next_x, next_y) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        along_x, along_y = next_x - x, next_y - y
        share = np.clip(((right - x) * along_x + (down - y) * along_y) / (along_x**2 + along_y**2), 0, 1)
        squared = np.minimum(squared, (right - x - share * along_x) ** 2 + (down - y - share * along_y) ** 2)
        if along_y:
            crossed = ((y > down) != (next_y > down)) & (right < x + (down - y) * along_x / along_y)
            inside ^= crossed
    return np.where(inside, -1, 1) * np.sqrt(squared)


def _regular(corners: int, radii: tuple[float, ...], first_degrees: float) -> tuple[tuple[float, float], ...]:
    angles = np.radians(first_degrees + 360 * np.arange(corners) / corners)
    lengths = np.resize(radii, corners)
    return tuple(zip((lengths * np.cos(angles)).tolist(), (-lengths * np.sin(angles)).tolist(), strict=True))


SHAPES: dict[str, Callable[[Points], Distances]] = {
    "ellipse": _ellipse,
    "heart": _heart,
    "square": functools.partial(_polygon, vertices=_regular(4, (1.0,), 45.0)),
    "star": functools.partial(_polygon, vertices=_regular(10, (1.0, 0.45), 90.0)),
    "triangle": functools.partial(_polygon, vertices=_regular(3, (1.0,), 90.0)),
}
"""The classes, in the order of their labels, each by its distance to the outline."""


def _check_size(size: int) -> None:
    if size < _MIN_SIZE:
        raise ValueError(f"size={size}; it must be {_MIN_SIZE} or more")
