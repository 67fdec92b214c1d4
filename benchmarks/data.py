"""From a prepared set in the page cache to batches on the device, and how long a large set takes to open."""

import itertools
import json
import tempfile
from pathlib import Path

import jax
import numpy as np

from benchmarks.harness import Case, Ready
from dcgan_jax import sharding
from dcgan_jax.data import batch_indices, open_prepared
from dcgan_jax.data.loading import FORMAT, FORMAT_VERSION, IMAGES, LABELS, MANIFEST, NAMES

COUNT, OPENED, BATCH, STEPS = 20_000, 200_000, 64, 200


def cases(base_width: int, batch_size: int) -> list[Case]:
    return [
        Case(f"batches of {BATCH} on the device", "dcgan_jax", "data:batches"),
        Case("limit, memory", "a copy of the same bytes", "data:copy"),
        Case(f"opening {OPENED:,} images", "dcgan_jax", "data:opening"),
    ]


def notes(records) -> dict:
    return {}


def prepared_set(folder: Path, count: int, fill: bool) -> Path:
    """A prepared set of random pixels, or of a file with a hole where the pixels would be."""
    folder.mkdir()
    images = np.lib.format.open_memmap(folder / IMAGES, "w+", np.uint8, (count, 64, 64, 3))
    if fill:
        images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    images.flush()
    np.save(folder / LABELS, np.zeros(count, np.int32))
    (folder / NAMES).write_text("".join(f"{i:06d}.png\n" for i in range(count)))
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "folder",
        "count": count,
        "image_size": 64,
        "channels": 3,
        "splits": {"train": [0, count]},
        "class_names": ["all"],
        "sha256": "",
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def batches() -> Ready:
    """What the training loop does for each step, without the step."""
    folder = tempfile.TemporaryDirectory()
    images = open_prepared(prepared_set(Path(folder.name) / "set", COUNT, fill=True)).split("train")
    mesh = sharding.data_mesh()
    runs = itertools.count()

    def run():
        placed, first = None, STEPS * next(runs)
        for step in range(first, first + STEPS):
            placed = sharding.put_batch(mesh, images, batch_indices(step, BATCH, len(images), seed=0))
        jax.block_until_ready(placed)
        assert folder  # keeps the files

    megabytes = STEPS * BATCH * images[0].nbytes / 1e6
    return Ready(run, STEPS * BATCH, megabytes=megabytes, steps=STEPS)


def copy() -> Ready:
    whole = np.random.default_rng(0).integers(0, 256, (STEPS, BATCH, 64, 64, 3), np.uint8)
    room = np.empty_like(whole)
    return Ready(lambda: np.copyto(room, whole), STEPS * BATCH, megabytes=whole.nbytes / 1e6, steps=STEPS)


def opening() -> Ready:
    folder = tempfile.TemporaryDirectory()
    place = prepared_set(Path(folder.name) / "set", OPENED, fill=False)

    def run():
        assert len(open_prepared(place).images) == OPENED and folder

    return Ready(run)
