"""Images and masks on disk: pairs them by name and reads them."""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from dcgan_jax import masks
from dcgan_jax.data import decode_image, open_prepared
from dcgan_jax.data.archives import IMAGE_SUFFIXES, is_image, refuse_link_out
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation.holes import image_name

T = TypeVar("T")


class Picture(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: the pixels, turned upright.
        note: a remark on how reading changed the image, such as removed colours; None if it did not.
        profile: the ICC profile of the pixels; None if there is none.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    note: str | None = None
    profile: bytes | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the pixels in bytes."""
        return self.pixels.nbytes


PictureReader = Callable[[], Picture]
HoleReader = Callable[[str], Bool[np.ndarray, "h w"]]  # name of an image -> its hole


def find_images(
    source: Path, split: str | None, shape: tuple[int, int, int], leave_out: Sequence[Path] = ()
) -> dict[str, PictureReader]:
    """Finds the images of a folder, a file or a prepared set.

    Args:
        source: the folder (with its subfolders), file or set.
        split: the split of a prepared set; None takes all splits.
        shape: the shape of the prior's images. Files of any size are read with this number of channels. The images of a
            prepared set must have this shape.
        leave_out: folders inside `source` to ignore, such as those of masks and results.

    Returns:
        A dictionary in order: name of an image without suffix -> function that reads it. The function raises
        `UserError` if the file cannot be read.

    Raises:
        UserError: there is no image, two images have the same name, or the images of the set have another shape.
    """
    if (source / "manifest.json").is_file():
        prepared = open_prepared(source)
        where = slice(None) if split is None else prepared.split_slice(split)
        if prepared.images.shape[1:] != shape:
            raise UserError(
                f"{source} holds images of {_times(prepared.images.shape[1:])}, but the prior completes "
                f"{_times(shape)}: prepare the set with image size {shape[0]} and {shape[2]} channels"
            )
        place = by_stem(zip(prepared.names[where], range(len(prepared.images))[where], strict=True), source)
        return {name: lambda i=i: Picture(np.array(prepared.images[i])) for name, i in place.items()}
    if split is not None:
        raise UserError(f"`split` is {split!r}, but {source} is not a prepared set: leave `split` out")
    files = by_stem(_files(source, leave_out), source)
    return {name: lambda file=file: read_image(file, shape[2]) for name, file in files.items()}


def find_holes(mask: str, names: list[str]) -> HoleReader:
    """Finds the masks of images.

    Args:
        mask: one file for all images, or a folder with a mask file for each image. Other files in it are ignored.
        names: the names of the images without suffix.

    Raises:
        UserError: the file or folder does not exist, or an image has no mask.
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
            f"{len(without)} images have no mask in {path}, such as {without[0]!r}: give each mask the name of its "
            "image (the suffix may differ)"
        )
    return lambda name: masks.read_hole(files[name])


def by_stem(pairs: Iterable[tuple[str, T]], source: Path) -> dict[str, T]:
    """Makes a dictionary: name without suffix -> value.

    Args:
        pairs: file names and values.
        source: the origin of the names, for messages.

    Raises:
        UserError: two names are the same, or a name is an absolute path or contains "..".
    """
    found: dict[str, T] = {}
    for name, value in pairs:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"the image name {name!r} leads out of its folder: rename it")
        stem = image_name(name)
        if stem in found:
            raise UserError(f"{source} holds two images named {stem!r}, so one would overwrite the other: rename one")
        found[stem] = value
    return found


def _files(source: Path, leave_out: Sequence[Path] = ()) -> list[tuple[str, Path]]:
    """Returns pairs of name and path: the file itself, or all images of a folder and its subfolders, sorted."""
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


def read_image(file: Path, channels: int) -> Picture:
    """Reads an image file with 1 or 3 channels. Raises `UserError` if it cannot be read."""
    try:
        data = file.read_bytes()
        array = np.asarray(decode_image(data, channels))
        with Image.open(io.BytesIO(data)) as image:
            changes = []
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                changes.append("transparent parts became white")
            if channels == 1 and image.mode not in ("1", "L", "LA"):
                changes.append("colours became grey, because the prior makes grey images")
            elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
                changes.append(f"{image.mode} was converted to RGB")
            profile = image.info.get("icc_profile") if image.mode.startswith({1: "L", 3: "RGB"}[channels]) else None
    except Exception as error:  # a damaged file can raise nearly anything in Pillow
        raise UserError(f"{file} cannot be read as an image: {' '.join(str(error).split())}") from error
    return Picture(array.reshape(*array.shape[:2], channels), "; ".join(changes) or None, profile)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
