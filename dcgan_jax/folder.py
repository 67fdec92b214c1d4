"""Inpainting of files: images and masks in; completed images, strips and a line of JSON for each out."""

import dataclasses
import functools
import glob
import hashlib
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from tqdm import tqdm

from dcgan_jax import figures, masks
from dcgan_jax.config import InpaintConfig
from dcgan_jax.errors import UserError
from dcgan_jax.files import make_folder, whole_file
from dcgan_jax.inpainting import NOT_FINITE, NOTHING_KNOWN, NOTHING_MISSING, STATUS, InpaintResult, check_config
from dcgan_jax.metrics import composite_scores, finite_or_none
from dcgan_jax.pairing import draw_hole, find_holes, find_images
from dcgan_jax.photographs import CROPS, Region, enlarge, find_region, mean_image, restore, restore_each, shrink
from dcgan_jax.poisson import poisson_blend_sparse
from dcgan_jax.prior import Prior, check_label, fingerprint, generate, image_shape
from dcgan_jax.streaming import inpaint_stream

_NOTES = {
    NOTHING_MISSING: "nothing is missing, it is left as it was",
    NOTHING_KNOWN: "nothing is known at the prior's size, the completion is a free sample",
}
_SKIPPED = "skipped"  # status of an image that cannot be completed
_PATTERNS = ("{}.png", "strips/{}.png", "gifs/{}.gif", "mean/{}.png")  # what is written for an image, at the most
_CHOICE = "choices/{}-%d.png"  # the same of its several completions, from 1
_GIF_FRAMES, _GIF_SECONDS, _GIF_SIDE = 50, 4.0, 256  # frames of a search; its length; pixels of a side at the least


@dataclass(frozen=True, eq=False)
class Task:
    """One image to complete. Photographs are large, so they are read again whenever they are needed."""

    name: str  # as in the input, without suffix; the outputs' name
    key: str  # digits that change with image, hole, prior and search: the result belongs to them
    read: Callable[[], UInt8[np.ndarray, "h w c"]]
    hole: Callable[[], Bool[np.ndarray, "h w"]]
    region: Region  # of the image, that the prior completes
    note: str | None  # what was changed in reading
    profile: bytes | None  # ICC


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
    check_label(prior, label)
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
    not_finite, notes = sum(status == STATUS[NOT_FINITE] for status in before.values()), {}
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
            note = "; ".join(filter(None, (task.note, _NOTES.get(int(result.status)))))
            if note:
                line["note"] = notes[task.name] = note
            write_line(line)
            not_finite += int(result.status) == NOT_FINITE
            bar.update()
    return Report(len(tasks), not_finite, len(before), skipped, notes)


def _go_on(out: Path, lines: Path, tasks: list[Task], patterns: list[str]) -> dict[str, str]:
    """Names and status of the images of which all files are there, after clearing away what else there is of the tasks.

    That is lines of other keys, and files half written. Lines of images that are no task stay.
    """
    keys = {task.name: task.key for task in tasks}
    done: dict[str, str] = {}
    others = sorted(set(out.glob("results*.jsonl")) - {lines})
    for file in [lines, *others]:
        kept = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
            try:
                record = json.loads(line)
                name, status, key = record["name"], record["status"], record.get("key")
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError):  # cut off while it was written
                continue
            if name not in keys:
                keep = status != _SKIPPED
            else:
                keep = (
                    name not in done and key == keys[name] and all((out / p.format(name)).is_file() for p in patterns)
                )
                if keep:
                    done[name] = status
            if keep:
                kept.append(line)
        if file == lines or jax.process_count() == 1:  # another process may be at work on the others
            with whole_file(file) as partial:
                partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            if not kept and file != lines:
                file.unlink()
    for name in keys:
        for pattern in {*_PATTERNS, *patterns}:
            path = out / pattern.format(name)
            for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
                partial.unlink()
    return done


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


def _write(task, image, hole, result: InpaintResult, out, complete):
    """Writes one image's files and returns its line."""
    target, strip = out / f"{task.name}.png", out / "strips" / f"{task.name}.png"
    restored = restore(result, image, hole, task.region)
    _save(target, restored, task.profile)
    rows, columns = task.region.rows, task.region.columns
    _save(
        strip,
        figures.strip(
            image[rows, columns][None] if complete else None,
            figures.masked_view(image, hole)[rows, columns][None],
            enlarge(np.asarray(result.completions), task.region)[None],
            restored[rows, columns][None],
        ),
    )
    if result.alternatives is not None:
        each = restore_each(result, image, hole, task.region)
        for i, one in enumerate(each):
            _save(out / (_CHOICE % (i + 1)).format(task.name), one, task.profile)
        _save(out / "mean" / f"{task.name}.png", mean_image(each), task.profile)
    line = {
        "name": task.name,
        "key": task.key,
        "missing": int(hole.sum()),
        "region": list(task.region),
        "context_loss": finite_or_none(float(result.context_loss)),
        "prior_loss": finite_or_none(float(result.prior_loss)),
        "num_steps": int(result.num_steps),
        "status": STATUS[int(result.status)],
    }
    if result.labels >= 0:
        line["label"] = int(result.labels)
    if complete:
        scores = composite_scores(restored[None], image[None], hole[None])
        line |= {name: finite_or_none(values[0]) for name, values in scores.items()}
    if result.trace is not None:
        steps, context_loss, prior_loss, _ = result.trace
        line["trace"] = {
            "num_steps": steps.tolist(),
            "context_loss": list(map(finite_or_none, context_loss.tolist())),
            "prior_loss": list(map(finite_or_none, prior_loss.tolist())),
        }
    return line


def _save(path, image, profile=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save_png(path, image, profile)


def _write_gif(prior, task, image, hole, result, out):
    """The latent's course at the prior's size: what it generates, beside the blend; features are not shifted."""
    shape = image_shape(prior)[:2]
    small, small_hole = shrink(image, hole, task.region, shape)
    completions = np.asarray(generate(prior, result.trace.latents))
    known = np.broadcast_to(figures.to_float(small), completions.shape).astype(completions.dtype)
    blended = poisson_blend_sparse(completions, known, small_hole)
    scale = -(-_GIF_SIDE // min(shape))
    frames = np.concatenate([completions, blended], axis=2).repeat(scale, axis=1).repeat(scale, axis=2)
    path = out / "gifs" / f"{task.name}.gif"
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save_gif(path, frames, _GIF_SECONDS / len(frames))


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


def _refuse_overwriting(out, patterns, names, sources):
    targets = [out / pattern.format(name) for name in names for pattern in patterns] + [out / "results.jsonl"]
    results = {target.resolve() for target in targets}
    if len(results) < len(targets):
        raise UserError("images in a folder of results' names, such as `strips`, would overwrite others: rename it")
    for source in sources:
        inside = source.resolve() in out.resolve().parents  # then what lies in `out` are results of before
        for file in source.rglob("*") if source.is_dir() else [source]:
            if file.resolve() in results and not (inside and file.resolve().is_relative_to(out.resolve())):
                raise UserError(f"`out` is {out}, where a result would overwrite {file}: give another folder")
