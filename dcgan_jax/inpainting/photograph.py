"""Photographs of any size: the region that a prior completes, scaled down with its hole, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, PRNGKeyArray, UInt8

from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.blending.sparse import poisson_blend_sparse
from dcgan_jax.images.inputs import check_hole_fits, check_images
from dcgan_jax.images.pixels import to_float, to_uint8
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.inpaint import inpaint
from dcgan_jax.inpainting.region import Region, _bounds, enlarge, find_region, shrink
from dcgan_jax.inpainting.result import NOT_FINITE, InpaintResult
from dcgan_jax.priors.prior import Prior, image_shape

# A factorisation takes memory and time that grow faster than the hole; multigrid on the device compiles once a size.
_SPARSE_MOST = 250_000  # missing pixels


def inpaint_photograph(
    prior: Prior,
    image: UInt8[np.ndarray, "h w c"],
    hole: Bool[np.ndarray, "h w"],
    key: PRNGKeyArray,
    config: InpaintConfig | None = None,
    *,
    crop: str | None = None,
    optimizer: optax.GradientTransformation | None = None,
    label: int | None = None,
) -> InpaintResult:
    """Completes a photograph of any size: a region of it at the prior's size, brought back and blended at its own.

    Args:
        prior: see `inpaint`.
        image: uint8, with the prior's channels.
        hole: True where a pixel is missing; all of them inside the region.
        key: of the search.
        config: of the search.
        crop: the region: "center" (the largest of the prior's proportions, a square as a rule, nearest to the centre
            among those that hold the hole), "face" (the face that OpenCV's cascade finds, cut as CelebA's are; extra
            `photo`), "stretch" (the whole photograph, squeezed into the prior's proportions), or
            "LEFT,TOP,WIDTH,HEIGHT" in pixels. By default what suits the images that the prior was trained on
            (`prior.crop`), and the whole of an image that is of the prior's size already.
        optimizer: see `inpaint`.
        label: its class, for a conditional prior; by default the search finds it.

    Returns:
        `InpaintResult` of one image, without the batch axis: `images` is the photograph at its own size, equal to
        `image` bit for bit where `hole` is False; the rest belongs to the search at the prior's size.

    Raises:
        UserError: the region cannot be found or does not hold the hole.
        ValueError: shapes or types do not fit together.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> prior = dj.load_prior("faces-64")
        >>> result = dj.inpaint_photograph(prior, image, hole, jax.random.key(0))  # doctest: +SKIP
    """
    shape = image_shape(prior)
    image, hole = np.asarray(image), np.asarray(hole)
    check_images(image, ("h", "w", shape[2]), name="`image`", taker="this prior", only_uint8=True)
    check_hole_fits(hole, image.shape[:2])
    region = find_region(prior, image, hole, crop)
    small, small_hole = shrink(image, hole, region, shape[:2])
    result = inpaint(prior, small[None], small_hole[None], key, config, optimizer, label)
    result = jax.tree.map(lambda x: x[0], jax.device_get(result))
    several = result.alternatives
    if several is not None:
        each = restore_each(result, image, hole, region)
        result = result._replace(alternatives=several._replace(images=each), mean=mean_image(each))
    return result._replace(images=restore(result, image, hole, region))


def restore(
    result: InpaintResult, image: UInt8[np.ndarray, "h w c"], hole: Bool[np.ndarray, "h w"], region: Region
) -> UInt8[np.ndarray, "h w c"]:
    """The photograph with the enlarged completion blended into its hole; grey (128) where the search failed.

    What is enlarged is the image as it was blended at the prior's size, and its gradients are what it gives.

    Args:
        result: of the region at the prior's size, without the batch axis.
    """
    if image.shape == result.completions.shape and (region.width, region.height) == hole.shape[::-1]:
        return np.asarray(result.images)
    restored = image.copy()
    if not hole.any():
        return restored
    if int(result.status) == NOT_FINITE:
        restored[hole] = 128
        return restored
    rows, columns = (slice(max(0, s.start - 1), s.stop + 1) for s in _bounds(hole))  # with the known neighbours
    rows, columns = (np.arange(n)[s] for n, s in zip(hole.shape, (rows, columns), strict=True))
    guide = enlarge(to_float(np.asarray(result.images)), region)
    # Beyond the region's edge the completion goes on as it ends there.
    inside = np.ix_(
        np.clip(rows - region.top, 0, region.height - 1), np.clip(columns - region.left, 0, region.width - 1)
    )
    place = np.ix_(rows, columns)
    known = to_float(image[place])
    arrays = guide[inside], known, hole[place]
    if hole.sum() <= _SPARSE_MOST:
        blended = poisson_blend_sparse(*arrays)
    else:
        blended = np.asarray(poisson_blend(*map(jnp.asarray, arrays)))
    restored[hole] = to_uint8(blended[hole[place]])
    return restored


def restore_each(
    result: InpaintResult, image: UInt8[np.ndarray, "h w c"], hole: Bool[np.ndarray, "h w"], region: Region
) -> UInt8[np.ndarray, "k h w c"]:
    """`restore` of every alternative, the best first."""
    several = result.alternatives
    assert several is not None
    count = len(several.status)
    each = (jax.tree.map(lambda x, i=i: x[i], several) for i in range(count))
    return np.stack([restore(one, image, hole, region) for one in each])


def mean_image(images: UInt8[np.ndarray, "k h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """The mean of images, in the nearest level."""
    return np.round(images.mean(axis=0)).astype(np.uint8)
