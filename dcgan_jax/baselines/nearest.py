"""Nearest neighbour: the training image that agrees best with the known pixels fills the hole."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.images.inputs import check_pairs
from dcgan_jax.images.pixels import composite, known_pixels

BLOCK_BYTES = 2**27  # of training images in float64 at a time


def nearest(
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    training: Shaped[np.ndarray, "n h w c"],
    *,
    blend: bool = True,
) -> Shaped[Array, "b h w c"]:
    """Fills holes from the nearest training image, by default blended in as a completion of a search is.

    Args:
        images: float in [−1, 1] or uint8. What lies in the hole is not read.
        hole: True = missing.
        training: the images to choose from, of the type of `images`; they may lie on disk.
        blend: `poisson_blend` them in; else their pixels are copied.

    Returns:
        Completed images of the type of `images`, equal to them where known.

    Raises:
        ValueError: `training` is of another size or type, or empty.

    Source:
        Hays and Efros 2007 fill holes from a set of images; Yeh et al. 2017, figure 8, from the nearest one.
    """
    chosen = training[np.asarray(nearest_index(images, hole, training))]
    filled = known_pixels(chosen, np.zeros(hole.shape, bool))
    if blend:
        filled = poisson_blend(filled, known_pixels(images, hole), jnp.asarray(hole))
    return composite(images, hole, filled)


def nearest_index(
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    training: Shaped[np.ndarray, "n h w c"],
) -> Int[np.ndarray, " b"]:
    """Which training image has the least Σ (x − y)² over an image's known pixels; the first of several.

    Exact for uint8, by matrix products of whole numbers in float64; memory does not grow with the training images.
    """
    check_pairs(images, hole)
    if training.shape[1:] != images.shape[1:] or training.dtype != images.dtype or not len(training):
        raise ValueError(
            f"`training` is {training.dtype}{list(training.shape)}; for `images` {images.dtype}{list(images.shape)} it "
            "takes one or more of the same size and type"
        )
    known = ~np.asarray(hole)[..., None]
    flat = (len(images), -1)
    y = np.where(known, np.asarray(images), 0).astype(np.float64).reshape(flat)
    counted = np.broadcast_to(known, images.shape).astype(np.float64).reshape(flat)
    best, index = np.full(len(images), np.inf), np.zeros(len(images), int)
    block = max(1, BLOCK_BYTES // (8 * y.shape[1]))
    for start in range(0, len(training), block):
        x = np.asarray(training[start : start + block]).astype(np.float64).reshape(-1, y.shape[1])
        distance = -2 * (y @ x.T)
        distance += counted @ np.square(x, out=x).T  # without Σ y², which is the same for all
        nearest = distance.argmin(axis=1)
        least = distance[np.arange(len(y)), nearest]
        index = np.where(least < best, start + nearest, index)
        best = np.minimum(best, least)
    return index
