"""Pictures and masks as people have them."""

import struct
import zlib
from pathlib import PurePosixPath as P

import numpy as np
import pytest
from pictures import encode, photo
from PIL import Image, features

from dcgan_jax.pictures import is_hidden, read_mask, read_picture, suffixes

PHOTO = np.asarray(photo(0, 64, 48))
HOLE = np.zeros((48, 64), bool)
HOLE[10:30, 20:50] = True


def png_16_bit(samples: np.ndarray) -> bytes:
    """A PNG of 16 bits a sample, [h, w] or [h, w, 3]; Pillow cannot write colours of 16 bits."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, 2 * (samples.ndim == 3), 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# Pictures


def test_images_are_decoded_upright_on_white_and_with_the_given_channels():
    image = photo(0, 24, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: rotate by 90 degrees clockwise
    upright = read_picture(encode(image, exif=exif), 3).pixels
    np.testing.assert_array_equal(upright, np.rot90(np.asarray(image), -1))

    red = np.zeros((2, 2, 4), np.uint8)
    red[..., 0], red[0, :, 3] = 255, 255
    flat = read_picture(encode(Image.fromarray(red)), 3).pixels
    np.testing.assert_array_equal(flat, [[[255, 0, 0]] * 2, [[255, 255, 255]] * 2])

    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    flat = read_picture(encode(palette, transparency=1), 3).pixels
    np.testing.assert_array_equal(flat, [[[0, 0, 255], [255, 255, 255]]])

    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    data = encode(Image.fromarray(grey))
    np.testing.assert_array_equal(read_picture(data, 3).pixels, np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_picture(data, 1).pixels[..., 0], grey)
    luma = read_picture(encode(image), 1).pixels[..., 0].astype(float)
    np.testing.assert_allclose(luma, np.asarray(image) @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG", "JPEG2000", "AVIF", "MPO", "PPM", "TGA"])
def test_formats(kind):
    needed = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
    if kind in needed and not features.check(needed[kind]):
        pytest.skip(f"this Pillow has no {kind}")
    picture = read_picture(encode(Image.fromarray(PHOTO), kind, quality=95), 3)
    assert picture.pixels.dtype == np.uint8 and picture.note is picture.transparent is None
    assert np.abs(picture.pixels.astype(int) - PHOTO).mean() < (12 if kind == "GIF" else 8)


def test_suffixes_of_formats_that_need_other_programs_are_left_out():
    assert {".jpg", ".jpeg", ".png", ".jp2", ".mpo", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"} <= suffixes()
    assert not suffixes() & {".eps", ".ps", ".h5", ".grib", ".wmf", ".mpg", ".txt", ".json"}


def test_hidden_files():
    assert all(map(is_hidden, (P(".a.png"), P(".git/a.png"), P("__MACOSX/a.png"), P("x/Thumbs.db"))))
    assert not is_hidden(P("x/a.b.png"))


def test_16_bits_are_rounded_to_8():
    grey = np.array([[0, 128, 129, 40000], [65535, 65407, 65406, 257]], np.uint16)
    picture = read_picture(png_16_bit(grey), 1)
    np.testing.assert_array_equal(picture.pixels[..., 0], [[0, 0, 1, 156], [255, 255, 254, 1]])
    assert picture.changes == "16 bits a sample were reduced to 8"
    colours = np.array([[[256, 512, 65535]] * 2], np.uint16)
    picture = read_picture(png_16_bit(colours), 3)
    assert np.abs(picture.pixels - colours / 257).max() < 1 and "16 bits" in picture.note
    with pytest.raises(ValueError, match="floats; save it with 8 or 16 bits"):
        read_picture(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), 3)
    with pytest.raises(ValueError, match="more than 16 bits"):
        read_picture(encode(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"), 3)


def test_malformed_exif_is_ignored():
    picture = read_picture(encode(Image.fromarray(PHOTO), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"), 3)
    np.testing.assert_array_equal(picture.pixels, PHOTO)
    assert picture.damage == "its EXIF data are malformed and were ignored" and picture.changes is None


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_without_its_end_is_read_and_one_without_its_lower_half_is_not(options):
    whole = encode(photo(1, 160, 240), "JPEG", quality=95, **options)
    expected = read_picture(whole, 3).pixels
    for lost in (1, 2, 20):
        picture = read_picture(whole[:-lost], 3)
        assert picture.damage == "its last bytes are missing, and the lowest rows may be wrong"
        np.testing.assert_array_equal(picture.pixels[:-32], expected[:-32])
    with pytest.raises(ValueError, match=r"its data end in row \d+ of 240"):
        read_picture(whole[: len(whole) // 2], 3)
    for data in (whole[:100], encode(photo(1, 160, 240))[:-1000]):
        with pytest.raises((OSError, ValueError)):
            read_picture(data, 3)


def test_transparent_parts_are_white_and_known():
    alpha = np.where(HOLE, 0, 255).astype(np.uint8)
    alpha[0, 0] = 200
    picture = read_picture(encode(Image.fromarray(np.dstack([PHOTO, alpha]))), 3)
    np.testing.assert_array_equal(picture.transparent, HOLE | (alpha == 200))
    assert (picture.pixels[HOLE] == 255).all()
    np.testing.assert_array_equal(picture.pixels[alpha == 255], PHOTO[alpha == 255])
    assert read_picture(encode(Image.fromarray(np.dstack([PHOTO, np.full_like(alpha, 255)]))), 3).transparent is None


# Masks


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8))),
        encode(Image.fromarray(np.where(HOLE, 128, 127).astype(np.uint8))),
        encode(Image.fromarray(HOLE)),
        png_16_bit(np.where(HOLE, 32896, 32500)),
        encode(Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8)).convert("RGBA")),
        encode(Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8)), "JPEG", quality=100),
    ],
    ids=["white", "half", "1 bit", "16 bits", "opaque", "JPEG"],
)
def test_white_is_missing(data):
    mask = read_mask(data)
    np.testing.assert_array_equal(mask.hole, HOLE)
    assert mask.note is None


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 30, 60)])
@pytest.mark.parametrize("opacity", [255, 120])
def test_strokes_of_a_painted_layer_are_missing(colour, opacity):
    layer = np.zeros((48, 64, 4), np.uint8)
    layer[HOLE] = (*colour, opacity)
    layer[5, 5] = (*colour, 10)  # the soft rim of a brush
    mask = read_mask(encode(Image.fromarray(layer)))
    np.testing.assert_array_equal(mask.hole, HOLE)
    assert mask.note == "the mask has transparent parts: its opaque strokes were taken as missing"


def test_transparent_parts_of_a_picture_are_missing():
    data = encode(Image.fromarray(np.dstack([PHOTO, np.where(HOLE, 0, 255).astype(np.uint8)])))
    mask = read_mask(data)
    np.testing.assert_array_equal(mask.hole, HOLE)
    assert mask.note == "the mask is a picture: its transparent parts were taken as missing"


def test_ones_of_a_mask_of_zeros_and_ones_are_missing():
    mask = read_mask(encode(Image.fromarray(HOLE.astype(np.uint8))))
    np.testing.assert_array_equal(mask.hole, HOLE)
    assert mask.note == "the mask has only the values 0 and 1: 1 was taken as missing"


def test_an_empty_layer_has_no_hole():
    assert not read_mask(encode(Image.new("RGBA", (8, 8)))).hole.any()
