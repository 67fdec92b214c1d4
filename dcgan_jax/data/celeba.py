"""CelebA's official files: the aligned faces, their partition and their attributes."""

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
    """Whether CelebA's aligned faces lie at a path: their archive, their folder, or the folder of either."""
    if path.is_dir():
        return path.name == IMAGES or (path / f"{IMAGES}.zip").exists() or (path / IMAGES).exists()
    if path.suffix.lower() == ".zip" and path.is_file():
        with open_zip(path) as archive:
            images = [name for name in archive.namelist() if is_image(name)]
        return bool(images) and all(name.startswith(f"{IMAGES}/") for name in images)
    return False


@contextlib.contextmanager
def celeba(path: Path, partition: str | Path | None = None, attributes: str | Path | None = None) -> Iterator[Source]:
    """CelebA's aligned faces in their official splits.

    Partition and attributes may name images that are not there (a part of the set will do); the converse is an
    error. The attributes are only read when they are asked for.

    Args:
        path: `img_align_celeba.zip`, the folder `img_align_celeba`, or the folder that holds either.
        partition: `list_eval_partition.txt`; None looks for it beside the archive or folder of images.
        attributes: `list_attr_celeba.txt`; None looks for it there too.

    Raises:
        UserError: the partition is missing or malformed, or has no line for one of the images.
    """
    images = path
    if path.is_dir():
        inside = [path / f"{IMAGES}.zip", path / IMAGES]
        images = next((p for p in inside if p.exists()), path)
    splits = _read_partition(Path(partition) if partition is not None else images.parent / PARTITION)
    attributes = Path(attributes) if attributes is not None else images.parent / ATTRIBUTES
    with files_in(images) as (items, forward_only):
        split_items = []
        for item in items:
            name = PurePosixPath(item.name).name
            if name not in splits:
                raise UserError(f"{item.name} of {images} has no line in {PARTITION}: use the partition of this set")
            split_items.append(Item(item.name, item.read, splits[name], None, item.position))
        read = functools.partial(_read_attributes, attributes, [item.name for item in items])
        yield Source("celeba", split_items, [], forward_only, read)


def _read_partition(path: Path) -> dict[str, str]:
    """The split of each file name."""
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


def _read_attributes(path: Path, images: list[str]) -> Mapping[str, np.ndarray]:
    """The attributes of images: for each name one bool an image.

    The file's first line is the number of images, its second the names of the attributes; each other line has a
    file name and, for each attribute, 1 or -1.
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
                    f"{path}, line {number}: expected a file name and {len(names)} times 1 or -1, found {line[:80]!r}"
                )
            if file in row:
                values[row.pop(file)] = [field == "1" for field in fields]
    if row:
        raise UserError(f"{next(iter(row))} has no line in {path}: use the attributes of this set")
    return dict(zip(names, values.T, strict=True))
