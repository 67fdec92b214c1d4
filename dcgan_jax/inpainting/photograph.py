"""Photographs of any size: a region is scaled to the prior's size, completed, and blended back at full size."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int, PRNGKeyArray, UInt8

from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.blending.sparse import poisson_blend_sparse
from dcgan_jax.images.inputs import check_hole_fits, check_images
from dcgan_jax.images.pixels import to_float, to_uint8
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.inpaint import inpaint
from dcgan_jax.inpainting.region import Region, bounds, enlarge, find_region, shrink
from dcgan_jax.inpainting.result import InpaintResult, Status
from dcgan_jax.priors.prior import Prior

# Most missing pixels for the sparse solver, whose memory and time grow faster than the hole. Larger holes are solved by
# multigrid on the device, which compiles once for each size.
_SPARSE_MOST = 250_000


def inpaint_photograph(
    prior: Prior,
    image: UInt8[np.ndarray, "h w c"],
    hole: Bool[np.ndarray, "h w"],
    key: PRNGKeyArray,
    config: InpaintConfig | None = None,
    *,
    crop: str | None = None,
    elsewhere: str | None = None,
    optimizer: optax.GradientTransformation | None = None,
    label: int | None = None,
) -> InpaintResult:
    """Completes a photograph of any size.

    A region is scaled to the prior's size and completed. The completion is scaled back and blended at full size.

    Args:
        prior: see `inpaint`.
        image: the photograph, with the prior's number of channels.
        hole: True where a pixel is missing. All missing pixels must lie inside the region, unless `elsewhere` is given.
        key: random key of the search.
        config: see `inpaint`.
        crop: the region to complete. By default it follows the crop of the prior's training images (`prior.crop`). An
            image of the prior's size is completed whole. If the prior was trained on faces and no face is found, the
            region is a square around the hole, and a warning says so.

            - "center": the largest region of the prior's proportions, as near to the centre as the hole allows.
            - "face": a face that OpenCV's cascade finds, cropped like CelebA's faces.
            - "stretch": the whole photograph, stretched to the prior's proportions.
            - "LEFT,TOP,WIDTH,HEIGHT": a rectangle in pixels.
        elsewhere: "smooth" fills missing pixels outside the region by a harmonic function. By default they are an
            error.
        optimizer: see `inpaint`.
        label: the class, for a conditional prior; by default the search finds it.

    Returns:
        `InpaintResult` of one image, without the batch axis. `images` is the photograph at full size; it equals `image`
        bit for bit where `hole` is False. All other fields are at the prior's size.

    Raises:
        UserError: the region cannot be found or does not contain the hole.
        ValueError: shapes or types do not fit together.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> prior = dj.load_prior("faces-64")
        >>> result = dj.inpaint_photograph(prior, image, hole, jax.random.key(0))  # doctest: +SKIP
    """
    shape = prior.image_shape
    image, hole = np.asarray(image), np.asarray(hole)
    check_images(image, ("h", "w", shape[2]), name="`image`", taker="this prior", only_uint8=True)
    check_hole_fits(hole, image.shape[:2])
    region, _, note = find_region(prior, image, hole, crop, elsewhere)
    if note is not None:
        warnings.warn(note, stacklevel=2)
    small, small_hole = shrink(image, hole, region, shape[:2])
    result = inpaint(prior, small[None], small_hole[None], key, config, optimizer, label)
    result = jax.tree.map(lambda x: x[0], jax.device_get(result))
    several = result.alternatives
    if several is not None:
        each = blend_each_back(result, image, hole, region)
        result = result._replace(alternatives=several._replace(images=each), mean=mean_image(each))
    return result._replace(images=blend_back(result, image, hole, region))


def blend_back(
    result: InpaintResult, image: UInt8[np.ndarray, "h w c"], hole: Bool[np.ndarray, "h w"], region: Region
) -> UInt8[np.ndarray, "h w c"]:
    """Returns the photograph with the completion blended into its hole. The hole is grey (128) if the search failed.

    The blended image at the prior's size is enlarged, and its gradients are blended into the photograph.

    Args:
        result: the result of the region at the prior's size, without the batch axis.
        image: the photograph.
        hole: the hole of the photograph.
        region: the region that was completed.
    """
    if image.shape == result.completions.shape and (region.width, region.height) == hole.shape[::-1]:
        return np.asarray(result.images)
    restored = image.copy()
    if not hole.any():
        return restored
    if int(result.status) == Status.NOT_FINITE:
        restored[hole] = 128
        return restored
    rows, columns = (slice(max(0, s.start - 1), s.stop + 1) for s in bounds(hole))  # including known neighbours
    rows, columns = (np.arange(n)[s] for n, s in zip(hole.shape, (rows, columns), strict=True))
    place = np.ix_(rows, columns)
    known = to_float(image[place])
    arrays = _guide(result, image, hole, region, rows, columns), known, hole[place]
    restored[hole] = to_uint8(_blend(*arrays)[hole[place]])
    return restored


def _blend(
    completion: Float[np.ndarray, "h w c"], image: Float[np.ndarray, "h w c"], hole: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w c"]:
    """Blends by Poisson's equation: on the host, or on the device if the hole is large."""
    if hole.sum() <= _SPARSE_MOST:
        return poisson_blend_sparse(completion, image, hole)
    return np.asarray(poisson_blend(*map(jnp.asarray, (completion, image, hole))))


def _guide(
    result: InpaintResult,
    image: UInt8[np.ndarray, "H W c"],
    hole: Bool[np.ndarray, "H W"],
    region: Region,
    rows: Int[np.ndarray, " h"],
    columns: Int[np.ndarray, " w"],
) -> Float[np.ndarray, "h w c"]:
    """The picture whose gradients are blended into the hole, in these rows and columns of the photograph.

    In the region it is the enlarged completion. If nothing is missing elsewhere, it repeats the region's edge there.
    Otherwise it is the photograph, and a harmonic function where that is missing.
    """
    inner = enlarge(to_float(np.asarray(result.images)), region)
    outside = hole.copy()
    outside[region.rows, region.columns] = False
    if not outside.any():
        inside = np.ix_(
            np.clip(rows - region.top, 0, region.height - 1), np.clip(columns - region.left, 0, region.width - 1)
        )
        return inner[inside]
    whole = to_float(image)
    part = (region.rows, region.columns)
    whole[part] = np.where(hole[part][..., None], inner, whole[part])
    place = np.ix_(rows, columns)
    guide = whole.copy()
    guide[place] = _blend(np.zeros_like(whole[place]), whole[place], outside[place])
    guide[part] = inner
    return guide[place]


def blend_each_back(
    result: InpaintResult, image: UInt8[np.ndarray, "h w c"], hole: Bool[np.ndarray, "h w"], region: Region
) -> UInt8[np.ndarray, "k h w c"]:
    """Restores every alternative, best first; the result itself if it has no alternatives."""
    several = result.alternatives
    if several is None:
        return blend_back(result, image, hole, region)[None]
    count = len(several.status)
    each = (jax.tree.map(lambda x, i=i: x[i], several) for i in range(count))
    return np.stack([blend_back(one, image, hole, region) for one in each])


def mean_image(images: UInt8[np.ndarray, "k h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """Returns the mean of images, rounded."""
    return np.round(images.mean(axis=0)).astype(np.uint8)
