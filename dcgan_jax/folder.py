"""Inpainting of files: images and masks in; completed images, strips and a line of JSON for each out."""

import json
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from dcgan_jax import figures, masks
from dcgan_jax.config import InpaintConfig
from dcgan_jax.data import decode_image, open_prepared
from dcgan_jax.data.archives import IMAGE_SUFFIXES, is_image
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting import STATUS
from dcgan_jax.metrics import composite_scores, finite_or_none
from dcgan_jax.prior import Prior, image_shape
from dcgan_jax.streaming import inpaint_stream


@dataclass(frozen=True, eq=False)
class Task:
    """One image to complete."""

    name: str  # as in the input, without suffix; the outputs' name
    image: UInt8[np.ndarray, "h w c"]
    hole: Bool[np.ndarray, "h w"]
    complete: bool  # what lies in the hole is the original, as where the mask is drawn by us


def inpaint_folder(
    prior: Prior,
    images: Path,
    mask: str,
    out: Path,
    config: InpaintConfig,
    *,
    complete: bool = False,
    split: str | None = None,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> int:
    """Completes images from disk.

    Writes `out/NAME.png` (the result), `out/strips/NAME.png` (original where it is known, masked, completion, blended)
    and `out/results.jsonl`, a line an image: name, losses, steps, status, and PSNR and SSIM where the original is
    known, which it is where the hole is drawn here.
    Holes and searches are seeded by the images' names, so in batches of one shape a result does not depend on the rest
    of the folder.

    Args:
        prior: of the images' size.
        images: a folder, a file, or a prepared set.
        mask: one of `masks.NAMES`, a mask file for all images, or a folder of masks with the images' names (white =
            missing).
        out: where to.
        config: the search.
        complete: what lies in the holes is the original, to be compared with; it is where the mask is drawn here.
        split: of a prepared set; by default all of it.
        count: the first so many images; by default all.
        seed: of holes and searches.
        batch_size: searches at a time.
        progress: show a progress bar on standard error.

    Returns:
        How many searches met a loss that is not finite.

    Raises:
        UserError: images, masks, prior and folder do not fit together; nothing was written then.
    """
    key = jax.random.key(seed)
    names, read_image = _images(images, split, count, image_shape(prior))
    read_hole = _holes(mask, names, key, image_shape(prior))
    _refuse_overwriting(out, names, (images, Path(mask)))
    _make_folder(out)
    pending: deque[Task] = deque()

    def pairs() -> Iterator[tuple]:
        for name in names:
            task = Task(name, read_image(name), read_hole(name), complete or mask in masks.NAMES)
            pending.append(task)
            yield task.image, task.hole, jax.random.fold_in(key, _number(name))

    failed = 0
    with (
        (out / "results.jsonl").open("w", encoding="utf-8") as log,
        tqdm(total=len(names), unit="image", disable=not progress, dynamic_ncols=True) as bar,
    ):
        for result in inpaint_stream(prior, pairs(), key, config, batch_size):
            task = pending.popleft()
            log.write(json.dumps(_write(task, result, out)) + "\n")
            log.flush()
            failed += int(result.status) != 0
            bar.update()
    return failed


def _write(task, result, out):
    """Writes one image's files and returns its line."""
    target, strip = out / f"{task.name}.png", out / "strips" / f"{task.name}.png"
    for path in (target, strip):
        path.parent.mkdir(parents=True, exist_ok=True)
    figures.save_png(target, result.images)
    figures.save_png(
        strip,
        figures.strip(
            task.image[None] if task.complete else None,
            figures.masked_view(task.image, task.hole)[None],
            result.completions[None],
            result.images[None],
        ),
    )
    line = {
        "name": task.name,
        "missing": int(task.hole.sum()),
        "context_loss": finite_or_none(result.context_loss),
        "prior_loss": finite_or_none(result.prior_loss),
        "num_steps": int(result.num_steps),
        "status": STATUS[int(result.status)],
    }
    if task.complete:
        scores = composite_scores(result.images[None], task.image[None], task.hole[None])
        line |= {name: finite_or_none(values[0]) for name, values in scores.items()}
    return line


def _number(name):
    """32 bits that depend on the name alone (Python's hash changes from process to process)."""
    return zlib.crc32(name.encode())


def _images(source, split, count, shape):
    """The names of the first `count` images, and how to read one."""
    if (source / "manifest.json").is_file():
        prepared = open_prepared(source)
        where = slice(None) if split is None else prepared.split_slice(split)
        if prepared.images.shape[1:] != shape:
            raise UserError(_wrong_size(source, prepared.images.shape[1:], shape))
        place = _by_stem(zip(prepared.names[where], range(len(prepared.images))[where], strict=True), source)
        return list(place)[:count], lambda name: np.array(prepared.images[place[name]])
    if split is not None:
        raise UserError(f"`split` {split!r} is given, and {source} is not a prepared set: leave it out")
    by_stem = _by_stem(_files(source), source)
    names = list(by_stem)[:count]
    for name in names:
        size = _read_image(by_stem[name], shape[2]).shape[:2]
        if size != shape[:2]:
            raise UserError(_wrong_size(by_stem[name], size, shape[:2]))
    return names, lambda name: _read_image(by_stem[name], shape[2])


def _holes(mask, names, key, shape):
    """How to find the hole of an image by its name."""
    if mask in masks.NAMES:
        draw_key = jax.random.fold_in(key, masks.NAMES.index(mask))

        def draw(name):
            return np.asarray(masks.by_name(mask, jax.random.fold_in(draw_key, _number(name))[None], shape[0])[0])

        return draw
    path = Path(mask)
    if path.is_file():
        hole = _read_hole(path, shape)
        return lambda name: hole
    if not path.is_dir():
        raise UserError(f"`masks` is {mask!r}: give a file, a folder, or one of {', '.join(masks.NAMES)}")
    by_stem = _by_stem(_files(path), path)
    without = [name for name in names if name not in by_stem]
    if without:
        raise UserError(
            f"{len(without)} images have no mask in {path}, {without[0]!r} first: masks go by the images' names"
        )
    for name in names:
        _read_hole(by_stem[name], shape)
    return lambda name: _read_hole(by_stem[name], shape)


def _files(source):
    """Pairs of name and path: the file itself, or all images of a folder and its subfolders, in order."""
    if source.is_file():
        return [(source.name, source)]
    if not source.is_dir():
        raise UserError(f"{source} does not exist: give a folder, an image file or a prepared set")
    files = [(file.relative_to(source).as_posix(), file) for file in sorted(source.rglob("*")) if file.is_file()]
    files = [(name, file) for name, file in files if is_image(name)]
    if not files:
        raise UserError(f"{source} holds no image (files that end in {', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def _read_image(file, channels):
    try:
        array = np.asarray(decode_image(file.read_bytes(), channels))
    except Exception as error:  # a damaged file can raise nearly anything in Pillow
        raise UserError(f"{file} cannot be read as an image: {' '.join(str(error).split())}") from error
    return array.reshape(*array.shape[:2], channels)


def _read_hole(file, shape):
    hole = masks.read_hole(file)
    if hole.shape != shape[:2]:
        raise UserError(_wrong_size(file, hole.shape, shape[:2]))
    return hole


def _wrong_size(what, found, expected):
    return (
        f"{what} is {'x'.join(map(str, found))} and the prior completes {'x'.join(map(str, expected))} "
        "(height, width): scale it with `dcgan-jax prepare`"
    )


def _by_stem(pairs, source):
    """A dictionary by names without suffix, which must differ and stay inside the folder they are joined to."""
    found = {}
    for name, value in pairs:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"the image name {name!r} leads out of its folder: rename it")
        stem = path.with_suffix("").as_posix()
        if stem in found:
            raise UserError(f"{source} holds two images named {stem!r}, one of which would be lost: rename one")
        found[stem] = value
    return found


def _refuse_overwriting(out, names, sources):
    results = {(out / f"{name}.png").resolve() for name in names}
    for source in sources:
        for file in source.rglob("*") if source.is_dir() else [source]:
            if file.resolve() in results:
                raise UserError(f"`out` is {out}, where a result would overwrite {file}: give another folder")


def _make_folder(out):
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}") from error
