"""Inpainting of files: images and masks in; completed images, strips and a line of JSON for each out."""

import dataclasses
import functools
import hashlib
import json
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from dcgan_jax import masks
from dcgan_jax.command.pairing import draw_hole, find_holes, find_images
from dcgan_jax.command.results import (
    _CHOICE,
    _GIF_FRAMES,
    _NOTES,
    _PATTERNS,
    _SKIPPED,
    Task,
    _go_on,
    _refuse_overwriting,
    _write,
    _write_gif,
)
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.inpaint import check_config
from dcgan_jax.inpainting.region import CROPS, Region, find_region, shrink
from dcgan_jax.inpainting.result import Status
from dcgan_jax.inpainting.stream import inpaint_stream
from dcgan_jax.priors.dcgan import fingerprint
from dcgan_jax.priors.labels import check_label
from dcgan_jax.priors.prior import Prior, image_shape
from dcgan_jax.storage.files import make_folder


@dataclass(frozen=True)
class Report:
    """What became of the images of a folder."""

    completed: int
    not_finite: int  # of those completed, now and before, the searches that met a loss that is not finite
    before: int  # images that a call before this one had completed
    skipped: dict[str, str]  # names of images that could not be completed, and why
    notes: dict[str, str]  # names of images about which there is something to say


def inpaint_folder(
    prior: Prior,
    images: Path,
    mask: str,
    out: Path,
    config: InpaintConfig,
    *,
    crop: str | None = None,
    complete: bool = False,
    gif: bool = False,
    label: int | None = None,
    split: str | None = None,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Report:
    """Completes images from disk, of any size.

    Writes `out/NAME.png` (the result), `out/strips/NAME.png` (original where it is known, masked, completion, blended)
    and `out/results.jsonl`, a line an image: name, losses, steps, status, and PSNR and SSIM where the original is
    known, which it is where the hole is drawn here. With several completions, `out/choices/NAME-1.png` and so on, the
    best first, and `out/mean/NAME.png`. An image that cannot be read, or in which there is no region to
    complete, is skipped.
    Holes and searches are seeded by the images' names, so in batches of one shape a result does not depend on the rest
    of the folder.

    The same call goes on where one was ended, by whatever: an image whose results and line are there, of the same
    image, hole, prior and search, is not completed again. Of several processes of a job each takes every n-th image and
    writes lines of its own, `results-P-of-N.jsonl`.

    Args:
        prior: see `inpaint`.
        images: a folder, a file, or a prepared set of the prior's size.
        mask: one of `masks.NAMES`, a mask file for all images, or a folder of masks with the images' names (white =
            missing), of the images' sizes.
        out: where to.
        config: the search.
        crop: the region of each image that is completed, see `inpaint_photograph`.
        complete: what lies in the holes is the original, to be compared with; it is where the mask is drawn here.
        gif: write `out/gifs/NAME.gif`, completion and blend in the course of the search, a frame for each point of
            its trace (fifty where `config` asks for none).
        label: of a conditional prior, the class of all images; by default each search finds its own.
        split: of a prepared set; by default all of it.
        count: the first so many images; by default all.
        seed: of holes and searches.
        batch_size: searches at a time.
        progress: show a progress bar on standard error.

    Raises:
        UserError: images, masks, prior and folder do not fit together; nothing was written then.
    """
    if crop is not None and crop not in CROPS:
        Region.parse(crop)
    check_label(prior.num_classes, label)
    check_config(prior, config)
    if gif and not config.trace_every:
        config = dataclasses.replace(config, trace_every=-(-config.num_steps // _GIF_FRAMES) or 1)
    key = jax.random.key(seed)
    leave_out = (out, *([Path(mask)] if Path(mask).is_dir() else []))
    found = dict(list(find_images(images, split, image_shape(prior), leave_out).items())[:count])
    read_hole = None if mask in masks.NAMES else find_holes(mask, list(found))
    complete = complete or mask in masks.NAMES
    job = json.dumps([fingerprint(prior), config.to_json(), crop, complete, gif, seed, label])
    number, processes = jax.process_index(), jax.process_count()
    share = dict(list(found.items())[number::processes])
    tasks, skipped = _plan(prior, share, mask, read_hole, crop, key, job, complete)
    choices = [_CHOICE % (i + 1) for i in range(config.num_completions)] if config.num_completions > 1 else []
    _refuse_overwriting(out, [*_PATTERNS, *choices], list(found), (images, Path(mask)))
    make_folder(out)
    lines = out / ("results.jsonl" if processes == 1 else f"results-{number:05d}-of-{processes:05d}.jsonl")
    patterns = [*_PATTERNS[:2], *([_PATTERNS[2]] if gif else []), *([_PATTERNS[3], *choices] if choices else [])]
    before = _go_on(out, lines, tasks, patterns)
    tasks = [task for task in tasks if task.name not in before]
    not_finite, notes = sum(status == Status.NOT_FINITE.words for status in before.values()), {}
    pending: deque[Task] = deque()
    # As many slots whatever is left to do, and to whom: in batches of one shape a result is always the same.
    slots = min(batch_size, len(found))

    def pairs() -> Iterator[tuple]:
        for task in tasks:
            pending.append(task)
            small, hole = shrink(task.read(), task.hole(), task.region, image_shape(prior)[:2])
            yield small, hole, jax.random.fold_in(key, _number(task.name)), label
        nothing = np.zeros(image_shape(prior), np.uint8), np.zeros(image_shape(prior)[:2], bool)
        yield from [nothing] * (slots - len(tasks) if tasks else 0)

    with (
        lines.open("a", encoding="utf-8") as log,
        tqdm(total=len(tasks), unit="image", disable=not (progress and tasks), dynamic_ncols=True) as bar,
    ):

        def write_line(line: dict[str, Any]) -> None:
            log.write(json.dumps(line) + "\n")
            log.flush()

        for name, reason in skipped.items():
            write_line({"name": name, "status": _SKIPPED, "note": reason})
        for _, result in zip(range(len(tasks)), inpaint_stream(prior, pairs(), key, config, slots), strict=False):
            task = pending.popleft()
            image, hole = task.read(), task.hole()
            line = _write(task, image, hole, result, out, complete)
            if gif:
                _write_gif(prior, task, image, hole, result, out)
            note = "; ".join(filter(None, (task.note, _NOTES.get(Status(int(result.status))))))
            if note:
                line["note"] = notes[task.name] = note
            write_line(line)
            not_finite += int(result.status) == Status.NOT_FINITE
            bar.update()
    return Report(len(tasks), not_finite, len(before), skipped, notes)


def _plan(prior, found, mask, read_hole, crop, key, job, complete):
    """A task for each image that can be completed, and why the others cannot; everything is looked at once."""
    shape = image_shape(prior)
    tasks, skipped = [], {}
    for name, read in found.items():
        try:
            image, note, profile = read()
            hole = np.zeros(image.shape[:2], bool) if read_hole is None else read_hole(name)
        except UserError as error:
            skipped[name] = str(error)
            continue
        if hole.shape != image.shape[:2]:
            raise UserError(
                f"the mask of {name!r} is {_by(hole)} and the image {_by(image)} (height, width): give a mask of the "
                "image's size"
            )
        try:
            region = find_region(prior, image, hole, crop)
        except UserError as error:
            skipped[name] = f"image {name!r}: {error}"
            continue
        if read_hole is None:
            draw_key = jax.random.fold_in(jax.random.fold_in(key, masks.NAMES.index(mask)), _number(name))
            task_hole = _drawn_hole(mask, draw_key, shape[0], hole.shape, region)
        else:
            task_hole = functools.partial(read_hole, name)
        digest = hashlib.sha256(f"{job} {mask if read_hole is None else ''} {region} {image.shape}".encode())
        digest.update(image.tobytes() if complete else np.where(hole[..., None], 0, image).tobytes())
        digest.update(hole.tobytes())
        tasks.append(
            Task(name, digest.hexdigest()[:16], lambda read=read: read().pixels, task_hole, region, note, profile)
        )
    if found and not tasks and jax.process_count() == 1:
        more = f" (and {len(skipped) - 1} images more)" if len(skipped) > 1 else ""
        raise UserError(next(iter(skipped.values())) + more)
    return tasks, skipped


def _drawn_hole(mask, key, size, shape, region):
    """How to draw a hole: at the prior's size, enlarged to the region."""

    def draw():
        small = Image.fromarray(draw_hole(mask, key, size).astype(np.uint8))
        hole = np.zeros(shape, bool)
        enlarged = small.resize((region.width, region.height), Image.Resampling.NEAREST)
        hole[region.rows, region.columns] = np.asarray(enlarged)
        return hole

    return draw


def _number(name):
    """32 bits that depend on the name alone (Python's hash changes from process to process)."""
    return zlib.crc32(name.encode(errors="surrogateescape"))  # file names may hold stray bytes


def _by(array):
    return "x".join(map(str, array.shape[:2]))
