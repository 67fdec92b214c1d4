"""The plan of `inpaint`: which images are completed, in which region, with which hole."""

import hashlib
import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import jax
import numpy as np
from jaxtyping import Bool
from PIL import Image

from dcgan_jax.command.pairing import MaskReader, PictureReader
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation.holes import draw_holes
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.region import Region, find_region
from dcgan_jax.pictures import Mask, Picture
from dcgan_jax.priors.dcgan import fingerprint
from dcgan_jax.priors.prior import Prior

KEPT_BYTES = 2**29  # decoded images and holes that are kept in memory


@dataclass(frozen=True)
class Settings:
    """What the results depend on, apart from prior, images and masks.

    Attributes:
        config: of the search.
        mask: the name of the mask to draw; None if the masks are files.
        crop: see `inpaint_photograph`.
        elsewhere: see `inpaint_photograph`.
        score: whether results are compared with what lies in the holes.
        gif: whether the course of each search is written.
        label: the class of all images; None if the searches find it.
        seed: of holes and searches.
    """

    config: InpaintConfig
    mask: str | None
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
        name: its file without suffix, and the name of its results.
        digest: hash of image, hole, prior and settings. A result with the same digest is not made again.
        shape: height and width of the image.
        region: the part that the prior completes.
        note: what the user should know about the image, its mask and its region.
        profile: ICC profile.
    """

    name: str
    digest: str
    shape: tuple[int, int]
    region: Region
    note: str | None
    profile: bytes | None


class Sized(Protocol):
    """Something that knows how much memory it takes."""

    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=Sized)


class Inputs:
    """Reads images and holes. It keeps them up to `KEPT_BYTES`, so that most files are decoded once.

    An image is needed three times: for the plan, for the search and for its results.
    """

    def __init__(self, pictures: dict[str, PictureReader], read_mask: MaskReader | None) -> None:
        self._pictures, self._read_mask = pictures, read_mask
        self._kept: dict[Hashable, Sized] = {}
        self._room = KEPT_BYTES

    def picture(self, name: str) -> Picture:
        """Returns an image; `UserError` if it cannot be read."""
        return self._keep(("picture", name), self._pictures[name])

    def given_mask(self, name: str) -> Mask | None:
        """Returns the mask of an image as it was given; None if holes are drawn."""
        read = self._read_mask
        return None if read is None else self._keep(("mask", name), lambda: read(name, self.picture(name)))

    def hole(self, task: Task, settings: Settings, size: int) -> Bool[np.ndarray, "h w"]:
        """Returns the hole of a task: from its mask file, or drawn at the side `size` and enlarged to the region."""
        given = self.given_mask(task.name)
        return self._keep(("hole", task.name), lambda: _draw(task, settings, size)) if given is None else given.hole

    def drop(self, name: str) -> None:
        """Forgets an image and its hole."""
        for what in ("picture", "mask", "hole"):
            kept = self._kept.pop((what, name), None)
            self._room += 0 if kept is None else kept.nbytes

    def _keep(self, key: Hashable, read: Callable[[], S]) -> S:
        if key in self._kept:
            return cast(S, self._kept[key])  # a key has one kind of value
        value = read()
        if value.nbytes <= self._room:
            self._room -= value.nbytes
            self._kept[key] = value
        return value


@dataclass(frozen=True, eq=False)
class Plan:
    """What `inpaint` does.

    Attributes:
        settings: of all images.
        tasks: the images to complete.
        skipped: the reason for each image that cannot be completed, by its name.
        inputs: reads the images.
    """

    settings: Settings
    tasks: list[Task]
    skipped: dict[str, str]
    inputs: Inputs


def make_plan(
    prior: Prior, pictures: dict[str, PictureReader], read_mask: MaskReader | None, settings: Settings
) -> Plan:
    """Looks at every image and mask once.

    Args:
        prior: completes the images.
        pictures: reads the image of each name.
        read_mask: reads the mask of an image; None if holes are drawn.
        settings: of all images.

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
        ]
    )
    tasks, skipped = [], {}
    for name in pictures:
        try:
            tasks.append(_make_task(prior, name, inputs, settings, job))
        except _Skipped as reason:
            skipped[name] = str(reason)
    if pictures and not tasks and jax.process_count() == 1:
        more = f" (and {len(skipped) - 1} images more)" if len(skipped) > 1 else ""
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
            f"the mask of {name!r} is {_by(hole.shape)} and the image {_by(shape)} (height, width): give a mask of the "
            "image's size"
        )
    try:
        region, chosen = find_region(prior, pixels, hole, settings.crop, settings.elsewhere)
    except UserError as error:
        raise _Skipped(f"image {name!r}: {error}") from error
    digest = hashlib.sha256(f"{job} {settings.mask or ''} {region} {pixels.shape}".encode())
    digest.update(pixels.tobytes() if settings.score else np.where(hole[..., None], 0, pixels).tobytes())
    digest.update(hole.tobytes())
    white = None
    if picture.transparent is not None and (mask is None or not mask.hole[picture.transparent].all()):
        white = "transparent parts were laid on white"
    note = "; ".join(filter(None, (picture.note, white, mask and mask.note, chosen))) or None
    return Task(name, digest.hexdigest()[:16], (shape[0], shape[1]), region, note, picture.profile)


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
