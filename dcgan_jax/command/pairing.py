"""Images and masks on disk: pairs them by name and reads them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from dcgan_jax import masks
from dcgan_jax.data import open_prepared
from dcgan_jax.data.archives import is_image, refuse_link_out
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation.holes import image_name
from dcgan_jax.pictures import Mask, Picture, is_hidden, read_picture

T = TypeVar("T")


PictureReader = Callable[[], Picture]
MaskReader = Callable[[str, Picture], Mask]  # by the name of the image and the image itself
ALPHA = "alpha"  # in place of masks: the transparent parts of each image are missing


def find_images(
    source: Path, split: str | None, shape: tuple[int, int, int], leave_out: Sequence[Path] = ()
) -> tuple[dict[str, PictureReader], list[str]]:
    """Finds the images of a folder, a file or a prepared set.

    Args:
        source: the folder (with its subfolders), file or set.
        split: the split of a prepared set; None takes all splits.
        shape: the shape of the prior's images. Files of any size are read with this number of channels. The images of a
            prepared set must have this shape.
        leave_out: folders inside `source` to ignore, such as those of masks and results.

    Returns:
        A dictionary in order: name of an image without suffix -> function that reads it. The function raises
        `UserError` if the file cannot be read. Then the names of files in the folder that are not images.

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
        return {name: lambda i=i: Picture(np.array(prepared.images[i])) for name, i in place.items()}, []
    if split is not None:
        raise UserError(f"`split` is {split!r}, but {source} is not a prepared set: leave `split` out")
    found, others = _files(source, leave_out)
    files = by_stem(found, source)
    return {name: lambda file=file: read_image(file, shape[2]) for name, file in files.items()}, others


def find_masks(mask: str, names: list[str], invert: bool = False) -> MaskReader:
    """Finds the masks of images.

    Args:
        mask: one file for all images, a folder with a mask file for each image, or `ALPHA`. Other files in the folder
            are ignored.
        names: the names of the images without suffix.
        invert: black pixels are missing, instead of white ones.

    Returns:
        A function of an image's name and the image. It raises `UserError` if the image has no mask, or the mask cannot
        be read.

    Raises:
        UserError: the file or folder does not exist, or no image has a mask.
    """
    read = _find_masks(mask, names)
    if not invert:
        return read

    def inverted(name: str, picture: Picture) -> Mask:
        found = read(name, picture)
        return found._replace(hole=~found.hole)

    return inverted


def _find_masks(mask: str, names: list[str]) -> MaskReader:
    path = Path(mask)
    if mask == ALPHA:
        return _transparent
    if path.is_file():
        same = masks.read_mask(path)
        return lambda name, picture: same
    if not path.is_dir():
        raise UserError(
            f"`masks` is {mask!r}, which does not exist: give a file, a folder, or one of "
            f"{', '.join((*masks.NAMES, ALPHA))}"
        )
    files = by_stem(_files(path)[0], path)
    rule = f"no mask in {path}: give each mask the name of its image (the suffix may differ)"
    if names and not any(name in files for name in names):
        raise UserError(f"{len(names)} images, such as {names[0]!r}, have {rule}")

    def read(name: str, picture: Picture) -> Mask:
        if name not in files:
            raise UserError(f"it has {rule}")
        return masks.read_mask(files[name])

    return read


def _transparent(name: str, picture: Picture) -> Mask:
    if picture.transparent is None:
        raise UserError(f"image {name!r} has no transparent part: give a mask, or make what is missing transparent")
    return Mask(picture.transparent)


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


def _files(source: Path, leave_out: Sequence[Path] = ()) -> tuple[list[tuple[str, Path]], list[str]]:
    """Returns pairs of name and path: the file itself, or all images of a folder and its subfolders, sorted.

    Returns also the names of all other files that are not hidden.
    """
    if source.is_file():
        return [(source.name, source)], []
    if not source.is_dir():
        raise UserError(f"{source} does not exist: give a folder, an image file or a prepared set")
    inside = [folder.resolve() for folder in leave_out if source.resolve() in folder.resolve().parents]
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    paths = [path for path in paths if not any(map(path.resolve().is_relative_to, inside))]
    named = [(path.relative_to(source).as_posix(), path) for path in paths if not is_hidden(path.relative_to(source))]
    files = [(name, path) for name, path in named if is_image(name)]
    for _, path in files:
        refuse_link_out(path, source)
    if not files:
        others = f", only files such as {named[0][0]}" if named else ""
        raise UserError(f"{source} holds no image that can be read{others}: give a folder with images")
    return files, [name for name, _ in named if not is_image(name)]


def read_image(file: Path, channels: int) -> Picture:
    """Reads an image file with 1 or 3 channels. Raises `UserError` if it cannot be read."""
    with cannot_be_read(file):
        return read_picture(file.read_bytes(), channels)


@contextlib.contextmanager
def cannot_be_read(file: Path | str) -> Iterator[None]:
    """Raises `UserError`, with the name of the file, for any error of Pillow."""
    try:
        yield
    except Exception as error:  # a damaged file can raise nearly anything in Pillow
        raise UserError(f"{file} cannot be read as an image: {' '.join(str(error).split())}") from error


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
