"""`python -m experiments.restoration --data SET --prior PRIOR`: what `dj.restore` gains over plain methods.

It measures held-out images, restores them, and prints the mean PSNR in dB over the whole image. Beside each search
stand the blend alone, which corrects the mean of the prior's images, and the plain method: bicubic enlargement (of the
grid's pixels too), the grey image in all channels, or non-local means (Buades et al. 2005) by OpenCV. Its strength of
20 and its windows of 3 and 11 pixels are the best of 15 settings on 24 training faces.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import dcgan_jax as dj
from dcgan_jax.blending.measured import measured_blend
from dcgan_jax.data import open_prepared
from dcgan_jax.images.pixels import to_float, to_uint8
from dcgan_jax.inpainting.restore import average

Images = Float[Array, "b h w c"]
LEVELS = 127.5  # grey levels of 255 in one unit of [−1, 1]


def enlarge(measured: Images, images: Images) -> Images:
    """Returns bicubic enlargements."""
    return jax.image.resize(measured, images.shape, "cubic")


def enlarge_grid(measured: Images, images: Images) -> Images:
    """Returns bicubic enlargements of a grid's pixels, each of which lies at the first pixel of its cell."""
    step = images.shape[1] // measured.shape[1]
    shift = jnp.full(2, (1 - step) / 2)
    scale = jnp.full(2, float(step))
    return jax.image.scale_and_translate(measured, images.shape, (1, 2), scale, shift, "cubic")


def repeat(measured: Images, images: Images) -> Images:
    """Returns grey images, their only channel repeated."""
    return jnp.broadcast_to(measured, images.shape)


def denoise(measured: Images, images: Images) -> Images:
    """Returns noisy images after non-local means."""
    levels = to_uint8(np.asarray(measured))
    return jnp.asarray(to_float(np.stack([cv2.fastNlMeansDenoisingColored(x, None, 20, 20, 3, 11) for x in levels])))


TASKS: dict[str, tuple[Callable[[Array], Array], float, Callable[[Images, Images], Images]]] = {
    "low resolution, 4": (dj.measurements.LowResolution(4), 0.0, enlarge),
    "low resolution, 8": (dj.measurements.LowResolution(8), 0.0, enlarge),
    "grey": (dj.measurements.Grey(), 0.0, repeat),
    "noise, 25 of 255": (dj.measurements.Identity(), 25 / LEVELS, denoise),
    "grid, every 4th": (dj.measurements.Grid(4), 0.0, enlarge_grid),
}
SEARCHES = {
    "best": dj.InpaintConfig.preset("best"),
    "several": dj.InpaintConfig.preset("several"),
    "random": dj.InpaintConfig(num_steps=100, restarts=2, num_completions=2),
}


def main() -> None:
    """Prints a row per measurement."""
    parser = argparse.ArgumentParser(prog="python -m experiments.restoration", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a prepared set")
    parser.add_argument("--prior", required=True, help="a prior with an encoder")
    parser.add_argument("--split", default="validation", help="split of the set (validation)")
    parser.add_argument("--first", type=int, default=0, help="index of the first image (0)")
    parser.add_argument("--count", type=int, default=48, help="number of images (48)")
    parser.add_argument("--searches", nargs="+", default=["best", "several"], choices=list(SEARCHES), help="searches")
    options = parser.parse_args()
    prior = dj.load_prior(options.prior)
    split = open_prepared(options.data).split(options.split)
    images = jnp.asarray(to_float(np.asarray(split[options.first : options.first + options.count])))

    mean = average(prior)

    def score(restored: Images) -> str:
        return f"{float(jnp.mean(dj.psnr(jnp.clip(restored, -1, 1), images))):.2f}"

    columns = [c for name in options.searches for c in (name, f"{name}, mean") if name != "best" or c == name]
    print(f"| measured | plain | blend alone | {' | '.join(columns)} | seconds |\n" + "|---" * (len(columns) + 4) + "|")
    for task, (measure, noise, plain) in TASKS.items():
        measured = jax.vmap(measure)(images)
        measured += noise * jax.random.normal(jax.random.key(1), measured.shape)
        alone = jax.jit(jax.vmap(partial(measured_blend, measure=measure, noise=noise), (None, 0)))(mean, measured)
        cells, start = [score(plain(measured, images)), score(alone)], time.perf_counter()
        for name in options.searches:
            search = dataclasses.replace(SEARCHES[name], **({"refine_steps": 0} if noise else {}))
            result = dj.restore(prior, measured, measure, jax.random.key(0), search, noise)
            cells.append(score(result.images))
            if result.mean is not None:
                cells.append(score(result.mean))
        print(f"| {task} | {' | '.join(cells)} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
