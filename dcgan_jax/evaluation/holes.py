"""Holes drawn by the name of a mask. `inpaint` and `evaluate` draw the same hole for the same image name and seed."""

import zlib
from collections.abc import Sequence
from pathlib import PurePath

import jax
import numpy as np
from jaxtyping import Bool, PRNGKeyArray

from dcgan_jax import masks


def draw_holes(mask: str, names: Sequence[str], size: int, seed: int) -> Bool[np.ndarray, "n size size"]:
    """Draws a hole for each image. A hole depends only on mask, image name, size and seed.

    Args:
        mask: one of `masks.NAMES`.
        names: the names of the images, see `image_name`.
        size: side of the images in pixels.
        seed: 0 or more.

    Returns:
        True = missing.

    Example:
        >>> draw_holes("half", ["a", "b"], 64, seed=0).shape
        (2, 64, 64)
    """
    key = jax.random.fold_in(jax.random.key(seed), masks.NAMES.index(mask))
    # One by one, because rounding in a batch could move the rim of a `pattern`.
    drawn = [masks.by_name(mask, image_key(key, name)[None], size) for name in names]
    return np.concatenate([np.zeros((0, size, size), bool), *drawn])


def image_key(key: PRNGKeyArray, name: str) -> PRNGKeyArray:
    """Derives the random key of an image from its name."""
    # CRC-32, because Python's hash differs between processes. File names may hold bytes that are not UTF-8.
    return jax.random.fold_in(key, zlib.crc32(name.encode(errors="surrogateescape")))


def image_name(file: str) -> str:
    """Returns the name of an image: the path of its file inside its set, without suffix."""
    return PurePath(file).with_suffix("").as_posix()
