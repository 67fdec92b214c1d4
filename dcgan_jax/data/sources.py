"""Image sources: folders, archives and official data files seen as one sequence of lazily read images."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import scipy.io

from dcgan_jax.data.archives import Item, image_files, is_image, open_zip
from dcgan_jax.data.loading import permutation
from dcgan_jax.errors import UserError

KINDS = ("folder", "celeba", "svhn", "cars", "digits")

_SPLIT_FOLDERS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
_CELEBA_SPLITS = {"0": "train", "1": "validation", "2": "test"}
_SVHN_SPLITS = ("train", "test", "extra")
_CELEBA_PARTITION = "list_eval_partition.txt"


@dataclass(frozen=True)
class Source:
    """A sequence of items, in the order of their names; usable while the context that made it is open.

    `forward_only`: reads must come from one thread, in order of `Item.position` (a compressed tar file starts
    again from its beginning to go back). Otherwise `Item.read` may be called from any thread.
    """

    kind: str
    items: list[Item]
    class_names: list[str]
    forward_only: bool = False


@contextlib.contextmanager
def open_source(path: str | Path, kind: str, partition: str | Path | None = None) -> Iterator[Source]:
    """Opens a source of a given kind; its files are closed at the end of the context.

    Args:
        path: a folder, archive or file; not looked at for "digits".
        kind: one of `KINDS`.
        partition: CelebA's `list_eval_partition.txt`; None looks for it beside the images.

    Raises:
        UserError: there is nothing of that kind at `path`, or it is damaged.
    """
    if kind not in KINDS:
        raise UserError(f"`kind` is {kind!r}; it is one of {', '.join(KINDS)}")
    if kind == "digits":
        yield digits()
        return
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if kind == "svhn":
        yield svhn(path)
    elif kind == "celeba":
        with celeba(path, partition) as source:
            yield source
    else:
        with image_folder(path, kind) as source:
            yield source


def detect_kind(path: str | Path) -> str:
    """The kind of source that lies at `path`, by its name and layout; "cars" looks like any folder."""
    if str(path) == "digits":
        return "digits"
    path = Path(path)
    if path.is_dir():
        if any((path / name).exists() for name in ("img_align_celeba.zip", "img_align_celeba")):
            return "celeba"
        if path.name == "img_align_celeba" and (path.parent / _CELEBA_PARTITION).exists():
            return "celeba"
        return "svhn" if _svhn_files(path) else "folder"
    if path.suffix.lower() == ".mat":
        return "svhn"
    if path.suffix.lower() == ".zip" and path.is_file():
        with open_zip(path) as archive:
            images = [name for name in archive.namelist() if is_image(name)]
        if images and all(name.startswith("img_align_celeba/") for name in images):
            return "celeba"
    return "folder"


@contextlib.contextmanager
def image_folder(path: Path, kind: str = "folder") -> Iterator[Source]:
    """Images of a folder or archive, with splits and classes read off its subfolders.

    One folder that wraps everything is ignored. If all top-level folders are called `train`, `test` or
    `validation` (`valid`, `val`), they are the splits, and the next level the classes; otherwise the top
    level is the classes. An image outside the class folders has no label.
    """
    with image_files(path) as (items, forward_only):
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


@contextlib.contextmanager
def celeba(path: Path, partition: str | Path | None = None) -> Iterator[Source]:
    """CelebA's aligned faces in their official splits.

    The partition may name images that are not there (a part of the set will do); the converse is an error.

    Args:
        path: `img_align_celeba.zip`, the folder `img_align_celeba`, or the folder that holds either.
        partition: `list_eval_partition.txt`; None looks for it beside the archive or folder of images.

    Raises:
        UserError: the partition is missing or malformed, or has no line for one of the images.
    """
    images = path
    if path.is_dir():
        inside = [path / "img_align_celeba.zip", path / "img_align_celeba"]
        images = next((p for p in inside if p.exists()), path)
    partition = Path(partition) if partition is not None else images.parent / _CELEBA_PARTITION
    if not partition.is_file():
        raise UserError(
            f"{partition} does not exist: put CelebA's {_CELEBA_PARTITION} beside the images, or give its "
            'path (`partition`), or prepare without the official splits (`kind` "folder", `crop` "celeba")'
        )
    splits = {}
    for number, line in enumerate(partition.read_text(errors="replace").splitlines(), 1):
        fields = line.split()
        if fields and (len(fields) != 2 or fields[1] not in _CELEBA_SPLITS):
            raise UserError(f"{partition}, line {number}: expected a file name and 0, 1 or 2, found {line[:80]!r}")
        if fields:
            splits[fields[0]] = _CELEBA_SPLITS[fields[1]]
    with image_files(images) as (items, forward_only):
        split_items = []
        for item in items:
            name = PurePosixPath(item.name).name
            if name not in splits:
                raise UserError(f"{item.name} of {images} has no line in {partition}: use the partition of this set")
            split_items.append(Item(item.name, item.read, splits[name], None, item.position))
        yield Source("celeba", split_items, [], forward_only)


def svhn(path: Path) -> Source:
    """SVHN's cropped digits ("format 2"): one `*_32x32.mat`, or a folder of them.

    Label 10 of the files is the digit 0; the class names are the digits. The pixels are held in memory: SciPy
    reads such files whole.

    Raises:
        UserError: no such file, or not of that format.
    """
    files = _svhn_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} has no train_32x32.mat, test_32x32.mat or extra_32x32.mat")
    items = []
    for file in files:
        try:
            content = scipy.io.loadmat(file, variable_names=["X", "y"])
            pixels, labels = content["X"], content["y"].ravel().astype(np.int64)
        except Exception as error:  # SciPy raises nearly anything on a file of another format
            raise UserError(f"{file} is not a readable SVHN file with `X` and `y`: {error}") from error
        if pixels.ndim != 4 or pixels.shape != (32, 32, 3, len(labels)) or pixels.dtype != np.uint8:
            raise UserError(
                f"{file}: `X` is {pixels.dtype} {pixels.shape} with {len(labels)} labels; "
                "SVHN's is uint8 (32, 32, 3, N) with N labels"
            )
        if labels.size and not (labels.min() >= 0 and labels.max() <= 10):
            raise UserError(f"{file}: labels run from {labels.min()} to {labels.max()}; SVHN's run from 1 to 10")
        split = file.name.split("_")[0]
        split = split if split in _SVHN_SPLITS else None
        items += [
            Item(f"{file.stem}/{i:06d}", functools.partial(_last_axis, pixels, i), split, int(label) % 10)
            for i, label in enumerate(labels)
        ]
    return Source("svhn", items, [str(digit) for digit in range(10)])


def digits() -> Source:
    """The 1,797 handwritten digits that come with scikit-learn: 8x8, 16 grey levels spread over 0 to 255."""
    from sklearn.datasets import load_digits  # slow to import, and only wanted here

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


def _svhn_files(folder: Path) -> list[Path]:
    files = [folder / f"{split}_32x32.mat" for split in _SVHN_SPLITS]
    return [file for file in files if file.is_file()]


def _last_axis(pixels: np.ndarray, index: int) -> np.ndarray:
    return pixels[..., index]
