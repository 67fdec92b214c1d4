"""Inpainting methods of other libraries: Telea and Navier–Stokes of OpenCV, biharmonic inpainting of scikit-image.

The extra `baselines` installs scikit-image. The methods complete one image at a time.
"""

from collections.abc import Callable
from types import ModuleType

import numpy as np
from jaxtyping import Bool, UInt8

from dcgan_jax.errors import UserError
from dcgan_jax.images.inputs import check_hole_fits, check_images


def telea(
    images: UInt8[np.ndarray, "b h w c"], hole: Bool[np.ndarray, "b h w"], *, radius: float = 3
) -> UInt8[np.ndarray, "b h w c"]:
    """Fills holes from the rim inwards. Each pixel is a weighted mean of the known pixels around it.

    Args:
        images: uint8, with 1 or 3 channels.
        hole: True = missing.
        radius: radius of the neighbourhood, in pixels.

    Returns:
        Completed images, equal to the input where known. An image without a known pixel becomes grey.

    Source:
        Telea, "An image inpainting technique based on the fast marching method", 2004; OpenCV's `INPAINT_TELEA`.
    """
    return _opencv("INPAINT_TELEA", images, hole, radius)


def navier_stokes(
    images: UInt8[np.ndarray, "b h w c"], hole: Bool[np.ndarray, "b h w"], *, radius: float = 3
) -> UInt8[np.ndarray, "b h w c"]:
    """Continues lines of equal brightness into the hole, like the vorticity of a fluid.

    Arguments, result and errors are those of `telea`.

    Source:
        Bertalmio, Bertozzi, Sapiro, "Navier–Stokes, fluid dynamics, and image and video inpainting", CVPR 2001;
        OpenCV's `INPAINT_NS`.
    """
    return _opencv("INPAINT_NS", images, hole, radius)


def biharmonic(images: UInt8[np.ndarray, "b h w c"], hole: Bool[np.ndarray, "b h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """Solves Δ²x = 0 in the hole, so that values and slopes are continuous. Clips to the range of known pixels.

    Args:
        images: uint8, with 1 or 3 channels.
        hole: True = missing.

    Returns:
        Completed images, equal to the input where known. An image without a known pixel becomes grey.

    Raises:
        UserError: scikit-image is not installed.
        ValueError: a shape or dtype is wrong.

    Source:
        Damelin, Hoang, "On surface completion and image inpainting by biharmonic functions", 2018; scikit-image's
        `inpaint_biharmonic`.
    """
    inpaint_biharmonic = scikit_image().restoration.inpaint_biharmonic

    def one(image: np.ndarray, missing: np.ndarray) -> np.ndarray:
        return np.floor(255 * inpaint_biharmonic(image, missing, channel_axis=-1) + 0.5).astype(np.uint8)

    return _each(one, images, hole)


def scikit_image() -> ModuleType:
    """Imports scikit-image. Raises `UserError` if it is not installed."""
    try:
        import skimage.restoration
    except ImportError as error:
        raise UserError("`biharmonic` needs scikit-image: pip install 'dcgan-jax[baselines]'") from error
    return skimage


def _opencv(algorithm: str, images: np.ndarray, hole: np.ndarray, radius: float) -> np.ndarray:
    import cv2

    def one(image: np.ndarray, missing: np.ndarray) -> np.ndarray:
        return cv2.inpaint(image, missing.astype(np.uint8), radius, getattr(cv2, algorithm)).reshape(image.shape)

    return _each(one, images, hole)


def _each(
    one: Callable[[np.ndarray, np.ndarray], np.ndarray], images: np.ndarray, hole: np.ndarray
) -> UInt8[np.ndarray, "b h w c"]:
    """Completes images one by one. An image without a hole stays unchanged; one without a known pixel becomes grey."""
    check_images(images, only_uint8=True)
    check_hole_fits(hole, images.shape[:3])
    completed = np.where(hole[..., None], np.uint8(128), images)
    for i in np.flatnonzero(hole.any(axis=(1, 2)) & ~hole.all(axis=(1, 2))):
        filled = one(completed[i], np.array(hole[i]))  # a copy, because scikit-image takes no read-only arrays
        completed[i] = np.where(hole[i][..., None], filled, completed[i])
    return completed
