"""Reads pictures and masks as people have them: of many formats, 16-bit, transparent, cut off, with malformed EXIF."""

import functools
import io
import re
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

# Formats that Pillow lists but cannot decode by itself: their plugins need other programs or another system.
_NEED_MORE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_LOST_ROWS = 32  # at most, of a JPEG whose end is missing: two rows of its largest blocks
_CUT = 32  # bytes cut off a JPEG to see where its data end
_STROKE_COLOURS = 8  # at most, of 512, in a layer that holds nothing but strokes


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: of the upright picture. Transparent parts are white.
        transparent: where the picture is not fully opaque; None if it is opaque everywhere.
        changes: what was converted, in words; None if nothing was.
        damage: what is wrong with the file, in words; None if it is sound.
        profile: ICC profile of the pixels.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    transparent: Bool[np.ndarray, "h w"] | None = None
    changes: str | None = None
    damage: str | None = None
    profile: bytes | None = None

    @property
    def note(self) -> str | None:
        """Damage and changes, in words."""
        return "; ".join(filter(None, (self.damage, self.changes))) or None

    @property
    def nbytes(self) -> int:
        """Memory that the pixels take."""
        return self.pixels.nbytes


class Mask(NamedTuple):
    """A decoded mask.

    Attributes:
        hole: True = missing.
        note: how a mask with transparency was understood; None for any other mask.
    """

    hole: Bool[np.ndarray, "h w"]
    note: str | None = None

    @property
    def nbytes(self) -> int:
        """Memory that the hole takes."""
        return self.hole.nbytes


@functools.cache
def suffixes() -> frozenset[str]:
    """Returns the suffixes of the files that Pillow reads here, in lower case, such as ".png"."""
    kinds = Image.registered_extensions()  # this call also fills Image.OPEN
    readable = Image.OPEN.keys() - _NEED_MORE
    return frozenset(suffix for suffix, kind in kinds.items() if kind in readable) | {".mpo"}


def is_hidden(path: PurePath) -> bool:
    """Tells whether a file or one of its folders is hidden, or belongs to an archive of macOS."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db") for part in path.parts)


def read_picture(data: bytes | UInt8[np.ndarray, "..."], channels: int) -> Picture:
    """Decodes a picture of 8 or 16 bits a sample to 8 bits.

    The EXIF orientation is applied. An animation gives its first frame. A JPEG may lack its end.

    Args:
        data: the file's content, or pixels [h, w] or [h, w, 3].
        channels: 1 (grey) or 3 (RGB).

    Raises:
        ValueError: the format is unknown, too much is missing at the end, or samples are floats.
        Exception: any error that Pillow raises for a damaged file.
    """
    mode = "L" if channels == 1 else "RGB"
    if isinstance(data, np.ndarray):
        return Picture(_with_channels(Image.fromarray(data).convert(mode), channels))
    image, changes, damage = _open(data)
    transparent = None
    profile = image.info.get("icc_profile") if image.mode.startswith({1: "L", 3: "RGB"}[channels]) else None
    if channels == 1 and image.mode not in ("1", "L", "LA"):
        changes.append("colours became grey, because the prior makes grey images")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        changes.append(f"{image.mode} was converted to RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image)[..., 3]
        if alpha.min() < 255:
            transparent = alpha < 255
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = _with_channels(image.convert(mode), channels)
    return Picture(pixels, transparent, "; ".join(changes) or None, "; ".join(damage) or None, profile)


def read_mask(data: bytes) -> Mask:
    """Decodes a mask.

    An opaque mask is missing where its luminance is at least half of its range. A mask with transparent parts is one of
    two things: a layer with strokes of few colours, which are missing, or a picture with a hole, which is missing.

    Args:
        data: the file's content, of 1, 8 or 16 bits a sample.

    Raises:
        ValueError: as `read_picture`.
        Exception: any error that Pillow raises for a damaged file.
    """
    image, _, _ = _open(data)
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        alpha = pixels[..., 3]
        if alpha.min() < 255:
            strokes = alpha >= max(1, alpha.max() / 2)
            colours = np.unique(pixels[strokes][:, :3] >> 5, axis=0)
            if len(colours) <= _STROKE_COLOURS:
                return Mask(strokes, "the mask has transparent parts: its opaque strokes were taken as missing")
            return Mask(alpha < 255, "the mask is a picture: its transparent parts were taken as missing")
    levels = np.asarray(image.convert("L"))
    if levels.max() == 1:
        return Mask(levels == 1, "the mask has only the values 0 and 1: 1 was taken as missing")
    return Mask(levels >= 128)


def _with_channels(image: Image.Image, channels: int) -> UInt8[np.ndarray, "h w c"]:
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels)


def _open(data: bytes) -> tuple[Image.Image, list[str], list[str]]:
    """Decodes a file to an upright image of 8 bits a sample. Also returns what was converted and what is damaged."""
    changes: list[str] = []
    damage: list[str] = []
    image: Image.Image = (file := _decode(data))
    # Pillow cuts 16-bit colours to their high byte; only the raw mode of their tiles, such as "RGB;16B", shows it.
    deep = re.search(r";16[BLN]", str(file.tile)) is not None
    try:
        image.load()
    except OSError:
        if file.format not in ("JPEG", "MPO"):
            raise
        image = _mend_jpeg(data)
        damage.append("its last bytes are missing, and the lowest rows may be wrong")
    if image.mode.startswith("F"):
        raise ValueError("its samples are floats; save it with 8 or 16 bits a sample")
    if deep or image.mode.startswith("I"):
        changes.append("16 bits a sample were reduced to 8")
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # malformed EXIF can raise nearly anything in Pillow
        damage.append("its EXIF data are malformed and were ignored")
    return (_to_8_bits(image) if image.mode.startswith("I") else image), changes, damage


def _decode(data: bytes) -> ImageFile:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        # Pillow's own message would show a memory address.
        raise ValueError("its image format is unknown to Pillow") from None


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Rounds grey samples of 16 bits to 8 bits."""
    samples = np.asarray(image)
    if samples.min() < 0 or samples.max() > 65535:
        raise ValueError("its samples have more than 16 bits; save it with 8 or 16 bits a sample")
    return Image.fromarray(np.round(samples / 257).astype(np.uint8))


def _mend_jpeg(data: bytes) -> Image.Image:
    """Decodes a JPEG whose last bytes are missing. The data end where a further cut changes the picture."""
    image, shorter = (_decode(part + b"\xff\xd9") for part in (data, data[:-_CUT]))
    changed = (np.asarray(image) != np.asarray(shorter)).reshape(image.height, -1).any(axis=1)
    last = int(changed.argmax()) if changed.any() else image.height
    if last < image.height - _LOST_ROWS:
        raise ValueError(f"its data end in row {last} of {image.height}")
    return image
