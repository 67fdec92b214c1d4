"""Nearest neighbour: fills the hole from the training image that agrees best with the known pixels."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.images.inputs import check_pairs
from dcgan_jax.images.pixels import composite, known_pixels

BLOCK_BYTES = 2**27  # memory of the training images in float64 at a time


def nearest(
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    training: Shaped[np.ndarray, "n h w c"],
    *,
    blend: bool = True,
) -> Shaped[Array, "b h w c"]:
    """Fills holes from the nearest training image.

    Args:
        images: float in [−1, 1] or uint8. Values in the hole are never read.
        hole: True = missing.
        training: the training images, of the size and dtype of `images`. The array may be memory-mapped.
        blend: True applies `poisson_blend`, as for the completions of a search. False copies the pixels.

    Returns:
        Completed images of the same dtype, equal to `images` bit for bit where known.

    Raises:
        ValueError: a shape or dtype is wrong, or `training` is empty or has another size or dtype.

    Source:
        Hays and Efros 2007 fill holes from a set of images. Yeh et al. 2017, figure 8, use the nearest image.
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
    """Returns the index of the training image with the least Σ (x − y)² over the known pixels.

    Of several equal images the first is taken. For uint8 the result is exact, because whole numbers are multiplied in
    float64. Memory does not grow with the number of training images.
    """
    check_pairs(images, hole)
    if training.shape[1:] != images.shape[1:] or training.dtype != images.dtype or not len(training):
        raise ValueError(
            f"`training` is {training.dtype}{list(training.shape)} and `images` is {images.dtype}{list(images.shape)}; "
            "pass one or more training images of the same size and dtype"
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
        distance += counted @ np.square(x, out=x).T  # Σ y² is left out: it is the same for all
        nearest = distance.argmin(axis=1)
        least = distance[np.arange(len(y)), nearest]
        index = np.where(least < best, start + nearest, index)
        best = np.minimum(best, least)
    return index
