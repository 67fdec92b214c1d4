"""Completes the photographs of the page, by the same plan, search and blend as the command `inpaint`."""

import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from dcgan_jax.command.inpaint import search_tasks
from dcgan_jax.command.pairing import cannot_be_read
from dcgan_jax.command.plan import Plan, Settings, make_plan
from dcgan_jax.command.results import note_of
from dcgan_jax.errors import UserError
from dcgan_jax.evaluation.holes import image_name
from dcgan_jax.inpainting.config import InpaintConfig, default_config
from dcgan_jax.inpainting.inpaint import check_config
from dcgan_jax.inpainting.photograph import blend_back, blend_each_back, mean_image
from dcgan_jax.inpainting.region import Region
from dcgan_jax.pictures import Mask, Picture, read_mask, read_picture
from dcgan_jax.priors.files import load_prior
from dcgan_jax.priors.prior import Prior

_DEFAULT = "default"  # the search from random latents of a prior without an encoder


@dataclass(frozen=True)
class Order:
    """What a visitor of the page asks for.

    Attributes:
        name: of the photograph's file. It seeds the search, as in the command.
        photograph: content of the file.
        mask: content of the mask's file; None if nothing is missing yet.
        prior: a name of `Completer.names`.
        preset: of the search; None takes the best.
        crop: see `inpaint_photograph`.
        elsewhere: see `inpaint_photograph`.
        seed: of the search.
    """

    name: str
    photograph: bytes
    mask: bytes | None
    prior: str
    preset: str | None = None
    crop: str | None = None
    elsewhere: str | None = None
    seed: int = 0


class Completed(NamedTuple):
    """A completed photograph.

    Attributes:
        images: the completions at full size, the best first.
        mean: their mean, if there are several.
        region: that was completed.
        note: what the visitor should know.
        profile: ICC profile of the pixels.
    """

    images: list[UInt8[np.ndarray, "h w c"]]
    mean: UInt8[np.ndarray, "h w c"] | None
    region: Region
    note: str
    profile: bytes | None


class Completer:
    """Completes photographs. Priors stay in memory; photographs do not."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._priors: dict[str, Prior] = {}
        self._reading = threading.Lock()
        self._compiled: set[tuple[str, InpaintConfig]] = set()

    def prior(self, name: str) -> Prior:
        """Returns a prior by its name, and reads it at the first call; `UserError` if there is none."""
        if name not in self.names:
            raise UserError(f"there is no prior {name!r}: choose one of {', '.join(self.names)}")
        with self._reading:
            if name not in self._priors:
                self._priors[name] = load_prior(name)
            return self._priors[name]

    def presets(self, name: str) -> list[str]:
        """The presets that a prior allows, the default first."""
        guided = ["best", "fast", "several"] if self.prior(name).encode is not None else [_DEFAULT]
        return [*guided, "yeh2017", "he2018"]

    def is_compiled(self, order: Order) -> bool:
        """Tells whether an order like this was completed before, so that its program is ready."""
        return (order.prior, self._config(order)) in self._compiled

    def plan(self, order: Order) -> Plan:
        """Finds the region of an order; `UserError` if there is none or a file cannot be read."""
        prior, config = self.prior(order.prior), self._config(order)
        check_config(prior, config)
        if not 0 <= order.seed < 2**63:
            raise UserError(f"`seed` is {order.seed}; it takes 0 to 2**63 - 1")
        settings = Settings(
            config,
            mask=None,
            measurement=None,
            crop=order.crop,
            elsewhere=order.elsewhere,
            score=False,
            gif=False,
            label=None,
            seed=order.seed,
        )
        picture = read_photograph(order.name, order.photograph, prior.image_shape[2])
        mask = Mask(np.zeros(picture.pixels.shape[:2], bool))
        if order.mask is not None:
            mask = read_hole("the mask", order.mask)
        return make_plan(prior, {image_name(order.name): lambda: picture}, lambda name, picture: mask, settings)

    def complete(self, order: Order) -> Completed:
        """Completes a photograph; `UserError` says what is wrong with an order."""
        prior, plan = self.prior(order.prior), self.plan(order)
        (task,) = plan.tasks
        picture = plan.inputs.picture(task.name).pixels
        hole = plan.inputs.hole(task, plan.settings, prior.image_shape[0])
        if not hole.any():
            raise UserError("nothing is missing: paint over what should be replaced")
        ((_, result),) = search_tasks(prior, plan, [task], slots=1)
        self._compiled.add((order.prior, plan.settings.config))
        images, mean = [blend_back(result, picture, hole, task.region)], None
        if result.alternatives is not None:
            each = blend_each_back(result, picture, hole, task.region)
            images, mean = list(each), mean_image(each)
        return Completed(images, mean, task.region, note_of(task, result), task.profile)

    def _config(self, order: Order) -> InpaintConfig:
        if order.preset in (None, _DEFAULT):
            return default_config(self.prior(order.prior))
        return InpaintConfig.preset(order.preset)


def read_photograph(name: str, data: bytes, channels: int = 3) -> Picture:
    """Reads a photograph; `UserError` if it cannot be read."""
    with cannot_be_read(name):
        return read_picture(data, channels)


def read_hole(name: str, data: bytes) -> Mask:
    """Reads a mask; `UserError` if it cannot be read."""
    with cannot_be_read(name):
        return read_mask(data)


def as_picture(hole: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """A mask as a picture: white = missing."""
    return np.where(hole, np.uint8(255), np.uint8(0))
