"""`python -m experiments.tuning --data SET ...`: compares settings of the baselines; the defaults were chosen by it.

Each setting completes the last 50 held-out images of every set, under every mask that the method applies to. In a set
with 250 or more, `dcgan-jax evaluate --count 200` does not see them. It prints means of the hole's PSNR. The default
settings come first.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dcgan_jax import masks
from dcgan_jax.baselines import library
from dcgan_jax.baselines.context_encoder import context_encoder, load
from dcgan_jax.baselines.low_rank import low_rank
from dcgan_jax.baselines.nearest import nearest
from dcgan_jax.baselines.patch_match import applicable, patch_match
from dcgan_jax.baselines.total_variation import total_variation
from dcgan_jax.data import PreparedSet, open_prepared
from dcgan_jax.evaluation.holes import draw_holes
from dcgan_jax.images.metrics import composite_scores

SEED = 1  # so that the holes differ from the evaluation's
Setting = dict[str, Any]
Complete = Callable[..., np.ndarray | jax.Array]  # from images, holes and settings to completed images
SETTINGS: dict[str, list[Setting]] = {
    "nearest": [{"blend": True}, {"blend": False}],
    "total-variation": [{"tolerance": 1e-3}],
    "low-rank": [
        {"rank": 24, "max_steps": 40},
        {"rank": 16, "max_steps": 40},
        {"rank": 8, "max_steps": 40},
        {"rank": 16, "max_steps": 80},
    ],
    "patch-match": [
        {"patch_size": 5, "num_levels": 1},
        {"patch_size": 5, "num_levels": 2},
        {"patch_size": 3, "num_levels": 1},
        {"patch_size": 7, "num_levels": 1},
        {"patch_size": 7, "num_levels": 2},
        {"patch_size": 9, "num_levels": 1},
    ],
    "telea": [{"radius": 3}, {"radius": 1}, {"radius": 5}, {"radius": 8}],
    "navier-stokes": [{"radius": 3}, {"radius": 1}, {"radius": 5}, {"radius": 8}],
    "context-encoder": [{"blend": True}, {"blend": False}],
}


def methods(prepared: PreparedSet, encoder: str | None) -> dict[str, Complete]:
    """Returns the methods by name. `encoder` is the path of a context encoder; None leaves it out."""
    found: dict[str, Complete] = {
        "nearest": lambda x, hole, **s: nearest(x, hole, prepared.split("train"), **s),
        "total-variation": total_variation,
        "low-rank": low_rank,
        "patch-match": lambda x, hole, **s: patch_match(x, hole, jax.random.key(SEED), **s),
        "telea": library.telea,
        "navier-stokes": library.navier_stokes,
    }
    if encoder is not None:
        found["context-encoder"] = functools.partial(context_encoder, load(encoder))
    return found


def main() -> None:
    """Prints a table per method with a row per setting."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tuning", description=__doc__)
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="prepared sets")
    parser.add_argument("--context-encoder", nargs="+", default=None, help="a context encoder for each set (none)")
    parser.add_argument("--count", type=int, default=50, help="number of images of each set, from its end (50)")
    parser.add_argument(
        "--methods", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="methods to compare (all)"
    )
    options = parser.parse_args()
    sets = [open_prepared(path) for path in options.data]
    encoders = options.context_encoder or [None] * len(sets)
    columns = [f"{path.name} {mask}" for path in options.data for mask in masks.NAMES]
    for name in options.methods:
        print(f"\n| {name} | mean | {' | '.join(columns)} |\n" + "|---" * (len(columns) + 2) + "|", flush=True)
        for setting in SETTINGS[name]:
            cells = []
            for prepared, encoder in zip(sets, encoders, strict=True):
                complete = methods(prepared, encoder).get(name)
                cells += [_score(complete, prepared, mask, setting, options.count) for mask in masks.NAMES]
            words = ", ".join(f"{key} {value}" for key, value in setting.items())
            shown = ["—" if np.isnan(x) else f"{x:.2f}" for x in cells]
            print(f"| {words} | {np.nanmean(cells):.2f} | {' | '.join(shown)} |", flush=True)


def _score(complete: Complete | None, prepared: PreparedSet, mask: str, setting: Setting, count: int) -> float:
    """Mean PSNR of the hole; NaN if the method does not apply."""
    splits = prepared.manifest["splits"]
    images = np.asarray(prepared.split("validation" if "validation" in splits else "test")[-count:])
    holes = draw_holes(mask, [str(i) for i in range(len(images))], images.shape[1], SEED)
    size = setting.get("patch_size")
    if complete is None or (size is not None and not applicable(holes, patch_size=size).all()):
        return np.nan
    results = np.asarray(complete(images, holes, **setting))
    return float(composite_scores(results, images, holes)["psnr_hole"].mean())


if __name__ == "__main__":
    main()
