"""Images and masks on disk: which belong together, by name, and how to read them."""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from dcgan_jax import masks
from dcgan_jax.data import decode_image, open_prepared
from dcgan_jax.data.archives import IMAGE_SUFFIXES, is_image, refuse_link_out
from dcgan_jax.errors import UserError


class Picture(NamedTuple):
    """An image as it was read."""

    pixels: UInt8[np.ndarray, "h w c"]
    note: str | None = None  # what was changed in reading, in words
    profile: bytes | None = None  # the ICC profile that its numbers are meant in


def find_images(
    source: Path, split: str | None, shape: tuple[int, int, int], leave_out: Sequence[Path] = ()
) -> dict[str, Callable[[], Picture]]:
    """How to read each image of a folder, a file or a prepared set, by its name without suffix, in order.

    Args:
        source: the folder (with its subfolders), file or set.
        split: of a prepared set; None takes all of it.
        shape: of the prior's images; files are read with its channels, a prepared set must have it.
        leave_out: folders inside a folder of images that hold something else: masks, results.

    Returns:
        Functions that read an image; they raise `UserError` for a file that cannot be read.

    Raises:
        UserError: there is no image, two have one name, or the set has images of another size.
    """
    if (source / "manifest.json").is_file():
        prepared = open_prepared(source)
        where = slice(None) if split is None else prepared.split_slice(split)
        if prepared.images.shape[1:] != shape:
            raise UserError(
                f"{source} holds images of {_times(prepared.images.shape[1:])} and the prior completes "
                f"{_times(shape)}: prepare the set with image size {shape[0]} and {shape[2]} channels"
            )
        place = by_stem(zip(prepared.names[where], range(len(prepared.images))[where], strict=True), source)
        return {name: lambda i=i: Picture(np.array(prepared.images[i])) for name, i in place.items()}
    if split is not None:
        raise UserError(f"`split` {split!r} is given, and {source} is not a prepared set: leave it out")
    files = by_stem(_files(source, leave_out), source)
    return {name: lambda file=file: _read_image(file, shape[2]) for name, file in files.items()}


def find_holes(mask: str, names: list[str]) -> Callable[[str], Bool[np.ndarray, "h w"]]:
    """How to read the hole of an image by its name, from one mask file for all or a folder of masks.

    Raises:
        UserError: there is no such file, or an image has no mask; masks without an image are left alone.
    """
    path = Path(mask)
    if path.is_file():
        hole = masks.read_hole(path)
        return lambda name: hole
    if not path.is_dir():
        raise UserError(f"`masks` is {mask!r}: give a file, a folder, or one of {', '.join(masks.NAMES)}")
    files = by_stem(_files(path), path)
    without = [name for name in names if name not in files]
    if without:
        raise UserError(
            f"{len(without)} images have no mask in {path}, {without[0]!r} first: a mask has its image's name (the "
            "suffix may differ)"
        )
    return lambda name: masks.read_hole(files[name])


def draw_hole(mask: str, key: jax.Array, size: int) -> Bool[np.ndarray, "size size"]:
    """One of `masks.NAMES`, drawn."""
    return np.asarray(masks.by_name(mask, key[None], size)[0])


def by_stem(pairs: Iterable[tuple[str, object]], source: Path) -> dict:
    """A dictionary by names without suffix, which must differ and stay inside the folder they are joined to."""
    found = {}
    for name, value in pairs:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"the image name {name!r} leads out of its folder: rename it")
        stem = path.with_suffix("").as_posix()
        if stem in found:
            raise UserError(f"{source} holds two images named {stem!r}, one of which would be lost: rename one")
        found[stem] = value
    return found


def _files(source, leave_out=()):
    """Pairs of name and path: the file itself, or all images of a folder and its subfolders, in order."""
    if source.is_file():
        return [(source.name, source)]
    if not source.is_dir():
        raise UserError(f"{source} does not exist: give a folder, an image file or a prepared set")
    files = [(file.relative_to(source).as_posix(), file) for file in sorted(source.rglob("*")) if file.is_file()]
    files = [(name, file) for name, file in files if is_image(name)]
    inside = [folder.resolve() for folder in leave_out if source.resolve() in folder.resolve().parents]
    files = [(name, file) for name, file in files if not any(map(file.resolve().is_relative_to, inside))]
    for _, file in files:
        refuse_link_out(file, source)
    if not files:
        raise UserError(f"{source} holds no image (files that end in {', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def _read_image(file, channels):
    try:
        data = file.read_bytes()
        array = np.asarray(decode_image(data, channels))
        with Image.open(io.BytesIO(data)) as image:
            changes = []
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                changes.append("transparent parts were laid on white")
            if channels == 1 and image.mode not in ("1", "L", "LA"):
                changes.append("colours were made grey, as the prior's images are")
            elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
                changes.append(f"{image.mode} was converted to RGB")
            profile = image.info.get("icc_profile") if image.mode.startswith({1: "L", 3: "RGB"}[channels]) else None
    except Exception as error:  # a damaged file can raise nearly anything in Pillow
        raise UserError(f"{file} cannot be read as an image: {' '.join(str(error).split())}") from error
    return Picture(array.reshape(*array.shape[:2], channels), "; ".join(changes) or None, profile)


def _times(shape):
    return "x".join(map(str, shape))
