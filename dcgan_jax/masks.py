"""Holes: drawing them, reading them from files, and the importance weights of the context loss.

A hole is a bool array [..., h, w], True = missing. The papers' mask M is its opposite.
"""

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from dcgan_jax import pictures
from dcgan_jax.config import MASK_NAMES
from dcgan_jax.errors import UserError

NAMES = MASK_NAMES
_PATTERN_CELLS = 0.06 * 128  # noise cells across an image: 0.06 per pixel on the paper's 128 x 128 images


def center(size: int) -> Bool[Array, "size size"]:
    """Returns a square hole in the centre. Its side is half the image's side: 32 x 32 in an image of 64 x 64.

    Args:
        size: side of the image in pixels.

    Returns:
        True = missing.

    Raises:
        ValueError: `size` is not an integer of at least 2.

    Example:
        >>> int(center(64).sum())
        1024

    Source: Yeh et al., CVPR 2017, section 4, "center block".
    """
    _check_size(size)
    inside = np.zeros(size, bool)
    inside[size // 4 : size // 4 + size // 2] = True
    return jnp.asarray(inside[:, None] & inside)


def half(key: Key[Array, ""], size: int) -> Bool[Array, "size size"]:
    """Draws one of the image's four halves: left, right, top or bottom.

    Args:
        key: random key; each half is equally likely.
        size: side of the image in pixels. If it is odd, the smaller part is missing.

    Returns:
        True = missing.

    Raises:
        ValueError: `size` is not an integer of at least 2.

    Example:
        >>> int(half(jax.random.key(0), 64).sum())
        2048

    Source: Yeh et al., CVPR 2017, section 4, "half missing: randomly horizontal or vertical".
    """
    _check_size(size)
    top = np.zeros((size, size), bool)
    top[: size // 2] = True
    halves = np.stack([top, top[::-1], top.T, top.T[:, ::-1]])
    return jnp.asarray(halves)[jax.random.randint(key, (), 0, 4)]


def random(key: Key[Array, ""], size: int, fraction: float = 0.8) -> Bool[Array, "size size"]:
    """Draws for each pixel independently whether it is missing.

    Args:
        key: random key.
        size: side of the image in pixels.
        fraction: probability in [0, 1] that a pixel is missing.

    Returns:
        True = missing.

    Raises:
        ValueError: `size` or `fraction` is out of range.

    Example:
        >>> 0.7 < float(random(jax.random.key(0), 64).mean()) < 0.9
        True

    Source: Yeh et al., CVPR 2017, section 4, "random 80% missing".
    """
    _check_size(size)
    _check_fraction(fraction)
    return jax.random.bernoulli(key, fraction, (size, size))


def pattern(key: Key[Array, ""], size: int, fraction: float = 0.25) -> Bool[Array, "size size"]:
    """Draws ragged blobs: the lowest values of a smooth random field.

    The field is uniform noise on a coarse grid, at a random offset, enlarged by cubic interpolation. The pixels with
    the lowest values are missing, so every mask has the same number of missing pixels.

    Args:
        key: random key.
        size: side of the image in pixels.
        fraction: fraction of missing pixels, in [0, 1].

    Returns:
        True = missing, at `round(fraction * size * size)` pixels.

    Raises:
        ValueError: `size` or `fraction` is out of range.

    Example:
        >>> int(pattern(jax.random.key(0), 64).sum())
        1024

    Source: Pathak et al., "Context encoders", CVPR 2016, section 3.3, "random region": bicubic enlargement of
    uniform noise, 0.06 cells per pixel, a quarter missing. Used by Yeh et al., CVPR 2017, section 4.
    """
    _check_size(size)
    _check_fraction(fraction)
    noise_key, place_key = jax.random.split(key)
    cells = int(np.ceil(_PATTERN_CELLS)) + 4  # one for the random offset, three for the reach of the cubic
    noise = jax.random.uniform(noise_key, (cells, cells))
    pixels = size / _PATTERN_CELLS
    field = jax.image.scale_and_translate(
        noise,
        (size, size),
        (0, 1),
        jnp.full(2, pixels),
        -pixels * (1.5 + jax.random.uniform(place_key, (2,))),
        method="cubic",
        antialias=False,
    )
    lowest = jnp.argsort(field.ravel())[: round(fraction * size * size)]
    return jnp.zeros(size * size, bool).at[lowest].set(True).reshape(size, size)


def by_name(name: str, keys: Key[Array, " n"], size: int) -> Bool[Array, "n size size"]:
    """Draws one hole for each key, with the published fraction of its kind.

    Args:
        name: one of `NAMES`: center, half, random (80 %) or pattern (25 %).
        keys: one random key per image. `center` only uses their number.
        size: side of the images in pixels.

    Returns:
        True = missing.

    Raises:
        ValueError: `name` is unknown or `size` out of range.

    Example:
        >>> by_name("half", jax.random.split(jax.random.key(0), 3), 64).shape
        (3, 64, 64)

    Source: Yeh et al., CVPR 2017, section 4.
    """
    if name not in NAMES:
        raise ValueError(f"`name` is {name!r}; it takes one of {', '.join(NAMES)}")
    _check_size(size)
    return _by_name(name, keys, size)


@partial(jax.jit, static_argnames=("name", "size"))
def _by_name(name: str, keys: Key[Array, " n"], size: int) -> Bool[Array, "n size size"]:
    draw = {"center": lambda key, size: center(size), "half": half, "random": random, "pattern": pattern}[name]
    return jax.vmap(lambda key: draw(key, size))(keys)


def mixed(key: Key[Array, ""], n: int, size: int) -> Bool[Array, "n size size"]:
    """Draws holes for n images. The kinds in `NAMES` take turns: image i gets kind i % 4.

    Args:
        key: random key.
        n: number of images.
        size: side of the images in pixels.

    Returns:
        True = missing.

    Raises:
        ValueError: `size` is out of range.
    """
    keys = jax.random.split(key, (len(NAMES), -(-n // len(NAMES))))
    drawn = [by_name(name, keys[i], size) for i, name in enumerate(NAMES)]
    return jnp.stack(drawn, axis=1).reshape(-1, size, size)[:n]


def read_hole(path: str | PathLike[str]) -> Bool[np.ndarray, "h w"]:
    """Reads a hole from an image file.

    White (at least half of the range) is missing. Of a layer painted on transparent ground the strokes are missing. Of
    a picture with transparent parts these are missing.

    Args:
        path: a file that Pillow reads, with 1, 8 or 16 bits per sample. An animation gives its first frame.

    Returns:
        True = missing.

    Raises:
        UserError: the file does not exist, is not an image, or is damaged.

    Example:
        >>> hole = read_hole("mask.png")  # doctest: +SKIP
    """
    return read_mask(path).hole


def read_mask(path: str | PathLike[str]) -> pictures.Mask:
    """Reads a mask as `read_hole` does. The result also says how a mask with transparent parts was understood.

    Raises:
        UserError: as `read_hole`.
    """
    try:
        return pictures.read_mask(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"mask {path} does not exist") from None
    except Exception as error:  # a damaged file can raise nearly anything in Pillow
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"mask {path} cannot be read as an image: {reason}") from None


def importance_weights(hole: Bool[Array, "*b h w"], window: int = 7) -> Float[Array, "*b h w"]:
    """Computes the weight of each known pixel: the fraction of its neighbourhood that is missing.

    W_i = sum over j in N(i) of (1 - M_j), divided by |N(i)|, at known pixels (M_i = 1, `hole` False). W_i = 0 at
    missing pixels. N(i) is the part of a square window around pixel i that lies inside the image. It includes pixel i.

    Args:
        hole: True = missing (M = 0).
        window: side of N(i) in pixels, odd.

    Returns:
        Weights in [0, 1), float32.

    Raises:
        ValueError: `hole` is not bool or has fewer than two axes, or `window` is not odd.

    Example:
        >>> weights = importance_weights(jnp.zeros((5, 5), bool).at[2, 2].set(True), window=3)
        >>> round(float(weights[1, 1]) * 9), float(weights[2, 2]), float(weights[0, 0])
        (1, 0.0, 0.0)

    Source: Yeh et al., CVPR 2017, eq. 3.
    """
    check_hole(hole)
    if isinstance(window, bool) or not isinstance(window, int) or window < 1 or window % 2 == 0:
        raise ValueError(f"`window` is {window!r}; it takes an odd integer of at least 1, e.g. 7")
    return _importance_weights(jnp.asarray(hole), window)


@partial(jax.jit, static_argnames="window")
def _importance_weights(hole: Bool[Array, "*b h w"], window: int) -> Float[Array, "*b h w"]:
    def band(side: int) -> np.ndarray:
        place = np.arange(side)
        return (np.abs(place[:, None] - place) <= window // 2).astype(np.float32)

    # The window sums are products with band matrices of zeros and ones. They are small integers, so they are exact. XLA
    # would take seconds to compile a `reduce_window` over constants.
    rows, columns = band(hole.shape[-2]), band(hole.shape[-1])
    missing = jnp.matmul(jnp.matmul(rows, hole.astype(jnp.float32), precision="highest"), columns, precision="highest")
    count = np.outer(rows.sum(axis=1), columns.sum(axis=1))
    return jnp.where(hole, 0, missing / count)


def check_hole(hole: Any, image_shape: Sequence[int] | None = None) -> None:
    """Checks that a hole is bool [..., h, w].

    Args:
        hole: the hole to check.
        image_shape: the shape [..., h, w] that the hole must broadcast to. None allows any shape.

    Raises:
        ValueError: `hole` has another dtype or shape.
    """
    shape, dtype = jnp.shape(hole), jnp.result_type(hole)
    if dtype != jnp.bool_:
        raise ValueError(f"`hole` is {dtype}; it takes bool, True where pixels are missing, e.g. mask >= 128")
    if len(shape) < 2:
        raise ValueError(f"`hole` has shape {shape}; it takes [..., h, w]")
    if image_shape is None:
        return
    image_shape = tuple(image_shape)
    lead, image_lead = shape[:-2], image_shape[:-2]
    padded = (1,) * (len(image_lead) - len(lead)) + lead
    fits = shape[-2:] == image_shape[-2:] and len(padded) == len(image_lead)
    if not fits or any(a not in (1, b) for a, b in zip(padded, image_lead, strict=True)):
        raise ValueError(f"`hole` has shape {shape}; for these images it takes {image_shape} or {image_shape[-2:]}")


def _check_size(size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 2:
        raise ValueError(f"`size` is {size!r}; it takes the image's side in pixels, an integer of at least 2")


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"`fraction` is {fraction!r}; it takes a number in [0, 1], e.g. 0.8")
