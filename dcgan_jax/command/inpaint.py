"""The command `inpaint`: reads images and masks or measured values, and writes results, strips and a journal.

`plan.py` makes the plan, this file runs the searches, and `results.py` writes the files.
"""

import argparse
import dataclasses
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dcgan_jax import masks
from dcgan_jax.command.measured import Measurement
from dcgan_jax.command.options import check_counts, search_config
from dcgan_jax.command.pairing import ALPHA, find_images, find_masks
from dcgan_jax.command.plan import Plan, Settings, Task, make_plan
from dcgan_jax.command.programs import programs_folder
from dcgan_jax.command.results import (
    GIF_FRAMES,
    note_of,
    refuse_overwriting,
    report_failed,
    resume,
    skipped_line,
    write_restored,
    write_result,
)
from dcgan_jax.config import PHOTO_CROPS
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation.holes import image_key
from dcgan_jax.inpainting.config import InpaintConfig, default_config
from dcgan_jax.inpainting.inpaint import check_config
from dcgan_jax.inpainting.region import Region, shrink
from dcgan_jax.inpainting.restore import restore
from dcgan_jax.inpainting.result import InpaintResult, Status
from dcgan_jax.inpainting.stream import inpaint_stream
from dcgan_jax.parallel import distributed
from dcgan_jax.priors.dcgan import with_compute_dtype
from dcgan_jax.priors.files import load_prior
from dcgan_jax.priors.labels import check_label
from dcgan_jax.priors.prior import Prior
from dcgan_jax.storage import journal, remote
from dcgan_jax.storage.files import make_folder

_MOST_PRINTED = 10  # lines about single images on standard error


@dataclass(frozen=True)
class Job:
    """What `inpaint_folder` completes, and how.

    Attributes:
        images: a folder, a file, or a prepared set of the prior's size.
        mask: one of `masks.NAMES`, a mask file for all images, or a folder of masks with the images' names. A mask has
            the size of its image; `masks.read_hole` says what is missing. "alpha" takes the transparent parts of each
            image as missing. The images themselves as masks mean the same. None if `measure` is given.
        out: the folder of the results.
        config: the configuration of the search.
        measure: what is known of each image in place of known pixels, see `Measurement.parse`; None if `mask` is given.
        crop: the region of each image to complete, see `inpaint_photograph`.
        elsewhere: see `inpaint_photograph`.
        invert_masks: black pixels of mask files are missing, instead of white ones.
        score: compare the results with the original pixels. Set it only if the images have these pixels. Results for
            drawn masks are always compared.
        gif: write a GIF of each search. It has a frame for each point of the trace; without `trace_every` there are
            about 50 frames.
        label: the class of all images, for a conditional prior; by default each search finds it.
        split: the split of a prepared set; by default all splits.
        count: number of images to complete, from the first; by default all.
        seed: the seed of holes and searches.
        batch_size: number of searches at a time.
        progress: show a progress bar on standard error.
    """

    images: Path
    mask: str | None
    out: Path
    config: InpaintConfig
    measure: str | None = None
    crop: str | None = None
    elsewhere: str | None = None
    invert_masks: bool = False
    score: bool = False
    gif: bool = False
    label: int | None = None
    split: str | None = None
    count: int | None = None
    seed: int = 0
    batch_size: int = 64
    progress: bool = True


@dataclass(frozen=True)
class Report:
    """A summary of one call of `inpaint_folder`.

    Attributes:
        completed: number of images that this call completed.
        not_finite: number of searches whose loss became NaN or infinite, in this call and earlier ones.
        before: number of images that an earlier call completed.
        skipped: the images that cannot be completed: name -> reason.
        notes: remarks on images: name -> text.
        others: the names of files in the folder that are not images.
    """

    completed: int
    not_finite: int
    before: int
    skipped: dict[str, str]
    notes: dict[str, str]
    others: list[str]


def run(options: argparse.Namespace) -> int:
    """Completes images, and prints remarks on them and on skipped images."""
    check_counts(options)
    distributed.join(training=False)
    prior = with_compute_dtype(load_prior(options.prior), options.compute_dtype)
    measured = None if options.measure is None else Measurement.parse(options.measure, prior.image_shape)
    job = Job(
        images=Path(remote.fetch(options.images)),
        mask=None if options.masks is None else str(remote.fetch(options.masks)),
        out=options.out,
        config=search_config(options, default_config(prior, noisy=measured is not None and measured.noise > 0)),
        measure=options.measure,
        crop=options.crop,
        elsewhere=options.elsewhere,
        invert_masks=options.invert_masks,
        score=options.score,
        gif=options.gif,
        label=options.label,
        split=options.split,
        count=options.count,
        seed=options.seed,
        batch_size=options.batch_size,
        progress=not options.quiet,
    )
    report = inpaint_folder(prior, job)
    where = options.out / ("results.jsonl" if jax.process_count() == 1 else "results-*.jsonl")
    print(f"{options.out}: {report.completed} image{'' if report.completed == 1 else 's'} completed")
    if report.before:
        kept = f"already completed and kept: {report.before} (give another folder to repeat them)"
        print(f"dcgan-jax: {kept}", file=sys.stderr)
    _print_some([f"{name}: {note}" for name, note in report.notes.items()], where)
    if report.others:
        more = f" and {len(report.others) - 1} more files" if len(report.others) > 1 else ""
        print(f"dcgan-jax: {report.others[0]}{more} left out: no image files that can be read", file=sys.stderr)
    _print_some([f"{name} is skipped: {reason}" for name, reason in report.skipped.items()], where)
    return report_failed(report.not_finite, where) or int(bool(report.skipped))


def inpaint_folder(prior: Prior, job: Job) -> Report:
    """Completes images from disk, of any size.

    | file in `out` | content |
    |---|---|
    | `NAME.png` | the result |
    | `strips/NAME.png` | original (if results are scored), masked image, completion, result |
    | `choices/NAME-1.png` … | the completions, best first, if `config.num_completions` is 2 or more |
    | `mean/NAME.png` | the mean of these completions |
    | `gifs/NAME.gif` | an animation of completion and result during the search, if `gif` |
    | `results.jsonl` | a line for each image: name, losses, steps, status, and PSNR and SSIM if results are scored |

    An image is skipped if it cannot be read or has no region to complete. Holes and searches depend on the seed and the
    image's name. The result of an image does not depend on the other images, as long as the batch size is the same.

    The same call resumes after an interruption. It keeps results whose image, hole, prior and settings are unchanged.
    In a job of N processes, each takes every N-th image, and writes its lines to `results-P-of-N.jsonl`.

    Args:
        prior: see `inpaint`.
        job: what to complete, and how.

    Raises:
        UserError: images, masks, prior and folder do not fit together. Nothing was written.
    """
    config, mask, out = job.config, job.mask, job.out
    if job.crop is not None and job.crop not in PHOTO_CROPS:
        Region.parse(job.crop)
    check_label(prior.num_classes, job.label)
    check_config(prior, config)
    if job.gif and not config.trace_every:
        config = dataclasses.replace(config, trace_every=-(-config.num_steps // GIF_FRAMES) or 1)
    drawn = mask in masks.NAMES
    if mask is not None and Path(mask).resolve() == job.images.resolve():
        mask = ALPHA
    measurement = None
    if job.measure is not None:
        measurement = Measurement.parse(job.measure, prior.image_shape)
        for name in ("invert_masks", "elsewhere", "gif"):
            if getattr(job, name):
                raise UserError(f"`{name}` does nothing for `measure` {job.measure}: leave it out")
    settings = Settings(
        config,
        mask if drawn else None,
        measurement,
        job.crop,
        job.elsewhere,
        job.score or drawn,
        job.gif,
        job.label,
        job.seed,
    )
    leave_out = (out, *([Path(mask)] if mask is not None and Path(mask).is_dir() else []))
    pictures, others = find_images(job.images, job.split, prior.image_shape, leave_out)
    found = dict(list(pictures.items())[: job.count])
    read_mask = None if drawn or mask is None else find_masks(mask, list(found), job.invert_masks)
    number, processes = jax.process_index(), jax.process_count()
    plan = make_plan(prior, dict(list(found.items())[number::processes]), read_mask, settings)
    refuse_overwriting(out, settings, list(found), (job.images, *([] if job.mask is None else [Path(job.mask)])))
    make_folder(out)
    log = out / ("results.jsonl" if processes == 1 else f"results-{number:05d}-of-{processes:05d}.jsonl")
    before = resume(out, log, plan)
    tasks = [task for task in plan.tasks if task.name not in before]
    journal.append(log, *(skipped_line(name, reason) for name, reason in plan.skipped.items()))
    not_finite, notes = sum(status == Status.NOT_FINITE.words for status in before.values()), {}
    # The number of slots does not depend on the remaining tasks. Results have the same bits only in equal batch shapes.
    slots = min(job.batch_size, len(found))
    search, write = (search_tasks, write_result) if measurement is None else (restore_tasks, write_restored)
    with tqdm(total=len(tasks), unit="image", disable=not (job.progress and tasks), dynamic_ncols=True) as bar:
        for task, result in search(prior, plan, tasks, slots):
            journal.append(log, write(prior, plan, task, result, out))
            plan.inputs.drop(task.name)
            if note := note_of(task, result):
                notes[task.name] = note
            not_finite += int(result.status) == Status.NOT_FINITE
            bar.update()
    return Report(len(tasks), not_finite, len(before), plan.skipped, notes, others)


def search_tasks(prior: Prior, plan: Plan, tasks: Sequence[Task], slots: int) -> Iterator[tuple[Task, InpaintResult]]:
    """Yields the result of each task at the prior's size, in order.

    Args:
        prior: see `inpaint`.
        plan: the plan of this call.
        tasks: the tasks to do.
        slots: number of searches at a time.
    """
    settings, shape = plan.settings, prior.image_shape
    key = jax.random.key(settings.seed)
    pending: deque[Task] = deque()

    def pairs() -> Iterator[tuple]:
        for task in tasks:
            pending.append(task)
            hole = plan.inputs.hole(task, settings, shape[0])
            small, small_hole = shrink(plan.inputs.picture(task.name).pixels, hole, task.region, shape[:2])
            yield small, small_hole, image_key(key, task.name), settings.label
        nothing = np.zeros(shape, np.uint8), np.zeros(shape[:2], bool)
        yield from [nothing] * (slots - len(tasks) if tasks else 0)

    results = inpaint_stream(prior, pairs(), key, settings.config, slots, programs=programs_folder())
    for _, result in zip(range(len(tasks)), results, strict=False):
        yield pending.popleft(), result


def restore_tasks(prior: Prior, plan: Plan, tasks: Sequence[Task], slots: int) -> Iterator[tuple[Task, InpaintResult]]:
    """Yields the result of each task of a plan with a measurement, in order. See `search_tasks`."""
    settings, measurement = plan.settings, plan.settings.measurement
    if measurement is None:
        raise ValueError("`plan` has no measurement: use `search_tasks`")
    key = jax.random.key(settings.seed)
    for start in range(0, len(tasks), slots):
        part = tasks[start : start + slots]
        rows = [*range(len(part)), *[0] * (slots - len(part))]  # equal batch shapes, for equal bits
        values = np.stack([plan.inputs.values(task, settings) for task in part])[rows]
        keys = jnp.stack([image_key(key, task.name) for task in part])[jnp.asarray(rows)]
        result = restore(
            prior, values, measurement.measure, keys, settings.config, measurement.noise, labels=settings.label
        )
        result = jax.device_get(result)
        for i, task in enumerate(part):
            yield task, jax.tree.map(lambda x, i=i: x[i], result)


def _print_some(lines: list[str], where: Path) -> None:
    """Prints the first lines on standard error, and names the file with the others."""
    for line in lines[:_MOST_PRINTED]:
        print(f"dcgan-jax: {line}", file=sys.stderr)
    if len(lines) > _MOST_PRINTED:
        print(f"dcgan-jax: and {len(lines) - _MOST_PRINTED} more such images, see {where}", file=sys.stderr)
