"""Image files to uint8 arrays of one size."""

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from spa_jax.validation import is_integer

ImageSize = int | tuple[int, int]
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ON_THEIR_SIDE = (5, 6, 7, 8)


def checked_size(image_size: Any) -> tuple[int, int]:
    """Return `image_size`, one number for a square or (height, width), as (height, width).

    Raises:
        ValueError: it is neither, or a side is less than 1.
    """
    sides = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2 or not all(is_integer(side) and side >= 1 for side in sides):
        raise ValueError(f"image_size={image_size!r}; it must be one integer or (height, width), 1 or more")
    return int(sides[0]), int(sides[1])


def decode_image(
    file: bytes | str | os.PathLike, channels: int, size: tuple[int, int] | None, origin: str | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """Decode a PNG, JPEG, BMP or WebP file; of an animation, the first picture.

    The image is turned as its EXIF orientation says. One of another size is scaled (bilinear, with Pillow's
    antialiasing) until it covers `size`, and its centre is cropped; one of the right size keeps its pixels. Colour
    becomes grey by the ITU-R 601 luma; alpha is dropped.

    Args:
        file: contents or path of the file.
        channels: 1 for grey, 3 for colour.
        size: (height, width), or None to keep the image's own.
        origin: what errors call the file; None: its path.

    Raises:
        ValueError: the file cannot be read, has more than 8 bits a channel, or so many pixels (179 million) that Pillow
            takes it for a decompression bomb; the message names `origin`.
    """
    mode = "L" if channels == 1 else "RGB"
    with _opened(file, origin or str(file)) as image:
        image = _upright(image)
        image = image if image.mode == mode else image.convert(mode)
        if size is not None and size != (image.height, image.width):
            image = _cover(image, size)
        return np.array(image).reshape(image.height, image.width, channels)


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return the (height, width) of an image file as `decode_image` gives it, reading no pixels; errors as there."""
    with _opened(path, str(path)) as image:
        size = image.height, image.width
        return size[::-1] if _orientation(image) in _ON_THEIR_SIDE else size


def _orientation(image: Any) -> int:
    """The EXIF orientation in the head of a file, or 1; Pillow would decode a PNG to look for it behind the pixels."""
    from PIL import ExifTags

    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, struct.error):
        return 1


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


@contextlib.contextmanager
def _opened(file: bytes | str | os.PathLike, origin: str) -> Iterator[Any]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                raise ValueError(f"image {origin} has mode={image.mode!r}; only 8 bits a channel are read")
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {origin}: {error}") from error


def _cover(image: Any, size: tuple[int, int]) -> Any:
    from PIL import Image, ImageOps

    return ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
