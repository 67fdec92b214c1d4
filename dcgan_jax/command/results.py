"""The files that `inpaint` writes for each image, and its line in the journal of results."""

import glob
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, UInt8

from dcgan_jax.blending.sparse import poisson_blend_sparse
from dcgan_jax.command.plan import Plan, Settings, Task
from dcgan_jax.errors import UserError
from dcgan_jax.images import figures, pixels
from dcgan_jax.images.metrics import composite_scores, finite_or_none
from dcgan_jax.inpainting.photograph import blend_back, blend_each_back, mean_image
from dcgan_jax.inpainting.region import enlarge, shrink
from dcgan_jax.inpainting.result import InpaintResult, Status
from dcgan_jax.inpainting.trace import Trace
from dcgan_jax.priors.prior import Prior, generate
from dcgan_jax.storage import journal
from dcgan_jax.storage.journal import Line

GIF_FRAMES = 50
_GIF_SECONDS, _GIF_SIDE = 4.0, 256  # length of a GIF; least side of its images in pixels
_NOTES = {
    Status.NOTHING_MISSING: "no pixel is missing, so the image is unchanged",
    Status.NOTHING_KNOWN: "no pixel is known at the prior's size, so the completion is a free sample",
}
_SKIPPED = "skipped"  # status of an image that cannot be completed
# Names of the files of an image.
_RESULT, _STRIP, _GIF, _MEAN = "{}.png", "strips/{}.png", "gifs/{}.gif", "mean/{}.png"


def _choices(settings: Settings) -> list[str]:
    """Returns the file names of an image's completions, counted from 1; no names if there is one completion."""
    count = settings.config.num_completions
    return [f"choices/{{}}-{i + 1}.png" for i in range(count)] if count > 1 else []


def _patterns(settings: Settings) -> list[str]:
    """Returns the names of all files of an image."""
    choices = _choices(settings)
    return [_RESULT, _STRIP, *([_GIF] if settings.gif else []), *([_MEAN, *choices] if choices else [])]


def resume(out: Path, log: Path, plan: Plan) -> dict[str, str]:
    """Finds the tasks that an earlier call finished, and removes the remains of all other tasks.

    A task is finished if a journal has a line with its digest, and all its files exist. This function removes the other
    lines of tasks, the lines of skipped images and half-written files. It keeps the lines of images without a task.

    Args:
        out: the folder of the results.
        log: the journal of this process. The journals of other processes are read too.
        plan: the plan of this call.

    Returns:
        The finished tasks: name -> status.
    """
    digests = {task.name: task.digest for task in plan.tasks}
    patterns = _patterns(plan.settings)
    done: dict[str, str] = {}
    for path in [log, *sorted(set(out.glob("results*.jsonl")) - {log})]:
        kept = []
        for _, text, line in journal.read(path, _parse):
            if line is None:
                continue
            name, status, digest = line
            if name in digests:
                files = [out / pattern.format(name) for pattern in patterns]
                keep = name not in done and digest == digests[name] and all(file.is_file() for file in files)
                if keep:
                    done[name] = status
            else:
                keep = status != _SKIPPED
            if keep:
                kept.append(text)
        if path == log or jax.process_count() == 1:  # another process may be writing the others
            journal.replace(path, kept)
            if not kept and path != log:
                path.unlink()
    for name in digests:
        for pattern in {_RESULT, _STRIP, _GIF, _MEAN, *patterns}:
            path = out / pattern.format(name)
            for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
                partial.unlink()
    return done


def _parse(line: Line) -> tuple[str, str, str | None]:
    """Returns name, status and digest of an image; the digest of a skipped image is None."""
    name, status, digest = line["name"], line["status"], line.get("digest")
    hash(name)
    return name, status, digest


def refuse_overwriting(out: Path, settings: Settings, names: Sequence[str], sources: Sequence[Path]) -> None:
    """Raises UserError if a result would overwrite an input or another result.

    Args:
        out: the folder of the results.
        settings: the settings of the call.
        names: the names of all images.
        sources: files and folders of images and masks.
    """
    patterns = [_RESULT, _STRIP, _GIF, _MEAN, *_choices(settings)]
    targets = [out / pattern.format(name) for name in names for pattern in patterns] + [out / "results.jsonl"]
    results = {target.resolve() for target in targets}
    if len(results) < len(targets):
        raise UserError(
            "images in a folder named like one of the results, such as `strips`, would overwrite them: rename it"
        )
    for source in sources:
        inside = source.resolve() in out.resolve().parents  # then the files in `out` are earlier results
        for file in source.rglob("*") if source.is_dir() else [source]:
            if file.resolve() in results and not (inside and file.resolve().is_relative_to(out.resolve())):
                raise UserError(f"`out` is {out}, but a result there would overwrite {file}: give another folder")


def write_result(prior: Prior, plan: Plan, task: Task, result: InpaintResult, out: Path) -> Line:
    """Writes the result files of an image.

    Args:
        prior: the prior that completed the image.
        plan: the plan of this call.
        task: the image.
        result: the result at the prior's size, without the batch axis.
        out: the folder of the results.

    Returns:
        The image's line for the journal.
    """
    settings = plan.settings
    image = plan.inputs.picture(task.name).pixels
    hole = plan.inputs.hole(task, settings, prior.image_shape[0])
    restored = blend_back(result, image, hole, task.region)
    _save(out / _RESULT.format(task.name), restored, task.profile)
    rows, columns = task.region.rows, task.region.columns
    strip = figures.strip(
        image[rows, columns][None] if settings.score else None,
        figures.masked_view(image, hole)[rows, columns][None],
        enlarge(np.asarray(result.completions), task.region)[None],
        restored[rows, columns][None],
    )
    _save(out / _STRIP.format(task.name), strip)
    if result.alternatives is not None:
        each = blend_each_back(result, image, hole, task.region)
        for pattern, one in zip(_choices(settings), each, strict=True):
            _save(out / pattern.format(task.name), one, task.profile)
        _save(out / _MEAN.format(task.name), mean_image(each), task.profile)
    if settings.gif and result.trace is not None:
        small = shrink(image, hole, task.region, prior.image_shape[:2])
        _save_gif(out / _GIF.format(task.name), prior, result.trace, *small)
    line = {**_line(task, result), "missing": int(hole.sum())}
    if settings.score:
        scores = composite_scores(restored[None], image[None], hole[None])
        line |= {name: finite_or_none(values[0]) for name, values in scores.items()}
    return line | _remarks(task, result)


def write_restored(prior: Prior, plan: Plan, task: Task, result: InpaintResult, out: Path) -> Line:
    """Writes the result files of an image that was restored from a measurement. See `write_result`."""
    settings, measurement = plan.settings, plan.settings.measurement
    if measurement is None:
        raise ValueError("`plan` has no measurement: use `write_result`")
    restored = pixels.to_uint8(np.asarray(result.images))
    _save(out / _RESULT.format(task.name), restored, task.profile)
    original = measurement.original(plan.inputs.picture(task.name).pixels, task.region) if settings.score else None
    strip = figures.strip(
        None if original is None else original[None],
        measurement.view(plan.inputs.values(task, settings))[None],
        np.asarray(result.completions)[None],
        restored[None],
    )
    _save(out / _STRIP.format(task.name), strip)
    if result.alternatives is not None:
        for pattern, one in zip(_choices(settings), result.alternatives.images, strict=True):
            _save(out / pattern.format(task.name), pixels.to_uint8(np.asarray(one)), task.profile)
        _save(out / _MEAN.format(task.name), pixels.to_uint8(np.asarray(result.mean)), task.profile)
    line = _line(task, result)
    if original is not None:
        everywhere = np.ones((1, *prior.image_shape[:2]), bool)
        scores = composite_scores(restored[None], original[None], everywhere)
        line |= {name: finite_or_none(scores[name][0]) for name in ("psnr", "ssim")}
    return line | _remarks(task, result)


def skipped_line(name: str, reason: str) -> Line:
    """Returns the journal line of an image that cannot be completed."""
    return {"name": name, "status": _SKIPPED, "note": reason}


def note_of(task: Task, result: InpaintResult) -> str:
    """Returns remarks on an image and its result; an empty text if there are none."""
    return "; ".join(filter(None, (task.note, None if task.outside else _NOTES.get(Status(int(result.status))))))


def report_failed(failed: int, where: Path) -> int:
    """Prints the number of failed searches on standard error. Returns the exit status: 1 if one failed, else 0."""
    if failed:
        print(f"dcgan-jax: {failed} searches reached a loss that is not finite, see {where}", file=sys.stderr)
    return 1 if failed else 0


def _remarks(task: Task, result: InpaintResult) -> Line:
    """Returns the trace and the note of an image, if it has them."""
    line: Line = {}
    if result.trace is not None:
        line["trace"] = {
            "num_steps": result.trace.num_steps.tolist(),
            "context_loss": list(map(finite_or_none, result.trace.context_loss.tolist())),
            "prior_loss": list(map(finite_or_none, result.trace.prior_loss.tolist())),
        }
    if note := note_of(task, result):
        line["note"] = note
    return line


def _line(task: Task, result: InpaintResult) -> Line:
    line: Line = {
        "name": task.name,
        "digest": task.digest,
        "region": list(task.region),
        "context_loss": finite_or_none(float(result.context_loss)),
        "prior_loss": finite_or_none(float(result.prior_loss)),
        "num_steps": int(result.num_steps),
        "status": Status(int(result.status)).words,
    }
    if result.labels >= 0:
        line["label"] = int(result.labels)
    return line


def _save(path: Path, image: UInt8[np.ndarray, "h w c"], profile: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save_png(path, image, profile)


def _save_gif(
    path: Path, prior: Prior, trace: Trace, image: UInt8[np.ndarray, "h w c"], hole: Bool[np.ndarray, "h w"]
) -> None:
    """Writes an animation of the search at the prior's size: the generated image beside the blended one.

    The images are generated from the latents alone, without feature shifts.
    """
    completions = np.asarray(generate(prior, trace.latents))
    known = np.broadcast_to(pixels.to_float(image), completions.shape).astype(completions.dtype)
    blended = poisson_blend_sparse(completions, known, hole)
    scale = -(-_GIF_SIDE // min(hole.shape))
    frames = np.concatenate([completions, blended], axis=2).repeat(scale, axis=1).repeat(scale, axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save_gif(path, frames, _GIF_SECONDS / len(frames))
