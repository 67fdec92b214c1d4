"""Measurements of an image, for `restore`: functions of one image [h, w, c] in [−1, 1].

They are compared by value, so that equal ones share a compiled program. Any other differentiable function can take
their place.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class Identity:
    """The image itself, for images with noise."""

    def __call__(self, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Returns the image."""
        return image


@dataclass(frozen=True)
class LowResolution:
    """An image of lower resolution: the means of square blocks.

    Attributes:
        factor: side of a block in pixels. It divides height and width.
    """

    factor: int

    def __post_init__(self) -> None:
        _check_size("factor", self.factor)

    def __call__(self, image: Float[Array, "h w c"]) -> Float[Array, "h/f w/f c"]:
        """Returns the means of the blocks.

        Raises:
            ValueError: the factor does not divide height and width.
        """
        h, w, c = image.shape
        if h % self.factor or w % self.factor:
            raise ValueError(f"`factor` is {self.factor}, which does not divide an image of {h} by {w} pixels")
        return image.reshape(h // self.factor, self.factor, w // self.factor, self.factor, c).mean((1, 3))


@dataclass(frozen=True)
class Grey:
    """A grey image: 0.299 red + 0.587 green + 0.114 blue, the luma of ITU-R BT.601."""

    def __call__(self, image: Float[Array, "h w 3"]) -> Float[Array, "h w 1"]:
        """Returns the luma.

        Raises:
            ValueError: the image does not have three channels.
        """
        if image.shape[-1] != len(LUMA):
            raise ValueError(f"`Grey` takes an image of 3 channels; this one has {image.shape[-1]}")
        return jnp.sum(image * jnp.asarray(LUMA, image.dtype), axis=-1, keepdims=True)


@dataclass(frozen=True)
class Grid:
    """A grid of known pixels: every `step`-th row and column, from the first on.

    Attributes:
        step: distance between known pixels.
    """

    step: int

    def __post_init__(self) -> None:
        _check_size("step", self.step)

    def __call__(self, image: Float[Array, "h w c"]) -> Float[Array, "_ _ c"]:
        """Returns the pixels of the grid."""
        return image[:: self.step, :: self.step]


@dataclass(frozen=True, eq=False)
class Known:
    """The known pixels around a hole. With it, `restore` is `inpaint`.

    Attributes:
        hole: True where a pixel is missing; one for each image, or one [h, w] for all.
    """

    hole: Bool[Array | np.ndarray, "*b h w"]

    def __call__(self, image: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """Returns the image, grey (0) in the hole."""
        return jnp.where(jnp.asarray(self.hole)[..., None], 0, image)


BUILT_IN = (Identity, LowResolution, Grey, Grid)  # their values have the range of images


def _check_size(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` is {value!r}; it takes a whole number of pixels, 1 or more")
