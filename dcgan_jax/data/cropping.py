"""Crops an image as the sets are cropped."""

from PIL import Image

CROP_DESCRIPTIONS = {  # by the names in `config.SET_CROPS`; manifests record them
    "celeba": "rows 55 to 162 and columns 35 to 142 (108x108) of the aligned 178x218 image",
    "center": "the largest centred square",
    "stretch": "the whole image, stretched to a square",
}


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
