import io

import numpy as np
import pytest
from PIL import Image

from spa_jax.data.images import checked_size, decode_image, read_size

GREY = np.arange(30, dtype=np.uint8).reshape(5, 6)
COLOR = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)


def encode(pixels, mode=None, kind="PNG"):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.convert(mode or image.mode).save(file, kind)
    return file.getvalue()


def test_pixels_of_the_right_size_are_kept():
    assert np.array_equal(decode_image(encode(GREY), 1, None)[..., 0], GREY)
    assert np.array_equal(decode_image(encode(COLOR), 3, (5, 6)), COLOR)


def test_grey_becomes_color_and_color_grey():
    assert np.array_equal(decode_image(encode(GREY), 3, None), np.repeat(GREY[..., None], 3, axis=2))
    luma = COLOR @ [0.299, 0.587, 0.114]
    assert np.abs(decode_image(encode(COLOR), 1, None)[..., 0] - luma).max() <= 0.51


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA"])
def test_other_eight_bit_modes_are_read(mode):
    image = decode_image(encode(GREY, mode), 3, None)
    assert image.shape == (5, 6, 3) and image.dtype == np.uint8


def test_another_size_covers_the_target_about_the_centre():
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    assert np.array_equal(decode_image(encode(wide), 1, (10, 10))[..., 0], np.full((10, 10), 200))
    halved = decode_image(encode(np.full((8, 8), 77, np.uint8)), 1, (4, 4))
    assert np.array_equal(halved, np.full((4, 4, 1), 77))


def test_result_is_writable_and_owns_its_pixels():
    image = decode_image(encode(GREY), 1, None)
    image[:] = 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_files_are_named(kind):
    contents = encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), kind=kind)
    with pytest.raises(ValueError, match="cannot read image seven"):
        decode_image(contents[: len(contents) // 2], 3, None, origin="seven")
    with pytest.raises(ValueError, match="cannot read image seven"):
        decode_image(b"no image", 3, None, origin="seven")


def test_sixteen_bits_are_refused():
    deep = encode(np.full((4, 4), 1000, np.uint16))
    with pytest.raises(ValueError, match=r"image deep has mode='I;16'"):
        decode_image(deep, 1, None, origin="deep")


def test_size_is_read_from_the_header(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(GREY))
    assert read_size(tmp_path / "a.png") == (5, 6)
    with pytest.raises(ValueError, match=r"cannot read image .*b\.png"):
        read_size(tmp_path / "b.png")


def test_checked_size():
    assert checked_size(4) == (4, 4) and checked_size((3, 5)) == (3, 5)
    with pytest.raises(ValueError, match="image_size=0"):
        checked_size(0)


def turned(orientation, kind):
    """A grey ramp stored so that the EXIF orientation makes it upright again."""
    stored = {1: COLOR, 3: COLOR[::-1, ::-1], 6: np.rot90(COLOR), 8: np.rot90(COLOR, -1), 2: COLOR[:, ::-1]}[
        orientation
    ]
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(
        file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})
    )
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_images_are_turned_as_their_orientation_says(orientation, kind, tmp_path):
    (tmp_path / "x").write_bytes(turned(orientation, kind))
    np.testing.assert_array_equal(decode_image(tmp_path / "x", 3, None), COLOR)
    assert read_size(tmp_path / "x") == COLOR.shape[:2]


def test_a_broken_orientation_leaves_the_image_as_it_is():
    file = io.BytesIO()
    Image.fromarray(COLOR).save(file, "PNG", exif=b"Exif\x00\x00no tiff")
    np.testing.assert_array_equal(decode_image(file.getvalue(), 3, None), COLOR)


def test_sizes_are_integers():
    assert checked_size(np.int64(4)) == (4, 4)
    for size in (8.0, "8", True, (8, 8.0), None):
        with pytest.raises(ValueError, match=r"image_size=.*must be one integer or \(height, width\)"):
            checked_size(size)
