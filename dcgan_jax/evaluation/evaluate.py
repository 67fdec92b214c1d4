"""Evaluation: methods × masks × sets on held-out images, resumed where it stopped, shared out over processes.

The folder keeps a line for every image that is done in `scores.jsonl` (one file a process where there are several); the
tables and figures of `comparison.py` are made of these lines.
"""

import base64
import hashlib
import io
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from tqdm import tqdm

from dcgan_jax import masks
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation.methods import NAMES, ImageSet, Method, prepare_method
from dcgan_jax.images.metrics import composite_scores, finite_or_none
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.parallel import distributed
from dcgan_jax.storage.files import locked, make_folder, whole_file

SHOWN = 2  # images a mask in the figures
SCORES = ("psnr", "psnr_hole", "ssim", "ssim_hole")
# The most that PSNR is taken for, in dB: that of an error which rounding the original to whole levels makes (variance
# 1/12). A completion that hits every level would be infinitely good, and so would any mean it is part of.
_EXACT = 10 * math.log10(12 * 255**2)


class Unit(NamedTuple):
    """Work that is done at once: some images of a set under a mask, by one method."""

    images: ImageSet
    mask: str
    name: str  # of the method
    method: Method
    numbers: range  # of the images
    key: str  # of all that the scores depend on

    def ids(self) -> list[tuple]:
        """What the lines of these images are known by."""
        return [(self.images.name, self.mask, self.name, i) for i in self.numbers]


Line = dict[str, Any]


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
    """Completes held-out images of every set, under every mask, by every method, and compares with the originals.

    Image i under a mask has the same hole for every method, seed and count alike. What the folder has already, from an
    interrupted call or one with other methods, is not done again, unless what it depends on has changed. In a job of
    several processes each does its share, in `out` or in folders of their own.

    Args:
        sets: of different names.
        methods: names of `methods.NAMES`, each with the number of images that it is given, from the first; None for
            `count`.
        out: a folder, new or of an evaluation before.
        mask_names: of `masks.NAMES`.
        count: the first so many images of every set; None for all.
        search: the configuration of the method "search", by default `InpaintConfig()`.
        seed: of holes and searches.
        batch_size: images at a time, at the most.
        progress: show a progress bar on standard error.

    Returns:
        A line for each image in the order of sets, masks, methods and images: `set`, `mask`, `method`, `image`, and
        either `psnr`, `psnr_hole` (dB, 58.9 at the most), `ssim`, `ssim_hole` (null below 11 pixels), `seconds` (the
        time of its batch over the images in it, compilation included), what the method says of it (`num_steps`,
        `status`), and for the first images `picture`, a PNG in base64; or `applies`: false.

    Raises:
        UserError: a name is unknown, images are not of the prior's size, a method lacks what it needs, or there are no
            images.
    """
    _check(sets, methods, mask_names)
    for name, value in (("batch_size", batch_size), ("count", count), *methods.items()):
        if value is not None and value < 1:
            raise UserError(f"`{name}` is {value}; it takes 1 or more")
    out = Path(out)
    units = _units(sets, methods, mask_names, count, search or InpaintConfig(), seed, batch_size)
    make_folder(out)
    wanted = {identity: unit.key for unit in units for identity in unit.ids()}
    own = out / ("scores.jsonl" if jax.process_count() == 1 else f"scores-{jax.process_index()}.jsonl")
    # The batches of each method in turn, as methods differ in time by thousands; each in the order of the table.
    dealt = sorted(range(len(units)), key=lambda i: (units[i].name, i))[jax.process_index() :: jax.process_count()]
    mine = [units[i] for i in sorted(dealt)]
    with locked(out / f".{own.name}.lock"):
        lines = _read_lines(out, own, wanted)
        _complete_all(mine, lines, own, seed, progress)
    texts = distributed.from_each_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    for text in texts if len(texts) > 1 else []:
        lines |= {_identity(line): line for line in map(json.loads, text.splitlines())}
    return [lines[identity] for unit in units for identity in unit.ids()]


def draw_holes(mask: str, n: int, size: int, seed: int) -> Bool[np.ndarray, "n size size"]:
    """The holes of the first n images of any set; image i's does not depend on n."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), masks.NAMES.index(mask))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(n))
    return np.array(masks.by_name(mask, keys, size))


def _check(sets, methods, mask_names) -> None:
    for what, given, known in (("masks", mask_names, masks.NAMES), ("methods", methods, NAMES)):
        for name in given:
            if name not in known:
                raise UserError(f"`{what}` has {name!r}; it takes any of {', '.join(known)}")
    if not (sets and methods and mask_names):
        raise UserError("there is nothing to evaluate: give a set, a method and a mask")
    if len({images.name for images in sets}) < len(sets):
        raise UserError(f"sets share a name ({', '.join(images.name for images in sets)}): rename their folders")
    if len(set(mask_names)) < len(mask_names):
        raise UserError(f"`masks` has a mask twice: {', '.join(mask_names)}")
    for images in sets:
        if not images.name.isprintable() or "/" in images.name:
            raise UserError(f"the name of the set {images.name!r} cannot be part of a file's: rename its folder")
        n, h, w, _ = images.images.shape
        if not n or h != w:
            raise UserError(f"`images` of {images.name} is {list(images.images.shape)}; it takes one or more, square")


def _units(sets, methods, mask_names, count, search, seed, batch_size) -> list[Unit]:
    units = []
    for images in sets:
        made = {}
        for name, own_count in methods.items():
            n = min(len(images.images), own_count or count or len(images.images))
            size = -(-n // -(-n // batch_size))  # batches of one size, or nearly
            made[name] = (n, size, prepare_method(name, images, search, size))
        for mask in mask_names:
            for name, (n, size, method) in made.items():
                what = [images.identity, mask, seed, name, method.settings]
                key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
                parts = (range(start, min(start + size, n)) for start in range(0, n, size))
                units += [Unit(images, mask, name, method, numbers, key) for numbers in parts]
    return units


def _complete_all(units: Sequence[Unit], lines: dict[tuple, Line], own: Path, seed: int, progress: bool) -> None:
    """Does what is not among the lines yet, adds it to them and to the file."""
    bar = tqdm(total=sum(len(unit.numbers) for unit in units), unit="image", disable=not progress, dynamic_ncols=True)
    with bar, own.open("a", encoding="utf-8") as file:
        for unit in units:
            bar.set_description(f"{unit.images.name}, {unit.mask}, {unit.name}")
            if not all(identity in lines for identity in unit.ids()):
                made = _complete(unit, seed)
                file.write("".join(json.dumps(line) + "\n" for line in made))
                file.flush()
                lines |= {_identity(line): line for line in made}
            bar.update(len(unit.numbers))


def _complete(unit: Unit, seed: int) -> list[Line]:
    """Completes the images of a unit; a line for each."""
    numbers, method = np.asarray(unit.numbers), unit.method
    images = np.asarray(unit.images.images[numbers[0] : numbers[-1] + 1])
    holes = draw_holes(unit.mask, numbers[-1] + 1, images.shape[1], seed)[numbers]
    lines: list[Line] = [
        {"set": unit.images.name, "mask": unit.mask, "method": unit.name, "image": int(i), "key": unit.key}
        for i in numbers
    ]
    applies = np.full(len(images), True) if method.applies is None else method.applies(holes)
    for i in np.flatnonzero(~applies):
        lines[i]["applies"] = False
    able = np.flatnonzero(applies)
    if not len(able):
        return lines
    start = time.perf_counter()
    results, notes = method.complete(
        images[able], holes[able], numbers[able], jax.random.fold_in(jax.random.key(seed), 0)
    )
    seconds = (time.perf_counter() - start) / len(able)
    scores = composite_scores(results, images[able], holes[able])
    for j, i in enumerate(able):
        lines[i] |= {name: finite_or_none(min(scores[name][j], _EXACT)) for name in SCORES}
        lines[i] |= {"seconds": round(seconds, 5), **notes[j]}
        if numbers[i] < SHOWN:
            lines[i]["picture"] = encode(results[j])
    return lines


def encode(image: UInt8[np.ndarray, "h w c"]) -> str:
    """An image as a PNG in base64."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def decode(text: str) -> UInt8[np.ndarray, "h w c"]:
    """The inverse of `encode`."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _read_lines(out: Path, own: Path, wanted: Mapping[tuple, str]) -> dict[tuple, Line]:
    """The lines that still hold of what is wanted; those that hold no more are removed, as are those cut off."""
    lines: dict[tuple, Line] = {}
    for path in sorted(path for path in out.iterdir() if re.fullmatch(r"scores(-\d+)?\.jsonl", path.name)):
        kept = []
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                identity, key = _identity(line), line["key"]
                known = wanted.get(identity)
                _check_line(line)
            except (ValueError, RecursionError, KeyError, TypeError, OSError):  # cut off while it was written
                continue
            if known in (None, key):
                kept.append(text)
            if known == key:
                lines[identity] = line
        if path == own or jax.process_count() == 1:  # another process may be at work on the others
            with whole_file(path) as partial:
                partial.write_text("".join(f"{text}\n" for text in kept), encoding="utf-8")
    return lines


def _check_line(line: Line) -> None:
    """Raises what is among the exceptions above where a line lacks what tables and figures are made of."""
    if line.get("applies", True):
        for name in ("psnr", "psnr_hole", "seconds"):
            float(line[name])
        for name in ("ssim", "ssim_hole"):
            float(line[name] or 0)
        if line["image"] < SHOWN:
            decode(line["picture"])


def _identity(line: Line) -> tuple:
    return line["set"], line["mask"], line["method"], line["image"]
