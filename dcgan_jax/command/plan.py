"""The plan of `inpaint`: the images to complete, and the region and the hole of each."""

import hashlib
import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from dcgan_jax import masks
from dcgan_jax.command.measured import Measurement
from dcgan_jax.command.pairing import MaskReader, PictureReader
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation.holes import draw_holes, image_key
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.region import Region, find_region
from dcgan_jax.pictures import Mask, Picture
from dcgan_jax.priors.dcgan import fingerprint
from dcgan_jax.priors.prior import Prior

KEPT_BYTES = 2**29  # decoded images and holes that are kept in memory


@dataclass(frozen=True)
class Settings:
    """The settings of a call that its results depend on. Prior, images and mask files are not among them.

    Attributes:
        config: the configuration of the search.
        mask: the name of the mask to draw; None if the masks are files.
        measurement: what is known of each image in place of known pixels; None if there are masks.
        crop: see `inpaint_photograph`.
        elsewhere: see `inpaint_photograph`.
        score: whether results are compared with the original pixels.
        gif: whether an animation of each search is written.
        label: the class of all images; None if the searches find it.
        seed: the seed of holes and searches.
    """

    config: InpaintConfig
    mask: str | None
    measurement: Measurement | None
    crop: str | None
    elsewhere: str | None
    score: bool
    gif: bool
    label: int | None
    seed: int


@dataclass(frozen=True, eq=False)
class Task:
    """An image to complete.

    Attributes:
        name: the image's file name without suffix. Its results have the same name.
        digest: hash of image, hole, prior and settings. A result with the same digest is not computed again.
        shape: height and width of the image.
        region: the part of the image that the prior completes.
        outside: number of missing pixels outside the region.
        note: a remark on the image, its mask and its region; None if there is none.
        profile: see `Picture`.
    """

    name: str
    digest: str
    shape: tuple[int, int]
    region: Region
    outside: int
    note: str | None
    profile: bytes | None


class Sized(Protocol):
    """A value of known size in memory."""

    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=Sized)


class Inputs:
    """Reads images and holes, and caches up to `KEPT_BYTES` of them, so that most files are decoded only once.

    An image is needed three times: for the plan, for the search and for its results.
    """

    def __init__(self, pictures: dict[str, PictureReader], read_mask: MaskReader | None) -> None:
        self._pictures, self._read_mask = pictures, read_mask
        self._kept: dict[Hashable, Sized] = {}
        self._room = KEPT_BYTES

    def picture(self, name: str) -> Picture:
        """Returns an image. Raises `UserError` if it cannot be read."""
        return self._keep(("picture", name), self._pictures[name])

    def given_mask(self, name: str) -> Mask | None:
        """Returns the mask of an image as it was given; None if holes are drawn."""
        read = self._read_mask
        return None if read is None else self._keep(("mask", name), lambda: read(name, self.picture(name)))

    def hole(self, task: Task, settings: Settings, size: int) -> Bool[np.ndarray, "h w"]:
        """Returns the hole of a task: from its mask file, or drawn at the side `size` and enlarged to the region."""
        given = self.given_mask(task.name)
        return self._keep(("hole", task.name), lambda: _draw(task, settings, size)) if given is None else given.hole

    def values(self, task: Task, settings: Settings) -> Float[np.ndarray, "_ _ _"]:
        """Returns the measured values of a task. If results are scored, they get the measurement's noise here."""
        measurement = settings.measurement
        if measurement is None:
            raise ValueError("`measurement` is None; the values of an image need one")
        noise_key = None
        if settings.score:
            other = jax.random.fold_in(jax.random.key(settings.seed), len(masks.NAMES))  # no mask draws from this key
            noise_key = image_key(other, task.name)
        return measurement.values(self.picture(task.name).pixels, task.region, noise_key)

    def drop(self, name: str) -> None:
        """Removes an image and its hole from the cache."""
        for what in ("picture", "mask", "hole"):
            kept = self._kept.pop((what, name), None)
            self._room += 0 if kept is None else kept.nbytes

    def _keep(self, entry: Hashable, read: Callable[[], S]) -> S:
        if entry in self._kept:
            return cast(S, self._kept[entry])  # an entry always has the same type of value
        value = read()
        if value.nbytes <= self._room:
            self._room -= value.nbytes
            self._kept[entry] = value
        return value


@dataclass(frozen=True, eq=False)
class Plan:
    """The work of one call of `inpaint`.

    Attributes:
        settings: the settings of the call.
        tasks: the images to complete.
        skipped: the images that cannot be completed: name -> reason.
        inputs: reads the images and holes.
    """

    settings: Settings
    tasks: list[Task]
    skipped: dict[str, str]
    inputs: Inputs


def make_plan(
    prior: Prior, pictures: dict[str, PictureReader], read_mask: MaskReader | None, settings: Settings
) -> Plan:
    """Reads every image and mask once, and makes the plan.

    Args:
        prior: the prior that completes the images.
        pictures: name of an image -> function that reads it.
        read_mask: reads the mask of an image; None if holes are drawn, or nothing is missing.
        settings: the settings of the call.

    Raises:
        UserError: no image can be completed.
    """
    inputs = Inputs(pictures, read_mask)
    job = json.dumps(
        [
            fingerprint(prior),
            settings.config.to_json(),
            settings.crop,
            settings.elsewhere,
            settings.score,
            settings.gif,
            settings.seed,
            settings.label,
            *([settings.measurement.text] if settings.measurement else []),
        ]
    )
    tasks, skipped = [], {}
    for name in pictures:
        try:
            tasks.append(_make_task(prior, name, inputs, settings, job))
        except _Skipped as reason:
            skipped[name] = str(reason)
    if pictures and not tasks and jax.process_count() == 1:
        more = f" (and {len(skipped) - 1} more images)" if len(skipped) > 1 else ""
        raise UserError(next(iter(skipped.values())) + more)
    return Plan(settings, tasks, skipped, inputs)


class _Skipped(Exception):
    """An image cannot be completed; the others can."""


def _make_task(prior: Prior, name: str, inputs: Inputs, settings: Settings, job: str) -> Task:
    try:
        picture = inputs.picture(name)
        mask = inputs.given_mask(name)
    except UserError as error:
        raise _Skipped(str(error)) from error
    pixels, shape = picture.pixels, picture.pixels.shape[:2]
    hole = np.zeros(shape, bool) if mask is None else mask.hole
    if hole.shape != shape:
        raise _Skipped(
            f"the mask of {name!r} is {_by(hole.shape)}, but the image is {_by(shape)} (height, width): give a mask of "
            "the image's size"
        )
    try:
        crop = settings.crop
        if settings.measurement is not None and _holds_values(pixels, settings.measurement, settings.score):
            crop = "stretch"  # the whole picture
        region, outside, chosen = find_region(prior, pixels, hole, crop, settings.elsewhere)
    except UserError as error:
        raise _Skipped(f"image {name!r}: {error}") from error
    digest = hashlib.sha256(f"{job} {settings.mask or ''} {region} {pixels.shape}".encode())
    digest.update(pixels.tobytes() if settings.score else np.where(hole[..., None], 0, pixels).tobytes())
    digest.update(hole.tobytes())
    white = None
    if picture.transparent is not None and (mask is None or not mask.hole[picture.transparent].all()):
        white = "transparent parts became white"
    note = "; ".join(filter(None, (picture.note, white, mask and mask.note, chosen))) or None
    return Task(name, digest.hexdigest()[:16], (shape[0], shape[1]), region, outside, note, picture.profile)


def _holds_values(pixels: UInt8[np.ndarray, "h w c"], measurement: Measurement, score: bool) -> bool:
    """Tells whether a picture holds measured values. Raises UserError if it holds no image to measure either."""
    if measurement.holds_values(pixels) and not score:
        return True
    shape, least, values = pixels.shape, measurement.shape, measurement.values_shape
    if shape[0] < least[0] or shape[1] < least[1]:
        takes = f"images of {_by(least[:2])} or more (height, width), which are measured first"
        if not score and values[:2] != least[:2]:
            takes += f", or measured ones of {_by(values[:2])}"
        raise UserError(f"it is {_by(shape[:2])}, but `measure` {measurement.text} takes {takes}")
    return False


def _draw(task: Task, settings: Settings, size: int) -> Bool[np.ndarray, "h w"]:
    if settings.mask is None:
        raise ValueError("`mask` is None; it takes the name of a mask to draw")
    small = Image.fromarray(draw_holes(settings.mask, [task.name], size, settings.seed)[0].astype(np.uint8))
    hole = np.zeros(task.shape, bool)
    enlarged = small.resize((task.region.width, task.region.height), Image.Resampling.NEAREST)
    hole[task.region.rows, task.region.columns] = np.asarray(enlarged)
    return hole


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
