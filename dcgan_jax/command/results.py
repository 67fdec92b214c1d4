"""The files that `inpaint` writes for each image."""

import glob
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, UInt8

from dcgan_jax.blending.sparse import poisson_blend_sparse
from dcgan_jax.errors import UserError
from dcgan_jax.images import figures, pixels
from dcgan_jax.images.metrics import composite_scores, finite_or_none
from dcgan_jax.inpainting.photograph import mean_image, restore, restore_each
from dcgan_jax.inpainting.region import Region, enlarge, shrink
from dcgan_jax.inpainting.result import InpaintResult, Status
from dcgan_jax.priors.prior import generate, image_shape
from dcgan_jax.storage.files import whole_file

_NOTES = {
    Status.NOTHING_MISSING: "nothing is missing, it is left as it was",
    Status.NOTHING_KNOWN: "nothing is known at the prior's size, the completion is a free sample",
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
        "status": Status(int(result.status)).words,
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
    known = np.broadcast_to(pixels.to_float(small), completions.shape).astype(completions.dtype)
    blended = poisson_blend_sparse(completions, known, small_hole)
    scale = -(-_GIF_SIDE // min(shape))
    frames = np.concatenate([completions, blended], axis=2).repeat(scale, axis=1).repeat(scale, axis=2)
    path = out / "gifs" / f"{task.name}.gif"
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save_gif(path, frames, _GIF_SECONDS / len(frames))


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
