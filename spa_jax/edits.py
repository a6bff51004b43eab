"""Differentiable edits of ONE image by ONE scalar value: geometry, colour, light and blur; `jax.vmap` edits a batch.

Guarantees of every edit: the result has the image's shape and dtype and lies in [0, 1]; at the identity value it is the
image bit for bit; it is differentiable in value and image. Where it clips, the gradient passes at the exact bounds 0
and 1 (`clip_to_unit`). A ValueError says when the image is not [h, w, c] of a floating dtype or the value no scalar.

Geometric edits sample bilinearly around the centre ((h - 1) / 2, (w - 1) / 2), and outside of the image all is 0. Where
a sample falls exactly on a pixel, bilinear interpolation has a kink; at the identity the derivative with respect to the
value is the mean of the two one-sided ones.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from spa_jax.errors import suggest
from spa_jax.numerics import at_least_float32, clip_to_unit
from spa_jax.types import Image, Scalar

EditFunction: TypeAlias = Callable[[Any, Any], Any]
"""`(image [h, w, c] in [0, 1], value []) -> image [h, w, c] in [0, 1]`."""

_SHARPEST_SIGMA = 0.02
_MARGIN = 2


@dataclasses.dataclass(frozen=True)
class Edit:
    """An image edit with its name, range, unit and source.

    Attributes:
        name: its key in `EDITS`.
        function: `(image, value) -> image`.
        identity: the value that leaves the image alone.
        low, high: the default range of the value.
        unit: of the value, for people to read; the function documents it.
        source: where the default range comes from.
        needs_color: whether the edit is defined for images of 3 channels only.
        rule, holds: which values the edit is defined for, in words and as a test.
    """

    name: str
    function: EditFunction
    identity: float
    low: float
    high: float
    unit: str
    source: str
    needs_color: bool = False
    rule: str = "a finite number"
    holds: Callable[[float], bool] = math.isfinite


def _edit(function: EditFunction) -> EditFunction:
    """An edit that checks what it is given and computes in float32 at least."""

    @functools.wraps(function)
    def checked(image: Any, value: Any) -> Any:
        _check_arguments(function.__name__, image, value)
        dtype = at_least_float32(image.dtype)
        return function(jnp.asarray(image, dtype), jnp.asarray(value, dtype)).astype(image.dtype)

    return checked


def _check_arguments(name: str, image: Any, value: Any) -> None:
    if image.ndim != 3:
        raise ValueError(f"{name}: image.shape={image.shape!r} must be [h, w, c]; use jax.vmap for a batch")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"{name}: image.dtype={image.dtype} must be floating with pixels in [0, 1]")
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name}: value.shape={jnp.shape(value)!r} must be (); use jax.vmap for one value an image")


def _require_color(name: str, image: Any) -> None:
    if image.shape[-1] != 3:
        raise ValueError(f"{name}: image.shape={image.shape!r} must be [h, w, 3]: a colour edit needs RGB channels")


# --- geometry -------------------------------------------------------------------------------------------------------


@_edit
def rotate(image: Image, degrees: Scalar) -> Image:
    """The image turned counter-clockwise (as displayed, row 0 on top) by `degrees`, about its centre.

    Bilinear; what comes from outside of the image is 0.
    """
    return _warp(_rotation(degrees), image)


@_edit
def shear(image: Image, degrees: Scalar) -> Image:
    """The image sheared horizontally about its centre row by an angle of `degrees`: the upper half moves right.

    Vertical lines lean right by the angle, which must lie within (-90, 90). Bilinear, 0 outside.
    """
    return _warp(_shearing(degrees), image)


@_edit
def translate_x(image: Image, fraction: Scalar) -> Image:
    """The image moved to the right by `fraction` of its width (negative: left). Bilinear, 0 outside."""
    width = image.shape[1]
    return clip_to_unit(_mix_columns(_interpolation(width, -fraction * width), image))


@_edit
def translate_y(image: Image, fraction: Scalar) -> Image:
    """The image moved down by `fraction` of its height (negative: up). Bilinear, 0 outside."""
    height = image.shape[0]
    return clip_to_unit(_mix_rows(_interpolation(height, -fraction * height), image))


@_edit
def scale(image: Image, factor: Scalar) -> Image:
    """The image's content enlarged `factor` times about its centre (below 1: shrunk); `factor` must be positive.

    Bilinear, 0 outside. Shrinking samples without a low-pass filter.
    """
    height, width = image.shape[:2]
    inward = 1 / factor - 1
    rows = _interpolation(height, inward * _offsets(height, image.dtype))
    columns = _interpolation(width, inward * _offsets(width, image.dtype))
    return clip_to_unit(_mix_columns(columns, _mix_rows(rows, image)))


def _rotation(degrees: Any) -> Any:
    """The matrix from a pixel's offset (down, right) from the centre to the displacement of its sample."""
    angle = jnp.deg2rad(degrees)
    sine, cosine_minus_one = jnp.sin(angle), _cosine_minus_one(angle)
    return jnp.stack([cosine_minus_one, sine, -sine, cosine_minus_one]).reshape(2, 2)


def _shearing(degrees: Any) -> Any:
    slope = jnp.tan(jnp.deg2rad(degrees))
    zero = jnp.zeros_like(slope)
    return jnp.stack([zero, zero, slope, zero]).reshape(2, 2)


def _cosine_minus_one(angle: Any) -> Any:
    return -2 * jnp.sin(angle / 2) ** 2


def _offsets(size: int, dtype: Any) -> Any:
    """The distance of every pixel from the centre."""
    return jnp.arange(size, dtype=dtype) - (size - 1) / 2


def _interpolation(size: int, displacement: Any) -> Any:
    """The matrix [size, size] that reads a line of pixels at their places plus `displacement`.

    Minimum and maximum split the gradient of a tie, so that its kinks have the mean of both slopes; `abs` would not.
    """
    pixels = jnp.arange(size, dtype=displacement.dtype)
    distance = (pixels + displacement)[:, None] - pixels[None, :]
    return jnp.maximum(0, jnp.minimum(1 + distance, 1 - distance))


def _mix_rows(weights: Any, image: Any) -> Any:
    return jnp.einsum("ik,kjc->ijc", weights, image, precision=jax.lax.Precision.HIGHEST)


def _mix_columns(weights: Any, image: Any) -> Any:
    return jnp.einsum("jk,ikc->ijc", weights, image, precision=jax.lax.Precision.HIGHEST)


def _warp(displacement: Any, image: Any) -> Any:
    """The image sampled at every pixel's place plus `displacement` [2, 2] times its offset from the centre.

    The matrix product is there for speed: XLA computes it once, where plain arithmetic would be fused into every loop
    over pixels, sines included.
    """
    height, width = image.shape[:2]
    grid = jnp.meshgrid(_offsets(height, image.dtype), _offsets(width, image.dtype), indexing="ij")
    offsets = jnp.stack(grid).reshape(2, height * width)
    moved = jnp.matmul(displacement, offsets, precision=jax.lax.Precision.HIGHEST)
    down, right = moved.reshape(2, height, width)
    return displaced(image, down, right)


class _Cell(NamedTuple):
    """Where samples lie: the padded, flat index of the pixel up and left of each, and the fractions of a pixel on."""

    index: Any
    down: Any
    right: Any


@jax.custom_jvp
def displaced(image: Any, down: Any, right: Any) -> Any:
    """The image [h, w, c] read bilinearly `down` and `right` [h, w] of every pixel, in pixels; 0 outside of it."""
    return _interpolate(image, _locate(image, down, right))


@functools.partial(displaced.defjvp, symbolic_zeros=True)
def _displaced_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Autodiff's derivative, but for pixels that stay in place, where slopes on both sides count, and for its speed.

    Slopes are read from images of differences, in two reads instead of four. Channels are taken one by one, so that the
    way back adds them up where XLA's own sum over the last axis is slow.
    """
    image, down, right = primals
    image_dot, down_dot, right_dot = tangents
    cell = _locate(image, down, right)
    dot = jnp.zeros_like(image)
    if not isinstance(image_dot, SymbolicZero):
        dot = dot + _interpolate(image_dot, cell)
    for slope, rate in zip(_slopes(image, cell, (down == 0) & (right == 0)), (down_dot, right_dot), strict=True):
        if not isinstance(rate, SymbolicZero):
            dot = dot + jnp.stack([slope[..., c] * rate for c in range(image.shape[-1])], axis=-1)
    return _interpolate(image, cell), dot


def _locate(image: Any, down: Any, right: Any) -> _Cell:
    height, width = image.shape[:2]
    row, down = _split(jnp.arange(height, dtype=down.dtype)[:, None] + down, height)
    column, right = _split(jnp.arange(width, dtype=right.dtype)[None, :] + right, width)
    return _Cell(row * (width + 2 * _MARGIN) + column, down[..., None], right[..., None])


def _split(position: Any, size: int) -> tuple[Any, Any]:
    """The padded index of the pixel before each position, and the fraction of a pixel from there to it.

    The margin of zeros is as wide as a cell: positions farther outside are all read there.
    """
    before = jnp.floor(position)
    return jnp.clip(before.astype(jnp.int32), -_MARGIN, size) + _MARGIN, position - before


def _interpolate(image: Any, cell: _Cell) -> Any:
    pixels = _pad(image, _MARGIN)
    stride = pixels.shape[1]
    top = _lerp(_read(pixels, cell.index), _read(pixels, cell.index + 1), cell.right)
    bottom = _lerp(_read(pixels, cell.index + stride), _read(pixels, cell.index + stride + 1), cell.right)
    return _lerp(top, bottom, cell.down)


def _slopes(image: Any, cell: _Cell, in_place: Any) -> tuple[Any, Any]:
    """How steeply the image rises downwards and to the right at every sample, [h, w, c] each."""
    pixels = _pad(image, _MARGIN)
    downwards = jnp.pad(pixels[1:] - pixels[:-1], ((0, 1), (0, 0), (0, 0)))
    rightwards = jnp.pad(pixels[:, 1:] - pixels[:, :-1], ((0, 0), (0, 1), (0, 0)))
    moving = (
        _lerp(_read(downwards, cell.index), _read(downwards, cell.index + 1), cell.right),
        _lerp(_read(rightwards, cell.index), _read(rightwards, cell.index + pixels.shape[1]), cell.down),
    )
    still = _central_slopes(image)
    in_place = in_place[..., None]
    return jnp.where(in_place, still[0], moving[0]), jnp.where(in_place, still[1], moving[1])


def _central_slopes(image: Any) -> tuple[Any, Any]:
    pixels = _pad(image, 1)
    return (pixels[2:, 1:-1] - pixels[:-2, 1:-1]) / 2, (pixels[1:-1, 2:] - pixels[1:-1, :-2]) / 2


def _pad(image: Any, margin: int) -> Any:
    return jnp.pad(image, ((margin, margin), (margin, margin), (0, 0)))


def _read(pixels: Any, index: Any) -> Any:
    return pixels.reshape(-1, pixels.shape[-1]).at[index].get(mode="promise_in_bounds")


def _lerp(start: Any, end: Any, fraction: Any) -> Any:
    """Exactly `start` at fraction 0, and within [0, 1], rounding included, where both ends are: it needs no clip."""
    return start + fraction * (end - start)


# --- colour and light -----------------------------------------------------------------------------------------------


@_edit
def hue(image: Image, radians: Scalar) -> Image:
    """The colours turned about the grey axis of RGB by `radians`, in [-pi, pi]; positive: red, green, blue, red.

    A linear rotation, differentiable everywhere and leaving greys alone. It agrees with a shift of HSV hue at
    multiples of 2 pi / 3 (where the channels trade places); in between it may leave [0, 1] and is clipped.

    Raises:
        ValueError: the image does not have 3 channels.
    """
    _require_color("hue", image)
    across, along = jnp.sin(radians) / math.sqrt(3), _cosine_minus_one(radians)
    red, green, blue = _channels(image)
    grey = (red + green + blue) / 3
    turned = (
        red + across * (blue - green) + along * (red - grey),
        green + across * (red - blue) + along * (green - grey),
        blue + across * (green - red) + along * (blue - grey),
    )
    return clip_to_unit(jnp.stack(turned, axis=-1))


def _channels(image: Any) -> tuple[Any, Any, Any]:
    """The planes [h, w]; sums over a last axis of 3 are slow in XLA on CPU."""
    return image[..., 0], image[..., 1], image[..., 2]


@_edit
def saturation(image: Image, factor: Scalar) -> Image:
    """The distance of every pixel from its grey multiplied by `factor`: 0 is a grey image, 1 the image itself.

    Grey is the luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).

    Raises:
        ValueError: the image does not have 3 channels.
    """
    _require_color("saturation", image)
    red, green, blue = _channels(image)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue)[..., None]
    return clip_to_unit(image + (factor - 1) * (image - grey))


@_edit
def brightness(image: Image, shift: Scalar) -> Image:
    """`shift` added to every pixel, on the [0, 1] scale."""
    return clip_to_unit(image + shift)


@_edit
def contrast(image: Image, factor: Scalar) -> Image:
    """The distance of every pixel from the image's mean (over pixels and channels) multiplied by `factor`."""
    return clip_to_unit(image + (factor - 1) * (image - jnp.mean(image)))


@_edit
def gaussian_blur(image: Image, sigma: Scalar) -> Image:
    """The image convolved with a Gaussian of standard deviation `sigma` pixels; 0 and below leave it alone.

    The kernel spans the whole image, and near the border its weights inside of the image are normalised, so that a
    constant image stays constant. The derivative with respect to `sigma` is finite everywhere and 0 at 0, as it truly
    is: an attack by gradient has to start elsewhere.
    """
    height, width = image.shape[:2]
    rows, columns = _gaussian_weights(height, sigma), _gaussian_weights(width, sigma)
    return clip_to_unit(_mix_columns(columns, _mix_rows(rows, image)))


def _gaussian_weights(size: int, sigma: Any) -> Any:
    """The matrix [size, size] that blurs a line of pixels; at the sharpest sigma it is the identity exactly."""
    pixels = jnp.arange(size, dtype=sigma.dtype)
    distance = (pixels[:, None] - pixels[None, :]) / jnp.maximum(sigma, _SHARPEST_SIGMA)
    weights = jnp.exp(-(distance**2) / 2)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


# --- the table ------------------------------------------------------------------------------------------------------

_CAA = "CAA (Hsiung et al. 2023, code IBM/composite-adv)"
_OURS = "our choice"

_POSITIVE: dict[str, Any] = {"rule": "larger than 0", "holds": lambda value: 0 < value < math.inf}
_NOT_NEGATIVE: dict[str, Any] = {"rule": "0 or larger", "holds": lambda value: 0 <= value < math.inf}
_ACUTE: dict[str, Any] = {"rule": "between -90 and 90 degrees", "holds": lambda value: abs(value) < 90}

EDITS: dict[str, Edit] = {
    edit.name: edit
    for edit in (
        Edit("rotation", rotate, 0.0, -10.0, 10.0, "degrees", f"{_CAA}: 10 either way; SPA's MNIST-ROT has 40"),
        Edit("translation_x", translate_x, 0.0, -0.1, 0.1, "widths", f"{_OURS}: a tenth of the width"),
        Edit("translation_y", translate_y, 0.0, -0.1, 0.1, "heights", f"{_OURS}: a tenth of the height"),
        Edit("scale", scale, 1.0, 0.8, 1.2, "multiples", f"{_OURS}: a fifth smaller or larger", **_POSITIVE),
        Edit("shear", shear, 0.0, -10.0, 10.0, "degrees", f"{_OURS}: as rotation", **_ACUTE),
        Edit("hue", hue, 0.0, -math.pi, math.pi, "radians", f"{_CAA}: the whole circle", needs_color=True),
        Edit("saturation", saturation, 1.0, 0.7, 1.3, "multiples", f"{_CAA}: 0.7 to 1.3", needs_color=True),
        Edit("brightness", brightness, 0.0, -0.2, 0.2, "shares of white", f"{_CAA}: 0.2 either way"),
        Edit("contrast", contrast, 1.0, 0.7, 1.3, "multiples", f"{_CAA}: 0.7 to 1.3"),
        Edit("blur", gaussian_blur, 0.0, 0.0, 1.0, "pixels", f"{_OURS}: up to one pixel", **_NOT_NEGATIVE),
    )
}
"""The image edits by name, with their default ranges and where those come from."""


def get_edit(name: str) -> Edit:
    """The edit of that name in `EDITS`.

    Raises:
        ValueError: the name is unknown; the message lists the valid ones.
    """
    if name in EDITS:
        return EDITS[name]
    raise ValueError(f"edit name={name!r} is not an edit{suggest(name, EDITS)}")
