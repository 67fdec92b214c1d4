"""What `inpaint --measure` knows of each image, in place of a hole."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from dcgan_jax import measurements
from dcgan_jax.errors import UserError
from dcgan_jax.images.pixels import to_float, to_uint8
from dcgan_jax.inpainting.region import Region, shrink

_FORMS = "low-resolution:FACTOR, grey, noise:LEVELS or grid:STEP"
_HALF_RANGE = 127.5  # grey levels of 255 in one unit of [-1, 1]


@dataclass(frozen=True)
class Measurement:
    """What is known of each image.

    Attributes:
        text: the text that it was parsed from.
        shape: the shape of the images that are measured: those of the prior.
        measure: a function of one image, see `dj.restore`.
        noise: standard deviation of the noise in its values, on the scale of [-1, 1].
    """

    text: str
    shape: tuple[int, int, int]
    measure: Callable[[Array], Array]
    noise: float = 0.0

    @classmethod
    def parse(cls, text: str, shape: tuple[int, int, int]) -> "Measurement":
        """Parses a measurement of images of a shape.

        Args:
            text: "low-resolution:8" (means of blocks of 8 by 8 pixels), "grey", "noise:25" (normal noise with a
                standard deviation of 25 of 255 grey levels) or "grid:4" (every fourth pixel of every fourth row).
            shape: the shape of the prior's images.

        Raises:
            UserError: the text has another form, or the measurement does not fit images of this shape.

        Example:
            >>> Measurement.parse("grid:4", (64, 64, 3)).values_shape
            (16, 16, 3)
        """
        found = re.fullmatch(r"(grey)|(low-resolution|grid):(\d{1,4})|(noise):(\d{1,3}(?:\.\d{1,3})?)", text, re.ASCII)
        kind, number = (x for x in found.groups() if x) if found and not found[1] else (text, "1")
        if not found or float(number) == 0:
            raise UserError(f"`measure` is {text!r}; it takes {_FORMS}, such as low-resolution:8 or noise:25")
        if kind == "noise":
            return cls(text, shape, measurements.Identity(), float(number) / _HALF_RANGE)
        made = {
            "low-resolution": lambda: measurements.LowResolution(int(number)),
            "grid": lambda: measurements.Grid(int(number)),
            "grey": measurements.Grey,
        }
        measurement = cls(text, shape, made[kind]())
        try:
            measurement.values_shape  # noqa: B018
        except ValueError as error:
            raise UserError(f"`measure` is {text!r}: {error}") from error
        return measurement

    @property
    def values_shape(self) -> tuple[int, int, int]:
        """The shape of the values of an image."""
        return jax.eval_shape(self.measure, jax.ShapeDtypeStruct(self.shape, jnp.float32)).shape

    def holds_values(self, pixels: UInt8[np.ndarray, "h w c"]) -> bool:
        """Tells whether a picture holds the values of an image, rather than an image to measure."""
        return pixels.shape == self.values_shape != self.shape

    def original(self, pixels: UInt8[np.ndarray, "H W c"], region: Region) -> UInt8[np.ndarray, "h w c"]:
        """Returns the region of a picture at the prior's size."""
        return shrink(pixels, np.zeros(pixels.shape[:2], bool), region, self.shape[:2])[0]

    def values(
        self, pixels: UInt8[np.ndarray, "h w c"], region: Region, noise_key: PRNGKeyArray | None = None
    ) -> Float[np.ndarray, "_ _ _"]:
        """Returns the values of a picture, on the scale of [-1, 1].

        Args:
            pixels: the picture. If it does not hold the values themselves, its region is measured at the prior's size.
            region: the region to restore.
            noise_key: adds noise. None adds no noise.
        """
        if self.holds_values(pixels):
            return to_float(pixels)
        values = self.measure(jnp.asarray(to_float(self.original(pixels, region))))
        if noise_key is not None:
            values = values + self.noise * jax.random.normal(noise_key, values.shape)
        return np.asarray(values)

    def view(self, values: Float[np.ndarray, "_ _ _"]) -> UInt8[np.ndarray, "h w c"]:
        """Shows values as an image: each as a block of pixels, grey values in all channels."""
        rows, columns = (np.arange(n) * m // n for n, m in zip(self.shape[:2], values.shape[:2], strict=True))
        return np.broadcast_to(to_uint8(values)[rows][:, columns], self.shape)
