"""Image files become upright 8-bit images."""

import struct
import zlib

import numpy as np
import pytest
from pictures import encode, photo
from PIL import Image

from dcgan_jax.data import decode_image


def test_images_are_decoded_upright_on_white_and_with_the_given_channels() -> None:
    image = photo(0, 24, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: rotate by 90 degrees clockwise
    upright = np.asarray(decode_image(encode(image, exif=exif), 3))
    np.testing.assert_array_equal(upright, np.rot90(np.asarray(image), -1))

    red = np.zeros((2, 2, 4), np.uint8)
    red[..., 0], red[0, :, 3] = 255, 255
    flat = np.asarray(decode_image(encode(Image.fromarray(red)), 3))
    np.testing.assert_array_equal(flat, [[[255, 0, 0]] * 2, [[255, 255, 255]] * 2])

    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    flat = np.asarray(decode_image(encode(palette, transparency=1), 3))
    np.testing.assert_array_equal(flat, [[[0, 0, 255], [255, 255, 255]]])

    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    data = encode(Image.fromarray(grey))
    np.testing.assert_array_equal(np.asarray(decode_image(data, 3)), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(np.asarray(decode_image(data, 1)), grey)
    luma = np.asarray(decode_image(encode(image), 1)).astype(float)
    np.testing.assert_allclose(luma, np.asarray(image) @ [0.299, 0.587, 0.114], atol=1)


def png_16_bit_colour() -> bytes:
    """A 1x1 PNG of 16 bits a sample, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", 1, 2, 3))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_more_than_8_bits_are_refused() -> None:
    deep_grey = encode(Image.fromarray(np.full((4, 4), 40000, np.uint16)))
    for data in (deep_grey, png_16_bit_colour()):
        with pytest.raises(ValueError, match="more than 8 bits"):
            decode_image(data, 3)
