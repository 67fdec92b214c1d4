"""What is common to all that completes images: what they may read, and how what they made goes into the hole."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from dcgan_jax.masks import check_hole


def check_pairs(images: Shaped[Array | np.ndarray, "b h w c"], hole: Bool[Array | np.ndarray, "b h w"]) -> None:
    """Refuses, by `ValueError`, images that are no batch of uint8 or floats, and holes that are not one for each."""
    if jnp.ndim(images) != 4:
        raise ValueError(f"`images` has shape {jnp.shape(images)}; it takes [b, h, w, c], for one image x[None]")
    dtype = jnp.result_type(images)
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`images` is {dtype}; it takes uint8, or floats in [-1, 1]")
    check_hole(hole)
    if jnp.shape(hole) != jnp.shape(images)[:3]:
        raise ValueError(f"`hole` has shape {jnp.shape(hole)}; for these images it takes {jnp.shape(images)[:3]}")


def known_pixels(
    images: Shaped[Array | np.ndarray, "b h w c"], hole: Bool[Array | np.ndarray, "b h w"]
) -> Float[Array, "b h w c"]:
    """Images in [−1, 1], of float32 where they were uint8, grey (0) where they are missing, whatever lies there."""
    images, hole = jnp.asarray(images), jnp.asarray(hole)
    floats = images.astype(jnp.float32) / 127.5 - 1.0 if images.dtype == jnp.uint8 else images
    return jnp.where(hole[..., None], 0, floats)


def composite(
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    completions: Float[Array, "b h w c"],
) -> Shaped[Array, "b h w c"]:
    """The images with completions in their holes, clipped to [−1, 1]; equal to `images` bit for bit where known.

    Returns:
        Of the type of `images`; in uint8 the nearest level, as `figures.to_uint8` has it, and mid grey for NaN.
    """
    images, hole = jnp.asarray(images), jnp.asarray(hole)
    filled = jnp.nan_to_num(jnp.clip(completions, -1.0, 1.0))
    if images.dtype == jnp.uint8:
        filled = jnp.floor(filled * 127.5 + 128.0)
    return jnp.where(hole[..., None], filled.astype(images.dtype), images)
