"""Image files to uint8 arrays of one size."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

ImageSize = int | tuple[int, int]
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def checked_size(image_size: ImageSize) -> tuple[int, int]:
    """Return `image_size`, one number for a square or (height, width), as (height, width).

    Raises:
        ValueError: it is neither, or a side is less than 1.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"image_size={image_size!r}; it must be one integer or (height, width), 1 or more")
    return sides


def decode_image(
    file: bytes | str | os.PathLike, channels: int, size: tuple[int, int] | None, origin: str | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """Decode a PNG or JPEG file.

    An image of another size is scaled (bilinear, with Pillow's antialiasing) until it covers `size`, and its centre is
    cropped. One of the right size keeps its pixels. Colour becomes grey by the ITU-R 601 luma; alpha is dropped.

    Args:
        file: contents or path of the file.
        channels: 1 for grey, 3 for colour.
        size: (height, width), or None to keep the image's own.
        origin: what errors call the file; None: its path.

    Raises:
        ValueError: the file cannot be read, or has more than 8 bits a channel; the message names `origin`.
    """
    mode = "L" if channels == 1 else "RGB"
    with _opened(file, origin or str(file)) as image:
        image = image if image.mode == mode else image.convert(mode)
        if size is not None and size != (image.height, image.width):
            image = _cover(image, size)
        return np.array(image).reshape(image.height, image.width, channels)


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return an image file's (height, width), reading no pixels; errors as in `decode_image`."""
    with _opened(path, str(path)) as image:
        return image.height, image.width


@contextlib.contextmanager
def _opened(file: bytes | str | os.PathLike, origin: str) -> Iterator[Any]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=("PNG", "JPEG")) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                raise ValueError(f"image {origin} has mode={image.mode!r}; only 8 bits a channel are read")
            yield image
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot read image {origin}: {error}") from error


def _cover(image: Any, size: tuple[int, int]) -> Any:
    from PIL import Image, ImageOps

    return ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
