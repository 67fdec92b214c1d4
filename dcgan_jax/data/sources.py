"""Opens image sources: folders, archives, official files and named sets. Each becomes one sequence of images."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dcgan_jax.config import SOURCE_KINDS
from dcgan_jax.data.archives import files_in
from dcgan_jax.data.cars import cars, is_cars
from dcgan_jax.data.celeba import celeba, is_celeba
from dcgan_jax.data.items import Item, Source
from dcgan_jax.data.loading import permutation
from dcgan_jax.data.svhn import is_svhn, svhn
from dcgan_jax.data.tfds import PREFIX, tfds_kind, tfds_set
from dcgan_jax.errors import UserError

_SPLIT_FOLDERS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}


@contextlib.contextmanager
def open_source(
    path: str | Path,
    kind: str,
    *,
    partition: str | Path | None = None,
    attributes: str | Path | None = None,
    data_dir: str | None = None,
) -> Iterator[Source]:
    """Opens a source of a given kind. Leaving the context closes its files.

    Args:
        path: a folder, archive or file, or `tfds:NAME`; ignored for "digits".
        kind: one of `config.SOURCE_KINDS`.
        partition: path of CelebA's `list_eval_partition.txt`. By default it is beside the images.
        attributes: path of CelebA's `list_attr_celeba.txt`. By default it is beside the images.
        data_dir: folder of the sets of tensorflow-datasets. None uses its default.

    Raises:
        UserError: `path` is not a source of this kind, or it is damaged.
    """
    if kind not in SOURCE_KINDS:
        raise UserError(f"`kind` is {kind!r}; give one of {', '.join(SOURCE_KINDS)}")
    if str(path).startswith(PREFIX):
        yield tfds_set(str(path), kind, data_dir)
        return
    if kind == "digits":
        yield digits()
        return
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a folder, an archive or a file")
    if kind == "svhn":
        opened = svhn(path)
    elif kind == "celeba":
        opened = celeba(path, partition, attributes)
    elif kind == "cars" and is_cars(path):
        opened = cars(path)
    else:
        opened = image_folder(path, kind)
    with opened as source:
        yield source


def detect_kind(path: str | Path) -> str:
    """Detects the kind of a source by its name and layout. Cars without annotations count as "folder"."""
    if str(path).startswith(PREFIX):
        return tfds_kind(str(path))
    if str(path) == "digits":
        return "digits"
    path = Path(path)
    if is_celeba(path):
        return "celeba"
    if is_svhn(path):
        return "svhn"
    return "cars" if is_cars(path) else "folder"


@contextlib.contextmanager
def image_folder(path: Path, kind: str = "folder") -> Iterator[Source]:
    """Opens the images of a folder or archive. The names of its folders give the splits and classes.

    A single folder that holds all others is ignored. If all top-level folders are named `train`, `test` or `validation`
    (`valid`, `val`), they are the splits, and the folders in them are the classes. Otherwise the top-level folders are
    the classes. An image outside the class folders has no label.
    """
    with files_in(path) as (items, forward_only):
        parts = [PurePosixPath(item.name).parts for item in items]
        folders, tops = [p[:-1] for p in parts], {p[:-1][:1] for p in parts}
        if len(tops) == 1 and () not in tops and not _are_splits(tops):
            folders = [f[1:] for f in folders]
        splits: list[str | None] = [None] * len(items)
        if _are_splits({f[:1] for f in folders}):
            splits = [_SPLIT_FOLDERS[f[0].lower()] for f in folders]
            folders = [f[1:] for f in folders]
        class_names = sorted({f[0] for f in folders if f})
        number = {name: i for i, name in enumerate(class_names)}
        labelled = [
            Item(item.name, item.read, split, number[f[0]] if f else None, item.position)
            for item, split, f in zip(items, splits, folders, strict=True)
        ]
        yield Source(kind, labelled, class_names, forward_only)


def digits() -> Source:
    """Returns the 1,797 handwritten digits of scikit-learn: 8x8 pixels, grey levels 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits  # slow to import

    data: Any = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    count = len(pixels)
    splits = np.full(count, "train")
    splits[permutation(count, seed=0)[-round(0.2 * count) :]] = "test"
    items = [
        Item(f"digits/{i:04d}", functools.partial(pixels.__getitem__, i), str(splits[i]), int(label))
        for i, label in enumerate(data.target)
    ]
    return Source("digits", items, [str(digit) for digit in range(10)])


def _are_splits(tops: set[tuple[str, ...]]) -> bool:
    return bool(tops) and all(top and top[0].lower() in _SPLIT_FOLDERS for top in tops)
