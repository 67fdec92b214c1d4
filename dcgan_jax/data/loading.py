"""Opens and checks prepared sets, and defines the order in which training uses their images."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from dcgan_jax.errors import UserError
from dcgan_jax.storage import remote

FORMAT = "dcgan_jax prepared set"
FORMAT_VERSION = 1
IMAGES, LABELS, NAMES, MANIFEST = "images.npy", "labels.npy", "names.txt", "manifest.json"


@dataclass(frozen=True, eq=False)
class PreparedSet:
    """A prepared set, open for reading. The images stay on disk until they are indexed.

    The labels of a split are `prepared.labels[prepared.split_slice("train")]`; names work the same way.
    """

    path: Path
    images: UInt8[np.ndarray, "n h w c"]  # memory-mapped
    labels: Int32[np.ndarray, " n"] | None  # memory-mapped; index into manifest["class_names"], -1 where unknown
    manifest: dict[str, Any]  # the record of `prepare`: kind, crop, filter, splits, class names, checksum, ...

    def split_slice(self, name: str) -> slice:
        """Returns the range of a split in `images`, `labels` and `names`. Raises `UserError` for an unknown split."""
        splits = self.manifest["splits"]
        if name not in splits:
            raise UserError(f"{self.path} has no split {name!r}; it has {', '.join(splits)}")
        return slice(*splits[name])

    def split(self, name: str) -> UInt8[np.ndarray, "n h w c"]:
        """Returns a view of the images of a split. Raises `UserError` for an unknown split."""
        return self.images[self.split_slice(name)]

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of the images in the source, in the order of `images`. They are read on first use."""
        try:
            names = (self.path / NAMES).read_text(encoding="utf-8").split("\n")[:-1]
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path / NAMES} is damaged ({error}): prepare the set again") from error
        if len(names) != len(self.images):
            raise UserError(
                f"{self.path / NAMES} has {len(names)} names for {len(self.images)} images: prepare the set again"
            )
        return names


def open_prepared(path: str | Path) -> PreparedSet:
    """Opens a prepared set. This takes milliseconds, because the pixels are not read; `verify` reads them.

    A set in a bucket is fetched first, unless the cache has its current version.

    Raises:
        UserError: `path` is not a prepared set, or its files are truncated or do not fit together.
    """
    path = Path(remote.fetch(path, functools.partial(_files_of_a_set, path)))
    missing = [name for name in (MANIFEST, IMAGES, NAMES) if not (path / name).is_file()]
    if missing:
        what = f"it has no {', '.join(missing)}" if path.is_dir() else "there is no such folder"
        raise UserError(f"{path} is not a prepared set ({what}): make one with `dcgan-jax prepare`")
    manifest = _read_manifest(path / MANIFEST)
    expected = (manifest["count"], manifest["image_size"], manifest["image_size"], manifest["channels"])
    images = _map_array(path / IMAGES, expected, np.uint8)
    labels = _map_array(path / LABELS, expected[:1], np.int32) if manifest["class_names"] else None
    return PreparedSet(path, images, labels, manifest)


def _files_of_a_set(path: str | Path, names: list[str]) -> list[str]:
    if MANIFEST not in names:
        raise UserError(f"{path} is not a prepared set (it has no {MANIFEST}): make one with `dcgan-jax prepare`")
    return [name for name in (MANIFEST, IMAGES, LABELS, NAMES) if name in names]


def verify(path: str | Path) -> None:
    """Compares the checksum of the pixels with the manifest. Raises `UserError` if they differ."""
    prepared = open_prepared(path)
    found = file_checksum(prepared.path / IMAGES)
    if found != prepared.manifest["sha256"]:
        raise UserError(
            f"{prepared.path / IMAGES} has changed since it was prepared (its SHA-256 is {found[:12]}..., the "
            f"manifest says {prepared.manifest['sha256'][:12]}...): prepare the set again"
        )


def file_checksum(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def batch_indices(
    step: int, batch_size: int, count: int, seed: int, order: int = 0
) -> Int64[np.ndarray, " batch_size"]:
    """Returns the images of a training step. They depend only on the arguments, so a resumed run gets the same ones.

    The steps go through an endless sequence of permutations of the `count` images, one for each epoch. A batch may
    hold the end of one epoch and the start of the next, so no image is left out.

    Args:
        step: 0 or more.
        batch_size: 1 to `count`.
        count: number of images in the split.
        seed: 0 or more.
        order: number of the data order, 0 or more; each order has its own permutations.

    Returns:
        Indices from 0 to `count` - 1.

    Raises:
        UserError: the set has fewer images than the batch, or an argument is out of range.

    Example:
        >>> train = open_prepared("data/celeba").split("train")  # doctest: +SKIP
        >>> batch = train[batch_indices(step, 64, len(train), seed=0)]  # doctest: +SKIP
    """
    if step < 0 or seed < 0 or batch_size < 1:
        raise UserError(
            f"`step` is {step}, `seed` {seed} and `batch_size` {batch_size}; pass 0 or more, 0 or more, and 1 or more"
        )
    if batch_size > count:
        raise UserError(f"a set of {count} images is too small for a batch of {batch_size}: lower `batch_size`")
    epoch, start = divmod(step * batch_size, count)
    indices = permutation(count, seed, epoch, order)[start : start + batch_size]
    if len(indices) < batch_size:
        following = permutation(count, seed, epoch + 1, order)[: batch_size - len(indices)]
        indices = np.concatenate([indices, following])
    return indices.copy()


@functools.lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int = 0, order: int = 0) -> Int64[np.ndarray, " count"]:
    """Returns a random permutation of 0 to `count` - 1, the same on every machine. It is read-only and cached."""
    # NumPy guarantees that all versions give the same raw stream of a bit generator, but not the same permutation.
    stream = np.random.Philox(np.random.SeedSequence([seed, epoch, order] if order else [seed, epoch])).random_raw(
        count
    )
    indices = np.argsort(stream, kind="stable")
    indices.flags.writeable = False
    return indices


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): prepare the set again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} does not describe a prepared set: make one with `dcgan-jax prepare`")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {manifest.get('format_version')}; this package reads {FORMAT_VERSION}: "
            "prepare the set again"
        )
    needed = ("count", "image_size", "channels", "splits", "class_names", "sha256")
    missing = [field for field in needed if field not in manifest]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}: prepare the set again")
    try:
        inside = all(0 <= start <= stop <= manifest["count"] for start, stop in manifest["splits"].values())
    except (AttributeError, TypeError, ValueError):
        inside = False
    if not inside:
        raise UserError(f"{path} has splits outside its {manifest['count']} images: prepare the set again")
    return manifest


def _map_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is a Python literal, and NumPy passes on any error of its parser
        raise UserError(f"{path} is missing, truncated or damaged ({error}): prepare the set again") from error
    if array.shape != shape or array.dtype != dtype:
        raise UserError(
            f"{path} is {array.dtype} {array.shape}, but its manifest says {np.dtype(dtype)} {shape}: "
            "prepare the set again"
        )
    return array
