"""The region of a photograph that a prior completes."""

from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from dcgan_jax.config import PHOTO_CROPS
from dcgan_jax.errors import UserError
from dcgan_jax.priors.prior import Prior

_DEFAULT_CROPS = {"celeba": "face", "stretch": "stretch"}  # crop of the training images -> default crop of a photograph
# CelebA's crop relative to the box of the face cascade: its side, and the height of its centre above the centre of the
# box, both in sides of the box. These are medians over 382 faces found in 400 training images (standard deviations 0.10
# and 0.035).
_FACE_SIDE, _FACE_RISE = 1.03, 0.137
# Cascades of OpenCV, how many detections must overlap, and the fraction of the hole that a face must hold. Later ones
# find faces whose eyes are hidden, but also places without a face. So their face must hold the whole hole. On 30
# held-out faces with a hole over both eyes, the first finds 60 % in the right place and the second 73 %.
_DETECTORS = (("frontalface_default", 5, 0.0), ("frontalface_default", 1, 1.0), ("frontalface_alt2", 1, 1.0))
_MOSTLY_MISSING = 0.7  # fraction; if more is missing and no face is found, the mask is probably inverted
_DETECTION_SIDE = 1024  # pixels; larger photographs are scaled down to this side before the search for faces


class Region(NamedTuple):
    """A rectangle of a photograph, in pixels."""

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
        """Parses "LEFT,TOP,WIDTH,HEIGHT".

        Raises:
            UserError: the text has another form.
        """
        try:
            left, top, width, height = map(int, text.split(","))
        except ValueError:
            raise UserError(
                f"`crop` is {text!r}; use one of {', '.join(PHOTO_CROPS)}, or LEFT,TOP,WIDTH,HEIGHT in pixels"
            ) from None
        return cls(left, top, width, height)

    def __str__(self) -> str:
        return ",".join(map(str, self))


class Found(NamedTuple):
    """A region that was found.

    Attributes:
        region: the region to complete.
        outside: number of missing pixels outside it.
        note: a remark on the choice; None if there is none.
    """

    region: Region
    outside: int = 0
    note: str | None = None


def find_region(
    prior: Prior,
    image: UInt8[np.ndarray, "h w c"],
    hole: Bool[np.ndarray, "h w"],
    crop: str | None,
    elsewhere: str | None = None,
) -> Found:
    """Finds the region of a photograph to complete.

    Args:
        prior: see `inpaint_photograph`.
        image: the photograph.
        hole: True = missing.
        crop: see `inpaint_photograph`.
        elsewhere: see `inpaint_photograph`.

    Raises:
        UserError: there is no such region, or missing pixels lie outside it.
    """
    if elsewhere not in (None, "smooth"):
        raise UserError(f"`elsewhere` is {elsewhere!r}; it takes smooth, or nothing")
    height, width = hole.shape
    note = None
    if crop is None:
        crop = "stretch" if image.shape == prior.image_shape else _DEFAULT_CROPS.get(prior.crop or "", "center")
        if crop == "face":
            face = _find_face(image, hole)
            holds_all = face is not None and not _outside(hole, face)
            if not holds_all and elsewhere is None and hole.mean() > _MOSTLY_MISSING:
                raise UserError(
                    f"{hole.mean():.0%} of the image is missing, and the rest shows no face around it. White pixels "
                    "of a mask are missing: invert it (`--invert-masks`) if its black pixels should be, or pass `crop`"
                )
            crop = str(face or _surroundings(hole))
            if face is None:
                part = "surroundings of the hole were completed" if hole.any() else "centre was taken"
                note = f"no face was found, so the {part}, by a prior for faces"
    if crop == "stretch":
        return Found(Region(0, 0, width, height))
    if crop == "center":
        h, w, _ = prior.image_shape
        scale = min(height / h, width / w)
        region = _place(
            (height / 2, width / 2),
            (max(1, round(h * scale)), max(1, round(w * scale))),
            hole.shape,
            bounds(hole) if hole.any() else None,
        )
    elif crop == "face":
        face = _find_face(image, hole)
        if face is None:
            raise UserError("no face was found (hidden, turned or too small?): pass `crop` as LEFT,TOP,WIDTH,HEIGHT")
        region = face
    else:
        region = Region.parse(crop)
        if not (
            0 <= region.left < region.left + region.width <= width
            and 0 <= region.top < region.top + region.height <= height
        ):
            raise UserError(f"`crop` {crop} does not lie inside an image of {width}x{height} (width, height)")
    outside = _outside(hole, region)
    if outside and elsewhere is None:
        raise UserError(
            f"{outside} missing pixels lie outside the region {region} (left, top, width, height): pass a larger "
            'region as `crop`, or "stretch"; or fill these pixels smoothly with `elsewhere` "smooth"'
        )
    if outside:
        filled = f"{outside} missing pixels outside the region were filled smoothly"
        note = f"{note}; {filled}" if note else filled
    return Found(region, outside, note)


def shrink(
    image: UInt8[np.ndarray, "H W c"], hole: Bool[np.ndarray, "H W"], region: Region, shape: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w c"], Bool[np.ndarray, "h w"]]:
    """Scales a region and its hole to the prior's size. A small pixel is known only if all its source pixels are."""
    image, hole = image[region.rows, region.columns], hole[region.rows, region.columns]
    if hole.shape == shape:
        return image, hole
    shown = np.where(hole[..., None], np.uint8(0), image)
    # Neither filter has negative weights, so a small pixel is above 0 exactly if a missing pixel contributes to it. For
    # shrinking, the box filter loses the fewest known pixels. Enlarging needs a filter over two neighbours.
    smaller = hole.shape[0] >= shape[0] and hole.shape[1] >= shape[1]
    resampling = Image.Resampling.BOX if smaller else Image.Resampling.HAMMING
    small = [_resize(channel, shape, resampling) for channel in np.moveaxis(shown, -1, 0)]
    touched = _resize(hole.astype(np.float32), shape, resampling) > 0
    return np.stack(small, axis=-1), touched


def enlarge(completion: Float[np.ndarray, "h w c"], region: Region) -> Float[np.ndarray, "H W c"]:
    """Scales a completion to the region's size by bicubic interpolation."""
    channels, shape = np.moveaxis(np.asarray(completion, np.float32), -1, 0), (region.height, region.width)
    return np.stack([_resize(channel, shape, Image.Resampling.BICUBIC) for channel in channels], axis=-1)


def bounds(hole: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """Returns the rows and columns of the smallest rectangle that contains all missing pixels."""
    rows, columns = (np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _place(
    centre: tuple[float, float],
    size: tuple[int, int],
    shape: tuple[int, ...],
    inside: tuple[slice, slice] | None = None,
) -> Region:
    """Places a region of this size around a centre.

    The region is moved as little as possible, so that it contains `inside` and lies in an image of shape `shape`.
    """
    starts = []
    for axis in (0, 1):
        start = round(centre[axis] - size[axis] / 2)
        if inside is not None:
            start = min(max(start, inside[axis].stop - size[axis]), inside[axis].start)
        starts.append(min(max(start, 0), shape[axis] - size[axis]))
    return Region(starts[1], starts[0], size[1], size[0])


def _outside(hole: Bool[np.ndarray, "h w"], region: Region) -> int:
    """Returns the number of missing pixels outside a region."""
    return int(hole.sum() - hole[region.rows, region.columns].sum())


def _surroundings(hole: Bool[np.ndarray, "h w"]) -> Region:
    """Returns a square around the hole, twice as long as the hole where the image has room."""
    height, width = hole.shape
    if not hole.any():
        return _place((height / 2, width / 2), (min(hole.shape),) * 2, hole.shape)
    rows, columns = bounds(hole)
    side = min(2 * max(rows.stop - rows.start, columns.stop - columns.start), height, width)
    centre = (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2
    return _place(centre, (side, side), hole.shape)


def _find_face(image: UInt8[np.ndarray, "h w c"], hole: Bool[np.ndarray, "h w"]) -> Region | None:
    """Returns the region of the face with the most missing pixels, cropped like CelebA's faces; None without a face."""
    import cv2  # half a second, and only photographs of faces need it
    import cv2.data

    if hole.all():
        return None
    scale = min(1.0, _DETECTION_SIDE / max(hole.shape))
    size = (max(1, round(hole.shape[1] * scale)), max(1, round(hole.shape[0] * scale)))
    grey = np.where(hole, 0, image.mean(axis=-1)).astype(np.uint8)
    # The hole is filled from its surroundings, but only for the detector.
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    missing = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    grey = cv2.inpaint(grey, missing.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    missing_count = hole.sum()
    for cascade, neighbours, holds in _DETECTORS if missing_count else _DETECTORS[:1]:
        detector = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{cascade}.xml")
        regions = []
        for left, top, width, height in sorted(detector.detectMultiScale(grey, 1.1, neighbours), key=lambda f: -f[2]):
            x, y = (left + width / 2) / scale, (top + height / 2 - _FACE_RISE * height) / scale
            side = min(round(_FACE_SIDE * width / scale), *hole.shape)
            regions.append(_place((y, x), (side, side), hole.shape))
        # The first of equals is the largest face.
        held = [hole[region.rows, region.columns].sum() for region in regions]
        if regions and max(held) >= holds * missing_count:
            return regions[int(np.argmax(held))]
    return None


def _resize(channel: np.ndarray, shape: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize((shape[1], shape[0]), resampling))
