"""From an image file's bytes to an upright 8-bit image, and the named crops."""

import io
import re

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

CROPS = {
    "celeba": "rows 55 to 162 and columns 35 to 142 (108x108) of the aligned 178x218 image",
    "center": "the largest centred square",
    "stretch": "the whole image, stretched to a square",
}


def decode_image(data: bytes | np.ndarray, channels: int) -> Image.Image:
    """An image file's bytes, or uint8 pixels, as an upright 8-bit image with 1 (grey) or 3 (RGB) channels.

    The EXIF orientation is applied, transparent parts are laid on white; an animation gives its first frame.

    Raises:
        ValueError: the file is of no known format, or has more than 8 bits a sample.
        Exception: whatever Pillow raises for a file it cannot read.
    """
    mode = "L" if channels == 1 else "RGB"
    if isinstance(data, np.ndarray):
        return Image.fromarray(data).convert(mode)
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError(
            "not of an image format that Pillow knows"
        ) from None  # Pillow would name the memory it lies in
    with image:
        # Pillow would clip deep grey images, and opens deep colour images as if they had 8 bits: only the raw
        # mode in the description of its tiles tells ("RGB;16B").
        if image.mode.startswith(("I", "F")) or re.search(r";16[BLN]", str(image.tile)):
            raise ValueError("more than 8 bits a sample")
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return upright.convert(mode)


def crop_image(image: Image.Image, crop: str) -> Image.Image:
    width, height = image.size
    if crop == "celeba":
        if image.size != (178, 218):
            raise ValueError(f"{width}x{height} pixels; CelebA's aligned images have 178x218")
        return image.crop((35, 55, 143, 163))
    if crop == "center":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    return image
