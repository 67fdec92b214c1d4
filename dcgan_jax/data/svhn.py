"""The official files of Street View House Numbers: cropped digits (format 2), and photographs (format 1)."""

import contextlib
import dataclasses
import functools
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dcgan_jax.data.archives import damage_named, files_in, is_image, split_places
from dcgan_jax.data.items import Item, Source
from dcgan_jax.data.matlab import read_mat
from dcgan_jax.errors import UserError

CUT = "the digit's box, extended to a square"
_SPLITS = ("train", "test", "extra")
_PHOTOGRAPHS = {split: (split, f"{split}.tar.gz") for split in _SPLITS}
_DIGITS = [str(digit) for digit in range(10)]
_ANNOTATIONS = "digitStruct.mat"


class Digit(NamedTuple):
    """A digit in a photograph: its box in pixels, and its label, which is 10 for the digit 0."""

    left: int
    top: int
    width: int
    height: int
    label: int


def is_svhn(path: Path) -> bool:
    """Tells whether a path holds SVHN, in either format."""
    if path.suffix.lower() == ".mat":
        return True
    return bool(_cropped(path)) or any(map(_is_annotated, split_places(path, _PHOTOGRAPHS).values()))


@contextlib.contextmanager
def svhn(path: Path) -> Iterator[Source]:
    """Opens SVHN's digits. The class names are the digits. The files give the digit 0 the label 10.

    Args:
        path: format 2 is `train_32x32.mat`, `test_32x32.mat`, `extra_32x32.mat`, or a folder with some of them. Format
            1 is `train.tar.gz` or the folder `train` (also `test`, `extra`), or a folder with some of them. If a folder
            holds both formats, format 2 is read.

    Raises:
        UserError: there are no such files, or they have another format.
    """
    if files := _cropped(path):
        yield Source("svhn", [item for file in files for item in cropped_items(file)], _DIGITS)
        return
    photographs = split_places(path, _PHOTOGRAPHS)
    if not photographs:
        raise UserError(
            f"{path} has none of SVHN's files, such as train_32x32.mat or train.tar.gz: give the folder that holds them"
        )
    with contextlib.ExitStack() as stack:
        items, forward_only = [], False
        for order, (split, place) in enumerate(photographs.items()):
            files, in_order = stack.enter_context(files_in(place, lambda name: is_image(name) or _annotates(name)))
            forward_only |= in_order
            items += [
                dataclasses.replace(item, position=(order, *item.position))
                for item in _photographed_items(place, split, files)
            ]
        yield Source("svhn", items, _DIGITS, forward_only, cut=CUT)


def cut_digit(image: Image.Image, digit: tuple[int, int, int, int]) -> Image.Image:
    """Crops a photograph to the square around a digit.

    The square is the box, extended on both sides of its shorter direction, as in format 2. A square that crosses the
    photograph's edge is moved inside. If the photograph is smaller than the square, its outermost pixels are repeated.

    Args:
        image: the photograph.
        digit: left, top, width and height of the box, in pixels.
    """
    left, top, width, height = digit
    if width < 1 or height < 1:
        raise ValueError(f"the box {digit} is empty")
    side = max(width, height)
    x, x_pad = _interval(left - (side - width) // 2, side, image.width)
    y, y_pad = _interval(top - (side - height) // 2, side, image.height)
    pixels = np.asarray(image)[y : y + side, x : x + side]
    return Image.fromarray(np.pad(pixels, (y_pad, x_pad, (0, 0))[: pixels.ndim], mode="edge"))


def _interval(start: int, length: int, limit: int) -> tuple[int, tuple[int, int]]:
    """Moves an interval into 0 to `limit`. Returns its start, and the lengths that do not fit on each side."""
    lacking = max(length - limit, 0)
    return min(max(start, 0), max(limit - length, 0)), (lacking // 2, lacking - lacking // 2)


def _cropped(path: Path) -> list[Path]:
    """Returns the files of format 2 at a path."""
    if not path.is_dir():
        return [path] if path.suffix.lower() == ".mat" else []
    return [file for split in _SPLITS if (file := path / f"{split}_32x32.mat").is_file()]


def cropped_items(file: Path) -> list[Item]:
    """Reads the digits of a file of format 2. All its pixels are in memory, because SciPy reads the whole file."""
    try:
        content = read_mat(file, variable_names=["X", "y"])
        pixels, labels = content["X"], content["y"].ravel().astype(np.int64)
    except Exception as error:  # SciPy raises almost any error on another format
        raise UserError(f"{file} is not a readable SVHN file with `X` and `y` ({error}): download it again") from error
    if pixels.ndim != 4 or pixels.shape != (32, 32, 3, len(labels)) or pixels.dtype != np.uint8:
        raise UserError(
            f"{file}: `X` is {pixels.dtype} {pixels.shape} with {len(labels)} labels; "
            "SVHN has uint8 (32, 32, 3, N) with N labels: download it again"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() <= 10):
        raise UserError(
            f"{file} has labels from {labels.min()} to {labels.max()}; SVHN's labels are 1 to 10: download it again"
        )
    split = file.name.split("_")[0]
    split = split if split in _SPLITS else None
    return [
        Item(f"{file.stem}/{i:06d}", functools.partial(_last_axis, pixels, i), split, int(label) % 10)
        for i, label in enumerate(labels)
    ]


def _last_axis(pixels: np.ndarray, index: int) -> np.ndarray:
    return pixels[..., index]


def _annotates(name: str) -> bool:
    return PurePosixPath(name).name == _ANNOTATIONS


def _is_annotated(place: Path) -> bool:
    """Tells whether a folder has a `digitStruct.mat`, or an archive has one anywhere."""
    if place.is_dir():
        return (place / _ANNOTATIONS).is_file()
    try:
        with tarfile.open(place) as archive:
            return any(_annotates(member.name) for member in archive)
    except Exception:  # a damaged archive: `svhn` reports the error
        return False


def _photographed_items(place: Path, split: str, files: list[Item]) -> list[Item]:
    """Returns one item for each digit in the photographs of a folder or archive of format 1."""
    annotations = next((file for file in files if _annotates(file.name)), None)
    if annotations is None:
        raise UserError(f"{place} has no {_ANNOTATIONS} in it: download SVHN's {split}.tar.gz again")
    with damage_named(place):
        content = annotations.read()
    digits = read_digits(content, f"{_ANNOTATIONS} of {place}")
    photographs = [file for file in files if file is not annotations]

    # The digits of a photograph follow one another. A photograph is read once, as a compressed archive cannot go back.
    @functools.lru_cache(maxsize=1)
    def read(index: int) -> bytes | np.ndarray:
        return photographs[index].read()

    items = []
    for index, photograph in enumerate(photographs):
        path = PurePosixPath(photograph.name)
        if path.name not in digits:
            raise UserError(f"{path} of {place} has no entry in its {_ANNOTATIONS}: use the annotations of this set")
        for number, digit in enumerate(digits[path.name], 1):
            items.append(
                Item(
                    f"{split}/{path.stem}-{number}",
                    functools.partial(read, index),
                    split,
                    digit.label % 10,
                    photograph.position,
                    functools.partial(cut_digit, digit=digit[:4]),
                )
            )
    return items


def read_digits(content: Any, file: str) -> dict[str, list[Digit]]:
    """Reads the digits of each photograph, by its file name, from a `digitStruct.mat`.

    The file is HDF5 with two columns of references. One refers to each photograph's name, a column of character codes.
    The other refers to a group with `left`, `top`, `width`, `height` and `label` of its digits. Each of these holds the
    number of a single digit, or references to the numbers of several digits.

    Args:
        content: the bytes of the file.
        file: the name of the file, for messages.

    Raises:
        UserError: h5py is not installed, or the file has another format.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"reading {file} needs h5py: pip install 'dcgan-jax[svhn]'") from error
    try:
        with h5py.File(io.BytesIO(content), "r") as mat:
            table: Any = mat["digitStruct"]

            def deref(reference: Any) -> Any:
                return mat[reference][()]  # type: ignore[index]  # a reference leads to a dataset here

            def numbers(dataset: Any) -> list[int]:
                values: Any = dataset[()].ravel()
                if dataset.dtype == h5py.ref_dtype:
                    values = [deref(reference).item() for reference in values]
                return [round(float(value)) for value in values]

            digits = {}
            for name, box in zip(table["name"][()].ravel(), table["bbox"][()].ravel(), strict=True):
                group: Any = mat[box]
                columns = [numbers(group[field]) for field in Digit._fields]
                digits["".join(map(chr, deref(name).ravel()))] = [Digit(*digit) for digit in zip(*columns, strict=True)]
    except Exception as error:  # h5py raises almost any error on another format
        raise UserError(f"{file} is not a readable SVHN annotation ({error}): download it again") from error
    wrong = {digit.label for those in digits.values() for digit in those} - set(range(11))
    if wrong:
        raise UserError(f"{file} has a label {min(wrong)}; SVHN's labels are 1 to 10: download it again")
    return digits
