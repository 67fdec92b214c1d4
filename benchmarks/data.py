"""Loading data: batches from the page cache to the device, training on a slow source, opening a large set."""

import itertools
import json
import shutil
import tempfile
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Case, Ready
from dcgan_jax.data import batch_indices, feeding, open_prepared
from dcgan_jax.data.loading import FORMAT, FORMAT_VERSION, IMAGES, LABELS, MANIFEST, NAMES
from dcgan_jax.parallel import sharding

COUNT, OPENED, BATCH, STEPS = 20_000, 200_000, 64, 200
FED_STEPS, STEP = 40, 50  # steps of a run on a slow source, and milliseconds per step


def cases(base_width: int, batch_size: int) -> list[Case]:
    """All cases. They use sizes of their own and ignore both arguments."""
    del base_width, batch_size
    return [
        Case(f"batches of {BATCH} on the device", "dcgan_jax", "data:batches"),
        Case("limit, memory", "a copy of the same bytes", "data:copy"),
        Case(f"opening {OPENED:,} images", "dcgan_jax", "data:opening"),
        *fed_cases("50 ms, each step awaited", (50, 50), awaited=True),
        *fed_cases("50 ms", (50, 50)),
        *fed_cases("20 and 80 ms in turn", (20, 80)),
        Case("limit, a step", "no source", "data:fed", {"reads": None}, rounds=3),
    ]


def fed_cases(reads: str, milliseconds: tuple[int, int], awaited: bool = False) -> list[Case]:
    """A loop whose batches a thread reads ahead, and one that reads each batch before its step."""
    group, arguments = f"a step of {STEP} ms, reads of {reads}", {"reads": milliseconds, "awaited": awaited}
    return [
        Case(group, "dcgan_jax", "data:fed", arguments, rounds=3),
        Case(group, "without the thread", "data:fed", {**arguments, "ahead": False}, rounds=3),
    ]


def notes(records: list[dict[str, Any]]) -> dict[str, float]:
    """Nothing."""
    del records
    return {}


def prepared_set(folder: Path, count: int, fill: bool) -> Path:
    """Writes a prepared set of random pixels, or of a sparse file without them if not `fill`."""
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
    """The data work of the training loop, without the training steps."""
    folder = Path(tempfile.mkdtemp())
    images = open_prepared(prepared_set(folder / "set", COUNT, fill=True)).split("train")
    mesh = sharding.data_mesh()
    runs = itertools.count()

    def run() -> None:
        placed, first = None, STEPS * next(runs)
        for step in range(first, first + STEPS):
            placed = sharding.put_batch(mesh, images, batch_indices(step, BATCH, len(images), seed=0))
        jax.block_until_ready(placed)

    weakref.finalize(run, shutil.rmtree, folder)
    megabytes = STEPS * BATCH * images[0].nbytes / 1e6
    return Ready(run, STEPS * BATCH, megabytes=megabytes, steps=STEPS)


def copy() -> Ready:
    """The limit of the memory: a copy of as many bytes."""
    whole = np.random.default_rng(0).integers(0, 256, (STEPS, BATCH, 64, 64, 3), np.uint8)
    room = np.empty_like(whole)
    return Ready(lambda: np.copyto(room, whole), STEPS * BATCH, megabytes=whole.nbytes / 1e6, steps=STEPS)


def opening() -> Ready:
    """Opens a large prepared set."""
    folder = Path(tempfile.mkdtemp())
    place = prepared_set(folder / "set", OPENED, fill=False)

    def run() -> int:
        return len(open_prepared(place).images)

    weakref.finalize(run, shutil.rmtree, folder)
    if (found := run()) != OPENED:
        raise ValueError(f"the set has {found} images, not {OPENED}")
    return Ready(run)


class SlowImages:
    """Images of which a batch takes `milliseconds` to read, in turn. The reader sleeps, as while a disk works."""

    def __init__(self, images: np.ndarray, milliseconds: tuple[int, ...]) -> None:
        self.images, self.shape, self.milliseconds = images, images.shape, itertools.cycle(milliseconds)

    def __getitem__(self, indices: Any) -> np.ndarray:
        end = time.perf_counter() + next(self.milliseconds) / 1000
        found = self.images[indices]
        time.sleep(max(0, end - time.perf_counter()))
        return found


def fed(reads: tuple[int, ...] | None, awaited: bool = False, ahead: bool = True) -> Ready:
    """The training loop with a step of STEP milliseconds. The step sleeps in its own thread, like a device at work.

    Args:
        reads: milliseconds that it takes to read a batch, in turn; None uses one batch for all steps.
        awaited: the host waits for each step, as it does to log a loss; else it waits for the step before.
        ahead: a thread reads the next batches during a step.
    """
    images = np.random.default_rng(0).integers(0, 256, (2000, 64, 64, 3), np.uint8)
    mesh, order = sharding.data_mesh(), [batch_indices(t, BATCH, len(images), seed=0) for t in range(FED_STEPS)]
    one = sharding.put_batch(mesh, images, order[0])
    source = SlowImages(images, reads or (0,))

    def make(number: int) -> jax.Array:
        if not reads:
            return one
        # `put_batch` needs no array: it reads the shape and indexes.
        return sharding.put_batch(mesh, source, order[number])  # type: ignore[arg-type]

    def step(batch: jax.Array) -> int:
        end = time.perf_counter() + STEP / 1000
        total = np.asarray(batch).sum(dtype=np.int64)
        time.sleep(max(0, end - time.perf_counter()))
        return int(total)

    def run() -> int:
        steps = []
        with ThreadPoolExecutor(1) as device, feeding.Feed() as feed:
            if ahead:
                feed.start(make, range(FED_STEPS))
            for batch in feed if ahead else map(make, range(FED_STEPS)):
                steps.append(device.submit(step, batch))
                wait(steps[-1:] if awaited else steps[-2:-1])
        return sum(step.result() for step in steps)

    return Ready(run, FED_STEPS * BATCH, steps=FED_STEPS, answer={"sum": np.array(run())} if reads else {})
