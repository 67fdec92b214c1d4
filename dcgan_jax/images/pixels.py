"""Conversion between uint8 and [−1, 1], the known pixels of an image, and the composite of image and completion.

NumPy and JAX may round the conversions differently in the last bit.
"""

from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8


@overload
def to_uint8(images: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]: ...
@overload
def to_uint8(images: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]: ...
def to_uint8(images: Float[Array | np.ndarray, "*shape"]) -> UInt8[Array | np.ndarray, "*shape"]:
    """Converts [−1, 1] to 0..255: floor((x + 1) 127.5 + 0.5), clipped.

    Args:
        images: floats of any shape. Values beyond [−1, 1] are clipped; NaN becomes mid grey.

    Returns:
        The nearest levels, as a NumPy array if `images` is one. `to_uint8(to_float(x))` is x for every uint8 x.

    Raises:
        ValueError: `images` is not float.

    Example:
        >>> to_uint8(np.array([-1.0, 0.0, 1.0])).tolist()
        [0, 128, 255]
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"`images` is {images.dtype}; pass floats in [-1, 1]")
    numpy = jnp if isinstance(images, jax.Array) else np
    unit = numpy.nan_to_num(numpy.clip(images.astype(np.float32), -1, 1), nan=0)
    return numpy.floor(unit * 127.5 + 128).astype(np.uint8)


@overload
def to_float(images: UInt8[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]: ...
@overload
def to_float(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]: ...
def to_float(images: UInt8[Array | np.ndarray, "*shape"]) -> Float[Array | np.ndarray, "*shape"]:
    """Converts 0..255 to [−1, 1]: x / 127.5 − 1.

    Args:
        images: uint8 of any shape.

    Returns:
        float32, as a NumPy array if `images` is one.

    Raises:
        ValueError: `images` is not uint8.

    Example:
        >>> to_float(np.array([0, 255], np.uint8)).tolist()
        [-1.0, 1.0]
    """
    if images.dtype != np.uint8:
        raise ValueError(f"`images` is {images.dtype}; pass uint8")
    return images.astype(np.float32) / np.float32(127.5) - 1


def known_pixels(
    images: Shaped[Array | np.ndarray, "b h w c"], hole: Bool[Array | np.ndarray, "b h w"]
) -> Float[Array, "b h w c"]:
    """Returns images in [−1, 1] with grey (0) in their holes. Values in the holes have no influence, not even NaN.

    Args:
        images: uint8, or floats in [−1, 1].
        hole: True = missing.

    Returns:
        float32, or float64 if `images` is float64.
    """
    images, hole = jnp.asarray(images), jnp.asarray(hole)
    if images.dtype == jnp.uint8:
        floats = to_float(images)
    else:
        floats = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    return jnp.where(hole[..., None], 0, floats)


def composite(
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    completions: Float[Array, "b h w c"],
) -> Shaped[Array, "b h w c"]:
    """Puts completions into the holes of images.

    Args:
        images: uint8, or floats in [−1, 1].
        hole: True = missing.
        completions: floats. Values beyond [−1, 1] are clipped; NaN becomes mid grey.

    Returns:
        Images of the same dtype, equal to `images` bit for bit where known.
    """
    images, hole = jnp.asarray(images), jnp.asarray(hole)
    if images.dtype == jnp.uint8:
        filled = to_uint8(completions)
    else:
        filled = jnp.nan_to_num(jnp.clip(completions, -1.0, 1.0)).astype(images.dtype)
    return jnp.where(hole[..., None], filled, images)
