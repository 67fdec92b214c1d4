"""Prepares a source: decodes, crops and resizes its images once, into one array on disk with a manifest."""

import importlib.metadata
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dcgan_jax.config import SET_CROPS
from dcgan_jax.data import celeba, loading
from dcgan_jax.data.cropping import CROP_DESCRIPTIONS, crop_image
from dcgan_jax.data.items import Item, Source, select
from dcgan_jax.data.loading import PreparedSet
from dcgan_jax.data.sources import detect_kind, open_source
from dcgan_jax.errors import UserError
from dcgan_jax.pictures import Picture, read_picture
from dcgan_jax.storage import remote

_KIND_CROPS = {
    "folder": "center",
    "celeba": "celeba",
    "svhn": "center",
    "cars": "stretch",
    "digits": "center",
}
_SPLIT_ORDER = ("train", "validation", "test", "extra")
_UNREADABLE_LIMIT = 0.01  # fraction of all images


@dataclass(frozen=True)
class _Preparation:
    """The settings for the preparation of each image."""

    crop: str
    resampling: str
    image_size: int
    channels: int


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    kind: str | None = None,
    image_size: int = 64,
    channels: int | None = None,
    validation_fraction: float = 0.05,
    crop: str | None = None,
    where: Sequence[str] = (),
    partition: str | Path | None = None,
    attributes: str | Path | None = None,
    data_dir: str | None = None,
    progress: bool = True,
) -> PreparedSet:
    """Prepares a source of images as one uint8 array [n, image_size, image_size, channels] in a folder.

    The folder appears whole or not at all. Images are decoded on all cores into a hidden folder. This folder is renamed
    at the end, and removed after any error or interruption. In a bucket the manifest is written last: a folder without
    it is not a prepared set. Unreadable files are skipped and listed in the manifest. It is an error if they are more
    than 1 % of all files.

    Args:
        source: a folder or archive of images, the official files of CelebA, SVHN or Stanford Cars, `tfds:NAME` for a
            set of tensorflow-datasets, or "digits" (from scikit-learn). Files may be in a bucket.
        out: the new folder, local or in a bucket. It may exist if it is empty.
        kind: "folder", "celeba", "svhn", "cars" or "digits". None detects it. Pass "cars" for car images that are
            already cropped.
        image_size: side of the prepared images in pixels.
        channels: 1 (grey) or 3 (RGB). The default is 1 for the digits, else 3.
        validation_fraction: fraction in (0, 1) held out for validation if the source has no split, or only `train`.
            At least one image is held out. Each call holds out the same images.
        crop: a name in `config.SET_CROPS`. The default is the published crop of the kind.
        where: conditions that each image must meet: `label=1`, `label=1,2` for either class, or `Smiling=1` and
            `Male=0` for CelebA's attributes.
        partition: path of CelebA's `list_eval_partition.txt`, if it is not beside the images.
        attributes: path of CelebA's `list_attr_celeba.txt`, if it is not beside the images.
        data_dir: folder or bucket of tensorflow-datasets. None uses its default.
        progress: show a progress bar on standard error.

    Returns:
        The prepared set, open. Each split keeps the source's order.

    Raises:
        UserError: an argument is out of range, `out` is not empty, the disk is too full, too many files are
            unreadable, there are no images, or no image meets the conditions.

    Example:
        >>> faces = prepare("downloads/img_align_celeba.zip", "data/celeba")  # doctest: +SKIP
        >>> faces.split("train").shape  # doctest: +SKIP
        (162770, 64, 64, 3)
    """
    if type(image_size) is not int or image_size < 1:
        raise UserError(f"`image_size` is {image_size!r}; give a number of pixels, such as 64")
    if channels not in (None, 1, 3):
        raise UserError(f"`channels` is {channels!r}; give 1 (grey) or 3 (RGB)")
    if not 0 < validation_fraction < 1:
        raise UserError(f"`validation_fraction` is {validation_fraction}; give a number between 0 and 1")
    if crop is not None and crop not in SET_CROPS:
        raise UserError(f"`crop` is {crop!r}; give one of {', '.join(SET_CROPS)}")
    where = (where,) if isinstance(where, str) else tuple(where)
    if _is_taken(out):
        raise UserError(f"{out} exists already: remove it, or give another folder")

    files = remote.fetch(source)
    kind = kind if kind is not None else detect_kind(files)
    if kind == "celeba":
        partition = _beside(source, partition, celeba.PARTITION)
        attributes = _beside(source, attributes, celeba.ATTRIBUTES)
    elif partition is not None or attributes is not None:
        raise UserError(
            f"`partition` and `attributes` are files of CelebA, but {source} is of kind {kind}: leave them out"
        )
    elif kind == "folder" and remote.is_url(source) and Path(files).name.startswith(("cars_train", "cars_test")):
        raise UserError(f"{source} comes without its annotations: give the folder that holds both, or give `kind`")
    with open_source(files, kind, partition=partition, attributes=attributes, data_dir=data_dir) as opened:
        if not opened.items:
            raise UserError(f"{source} contains no images: give another source")
        if where:
            opened = select(opened, where)
        # When 8 pixels are enlarged to 64, the Lanczos filter rings: it draws ghost lines on the black background.
        resampling = "bicubic" if kind == "digits" else "lanczos"
        channels = channels or (1 if kind == "digits" else 3)
        recipe = _Preparation(crop or _KIND_CROPS[kind], resampling, image_size, channels)
        with remote.new_folder(out, last=loading.MANIFEST) as partial:
            splits = _with_splits(opened.items, validation_fraction)
            _write_set(partial, opened, splits, recipe, str(source), where, progress)
    return loading.open_prepared(out)


def _beside(source: str | Path, given: str | Path | None, name: str) -> str | Path | None:
    """Fetches a file of CelebA: the given one, or the one beside the images in a bucket; None if there is none."""
    if given is None and remote.is_url(source):
        beside = f"{source.rstrip('/').rpartition('/')[0]}/{name}"
        given = beside if remote.listing(beside) else None
    return None if given is None else remote.fetch(given)


def _is_taken(out: str | Path) -> bool:
    """Tells whether the output folder holds other files than the remains of an interrupted upload."""
    if remote.is_url(out):
        return not remote.listing(out).keys() <= {loading.IMAGES, loading.LABELS, loading.NAMES}
    out = Path(out)
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def _read(item: Item, data: bytes | np.ndarray, recipe: _Preparation) -> Picture:
    size = recipe.image_size
    picture = read_picture(data, recipe.channels)
    image = Image.fromarray(picture.pixels[..., 0] if recipe.channels == 1 else picture.pixels)
    image = crop_image(item.cut(image) if item.cut else image, recipe.crop)
    # Crop before resizing: the filter of `resize(box=...)` would read pixels outside the box.
    image = image.resize((size, size), Image.Resampling[recipe.resampling.upper()])
    return picture._replace(pixels=np.asarray(image).reshape(size, size, recipe.channels))


def _with_splits(items: list[Item], validation_fraction: float) -> dict[str, list[Item]]:
    """Returns the items of each split, in the source's order. If all are `train`, some become `validation`."""
    if {item.split for item in items} <= {None, "train"} and len(items) > 1:
        held_out = max(1, round(validation_fraction * len(items)))
        chosen = set(loading.permutation(len(items), seed=0)[: min(held_out, len(items) - 1)].tolist())
        names = ["validation" if i in chosen else "train" for i in range(len(items))]
    else:
        names = [item.split or "train" for item in items]
    splits: dict[str, list[Item]] = {name: [] for name in (*_SPLIT_ORDER, *sorted(set(names))) if name in names}
    for name, item in zip(names, items, strict=True):
        splits[name].append(item)
    return splits


def _write_set(
    folder: Path,
    source: Source,
    splits: dict[str, list[Item]],
    recipe: _Preparation,
    given: str,
    where: tuple[str, ...],
    progress: bool,
) -> None:
    items = [item for members in splits.values() for item in members]
    shape = (len(items), recipe.image_size, recipe.image_size, recipe.channels)
    # Writing to a memory map on a full disk kills the process (SIGBUS), so check the free space first.
    needed, free = math.prod(shape), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the prepared set needs {needed / 1e9:.1f} GB, but {folder.parent} has {free / 1e9:.1f} GB free: make room"
        )
    images = np.lib.format.open_memmap(folder / loading.IMAGES, "w+", np.uint8, shape)
    failures: dict[int, str] = {}
    damaged: dict[int, str] = {}
    with tqdm(total=len(items), desc="prepare", unit="images", disable=not progress) as bar:
        for row, result in _decoded(source, items, recipe):
            if isinstance(result, Exception):
                failures[row] = " ".join(f"{type(result).__name__}: {result}".split())
                _check_failures(given, items, failures)
            else:
                images[row] = result.pixels
                if result.damage:
                    damaged[row] = result.damage
            bar.update()
    kept = np.array([row for row in range(len(items)) if row not in failures])
    images.flush()
    if failures:
        images = _compact(folder / loading.IMAGES, images, kept)
    del images

    if source.class_names:
        labels = [items[row].label for row in kept]
        np.save(folder / loading.LABELS, np.array([-1 if x is None else x for x in labels], np.int32))
    lines = [_one_line(items[row].name) + "\n" for row in kept]
    (folder / loading.NAMES).write_text("".join(lines), encoding="utf-8", newline="\n")
    edges = np.searchsorted(kept, np.cumsum([0, *(len(members) for members in splits.values())])).tolist()
    manifest = {
        "format": loading.FORMAT,
        "format_version": loading.FORMAT_VERSION,
        "package_version": _package_version(),
        "source": given,
        "kind": source.kind,
        **({"where": list(where)} if where else {}),
        **({"cut": source.cut} if source.cut else {}),
        "crop": recipe.crop,
        "crop_description": CROP_DESCRIPTIONS[recipe.crop],
        "filter": recipe.resampling,
        "image_size": recipe.image_size,
        "channels": recipe.channels,
        "count": len(kept),
        "splits": {name: [edges[i], edges[i + 1]] for i, name in enumerate(splits)},
        "class_names": source.class_names,
        "unreadable": [{"name": _one_line(items[i].name), "reason": failures[i]} for i in sorted(failures)],
        "damaged": [{"name": _one_line(items[i].name), "note": damaged[i]} for i in sorted(damaged)],
        "sha256": loading.file_checksum(folder / loading.IMAGES),
    }
    (folder / loading.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _decoded(source: Source, items: list[Item], recipe: _Preparation) -> Iterator[tuple[int, Picture | Exception]]:
    """Decodes items on all cores. Yields (row, pixels) or (row, error). Few images are in memory at a time."""

    def decode(item: Item, read: Callable[[], bytes | np.ndarray]) -> Picture | Exception:
        try:
            return _read(item, read(), recipe)
        except Exception as error:  # Pillow raises almost any error on a damaged file
            return error

    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool, reader = ThreadPoolExecutor(workers), ThreadPoolExecutor(1)
    pending: deque[tuple[int, Future]] = deque()
    try:
        for row in sorted(range(len(items)), key=lambda row: items[row].position):
            item = items[row]
            read = item.read
            if source.forward_only:  # one thread reads in this order, and the others wait for it
                read = reader.submit(item.read).result
            pending.append((row, pool.submit(decode, item, read)))
            if len(pending) >= 4 * workers:
                done, future = pending.popleft()
                yield done, future.result()
        for row, future in pending:
            yield row, future.result()
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
        pool.shutdown(wait=True, cancel_futures=True)


def _check_failures(given: str, items: list[Item], failures: dict[int, str]) -> None:
    if len(failures) > _UNREADABLE_LIMIT * len(items):
        first = "; ".join(f"{_one_line(items[row].name)} ({reason})" for row, reason in list(failures.items())[:3])
        raise UserError(
            f"{given}: more than 1 % of the images cannot be read, {len(failures)} so far of {len(items)}: "
            f"{first}; repair or remove such files"
        )


def _compact(path: Path, images: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Rewrites the array without the rows of unreadable files."""
    shorter_path = path.with_name("shorter.npy")
    shorter = np.lib.format.open_memmap(shorter_path, "w+", np.uint8, (len(kept), *images.shape[1:]))
    for start in range(0, len(kept), 1024):
        shorter[start : start + 1024] = images[kept[start : start + 1024]]
    shorter.flush()
    shorter_path.replace(path)
    return shorter


def _one_line(name: str) -> str:
    """Escapes line ends and invalid bytes in a file name, so that it fits on one line of UTF-8."""
    return name.replace("\n", "\\n").replace("\r", "\\r").encode("utf-8", "backslashreplace").decode("utf-8")


def _package_version() -> str:
    try:
        return importlib.metadata.version("dcgan-jax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
