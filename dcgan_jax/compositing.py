"""What is common to all that completes images: what they may read, and how what they made goes into the hole."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from dcgan_jax.masks import check_hole


def check_pairs(images: Shaped[Array | np.ndarray, "b h w c"], hole: Bool[Array | np.ndarray, "b h w"]) -> None:
    """Refuses, by `ValueError`, images that are no batch of uint8 or floats, and holes that are not one for each."""
    if jnp.ndim(images) != 4:
        raise ValueError(f"`images` has shape {jnp.shape(images)}; it takes [b, h, w, c], for one image x[None]")
    check_type("`images`", images.dtype)
    check_hole(hole)
    if jnp.shape(hole) != jnp.shape(images)[:3]:
        raise ValueError(f"`hole` has shape {jnp.shape(hole)}; for these images it takes {jnp.shape(images)[:3]}")


def check_type(name: str, dtype: np.dtype) -> None:
    """Refuses images whose known pixels would not come back bit for bit."""
    held = jax.dtypes.canonicalize_dtype(dtype)  # JAX cuts float64 to float32
    if dtype != np.uint8 and (held != dtype or not jnp.issubdtype(held, jnp.floating)):
        raise ValueError(f"{name} is {dtype}; it takes uint8, or float32 (also a shorter float) in [-1, 1]")


def known_pixels(
    images: Shaped[Array | np.ndarray, "b h w c"], hole: Bool[Array | np.ndarray, "b h w"]
) -> Float[Array, "b h w c"]:
    """Images in [−1, 1], of float32 or a longer float, grey (0) where they are missing, whatever lies there."""
    images, hole = jnp.asarray(images), jnp.asarray(hole)
    if images.dtype == jnp.uint8:
        floats = images.astype(jnp.float32) / 127.5 - 1.0
    else:
        floats = images.astype(jnp.promote_types(images.dtype, jnp.float32))
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
