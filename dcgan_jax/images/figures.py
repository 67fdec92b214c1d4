"""Figures of images: masked views, grids, labels, PNG and GIF files."""

import io
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Num, UInt8
from PIL import Image, ImageDraw, ImageFont

from dcgan_jax.images.pixels import to_uint8
from dcgan_jax.storage.files import whole_file

COLUMNS = 8  # columns of a grid of generated images
_FONT_SIZE = 14
_MARGIN = 6  # pixels around a label


def masked_view(
    images: Num[np.ndarray, "*b h w c"], hole: Bool[np.ndarray, "*#b h w"], level: int = 255
) -> UInt8[np.ndarray, "*b h w c"]:
    """Paints the missing pixels of images in one grey level.

    Args:
        images: uint8, or floats in [-1, 1]. Values in the hole are not read.
        hole: True = missing; leading axes broadcast.
        level: grey level of missing pixels, 0..255: 255 is white, 128 mid grey.

    Returns:
        uint8 images.

    Raises:
        ValueError: a shape or dtype does not fit.

    Example:
        >>> masked_view(np.zeros((1, 2, 1), np.uint8), np.array([[True, False]])).ravel().tolist()
        [255, 0]
    """
    images, hole = _levels(images, "images"), np.asarray(hole)
    if hole.dtype != np.bool_:
        raise ValueError(f"`hole` is {hole.dtype}; pass bool, True where pixels are missing")
    if images.ndim < 3 or hole.ndim < 2 or hole.shape[-2:] != images.shape[-3:-1]:
        raise ValueError(f"`hole` has shape {hole.shape}; pass {images.shape[:-1]} for images {images.shape}")
    return np.where(hole[..., None], np.uint8(level), images)


def tile(images: Num[np.ndarray, "n h w c"], columns: int, pad: int = 2) -> UInt8[np.ndarray, "H W 3"]:
    """Arranges images in a grid, row by row, with white gaps.

    Args:
        images: uint8, or floats in [-1, 1]; 1 or 3 channels.
        columns: images in a row. The last row is filled with white.
        pad: width of the gaps in pixels.

    Returns:
        The grid, without a border.

    Raises:
        ValueError: `images` has another shape or dtype, or `columns` is below 1, or `pad` below 0.

    Example:
        >>> tile(np.zeros((3, 8, 8, 1), np.uint8), columns=2).shape
        (18, 18, 3)
    """
    images = _levels(images, "images")
    if images.ndim != 4 or images.shape[0] < 1 or images.shape[-1] not in (1, 3):
        raise ValueError(f"`images` has shape {images.shape}; pass [n, h, w, 1 or 3] with n of at least 1")
    if columns < 1 or pad < 0:
        raise ValueError(f"`columns` is {columns} and `pad` is {pad}; pass at least 1 and at least 0")
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    grid = np.full((rows * (height + pad) - pad, columns * (width + pad) - pad, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + pad), (i % columns) * (width + pad)
        grid[top : top + height, left : left + width] = image
    return grid


def strip(
    original: Num[np.ndarray, "n h w c"] | None,
    masked: Num[np.ndarray, "n h w c"],
    completion: Num[np.ndarray, "n h w c"],
    blended: Num[np.ndarray, "n h w c"],
) -> UInt8[np.ndarray, "H W 3"]:
    """Shows the stages of each inpainting side by side, one row for each image, with thin white gaps.

    Args:
        original: the complete images, uint8 or floats in [-1, 1]. None leaves out this column.
        masked: the input, e.g. from `masked_view`.
        completion: the generated images.
        blended: the results.

    Returns:
        The grid; its columns are in the order of the arguments.

    Raises:
        ValueError: an array has another shape than `masked`, or a shape or dtype that `tile` does not take.

    Example:
        >>> image = np.zeros((2, 8, 8, 3), np.uint8)
        >>> strip(None, image, image, image).shape
        (18, 28, 3)
    """
    given = {"original": original, "masked": masked, "completion": completion, "blended": blended}
    columns = {name: _levels(images, name) for name, images in given.items() if images is not None}
    for name, images in columns.items():
        if images.shape != columns["masked"].shape:
            raise ValueError(
                f"`{name}` has shape {images.shape} and `masked` has {columns['masked'].shape}; pass equal shapes"
            )
    stacked = np.stack(list(columns.values()), axis=1)  # [n, columns, h, w, c]
    return tile(stacked.reshape(-1, *stacked.shape[2:]), columns=len(columns))


def labelled(
    grid: UInt8[np.ndarray, "h w 3"], row_labels: Sequence[str], column_labels: Sequence[str]
) -> UInt8[np.ndarray, "H W 3"]:
    """Writes labels beside the rows and above the columns of a grid, black on white.

    Args:
        grid: from `tile` or `strip`. Its rows and columns must be evenly spaced.
        row_labels: one for each row. An empty list leaves out the left margin.
        column_labels: one for each column. An empty list leaves out the top margin.

    Returns:
        The grid with its margins.

    Raises:
        ValueError: `grid` is not uint8 [h, w, 3].

    Example:
        >>> figure = labelled(np.zeros((64, 130, 3), np.uint8), [], ["masked", "blended"])
        >>> figure.shape[1], bool((figure[-64:] == 0).all())
        (130, True)
    """
    grid = np.asarray(grid)
    if grid.dtype != np.uint8 or grid.ndim != 3 or grid.shape[-1] != 3:
        raise ValueError(f"`grid` is {grid.dtype}{list(grid.shape)}; pass uint8 [h, w, 3], as `tile` returns it")
    height, width, _ = grid.shape
    font = ImageFont.load_default(size=_FONT_SIZE)
    left = int(max(map(font.getlength, row_labels))) + 2 * _MARGIN if row_labels else 0
    top = _FONT_SIZE + 2 * _MARGIN if column_labels else 0
    canvas = Image.new("RGB", (left + width, top + height), "white")
    canvas.paste(Image.fromarray(grid), (left, top))
    draw = ImageDraw.Draw(canvas)
    for i, text in enumerate(row_labels):
        middle = top + (i + 0.5) * height / len(row_labels)
        draw.text((left - _MARGIN, middle), text, fill="black", font=font, anchor="rm")
    for i, text in enumerate(column_labels):
        middle = left + (i + 0.5) * width / len(column_labels)
        draw.text((middle, top / 2), text, fill="black", font=font, anchor="mm")
    return np.asarray(canvas)


def save_png(path: str | os.PathLike[str], array: UInt8[np.ndarray, "h w *c"], profile: bytes | None = None) -> None:
    """Writes a PNG file. It appears whole or not at all.

    Args:
        path: the file to write. Its folder must exist; an existing file is replaced.
        array: uint8, [h, w], [h, w, 1] or [h, w, 3].
        profile: the ICC profile of the colours. Without one, viewers assume sRGB.

    Raises:
        ValueError: `array` has another shape or dtype.
        OSError: the file cannot be written; nothing is left behind.

    Example:
        >>> save_png("grid.png", tile(images, columns=8))  # doctest: +SKIP
    """
    content = png(array, profile)
    with whole_file(path) as partial:
        partial.write_bytes(content)


def png(array: UInt8[np.ndarray, "h w *c"], profile: bytes | None = None) -> bytes:
    """Encodes an image as PNG. Arguments and errors as for `save_png`."""
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3):
        raise ValueError(f"`array` is {array.dtype}{list(array.shape)}; pass uint8 [h, w], [h, w, 1] or [h, w, 3]")
    content = io.BytesIO()
    Image.fromarray(array).save(content, format="PNG", icc_profile=profile)
    return content.getvalue()


def save_gif(path: str | os.PathLike[str], frames: Num[np.ndarray, "n h w c"], seconds: float) -> None:
    """Writes a GIF animation that repeats forever. The file appears whole or not at all.

    Args:
        path: the file to write. Its folder must exist; an existing file is replaced.
        frames: uint8, or floats in [-1, 1]; 1 or 3 channels.
        seconds: time of each frame. A GIF stores hundredths of a second.

    Raises:
        ValueError: `frames` has another shape or dtype.
        OSError: the file cannot be written; nothing is left behind.

    Example:
        >>> save_gif("search.gif", frames, seconds=0.1)  # doctest: +SKIP
    """
    frames = _levels(frames, "frames")
    if frames.ndim != 4 or frames.shape[0] < 1 or frames.shape[-1] not in (1, 3):
        raise ValueError(f"`frames` has shape {frames.shape}; pass [n, h, w, 1 or 3] with n of at least 1")
    first, *rest = (Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames)
    with whole_file(path) as partial:
        first.save(
            partial, format="GIF", save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0, disposal=1
        )


def _levels(images: Num[np.ndarray, "*shape"], name: str) -> UInt8[np.ndarray, "*shape"]:
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"`{name}` is {images.dtype}; pass uint8, or floats in [-1, 1]")
    return to_uint8(images)
