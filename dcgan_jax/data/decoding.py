"""Decodes image files to upright 8-bit images, and crops them."""

import io
import re

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

CROP_DESCRIPTIONS = {  # by the names in `config.SET_CROPS`; manifests record them
    "celeba": "rows 55 to 162 and columns 35 to 142 (108x108) of the aligned 178x218 image",
    "center": "the largest centred square",
    "stretch": "the whole image, stretched to a square",
}


def decode_image(data: bytes | np.ndarray, channels: int) -> Image.Image:
    """Decodes an image file's bytes, or uint8 pixels, to an upright 8-bit image.

    The EXIF orientation is applied. Transparent parts become white. An animation gives its first frame.

    Args:
        data: the file's content, or pixels [h, w] or [h, w, 3].
        channels: 1 (grey) or 3 (RGB).

    Raises:
        ValueError: the format is unknown, or the file has more than 8 bits per sample.
        Exception: any error that Pillow raises for a damaged file.
    """
    mode = "L" if channels == 1 else "RGB"
    if isinstance(data, np.ndarray):
        return Image.fromarray(data).convert(mode)
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        # Pillow's own message would show a memory address.
        raise ValueError("its image format is unknown to Pillow") from None
    with image:
        # Pillow would clip grey images of more than 8 bits. It opens colour images of more than 8 bits as if they had
        # 8 bits: only the raw mode of their tiles ("RGB;16B") shows the difference.
        if image.mode.startswith(("I", "F")) or re.search(r";16[BLN]", str(image.tile)):
            raise ValueError("it has more than 8 bits per sample")
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return upright.convert(mode)


def crop_image(image: Image.Image, crop: str) -> Image.Image:
    """Crops an image; "stretch" returns it unchanged.

    Args:
        image: the decoded image.
        crop: a name in `config.SET_CROPS`.

    Raises:
        ValueError: "celeba" is given an image of another size than 178x218.
    """
    width, height = image.size
    if crop == "celeba":
        if image.size != (178, 218):
            raise ValueError(f"it has {width}x{height} pixels; CelebA's aligned images have 178x218")
        return image.crop((35, 55, 143, 163))
    if crop == "center":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    return image
