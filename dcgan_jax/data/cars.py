"""Stanford Cars' official files: photographs, cut to their annotated boxes."""

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
    """Whether photographs of Stanford Cars lie at a path, with their annotations."""
    return any(
        _devkit_file(images.parent, *_ANNOTATIONS[split]) for split, images in split_places(path, _PHOTOGRAPHS).items()
    )


@contextlib.contextmanager
def cars(path: Path) -> Iterator[Source]:
    """Stanford Cars in the official splits, each photograph cut to its box, labelled with make, model and year.

    The annotations may name photographs that are not there (a part of the set will do); the converse is an error.

    Args:
        path: `cars_train.tgz`, `cars_test.tgz`, a folder `cars_train` or `cars_test`, or the folder that holds one
            or both. The .mat files lie beside them, in `devkit/` or in `car_devkit.tgz`. The test split has no
            labels if only `cars_test_annos.mat` is there.

    Raises:
        UserError: an annotation file is missing or malformed, or has no entry for one of the photographs.
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
                    raise UserError(f"{item.name} of {images} is not in its annotations: use those of this set")
                box, label = annotation
                if label is not None and not 0 <= label < len(class_names):
                    raise UserError(
                        f"{item.name} of {images} has class {label + 1} of {len(class_names)}: get {_CLASSES}"
                    )
                cut = functools.partial(cut_box, box=box)
                position = (order, *item.position)
                # `cars_train.tgz` holds the folder `cars_train`; the unpacked folder's names lack it.
                name = item.name if item.name.startswith("cars_") else f"cars_{split}/{item.name}"
                items.append(dataclasses.replace(item, name=name, split=split, label=label, position=position, cut=cut))
        yield Source("cars", items, class_names, forward_only, cut=CUT)


def cut_box(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The part of a photograph inside a box: left, top, right and bottom edges in pixels, clipped to it."""
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
    if left >= right or top >= bottom:
        raise ValueError(f"the box {box} is empty or outside of the {image.width}x{image.height} pixels")
    return image.crop((left, top, right, bottom))


def _devkit_file(folder: Path, *names: str) -> bytes | None:
    """The first of the named files that is there: in the folder, in its `devkit` or in its `car_devkit.tgz`."""
    archive = folder / "car_devkit.tgz"
    for name in names:
        for file in (folder / name, folder / "devkit" / name):
            if file.is_file():
                return file.read_bytes()
        if archive.is_file():
            with files_in(archive, lambda path, name=name: PurePosixPath(path).name == name) as (items, _):
                if items:
                    with damage_named(archive):
                        return items[0].read()  # type: ignore[return-value]
    return None


def _read_annotations(images: Path, split: str) -> dict[str, tuple[tuple[int, int, int, int], int | None]]:
    """Box and class of each file name. The files count pixels and classes from 1 and include a box's last pixel."""
    names = _ANNOTATIONS[split]
    content = _devkit_file(images.parent, *names)
    if content is None:
        raise UserError(
            f"{images} has no {' or '.join(names)} beside it: put it there, in `devkit` or in `car_devkit.tgz`"
        )
    entries = _read_mat(content, names[0], "annotations")
    annotations = {}
    try:
        for entry in entries:
            x1, y1, x2, y2 = (int(entry[field]) for field in _BOX)
            label = int(entry["class"]) - 1 if "class" in entries.dtype.names else None
            annotations[str(entry["fname"])] = ((x1 - 1, y1 - 1, x2, y2), label)
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"the annotations of {images} lack a field or number ({error}): get {names[0]} again"
        ) from error
    return annotations


def _class_names(path: Path) -> list[str]:
    folder = next(iter(split_places(path, _PHOTOGRAPHS).values())).parent
    content = _devkit_file(folder, _CLASSES)
    if content is None:
        raise UserError(f"{folder} has no {_CLASSES}, the names of the classes: put it there or in `devkit`")
    return [str(name) for name in _read_mat(content, _CLASSES, "class_names")]


def _read_mat(content: bytes, file: str, variable: str) -> np.ndarray[Any, Any]:
    try:
        return np.atleast_1d(read_mat(content, squeeze_me=True)[variable])
    except Exception as error:  # SciPy raises nearly anything on a file of another format
        raise UserError(f"{file} is not a readable MATLAB file with `{variable}`: {error}") from error
