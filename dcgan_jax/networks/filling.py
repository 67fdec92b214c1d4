"""A quick interpolation of known pixels into a hole, by pull and push."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def fill(known: Float[Array, "n s s c"], hole: Bool[Array, "n s s"]) -> Float[Array, "n s s c"]:
    """Fills holes with averages of the known pixels around them. The wider the gap, the wider the average.

    The image is halved until one pixel is left. A pixel of a smaller image is the mean of the known ones among its four
    pixels, and is itself known if one of them is. Then each image, enlarged, fills the holes of the next larger one.

    The result is linear in `known` and needs no solver. It resembles the correction that a blend adds to a completion,
    so training can use it in place of the blend.

    Args:
        known: images whose side is a power of two. Values in the hole have no influence if they are finite.
        hole: True = missing. Where an image has no known pixel, the result is 0.

    Source:
        Gortler et al., "The lumigraph", SIGGRAPH 1996, section 3.4.
    """
    weight = jnp.where(hole, 0, 1)[..., None].astype(known.dtype)
    image = known * weight
    levels = [(image, weight)]
    while image.shape[1] > 1:
        count = _sum_of_four(weight)
        image, weight = _sum_of_four(image) / jnp.maximum(count, 1), jnp.minimum(count, 1)
        levels.append((image, weight))
    for finer, weight in levels[-2::-1]:
        enlarged = jax.image.resize(image, finer.shape, "linear")
        image = finer + (1 - weight) * enlarged
    return image


def _sum_of_four(x: Float[Array, "n s s c"]) -> Float[Array, "n s/2 s/2 c"]:
    n, side, _, channels = x.shape
    return x.reshape(n, side // 2, 2, side // 2, 2, channels).sum(axis=(2, 4))
