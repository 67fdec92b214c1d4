"""`python -m experiments.gaussian_field --data SET --prior PRIOR`: a blend that knows the statistics of a set.

Images of a set are modelled as a Gaussian field: each value, less the mean image there, is a linear function of ten
pixels that come before it in raster order, and of the same pixel's earlier channels, plus normal noise (Vecchia 1988).
Each place has its own function, which least squares finds from the training images. So the precision matrix Q of the
field is sparse. In the hole

    argmin (x - mean)' Q (x - mean) + weight |x - G|^2,  x = image on the known pixels,

takes the place of the other blends. G is the completion of the preset "fast". With weight 0 it is the mean of the
field given the known pixels, without a generator. The program prints the mean PSNR of the hole in dB.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from tqdm import tqdm

import dcgan_jax as dj
from dcgan_jax import masks
from dcgan_jax.blending.solver import solve_in_hole
from dcgan_jax.data import open_prepared
from dcgan_jax.evaluation.holes import draw_holes
from dcgan_jax.images.metrics import psnr
from dcgan_jax.images.pixels import to_float

REACH = 2  # rows above a pixel that predict it
BEFORE = [(-2, -1), (-2, 0), (-2, 1), (-1, -2), (-1, -1), (-1, 0), (-1, 1), (-1, 2), (0, -2), (0, -1)]
RIDGE = 1e-4  # added to the variances of the predictors; images are in [-1, 1]
SEED = 2  # of the holes


class Field(NamedTuple):
    """A Gaussian field of images. The channels come first."""

    mean: Float[Array, "c h w"]
    weights: Float[Array, "k+1 c c h w"]  # of the predictors in `BEFORE`, and of the same pixel's earlier channels
    precision: Float[Array, "c h w"]  # one over the variance of the noise


def fit(images: Float[np.ndarray, "n h w c"]) -> Field:
    """Fits a field to images in [-1, 1]."""
    n, height, width, channels = images.shape
    mean = images.mean(axis=0)
    pixels = np.ascontiguousarray((images - mean).transpose(1, 2, 0, 3))
    weights = np.zeros((len(BEFORE) + 1, channels, channels, height, width), np.float32)
    precision = np.zeros((channels, height, width), np.float32)
    for y in tqdm(range(height), "rows", dynamic_ncols=True):
        for x in range(width):
            inside = [
                (k, y + down, x + right)
                for k, (down, right) in enumerate(BEFORE)
                if 0 <= y + down and 0 <= x + right < width
            ]
            values = np.concatenate([*(pixels[row, column] for _, row, column in inside), pixels[y, x]], axis=1)
            products = (values.T @ values / n).astype(np.float64)
            for channel in range(channels):
                i = channels * len(inside) + channel
                found = np.linalg.solve(products[:i, :i] + RIDGE * np.eye(i), products[:i, i])
                noise = products[i, i] - 2 * found @ products[:i, i] + found @ products[:i, :i] @ found
                precision[channel, y, x] = 1 / max(noise, 1e-6)
                for j, (k, _, _) in enumerate(inside):
                    weights[k, channel, :, y, x] = found[channels * j : channels * (j + 1)]
                weights[-1, channel, :channel, y, x] = found[channels * len(inside) :]
    return Field(*map(jnp.asarray, (mean.transpose(2, 0, 1), weights, precision)))


def _noise(field: Field, x: Float[Array, "c h w"]) -> Float[Array, "c h w"]:
    """Returns what the predictors do not tell of x, which is an image less the mean."""
    padded = jnp.pad(x, ((0, 0), (REACH, 0), (REACH, REACH)))
    left = x - jnp.sum(field.weights[-1] * x, axis=1)
    for weights, (down, right) in zip(field.weights, BEFORE, strict=False):
        start = (0, REACH + down, REACH + right)
        before = jax.lax.slice(padded, start, tuple(a + b for a, b in zip(start, x.shape, strict=True)))
        left = left - jnp.sum(weights * before, axis=1)
    return left


@jax.jit
def blend(
    field: Field,
    completion: Float[Array, "b h w c"],
    images: Float[Array, "b h w c"],
    hole: Bool[Array, "b h w"],
    weight: float,
) -> Float[Array, "b h w c"]:
    """Returns the blended images. Values of `images` in the hole are not read."""

    def one(completion: Array, image: Array, hole: Array) -> Array:
        guide, known = (x.transpose(2, 0, 1) - field.mean for x in (completion, image))
        known = jnp.where(hole, 0, known)

        def precision(x: Array) -> Array:
            noise, transpose = jax.vjp(lambda x: _noise(field, x), x)
            return transpose(field.precision * noise)[0]

        def matrix(x: Array) -> Array:
            return jnp.where(hole, precision(x) + weight * x, 0)

        found = solve_in_hole(hole, jnp.where(hole, weight * guide - precision(known), 0), matrix)
        return (jnp.where(hole, found, known) + field.mean).transpose(1, 2, 0)

    return jax.vmap(one)(completion, images, hole)


def main() -> None:
    """Prints a row for each weight."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gaussian_field", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a prepared set")
    parser.add_argument("--prior", required=True, help="a prior with an encoder")
    parser.add_argument("--split", default="validation", help="split of the images to complete (validation)")
    parser.add_argument("--first", type=int, default=1000, help="index of the first image (1000)")
    parser.add_argument("--count", type=int, default=48, help="number of images (48)")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0, 3.0, 10.0], help="weights (0 1 3 10)")
    parser.add_argument("--flip", action="store_true", help="fit the field to mirrored training images too")
    options = parser.parse_args()
    prior, prepared = dj.load_prior(options.prior), open_prepared(options.data)
    training = to_float(np.asarray(prepared.split("train")))
    field = fit(np.concatenate([training, training[:, :, ::-1]]) if options.flip else training)
    del training
    images = jnp.asarray(to_float(np.asarray(prepared.split(options.split)[options.first :][: options.count])))
    names = [str(i) for i in range(options.first, options.first + len(images))]
    holes = {name: jnp.asarray(draw_holes(name, names, images.shape[1], SEED)) for name in masks.NAMES}
    key, config = jax.random.key(0), dj.InpaintConfig.preset("fast")
    found = {name: dj.inpaint(prior, images, hole, key, config) for name, hole in holes.items()}
    rows = {"fast": {name: result.images for name, result in found.items()}}
    start = time.perf_counter()
    for weight in options.weights:
        blended = {
            name: blend(field, result.completions, images, holes[name], weight) for name, result in found.items()
        }
        rows[f"weight {weight:g}"] = jax.block_until_ready(blended)
    seconds = (time.perf_counter() - start) / len(images) / len(masks.NAMES) / len(options.weights)
    for title, results in rows.items():
        scores = {
            name: float(jnp.mean(psnr(jnp.clip(x, -1, 1), images, where=holes[name]))) for name, x in results.items()
        }
        print(f"{title:12}", "  ".join(f"{name} {score:.2f}" for name, score in scores.items()))
    print(f"a blend took {seconds:.2f} s an image")


if __name__ == "__main__":
    main()
