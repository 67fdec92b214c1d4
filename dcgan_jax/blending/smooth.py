"""Blending that also expects images to be smooth: below some length their smoothness says more than the completion.

Poisson's equation keeps every gradient of the completion, those that are noise included. Here x, in the hole, is

    argmin |grad (x - G)|^2 + l^2 |D^2 (x - d G)|^2,  x = image where it is known,

of which the first term is Poisson's, and the second, the energy of a thin plate (D^2 are the second derivatives, the
mixed one twice), draws x to be smooth where the detail d is 0, to the completion at d = 1, and to more than that
beyond. What is longer than l comes from the completion's gradients. As splines in tension (Smith, Wessel 1990) it joins
what is known without the kinks of a membrane. Neither term reaches across the image's border.

One length serves the whole image, the shorter, the rougher the image is where it is known or the completion in the
hole: on a plain ground a good completion of something rough is blended almost as by Poisson's equation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dcgan_jax.blending.solver import blend_each, check_blend, laplacian, solve_in_hole

LONGEST = 4.0  # l in pixels, at the most: steps to the solution grow with it
MOST_DETAIL = 3.0  # d, at the most
SHARPNESS = 0.8  # of the energy to be expected, the goal: each tenth more costs 0.1 dB on faces
ROUGHNESS = 0.25  # of the completion's in the hole, that the image has there at the least: some of it is noise
_TINY = 1e-18  # of mean squares: what divides is no less, and its own square is still a float32


def smooth_blend(
    completion: Float[Array, "*b h w c"],
    image: Float[Array, "*b h w c"],
    hole: Bool[Array, "*#b h w"],
    sharp: bool = False,
) -> Float[Array, "*b h w c"]:
    """Blends completions into the holes of images, as smooth as the images are where they are known, or about as sharp.

    The result is argmin |grad (x - G)|^2 + l^2 |D^2 (x - d G)|^2 subject to x = image on the known pixels, where D^2
    are the second differences, of rows, columns and, twice, mixed. Both terms are taken for normal errors, and l^2, at
    most 16, is the ratio of their variances, for each image its own: that of the gradients of image - G where they are
    known, and that of the image's second differences, which is the mean over rows and columns where they are known, but
    no less than a quarter of what the completion's in the hole have more than its error where that is known.

    Works under `jit`, `vmap`, `grad` and `jvp`, on the device; images are solved apart from one another.

    Args:
        completion: G(z), any scale from 1e-6 to 1e9.
        image: shape and dtype of `completion`. Values in the hole are never read.
        hole: True = missing; leading axes broadcast against those of `completion`.
        sharp: choose d, for each image, such that the gradients of the missing pixels have 0.8 times the energy that
            is to be expected there: that of the image where it is known, times the cube root of the completion's energy
            in the hole over that where it is known. Otherwise d = 0, which has the least error.

    Returns:
        Shape and dtype of `image`: equal to it bit for bit where `hole` is False. Never clipped. A NaN in the
        completion gives NaN in the image's hole.

    Raises:
        ValueError: a shape or dtype does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> hole = jnp.zeros((8, 8), bool).at[2:5, 3:6].set(True)
        >>> image = jnp.linspace(0, 1, 64).reshape(8, 8, 1)
        >>> bool(jnp.allclose(smooth_blend(jnp.zeros((8, 8, 1)), image, hole), image, atol=1e-4))
        True

    Source:
        Pérez, Gangnet, Blake, "Poisson image editing", SIGGRAPH 2003, for the first term; Smith, Wessel, "Gridding with
        continuous curvature splines in tension", Geophysics 55, 1990, for both with G = 0.
    """
    check_blend(completion, image, hole)
    one = _sharp_one if sharp else _smooth_one
    return blend_each(one, jnp.asarray(completion), jnp.asarray(image), jnp.asarray(hole))


def _smooth_one(completion, image, hole):
    return _blend_one(completion, image, hole, False)


def _sharp_one(completion, image, hole):
    return _blend_one(completion, image, hole, True)


def _blend_one(completion, image, hole, sharp):
    """One image: [h, w, c], [h, w, c], [h, w]."""
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    guide, y = (x.astype(dtype).transpose(2, 0, 1) for x in (completion, image))
    y = jnp.where(hole, 0, y)
    square = _length_squared(guide, y, hole)

    def matrix(x):
        # Without a known pixel it would be singular, and any diagonal does: what is solved for is 0.
        return jnp.where(hole, laplacian(x) + square * _plate(x) + jnp.all(hole) * x, 0)

    def right_hand_side(detail):
        """What makes the correction x - G, which is known outside the hole."""
        rim = jnp.where(hole, 0, y - guide)
        return jnp.where(hole, -laplacian(rim) - square * _plate(rim + (1 - detail) * guide), 0)

    if not sharp:
        x = guide + solve_in_hole(hole, right_hand_side(0.0), matrix)
    else:
        # x is linear in d, and its gradients' energy a parabola.
        both = jnp.concatenate([right_hand_side(0.0), right_hand_side(1.0)])
        smooth, whole = jnp.split(solve_in_hole(hole, both, matrix), 2)
        start, slope = jnp.where(hole, guide + smooth, y), whole - smooth
        _, a = _products(slope, slope, hole)
        _, b = _products(start, slope, hole)
        _, c = _products(start, start, hole)
        guide_known, guide_missing = _products(guide, guide, hole)
        known, _ = _products(y, y, hole)
        goal = SHARPNESS * known * jnp.cbrt(jnp.maximum(guide_missing / jnp.maximum(guide_known, _TINY), _TINY))
        # Where d has next to no say in it, it is next to 0. Ratios first: products would leave the range of float32.
        steepness = jnp.where(a > jnp.maximum(1e-10 * (c + goal), _TINY), a, jnp.inf)
        lowest = -b / steepness
        root = jnp.sqrt(jnp.maximum(lowest**2 - (c - goal) / steepness, _TINY))
        x = start + jnp.clip(lowest + root, 0, MOST_DETAIL) * slope
    return jnp.where(hole[..., None], x.transpose(1, 2, 0).astype(image.dtype), image)


def _length_squared(guide, y, hole):
    error = y - guide
    gradients, _ = _products(error, error, hole)
    known, _ = _products(y, y, hole, order=2)
    noise, _ = _products(error, error, hole, order=2)
    _, missing = _products(guide, guide, hole, order=2)
    roughness = jnp.maximum(known, ROUGHNESS * (missing - noise))
    return gradients / jnp.maximum(jnp.maximum(roughness, gradients / LONGEST**2), _TINY)


def _products(x, other, hole, order=1):
    """Mean products of the differences along rows and columns: of those between known pixels, and of the others."""
    sums, counts = jnp.zeros(2, x.dtype), jnp.zeros(2, jnp.int32)
    for turned in (False, True):
        a, b, missing = (z.swapaxes(-2, -1) if turned else z for z in (x, other, hole))
        for _ in range(order):
            missing = missing[1:] | missing[:-1]
        where = jnp.stack([~missing, missing])
        product = jnp.diff(a, order, axis=-2) * jnp.diff(b, order, axis=-2)
        sums += jnp.sum(jnp.where(where[:, None], product, 0), axis=(1, 2, 3))
        counts += jnp.sum(where, axis=(1, 2))
    return sums / jnp.maximum(counts, 1)


def _plate(x):
    """The gradient of half the energy of a thin plate with free borders; a plane has none."""

    def energy(x):
        down, right, mixed = jnp.diff(x, 2, axis=-2), jnp.diff(x, 2, axis=-1), jnp.diff(jnp.diff(x, axis=-2), axis=-1)
        return (jnp.sum(down**2) + jnp.sum(right**2) + 2 * jnp.sum(mixed**2)) / 2

    return jax.grad(energy)(x)
