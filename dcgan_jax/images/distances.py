"""The distance between two sets of images, and the diversity of one set."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray
from scipy import ndimage

from dcgan_jax.images.metrics import ms_ssim

_SMALLEST = 16  # side of the last level of the pyramid, in pixels
_SIDE = 7  # side of a patch, in pixels
_PATCHES = 128  # patches in each image
_DIRECTIONS = 512
BATCH_SIZE = 128  # images at a time
_PROJECTIONS = 2**23  # projections at a time
_KERNEL = np.array([1, 4, 6, 4, 1]) / 16


class SlicedWasserstein(NamedTuple):
    """The distances on the levels of the pyramid, and their mean. All are multiplied by 1000."""

    levels: dict[int, float]  # side of the level in pixels -> distance
    mean: float


def sliced_wasserstein(
    a: Num[np.ndarray, "n h h c"], b: Num[np.ndarray, "n h h c"], key: PRNGKeyArray
) -> SlicedWasserstein:
    """Returns the sliced Wasserstein distance between the patches of two sets of images.

    On each level of a Laplacian pyramid, from full size down to 16 x 16, 128 patches of 7 x 7 pixels are taken from
    each image at random places. Each set's patches are normalised to mean 0 and standard deviation 1 in each channel;
    a constant channel becomes 0. The distance is the mean of |sorted projections of a - sorted projections of b| over
    512 random directions, times 1000 as in the paper.

    The distance between sets of the same distribution falls as the number of images grows. So only compare distances
    for the same number of images. The distance between two sets of real images is a useful reference.

    Args:
        a: images, uint8 or float, on any scale. The side is a power of two, 16 or more. The array may be
            memory-mapped: images are read 128 at a time. The function needs 75 KB of memory for each image of both sets
            (three channels), and another 100 MB.
        b: images of the same number and size.
        key: random key of the places and directions.

    Returns:
        The distances, times 1000, from the full size down, and their mean.

    Raises:
        ValueError: the sets differ in shape, or the side is not a power of two of at least 16.

    Example:
        >>> distance = sliced_wasserstein(generated, images[:1024], jax.random.key(0))  # doctest: +SKIP
        >>> distance.levels[16], distance.mean  # doctest: +SKIP

    Source:
        Karras, Aila, Laine, Lehtinen, "Progressive growing of GANs for improved quality, stability, and variation",
        ICLR 2018, section 5; Rabin, Peyre, Delon, Bernot, "Wasserstein barycenter and its application to texture
        mixing", 2011.
    """
    if a.ndim != 4 or a.shape != b.shape or not len(a):
        raise ValueError(
            f"`a` has shape {a.shape} and `b` has {b.shape}; pass one shape [n, h, h, c] with n of at least 1"
        )
    side, width, channels = a.shape[1:]
    if side != width or side < _SMALLEST or side & (side - 1):
        raise ValueError(f"`a` holds images of {side}x{width}; pass squares of {_SMALLEST}, 32, 64, ... pixels")
    key_a, key_b, key_directions = jax.random.split(key, 3)
    directions = np.array(jax.random.normal(key_directions, (_DIRECTIONS, _SIDE * _SIDE * channels)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    levels = {}
    for level in range((side // _SMALLEST).bit_length()):
        patches = _normalized(_patches(a, level, key_a)), _normalized(_patches(b, level, key_b))
        levels[side >> level] = 1000 * _distance(*patches, directions)
    return SlicedWasserstein(levels, float(np.mean(list(levels.values()))))


def diversity(images: Num[np.ndarray, "n h w c"]) -> float:
    """Returns the mean MS-SSIM of pairs of images. It is 1 if all images are equal, and lower if they differ more.

    Image i is compared with image i + n // 2, so no image is in two pairs.

    Args:
        images: uint8, or floats in [-1, 1]; 2 or more in random order, with sides of at least 11 pixels. The result
            differs between uint8 and floats, because SSIM's luminance term assumes values of 0 and more.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: there are fewer than 2 images, or they are too small.

    Source:
        Odena, Olah, Shlens, "Conditional image synthesis with auxiliary classifier GANs", ICML 2017, section 4.2.
    """
    if len(images) < 2:
        raise ValueError(f"`images` holds {len(images)} images; pass at least 2")
    pairs = len(images) // 2
    ends = [(i, min(i + BATCH_SIZE, pairs)) for i in range(0, pairs, BATCH_SIZE)]
    values = [ms_ssim(jnp.asarray(images[i:j]), jnp.asarray(images[pairs + i : pairs + j])) for i, j in ends]
    return float(np.concatenate(values).mean(dtype=np.float64))


def _patches(images: Num[np.ndarray, "n h h c"], level: int, key: PRNGKeyArray) -> Float[np.ndarray, "m c d"]:
    """Cuts patches of d = 49 pixels from one level of each image's pyramid. Image i uses fold_in(key, i)."""
    side, channels = images.shape[1] >> level, images.shape[3]
    result = np.empty((len(images), _PATCHES, channels, _SIDE, _SIDE), np.float32)
    for start in range(0, len(images), BATCH_SIZE):
        pixels = _laplacian(np.asarray(images[start : start + BATCH_SIZE], np.float32), level)
        places = np.asarray(_places(key, start, BATCH_SIZE, side))[: len(pixels)]  # a whole batch: one compilation
        image, _, channel, row, column = np.ogrid[: len(pixels), :1, :channels, :_SIDE, :_SIDE]
        row, column = (
            place + offset
            for place, offset in zip(np.moveaxis(places, 2, 0)[..., None, None, None], (row, column), strict=True)
        )
        result[start : start + BATCH_SIZE] = pixels[image, row, column, channel]
    return result.reshape(-1, channels, _SIDE * _SIDE)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _places(key: PRNGKeyArray, start: int, count: int, side: int) -> Int[Array, "count patches 2"]:
    """Draws the first row and column of each patch, uniformly, for images `start` to `start + count` − 1."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(count))
    return jax.vmap(lambda one: jax.random.randint(one, (_PATCHES, 2), 0, side - _SIDE + 1))(keys)


def _laplacian(x: Float[np.ndarray, "n h h c"], level: int) -> Float[np.ndarray, "n s s c"]:
    """Computes a level of the Laplacian pyramid (Burt, Adelson 1983). The last level is the low-pass image itself."""
    for _ in range(level):
        x = _blur(x)[:, ::2, ::2]
    if x.shape[1] == _SMALLEST:
        return x
    coarse = np.zeros_like(x)
    coarse[:, ::2, ::2] = _blur(x)[:, ::2, ::2]
    return x - 4 * _blur(coarse)


def _blur(x: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    for axis in (1, 2):
        x = ndimage.convolve1d(x, _KERNEL, axis=axis, mode="mirror")
    return x


def _normalized(patches: Float[np.ndarray, "m c d"]) -> Float[np.ndarray, "m e"]:
    """Normalises each channel to mean 0 and standard deviation 1, in place, and joins the channels: e = c d."""
    patches -= patches.mean(2).mean(0, dtype=np.float64).astype(np.float32)[:, None]
    variance = np.einsum("mcd,mcd->mc", patches, patches).mean(0, dtype=np.float64) / patches.shape[2]
    patches /= np.sqrt(np.where(variance > 0, variance, 1)).astype(np.float32)[:, None]
    return patches.reshape(len(patches), -1)


def _distance(a: Float[np.ndarray, "m e"], b: Float[np.ndarray, "m e"], directions: Float[np.ndarray, "k e"]) -> float:
    """Returns the Wasserstein distance between the projections, averaged over the directions."""
    total, rows = 0.0, max(1, _PROJECTIONS // len(a))
    for i in range(0, len(directions), rows):
        one, other = directions[i : i + rows] @ a.T, directions[i : i + rows] @ b.T
        for projections in (one, other):
            projections.sort(axis=1)  # on a CPU, NumPy sorts many times faster than XLA
        one -= other
        total += float(np.abs(one, out=one).mean(1).sum(dtype=np.float64))
    return total / len(directions)
