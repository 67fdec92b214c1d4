"""What is common to all that completes images: what they may read, and how what they made goes into the hole."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8


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


def to_uint8(images: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Converts [-1, 1] to 0..255: floor((x + 1) 127.5 + 0.5), clipped.

    Args:
        images: floats; what lies beyond [-1, 1] is clipped, NaN becomes mid grey.

    Returns:
        The nearest levels. `to_uint8(to_float(x))` is x for every uint8 x.

    Raises:
        ValueError: `images` is not float.

    Example:
        >>> to_uint8(np.array([-1.0, 0.0, 1.0])).tolist()
        [0, 128, 255]
    """
    images = np.asarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"`images` is {images.dtype}; to_uint8 takes floats in [-1, 1]")
    unit = np.nan_to_num(np.clip(images.astype(np.float32), -1, 1), nan=0)
    return np.floor(unit * 127.5 + 128).astype(np.uint8)


def to_float(images: UInt8[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Converts 0..255 to [-1, 1]: x / 127.5 - 1.

    Args:
        images: uint8.

    Returns:
        float32.

    Raises:
        ValueError: `images` is not uint8.

    Example:
        >>> to_float(np.array([0, 255], np.uint8)).tolist()
        [-1.0, 1.0]
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"`images` is {images.dtype}; to_float takes uint8")
    return images.astype(np.float32) / np.float32(127.5) - 1
