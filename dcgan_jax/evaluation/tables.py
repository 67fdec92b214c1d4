"""The results of an evaluation as tables in Markdown, CSV and JSON, as figures and as a chart."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float, UInt8

from dcgan_jax.evaluation import evaluate
from dcgan_jax.evaluation.evaluate import SCORES
from dcgan_jax.evaluation.holes import draw_holes
from dcgan_jax.evaluation.methods import ImageSet
from dcgan_jax.images import figures
from dcgan_jax.storage.files import whole_file
from dcgan_jax.storage.journal import Line

# PSNR in dB, Yeh et al. 2017, table 1. The paper does not say whether this is the PSNR of the whole image or the hole.
PUBLISHED_MASKS: tuple[str, ...] = ("center", "pattern", "random", "half")
PUBLISHED = {
    "celeba": {"Context Encoder": (21.3, 19.2, 20.6, 15.5), "Yeh et al.": (19.4, 17.4, 22.8, 13.7)},
    "svhn": {"Context Encoder": (22.3, 22.3, 24.1, 19.1), "Yeh et al.": (19.0, 19.8, 33.0, 14.6)},
    "cars": {"Context Encoder": (14.1, 14.0, 16.1, 12.6), "Yeh et al.": (13.5, 14.1, 18.9, 11.1)},
}
_TITLES = {
    "psnr_hole": ("PSNR of the hole, dB", 2),
    "psnr": ("PSNR of the whole image, dB", 2),
    "ssim_hole": ("SSIM of the hole", 3),
    "ssim": ("SSIM of the whole image", 3),
}
_ENLARGEMENT = 2  # factor by which the figure enlarges the images


class Statistic(NamedTuple):
    """A mean over images, and half the width of its 95 % confidence interval."""

    mean: float
    interval: float  # NaN for a single image


@dataclass(frozen=True)
class Cell:
    """The results of a method under a mask of a set.

    Attributes:
        set: name of the set.
        mask: name of the mask.
        method: name of the method.
        count: number of images that the method can complete.
        scores: the scores of these images, by name.
        seconds: median time for one image. With three batches or more it excludes compilation.
        num_steps: mean number of search steps; None if the method is not a search.
        not_finite: number of searches whose loss became NaN or infinite.
    """

    set: str
    mask: str
    method: str
    count: int
    scores: dict[str, Statistic]
    seconds: float
    num_steps: float | None
    not_finite: int


def cells(lines: Sequence[Line]) -> list[Cell]:
    """Groups the lines of an evaluation by set, mask and method. Keeps their order."""
    grouped: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        grouped.setdefault((line["set"], line["mask"], line["method"]), []).append(line)
    found = []
    for names, members in grouped.items():
        done = [line for line in members if line.get("applies", True)]
        steps = [line["num_steps"] for line in done if "num_steps" in line]
        found.append(
            Cell(
                *names,
                count=len(done),
                scores={name: statistic([line[name] for line in done]) for name in SCORES},
                seconds=float(np.median([line["seconds"] for line in done])) if done else np.nan,
                num_steps=float(np.mean(steps)) if steps else None,
                not_finite=sum(line.get("status") == "not finite" for line in done),
            )
        )
    return found


def statistic(values: Sequence[float | None]) -> Statistic:
    """Returns mean and 95 % confidence interval (Student's t) of the values that are not None."""
    x: Float[np.ndarray, " n"] = np.array([value for value in values if value is not None], float)
    if not len(x):
        return Statistic(np.nan, np.nan)
    reach = scipy.stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan
    return Statistic(float(x.mean()), float(reach))


def table(found: Sequence[Cell], kinds: dict[str, str | None]) -> str:
    """Returns tables in Markdown. Each set has a table for each score, and one for the time per image.

    A table has a row for each method and a column for each mask. The published figures are the last rows.

    Args:
        found: the result of `cells`.
        kinds: name of a set -> its kind, from the manifest.
    """
    parts = []
    for name in dict.fromkeys(cell.set for cell in found):
        here = {(cell.method, cell.mask): cell for cell in found if cell.set == name}
        methods, masks = (list(dict.fromkeys(pair[i] for pair in here)) for i in (0, 1))
        counts = {method: max(here[method, mask].count for mask in masks) for method in methods}
        parts.append(f"## {name}\n")
        for score, (title, digits) in _TITLES.items():
            rows = [
                [method, *(_score(here[method, mask], score, digits, counts[method]) for mask in masks)]
                for method in methods
            ]
            if score.startswith("psnr"):
                for who, values in PUBLISHED.get(kinds[name] or "", {}).items():
                    published = dict(zip(PUBLISHED_MASKS, values, strict=True))
                    rows.append([f"*{who}, published*", *(f"*{published[mask]:.1f}*" for mask in masks)])
            parts.append(_markdown([title, *masks], rows))
        rows = [[method, *(_time(here[method, mask]) for mask in masks)] for method in methods]
        parts.append(_markdown(["seconds per image", *masks], rows))
        same: dict[int, list[str]] = {}
        for method, count in counts.items():
            same.setdefault(count, []).append(method)
        said = "; ".join(f"{count}: {', '.join(members)}" for count, members in same.items())
        text = f"Images: {said}." if len(same) > 1 else f"{next(iter(same))} images."
        if any(not cell.count for cell in here.values()):
            text += " A dash: the method cannot complete these images, because no whole patch is known."
        text += (
            " ±: 95 % intervals of the mean. Times are medians over the images; the time of an image is the time of "
            "its batch divided by the number of images. With fewer than three batches it includes compilation."
        )
        if kinds[name] in PUBLISHED:
            text += " The paper does not say whether its figures describe the hole or the whole image."
        parts.append(text + "\n")
    return "\n".join(parts)


def save(lines: Sequence[Line], sets: Sequence[ImageSet], settings: dict[str, Any], out: Path) -> str:
    """Writes `table.md`, `table.json`, `scores.csv`, `figure-SET.png` and, with Matplotlib, `chart.png`.

    Args:
        lines: the result of `evaluate`.
        sets: the sets of the evaluation.
        settings: the settings of the evaluation; `table.json` records them. They include `seed`.
        out: the folder.

    Returns:
        The tables as Markdown.
    """
    found = cells(lines)
    text = table(found, {images.name: images.kind for images in sets})
    with whole_file(out / "table.md") as partial:
        partial.write_text(text, encoding="utf-8")
    with whole_file(out / "table.json") as partial:
        partial.write_text(json.dumps({**settings, "cells": [_plain(cell) for cell in found]}) + "\n", encoding="utf-8")
    with whole_file(out / "scores.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        names = ["set", "mask", "method", "image", *SCORES, "seconds", "num_steps", "status"]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(line for line in lines if line.get("applies", True))
    for images in sets:
        figures.save_png(out / f"figure-{images.name}.png", figure(lines, images, settings["seed"]))
    chart(found, out / "chart.png")
    return text


def figure(lines: Sequence[Line], images: ImageSet, seed: int) -> UInt8[np.ndarray, "h w 3"]:
    """Shows the first images under every mask: original, input, and the result of each method.

    The layout follows Yeh et al. 2017, figure 6.
    """
    mine = [line for line in lines if line["set"] == images.name and line["image"] < evaluate.FIGURE_IMAGES]
    masks, methods = (list(dict.fromkeys(line[name] for line in mine)) for name in ("mask", "method"))
    pictures = {
        (line["mask"], line["method"], line["image"]): evaluate.png_pixels(line["picture"])
        for line in mine
        if "picture" in line
    }
    count = 1 + max(line["image"] for line in mine)
    originals = np.asarray(images.images[:count])
    blank = np.full_like(originals[0], 225)  # for images that a method cannot complete
    rows, labels = [], []
    for mask in masks:
        holes = draw_holes(mask, [images.name_of(i) for i in range(count)], originals.shape[1], seed)
        shown = figures.masked_view(originals, holes)
        for i in range(count):
            rows += [originals[i], shown[i], *(pictures.get((mask, method, i), blank) for method in methods)]
            labels.append(mask)
    enlarged = np.stack(rows).repeat(_ENLARGEMENT, axis=1).repeat(_ENLARGEMENT, axis=2)
    grid = figures.tile(enlarged, columns=2 + len(methods))
    return figures.labelled(grid, labels, ["original", "input", *methods])


def chart(found: Sequence[Cell], path: Path) -> bool:
    """Draws the PSNR of the hole by method and mask with its intervals, one panel for each set.

    Returns:
        True if the chart was drawn, False if Matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
        from matplotlib.figure import Figure
    except ImportError:
        return False
    sets, masks, methods = (
        list(dict.fromkeys(getattr(cell, name) for cell in found)) for name in ("set", "mask", "method")
    )
    drawing = Figure(figsize=(max(7, 0.22 * len(masks) * (len(methods) + 2)), 3.2 * len(sets)), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots(len(sets), squeeze=False)[:, 0]
    width = 1 / (len(methods) + 1)
    for axis, name in zip(axes, sets, strict=True):
        for j, method in enumerate(methods):
            here = {cell.mask: cell.scores["psnr_hole"] for cell in found if (cell.set, cell.method) == (name, method)}
            places = np.arange(len(masks)) + (j - (len(methods) - 1) / 2) * width
            axis.bar(
                places,
                [here[mask].mean for mask in masks],
                width,
                yerr=np.nan_to_num([here[mask].interval for mask in masks]),
                label=method,
                color=colormaps["tab20"](j),
                error_kw={"elinewidth": 0.8},
            )
        axis.set_xticks(np.arange(len(masks)), masks)
        axis.set_ylabel("PSNR of the hole, dB")
        axis.set_title(name, loc="left", fontsize="medium")
        axis.grid(axis="y", alpha=0.3)
    drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", fontsize="small", ncols=4)
    with whole_file(path) as partial:
        drawing.savefig(partial, format="png", dpi=120)
    return True


def _score(cell: Cell, name: str, digits: int, count: int) -> str:
    mean, interval = cell.scores[name]
    if np.isnan(mean):
        return "—"
    text = f"{mean:.{digits}f}" + ("" if np.isnan(interval) else f" ± {interval:.{digits}f}")
    return text if cell.count == count else f"{text} (of {cell.count})"  # it cannot complete the others


def _time(cell: Cell) -> str:
    if not cell.count:
        return "—"
    return f"{cell.seconds:.3g}" + ("" if cell.num_steps is None else f" ({cell.num_steps:.0f} steps)")


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(cell: Cell) -> dict[str, Any]:
    def number(x: float | None) -> float | None:
        return None if x is None or np.isnan(x) else round(x, 5)

    scores = {name: {"mean": number(x.mean), "interval": number(x.interval)} for name, x in cell.scores.items()}
    rest = {name: getattr(cell, name) for name in ("set", "mask", "method", "count", "not_finite")}
    return rest | {"seconds": number(cell.seconds), "num_steps": number(cell.num_steps), **scores}
