"""The official files of CelebA: the aligned faces, their partition and their attributes."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from dcgan_jax.data.archives import files_in, is_image, open_zip
from dcgan_jax.data.items import Item, Source
from dcgan_jax.errors import UserError

IMAGES, PARTITION, ATTRIBUTES = "img_align_celeba", "list_eval_partition.txt", "list_attr_celeba.txt"
_SPLITS = {"0": "train", "1": "validation", "2": "test"}


def is_celeba(path: Path) -> bool:
    """Tells whether a path is the archive or folder of CelebA's aligned faces, or a folder that holds either."""
    if path.is_dir():
        return path.name == IMAGES or (path / f"{IMAGES}.zip").exists() or (path / IMAGES).exists()
    if path.suffix.lower() == ".zip" and path.is_file():
        with open_zip(path) as archive:
            images = [name for name in archive.namelist() if is_image(name)]
        return bool(images) and all(name.startswith(f"{IMAGES}/") for name in images)
    return False


@contextlib.contextmanager
def celeba(path: Path, partition: str | Path | None = None, attributes: str | Path | None = None) -> Iterator[Source]:
    """Opens CelebA's aligned faces in their official splits.

    A part of the images is enough. Each image must have a line in the partition. The attributes are read only when they
    are needed; each image must then have a line there too.

    Args:
        path: `img_align_celeba.zip`, the folder `img_align_celeba`, or the folder that holds either.
        partition: path of `list_eval_partition.txt`. By default it is beside the archive or folder of images.
        attributes: path of `list_attr_celeba.txt`. By default it is beside the archive or folder of images.

    Raises:
        UserError: the partition is missing or malformed, or an image has no line in it.
    """
    images = path
    if path.is_dir():
        inside = [path / f"{IMAGES}.zip", path / IMAGES]
        images = next((p for p in inside if p.exists()), path)
    splits = read_partition(Path(partition) if partition is not None else images.parent / PARTITION)
    attributes = Path(attributes) if attributes is not None else images.parent / ATTRIBUTES
    with files_in(images) as (items, forward_only):
        split_items = []
        for item in items:
            name = PurePosixPath(item.name).name
            if name not in splits:
                raise UserError(f"{item.name} of {images} has no line in {PARTITION}: use the partition of this set")
            split_items.append(Item(item.name, item.read, splits[name], None, item.position))
        read = functools.partial(read_attributes, attributes, [item.name for item in items])
        yield Source("celeba", split_items, [], forward_only, read)


def read_partition(path: Path) -> dict[str, str]:
    """Reads the partition: file name -> split. Raises `UserError` if it is missing or malformed."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: put CelebA's {PARTITION} beside the images, or give its path (`partition`), "
            'or prepare without the official splits (`kind` "folder", `crop` "celeba")'
        )
    splits = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        fields = line.split()
        if fields and (len(fields) != 2 or fields[1] not in _SPLITS):
            raise UserError(f"{path}, line {number}: expected a file name and 0, 1 or 2, found {line[:80]!r}")
        if fields:
            splits[fields[0]] = _SPLITS[fields[1]]
    return splits


def read_attributes(path: Path, images: list[str]) -> Mapping[str, np.ndarray]:
    """Reads the attributes of images: name of an attribute -> bool array with one entry for each image.

    The first line of the file is the number of images. The second line has the names of the attributes. Each other line
    has a file name, and 1 or -1 for each attribute.

    Raises:
        UserError: the file is missing or malformed, or an image has no line in it.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: put CelebA's {ATTRIBUTES} beside the images, or give its path (`attributes`)"
        )
    row = {PurePosixPath(name).name: i for i, name in enumerate(images)}
    with path.open(encoding="utf-8", errors="replace") as lines:
        next(lines, None)
        names = next(lines, "").split()
        values = np.zeros((len(images), len(names)), bool)
        for number, line in enumerate(lines, 3):
            file, *fields = line.split() or [""]
            if file and (len(fields) != len(names) or not {"1", "-1"}.issuperset(fields)):
                raise UserError(
                    f"{path}, line {number}: expected a file name and {len(names)} values 1 or -1, found {line[:80]!r}"
                )
            if file in row:
                values[row.pop(file)] = [field == "1" for field in fields]
    if row:
        raise UserError(f"{next(iter(row))} has no line in {path}: use the attributes of this set")
    return dict(zip(names, values.T, strict=True))
