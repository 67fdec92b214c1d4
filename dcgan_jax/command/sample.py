"""The command `sample`: writes generated images as a grid, as one array, or as one file for each image."""

import argparse
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from dcgan_jax.command.options import check_counts
from dcgan_jax.errors import UserError
from dcgan_jax.images import figures, pixels
from dcgan_jax.images.figures import COLUMNS
from dcgan_jax.priors.files import load_prior
from dcgan_jax.priors.labels import check_label, row_labels
from dcgan_jax.priors.prior import Prior, generate, sample_latents
from dcgan_jax.storage.files import make_folder, whole_file, whole_folder

_BATCH = 256  # images in memory at a time, except for a grid


def run(options: argparse.Namespace) -> int:
    """Writes generated images."""
    check_counts(options)
    check_place(options.out)  # before the prior is loaded
    save_samples(
        load_prior(options.prior),
        options.out,
        options.count,
        seed=options.seed,
        progress=not options.quiet,
        label=options.label,
    )
    return 0


def check_place(out: Path) -> None:
    """Raises UserError if `save_samples` does not take the suffix of `out`, or `out` is a folder that is not empty."""
    if out.suffix.lower() not in (".png", ".npz", ""):
        raise UserError(
            f"`out` is {out}; it takes a .png (a grid), a .npz (one array) or a folder (one PNG for each image)"
        )
    if out.suffix:
        return
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: give another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder: give another name")


def save_samples(
    prior: Prior, out: Path, count: int | None = None, seed: int = 0, progress: bool = True, label: int | None = None
) -> None:
    """Writes images of the prior at random latents. The output is written whole or not at all.

    The latents depend only on seed and count, so all three forms hold the same images. The exception is the grid of a
    conditional prior without `label`, which has one row for each class.

    | `out` | content |
    |---|---|
    | NAME.png | a grid with eight images in each row |
    | NAME.npz | the array `arr_0`, uint8 [count, h, w, 3]; grey images have three equal channels |
    | a folder, new or empty | 000000.png, 000001.png and so on |

    Tools that compute FID read the array or the folder. Both may hold any number of images; few are in memory at once.

    Args:
        prior: the prior that generates the images.
        out: see the table.
        count: number of images, 1 or more; by default 64, or a row for each class in the grid of a conditional prior.
        seed: the seed of the latents.
        progress: show a progress bar on standard error.
        label: the class of all images, for a conditional prior; by default all classes are equally likely.

    Raises:
        UserError: `out` has another suffix, or is a folder that is not empty, or the prior has no such class.
    """
    check_place(out)
    suffix = out.suffix.lower()
    check_label(prior.num_classes, label)
    rows = suffix == ".png" and label is None and prior.num_classes > 0
    if count is None:
        count = COLUMNS * prior.num_classes if rows else 64
    labels = row_labels(prior.num_classes, count, COLUMNS) if rows else label
    batches = _batches(prior, count, seed, progress and suffix != ".png", labels)
    if suffix == ".png":
        make_folder(out.parent)
        figures.save_png(out, figures.tile(np.concatenate(list(batches)), columns=min(COLUMNS, count)))
    elif suffix == ".npz":
        make_folder(out.parent)
        _save_array(out, batches, (count, *prior.image_shape[:2], 3))
    else:
        with whole_folder(out) as folder:
            for i, image in enumerate(image for batch in batches for image in batch):
                figures.save_png(folder / f"{i:06}.png", image)


def _batches(
    prior: Prior, count: int, seed: int, progress: bool, labels: int | Int[np.ndarray, " count"] | None
) -> Iterator[UInt8[np.ndarray, "n h w c"]]:
    latents = sample_latents(prior, jax.random.key(seed), count, labels)
    with tqdm(total=count, unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for i in range(0, count, _BATCH):
            images = pixels.to_uint8(np.asarray(generate(prior, latents[i : i + _BATCH])))
            yield images
            bar.update(len(images))


def _save_array(out: Path, batches: Iterator[UInt8[np.ndarray, "n h w c"]], shape: tuple[int, ...]) -> None:
    """Writes the file that `np.savez` would write, but batch by batch, so the whole array is never in memory."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    with whole_file(out) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for images in batches:
                file.write(np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3))).tobytes())
