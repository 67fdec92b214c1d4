"""The official files of Stanford Cars: photographs, cropped to their annotated boxes."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from dcgan_jax.data.archives import damage_named, files_in, split_places
from dcgan_jax.data.items import Source
from dcgan_jax.data.matlab import read_mat
from dcgan_jax.errors import UserError

CUT = "the annotated box"
_PHOTOGRAPHS = {split: (f"cars_{split}", f"cars_{split}.tgz", f"cars_{split}.tar.gz") for split in ("train", "test")}
_ANNOTATIONS = {
    "train": ("cars_train_annos.mat",),
    "test": ("cars_test_annos_withlabels.mat", "cars_test_annos.mat"),
}
_CLASSES = "cars_meta.mat"
_BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def is_cars(path: Path) -> bool:
    """Tells whether a path holds photographs of Stanford Cars with their annotations."""
    return any(
        devkit_file(images.parent, *_ANNOTATIONS[split]) for split, images in split_places(path, _PHOTOGRAPHS).items()
    )


@contextlib.contextmanager
def cars(path: Path) -> Iterator[Source]:
    """Opens Stanford Cars in its official splits. Photographs are cropped to their boxes; labels are the car models.

    A part of the photographs is enough. Each photograph must have an annotation.

    Args:
        path: `cars_train.tgz`, `cars_test.tgz`, a folder `cars_train` or `cars_test`, or the folder that holds one
            or both. The .mat files are beside them, in `devkit/` or in `car_devkit.tgz`. Without
            `cars_test_annos_withlabels.mat` the test split has no labels.

    Raises:
        UserError: an annotation file is missing or malformed, or a photograph has no annotation.
    """
    items, forward_only = [], False
    class_names = _class_names(path)
    with contextlib.ExitStack() as stack:
        for order, (split, images) in enumerate(split_places(path, _PHOTOGRAPHS).items()):
            annotations = _read_annotations(images, split)
            photographs, in_order = stack.enter_context(files_in(images))
            forward_only |= in_order
            for item in photographs:
                annotation = annotations.get(PurePosixPath(item.name).name)
                if annotation is None:
                    raise UserError(f"{item.name} of {images} has no annotation: use the annotation files of this set")
                box, label = annotation
                if label is not None and not 0 <= label < len(class_names):
                    raise UserError(
                        f"{item.name} of {images} has class {label + 1} of {len(class_names)}: "
                        f"use the {_CLASSES} of this set"
                    )
                cut = functools.partial(cut_box, box=box)
                position = (order, *item.position)
                # Names in `cars_train.tgz` begin with the folder `cars_train`; names in the unpacked folder do not.
                name = item.name if item.name.startswith("cars_") else f"cars_{split}/{item.name}"
                items.append(dataclasses.replace(item, name=name, split=split, label=label, position=position, cut=cut))
        yield Source("cars", items, class_names, forward_only, cut=CUT)


def cut_box(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Crops a photograph to a box: left, top, right and bottom edge in pixels. The box is clipped to the photograph."""
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
    if left >= right or top >= bottom:
        raise ValueError(f"the box {box} is empty or outside the {image.width}x{image.height} pixels")
    return image.crop((left, top, right, bottom))


def devkit_file(folder: Path, *names: str) -> bytes | None:
    """Returns the content of the first named file that exists in the folder, its `devkit` or its `car_devkit.tgz`."""
    archive = folder / "car_devkit.tgz"
    for name in names:
        for file in (folder / name, folder / "devkit" / name):
            if file.is_file():
                return file.read_bytes()
        if archive.is_file():
            with files_in(archive, lambda path, name=name: PurePosixPath(path).name == name) as (items, _):
                if items:
                    with damage_named(archive):
                        content = items[0].read()
                        return content if isinstance(content, bytes) else None
    return None


def _read_annotations(images: Path, split: str) -> dict[str, tuple[tuple[int, int, int, int], int | None]]:
    """Reads the annotations: file name -> (box, class).

    The annotation files count pixels and classes from 1, and a box includes its last pixel. The result counts from 0,
    and a box ends before its last number.
    """
    names = _ANNOTATIONS[split]
    content = devkit_file(images.parent, *names)
    if content is None:
        raise UserError(
            f"{images} has no {' or '.join(names)} beside it: put it there, into `devkit` or into `car_devkit.tgz`"
        )
    entries = read_variable(content, names[0], "annotations")
    annotations = {}
    try:
        for entry in entries:
            x1, y1, x2, y2 = (int(entry[field]) for field in _BOX)
            label = int(entry["class"]) - 1 if "class" in entries.dtype.names else None
            annotations[str(entry["fname"])] = ((x1 - 1, y1 - 1, x2, y2), label)
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"the annotations of {images} lack a field or a number ({error}): download {names[0]} again"
        ) from error
    return annotations


def _class_names(path: Path) -> list[str]:
    folder = next(iter(split_places(path, _PHOTOGRAPHS).values())).parent
    content = devkit_file(folder, _CLASSES)
    if content is None:
        raise UserError(f"{folder} has no {_CLASSES} (the class names): put it there or into `devkit`")
    return [str(name) for name in read_variable(content, _CLASSES, "class_names")]


def read_variable(content: bytes, file: str, variable: str) -> np.ndarray[Any, Any]:
    """Returns a variable of a MATLAB file. Raises `UserError` if it cannot be read."""
    try:
        return np.atleast_1d(read_mat(content, squeeze_me=True)[variable])
    except Exception as error:  # SciPy raises almost any error on another format
        raise UserError(
            f"{file} is not a readable MATLAB file with `{variable}` ({error}): download it again"
        ) from error
