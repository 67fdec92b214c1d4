"""Evaluation: methods × masks × sets on held-out images. It can be resumed, and shared among processes.

The folder keeps a line of JSON for every finished image, in `scores.jsonl` or in one file for each process. `tables.py`
makes tables and figures from these lines.
"""

import base64
import hashlib
import io
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from dcgan_jax import masks
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation.holes import draw_holes
from dcgan_jax.evaluation.methods import METHODS, ImageSet, Method, check_names, prepare_method
from dcgan_jax.images.metrics import composite_scores, finite_or_none
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.parallel import distributed
from dcgan_jax.storage import journal
from dcgan_jax.storage.files import locked, make_folder
from dcgan_jax.storage.journal import Line

FIGURE_IMAGES = 2  # images per mask in the figures
SCORES = ("psnr", "psnr_hole", "ssim", "ssim_hole")
# Upper limit of PSNR in dB: the PSNR of an error with the variance of rounding to whole levels (1/12). Without it, an
# exact completion would have an infinite PSNR, and so would every mean that includes it.
_HIGHEST_PSNR = 10 * math.log10(12 * 255**2)

Identity = tuple[str, str, str, int]  # what a line is about: set, mask, method, number of the image


class Unit(NamedTuple):
    """A unit of work: one batch of images of a set, under one mask, by one method.

    Attributes:
        images: the set.
        mask: the name of the mask.
        name: the name of the method.
        method: the method, ready for the set.
        numbers: the numbers of the images in the set.
        digest: hash of everything that the scores depend on.
    """

    images: ImageSet
    mask: str
    name: str
    method: Method
    numbers: range
    digest: str

    def identities(self) -> list[Identity]:
        """Returns the identities of the lines of these images."""
        return [(self.images.name, self.mask, self.name, i) for i in self.numbers]


@dataclass(frozen=True)
class Batching:
    """The number of images to complete, and the batch size."""

    count: int | None  # images of each set, from the first; None for all
    batch_size: int


def evaluate(
    sets: Sequence[ImageSet],
    methods: Mapping[str, int | None],
    out: str | Path,
    *,
    mask_names: Sequence[str] = masks.NAMES,
    count: int | None = None,
    search: InpaintConfig | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Line]:
    """Completes held-out images of every set under every mask by every method, and scores the results.

    The hole of an image depends only on mask, image name and seed, so all methods get the same holes.

    Results of an earlier call in the same folder are kept, unless something that they depend on has changed. In a job
    of several processes each process does its share. The processes may use one folder, or a folder each.

    Args:
        sets: the sets. Their names differ.
        methods: name in `methods.METHODS` -> number of images for this method, from the first; None stands for `count`.
        out: the folder, new or of an earlier evaluation.
        mask_names: names in `masks.NAMES`.
        count: number of images of every set, from the first; None for all.
        search: the configuration of the method "search", by default `InpaintConfig()`.
        seed: the seed of holes and searches.
        batch_size: largest number of images at a time.
        progress: show a progress bar on standard error.

    Returns:
        A line for each image, in the order of sets, masks, methods and images:

        - `set`, `mask`, `method`, `image` (its number) and `digest`;
        - `applies`: false if the method cannot complete the image. The line then ends here;
        - `psnr` and `psnr_hole` in dB, at most 58.9; `ssim` and `ssim_hole`, null for images below 11 pixels;
        - `seconds`: the time of the batch, compilation included, divided by its number of images;
        - `num_steps` and `status`, for searches;
        - `picture`: the result as a PNG in base64, for the first images.

    Raises:
        UserError: a name is unknown, images do not have the prior's size, a set lacks something that a method needs,
            or there are no images.
    """
    _check(sets, methods, mask_names)
    for name, value in (("batch_size", batch_size), ("count", count), *methods.items()):
        if value is not None and value < 1:
            raise UserError(f"`{name}` is {value}; it takes 1 or more")
    out = Path(out)
    batching = Batching(count, batch_size)
    units = list(_units(sets, methods, mask_names, search or InpaintConfig(), seed, batching))
    make_folder(out)
    wanted = {identity: unit.digest for unit in units for identity in unit.identities()}
    own = out / ("scores.jsonl" if jax.process_count() == 1 else f"scores-{jax.process_index()}.jsonl")
    # Each process gets a share of every method, because some methods take thousands of times as long as others.
    dealt = sorted(range(len(units)), key=lambda i: (units[i].name, i))[jax.process_index() :: jax.process_count()]
    mine = [units[i] for i in sorted(dealt)]
    with locked(out / f".{own.name}.lock"):
        lines = _read_lines(out, own, wanted)
        _complete_all(mine, lines, own, seed, progress)
    texts = distributed.from_each_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    for text in texts if len(texts) > 1 else []:
        lines |= {_identity(line): line for line in map(json.loads, text.splitlines())}
    return [lines[identity] for unit in units for identity in unit.identities()]


def _check(sets: Sequence[ImageSet], methods: Mapping[str, int | None], mask_names: Sequence[str]) -> None:
    """Raises UserError if the arguments of `evaluate` are wrong."""
    for name in mask_names:
        if name not in masks.NAMES:
            raise UserError(f"`masks` has {name!r}; it takes any of {', '.join(masks.NAMES)}")
    check_names(list(methods))
    if not (sets and methods and mask_names):
        raise UserError("there is nothing to evaluate: give a set, a method and a mask")
    if len({images.name for images in sets}) < len(sets):
        raise UserError(f"sets share a name ({', '.join(images.name for images in sets)}): rename their folders")
    if len(set(mask_names)) < len(mask_names):
        raise UserError(f"`masks` has a mask twice ({', '.join(mask_names)}): give each once")
    for images in sets:
        if not images.name.isprintable() or "/" in images.name:
            raise UserError(f"the name of the set {images.name!r} cannot be part of a file name: rename its folder")
        n, h, w, _ = images.images.shape
        if not n or h != w:
            raise UserError(
                f"`images` of {images.name} has shape {list(images.images.shape)}; it takes one or more square images"
            )


def _units(
    sets: Sequence[ImageSet],
    methods: Mapping[str, int | None],
    mask_names: Sequence[str],
    search: InpaintConfig,
    seed: int,
    batching: Batching,
) -> Iterator[Unit]:
    """Yields the units in the order of the results."""
    for images in sets:
        made = {}
        for name, own_count in methods.items():
            n = min(len(images.images), own_count or batching.count or len(images.images))
            size = -(-n // -(-n // batching.batch_size))  # all batches have nearly the same size
            made[name] = (n, size, prepare_method(name, images, search, size))
        names = None if images.names is None else hashlib.sha256("\n".join(images.names).encode()).hexdigest()
        for mask, (name, (n, size, method)) in itertools.product(mask_names, made.items()):
            inputs = [images.version, names, mask, seed, name, method.settings]
            digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
            for start in range(0, n, size):
                yield Unit(images, mask, name, method, range(start, min(start + size, n)), digest)


def _complete_all(units: Sequence[Unit], lines: dict[Identity, Line], own: Path, seed: int, progress: bool) -> None:
    """Completes the images that have no line yet. Adds their lines to `lines` and to the file."""
    total = sum(len(unit.numbers) for unit in units)
    with tqdm(total=total, unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for unit in units:
            bar.set_description(f"{unit.images.name}, {unit.mask}, {unit.name}")
            if not all(identity in lines for identity in unit.identities()):
                made = score_unit(unit, seed)
                journal.append(own, *made)
                lines |= {_identity(line): line for line in made}
            bar.update(len(unit.numbers))


def score_unit(unit: Unit, seed: int) -> list[Line]:
    """Completes the images of a unit and compares them with the originals. Returns a line for each."""
    numbers = np.asarray(unit.numbers)
    images = np.asarray(unit.images.images[unit.numbers.start : unit.numbers.stop])
    holes = draw_holes(unit.mask, [unit.images.name_of(i) for i in unit.numbers], images.shape[1], seed)
    lines: list[Line] = [
        {"set": unit.images.name, "mask": unit.mask, "method": unit.name, "image": i, "digest": unit.digest}
        for i in unit.numbers
    ]
    applies = METHODS[unit.name].applies
    able = np.arange(len(images)) if applies is None else np.flatnonzero(applies(holes))
    for i in set(range(len(images))) - set(able.tolist()):
        lines[i]["applies"] = False
    if not len(able):
        return lines
    key = jax.random.fold_in(jax.random.key(seed), 0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers[able])
    start = time.perf_counter()
    completed, notes = unit.method.complete(images[able], holes[able], keys)
    completed = np.asarray(completed)
    seconds = (time.perf_counter() - start) / len(able)
    scores = composite_scores(completed, images[able], holes[able])
    for j, i in enumerate(able):
        lines[i] |= {name: finite_or_none(min(scores[name][j], _HIGHEST_PSNR)) for name in SCORES}
        lines[i] |= {"seconds": round(seconds, 5), **notes[j]}
        if numbers[i] < FIGURE_IMAGES:
            lines[i]["picture"] = png_text(completed[j])
    return lines


def png_text(image: UInt8[np.ndarray, "h w c"]) -> str:
    """Encodes an image as a PNG in base64."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def png_pixels(text: str) -> UInt8[np.ndarray, "h w c"]:
    """Decodes the result of `png_text`."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _read_lines(out: Path, own: Path, wanted: Mapping[Identity, str]) -> dict[Identity, Line]:
    """Reads the lines of the wanted images.

    A line of a wanted image with another digest is out of date. Such lines and damaged lines are removed from the
    files.

    Args:
        out: the folder of the evaluation.
        own: the file of this process.
        wanted: the wanted images, with their digests.
    """
    lines: dict[Identity, Line] = {}
    for path in sorted(path for path in out.iterdir() if re.fullmatch(r"scores(-\d+)?\.jsonl", path.name)):
        kept = {}
        for _, text, line in journal.read(path, _parse):
            if line is None:
                continue
            identity = _identity(line)
            if wanted.get(identity) == line["digest"]:
                lines[identity] = line
            elif identity in wanted:
                continue
            kept[identity, line["digest"]] = text
        if path == own or jax.process_count() == 1:  # another process may be writing the others
            journal.replace(path, kept.values())
    return lines


def _parse(line: Line) -> Line:
    """Checks that a line has all fields that tables and figures need. `journal.read` catches the errors."""
    hash((_identity(line), line["digest"]))
    if line.get("applies", True):
        for name in ("psnr", "psnr_hole", "seconds"):
            float(line[name])
        for name in ("ssim", "ssim_hole"):
            float(line[name] or 0)
        if line["image"] < FIGURE_IMAGES:
            png_pixels(line["picture"])
    return line


def _identity(line: Line) -> Identity:
    return line["set"], line["mask"], line["method"], line["image"]
