"""`python -m experiments.search_ablation --data SET --prior PRIOR`: the gain of each part of the search.

Each search completes the same held-out images, from --first on, under every mask. With --first 200 or more,
`dcgan-jax evaluate --count 200` does not see them. It prints means over the images: the hole's PSNR and, in brackets,
the gradient energy in the hole relative to the original's. Below 1 the completion is softer than the truth.
With --sheet it also writes a picture of the ten worst and the ten best of the last search under `center` and `half`. It
shows their holes alone, so it holds no pixel of the set.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

import dcgan_jax as dj
from dcgan_jax import masks
from dcgan_jax.data import open_prepared
from dcgan_jax.evaluation.holes import draw_holes
from dcgan_jax.images import figures
from dcgan_jax.images.metrics import composite_scores

SHEET = ("center", "half")  # masks of the sheet
SHOWN = 10  # images in a row of the sheet
SEED = 2  # so that the holes differ from the evaluation's
Config = dj.InpaintConfig
ENCODER = Config(start="encoder", num_steps=50, learning_rate=0.03)
BEST = Config.preset("best")
SEARCHES: dict[str, Config] = {
    "search, 150 steps": Config(num_steps=150),
    "+ refinement": Config(num_steps=150, refine_steps=20),
    "8 restarts of 50, least loss": Config(num_steps=50, restarts=8),
    "8 restarts of 50, central": Config(num_steps=50, restarts=8, judge="central"),
    "encoder, no step": dataclasses.replace(ENCODER, num_steps=0),
    "encoder with its shifts, no step": dataclasses.replace(ENCODER, num_steps=0, start_shifts=1.0),
    "encoder, 50 steps": ENCODER,
    "encoder, 50 steps, refinement": dataclasses.replace(ENCODER, refine_steps=20),
    "best without the weight": dataclasses.replace(BEST, encoder_weight=0.0),
    "best without shifts": dataclasses.replace(BEST, start_shifts=0.0),
    "best without refinement": dataclasses.replace(BEST, refine_steps=0),
    "best without the guess's structure": dataclasses.replace(BEST, guess_length=0.0),
    "best, smooth": dataclasses.replace(BEST, blend="smooth"),
    "best, blended by Poisson": dataclasses.replace(BEST, blend="poisson"),
    "best": BEST,
    "fast": Config.preset("fast"),
    "several, the first": Config.preset("several"),
}


def gradient_energy(images: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Sum of squared differences between neighbours that are both missing, per image.

    Args:
        images: [b, h, w, c], of any type.
        holes: bool [b, h, w], True where pixels are missing.
    """
    x = images.astype(np.float64)
    down, right = np.diff(x, axis=1) ** 2, np.diff(x, axis=2) ** 2
    both_down, both_right = holes[:, 1:] & holes[:, :-1], holes[:, :, 1:] & holes[:, :, :-1]
    return (down.sum(-1) * both_down).sum((1, 2)) + (right.sum(-1) * both_right).sum((1, 2))


def main() -> None:
    """Prints a row per search, and one for the mean of several results."""
    parser = argparse.ArgumentParser(prog="python -m experiments.search_ablation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a prepared set")
    parser.add_argument("--prior", required=True, help="a prior with an encoder")
    parser.add_argument("--split", default="validation", help="split of the set (validation)")
    parser.add_argument("--first", type=int, default=1000, help="index of the first image (1000)")
    parser.add_argument("--count", type=int, default=48, help="number of images (48)")
    parser.add_argument(
        "--searches", nargs="+", default=list(SEARCHES), choices=list(SEARCHES), help="searches to run (all)"
    )
    parser.add_argument("--sheet", type=Path, help="a PNG file for the worst and the best images")
    options = parser.parse_args()
    if options.sheet and (options.sheet.suffix != ".png" or not options.sheet.parent.is_dir()):
        parser.error(f"--sheet is {options.sheet}: give a .png file in a folder that exists")
    prior = dj.load_prior(options.prior)
    split = open_prepared(options.data).split(options.split)
    images = np.asarray(split[options.first : options.first + options.count])
    print(f"| search | {' | '.join(masks.NAMES)} | seconds |\n" + "|---" * (len(masks.NAMES) + 2) + "|", flush=True)
    for name in options.searches:
        cells, averages, sheet, seconds = [], [], [], 0.0
        for mask in masks.NAMES:
            holes = draw_holes(mask, [str(i) for i in range(len(images))], images.shape[1], SEED)
            start = time.perf_counter()
            result = jax.device_get(dj.inpaint(prior, images, holes, jax.random.key(SEED), SEARCHES[name]))
            seconds += time.perf_counter() - start
            cells.append(_cell(result.images, images, holes))
            if mask in SHEET:
                order = np.argsort(composite_scores(result.images, images, holes)["psnr_hole"])
                in_holes = figures.masked_view(result.images, ~holes)
                sheet += [in_holes[order[:SHOWN]], in_holes[order[::-1][:SHOWN]]]
            if result.mean is not None:
                averages.append(_cell(result.mean, images, holes))
        print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
        if averages:
            print(f"| {name.split(',')[0]}, the mean | {' | '.join(averages)} | |", flush=True)
    if options.sheet:
        grid = figures.tile(np.concatenate(sheet).repeat(2, axis=1).repeat(2, axis=2), columns=min(SHOWN, len(images)))
        rows = [f"{mask}, {kind}" for mask in SHEET for kind in ("worst", "best")]
        figures.save_png(options.sheet, figures.labelled(grid, rows, []))


def _cell(results: np.ndarray | jax.Array, images: np.ndarray, holes: np.ndarray) -> str:
    """Mean PSNR of the hole and, in brackets, mean relative gradient energy."""
    psnr = composite_scores(np.asarray(results), images, holes)["psnr_hole"].mean()
    energy = np.mean(gradient_energy(np.asarray(results), holes) / gradient_energy(images, holes))
    return f"{psnr:.2f} ({energy:.2f})"


if __name__ == "__main__":
    main()
