"""Photographs of any size: the region that a prior completes, scaled down with its hole, and the way back."""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, PRNGKeyArray, UInt8
from PIL import Image

from dcgan_jax.config import InpaintConfig
from dcgan_jax.errors import UserError
from dcgan_jax.figures import to_uint8
from dcgan_jax.inpainting import NOT_FINITE, InpaintResult, inpaint
from dcgan_jax.poisson import poisson_blend, poisson_blend_sparse
from dcgan_jax.prior import Prior, image_shape

CROPS = ("center", "face", "stretch")
_SUITED = {"celeba": "face", "stretch": "stretch"}  # by the crop of the prior's training images

# From the cascade's box to CelebA's crop: its side, and how far its centre lies above the box's, in sides of the box.
# Medians over 382 faces found in 400 training images of CelebA; standard deviations 0.10 and 0.035.
_FACE_SIDE, _FACE_RISE = 1.03, 0.137
# A factorisation takes memory and time that grow faster than the hole; multigrid on the device compiles once a size.
_SPARSE_MOST = 250_000  # missing pixels
_DETECTION_SIDE = 1024  # larger photographs are searched for faces at this size


class Region(NamedTuple):
    """A part of a photograph, in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "LEFT,TOP,WIDTH,HEIGHT"; `UserError` if it is anything else."""
        try:
            left, top, width, height = map(int, text.split(","))
        except ValueError:
            raise UserError(
                f"`crop` is {text!r}; it is one of {', '.join(CROPS)}, or LEFT,TOP,WIDTH,HEIGHT in pixels"
            ) from None
        return cls(left, top, width, height)

    def __str__(self) -> str:
        return ",".join(map(str, self))


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
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != shape[2]:
        raise ValueError(f"`image` is {image.dtype}{list(image.shape)}; it takes uint8 [h, w, {shape[2]}]")
    if hole.dtype != bool or hole.shape != image.shape[:2]:
        raise ValueError(
            f"`hole` is {hole.dtype}{list(hole.shape)}; it takes bool {list(image.shape[:2])}, True where missing"
        )
    region = find_region(prior, image, hole, crop)
    small, small_hole = shrink(image, hole, region, shape[:2])
    result = inpaint(prior, small[None], small_hole[None], key, config, optimizer, label)
    result = jax.tree.map(lambda x: x[0], jax.device_get(result))
    several = result.alternatives
    if several is not None:
        each = restore_each(result, image, hole, region)
        result = result._replace(alternatives=several._replace(images=each), mean=mean_image(each))
    return result._replace(images=restore(result, image, hole, region))


def find_region(
    prior: Prior, image: UInt8[np.ndarray, "h w c"], hole: Bool[np.ndarray, "h w"], crop: str | None
) -> Region:
    """The part of a photograph to complete; `crop` as in `inpaint_photograph`.

    Raises:
        UserError: there is no such region, or missing pixels lie outside it.
    """
    height, width = hole.shape
    if crop is None:
        crop = "stretch" if image.shape == image_shape(prior) else _SUITED.get(prior.crop or "", "center")
    if crop == "stretch":
        return Region(0, 0, width, height)
    if crop == "center":
        h, w, _ = image_shape(prior)
        scale = min(height / h, width / w)
        region = _place(
            (height / 2, width / 2),
            (max(1, round(h * scale)), max(1, round(w * scale))),
            hole.shape,
            _bounds(hole) if hole.any() else None,
        )
    elif crop == "face":
        region = _find_face(image, hole)
    else:
        region = Region.parse(crop)
        if not (
            0 <= region.left < region.left + region.width <= width
            and 0 <= region.top < region.top + region.height <= height
        ):
            raise UserError(f"`crop` {crop} does not lie inside an image of {width}x{height} (width, height)")
    if outside := int(hole.sum() - hole[region.rows, region.columns].sum()):
        raise UserError(
            f"{outside} missing pixels lie outside the region {region} (left, top, width, height): give `crop` as four "
            'such numbers around all of them, or "stretch"'
        )
    return region


def shrink(
    image: UInt8[np.ndarray, "H W c"], hole: Bool[np.ndarray, "H W"], region: Region, shape: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w c"], Bool[np.ndarray, "h w"]]:
    """A region and its hole at the prior's size: a small pixel is known only if all the pixels it is made of are."""
    image, hole = image[region.rows, region.columns], hole[region.rows, region.columns]
    if hole.shape == shape:
        return image, hole
    shown = np.where(hole[..., None], np.uint8(0), image)
    # Neither filter is negative anywhere, so what a missing pixel touches shows. A mean over the small pixel's own
    # area loses the fewest of them; enlarging needs two neighbours.
    smaller = hole.shape[0] >= shape[0] and hole.shape[1] >= shape[1]
    resampling = Image.Resampling.BOX if smaller else Image.Resampling.HAMMING
    small = [_resize(channel, shape, resampling) for channel in np.moveaxis(shown, -1, 0)]
    touched = _resize(hole.astype(np.float32), shape, resampling) > 0
    return np.stack(small, axis=-1), touched


def enlarge(completion: Float[np.ndarray, "h w c"], region: Region) -> Float[np.ndarray, "H W c"]:
    """A completion at the region's size, by cubics."""
    channels, shape = np.moveaxis(np.asarray(completion, np.float32), -1, 0), (region.height, region.width)
    return np.stack([_resize(channel, shape, Image.Resampling.BICUBIC) for channel in channels], axis=-1)


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
    guide = enlarge(np.asarray(result.images) / np.float32(127.5) - 1, region)
    # Beyond the region's edge the completion goes on as it ends there.
    inside = np.ix_(
        np.clip(rows - region.top, 0, region.height - 1), np.clip(columns - region.left, 0, region.width - 1)
    )
    place = np.ix_(rows, columns)
    known = image[place].astype(np.float32) / np.float32(127.5) - 1
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


def _bounds(hole):
    """The rows and the columns that hold missing pixels, as slices."""
    rows, columns = (np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _place(centre, size, shape, bounds=None):
    """The region of a size about a centre, moved no further than it must to hold the bounds and to lie in the image."""
    starts = []
    for axis in (0, 1):
        start = round(centre[axis] - size[axis] / 2)
        if bounds is not None:
            start = min(max(start, bounds[axis].stop - size[axis]), bounds[axis].start)
        starts.append(min(max(start, 0), shape[axis] - size[axis]))
    return Region(starts[1], starts[0], size[1], size[0])


def _find_face(image, hole):
    try:
        import cv2  # the extra `photo`
        import cv2.data
    except ImportError:
        raise UserError(
            "finding faces takes OpenCV: install the extra `photo` (pip install 'dcgan-jax[photo]'), or give `crop` as "
            "LEFT,TOP,WIDTH,HEIGHT in pixels"
        ) from None
    if hole.all():
        raise UserError("no face is to be seen in an image that is missing as a whole: give another `crop`")
    scale = min(1.0, _DETECTION_SIDE / max(hole.shape))
    size = (max(1, round(hole.shape[1] * scale)), max(1, round(hole.shape[0] * scale)))
    grey = np.where(hole, 0, image.mean(axis=-1)).astype(np.uint8)
    # What is missing is filled from around it, for the detector's eyes only.
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    missing = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    grey = cv2.inpaint(grey, missing.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    detector = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    faces = sorted(detector.detectMultiScale(grey, 1.1, 5), key=lambda face: -face[2])
    if not faces:
        raise UserError("no face was found (hidden, turned or too small?): give `crop` as LEFT,TOP,WIDTH,HEIGHT")
    regions = []
    for left, top, width, height in faces:
        x, y = (left + width / 2) / scale, (top + height / 2 - _FACE_RISE * height) / scale
        side = min(round(_FACE_SIDE * width / scale), *hole.shape)
        regions.append(_place((y, x), (side, side), hole.shape))
    return max(regions, key=lambda region: hole[region.rows, region.columns].sum())  # of equals the largest face


def _resize(channel, shape, resampling):
    return np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize(shape[::-1], resampling))
