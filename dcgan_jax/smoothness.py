"""Blending that also expects images to be smooth: below some length their smoothness says more than the completion.

Poisson's equation keeps every gradient of the completion, those that are noise included. Here x, in the hole, is

    argmin |grad (x - G)|^2 + l^2 |Delta (x - d G)|^2,  x = image where it is known,

of which the first term is Poisson's, and the second, of a thin plate, draws x to be smooth where the detail d is 0, to
the completion at d = 1, and to more than that beyond. What is longer than l comes from the completion's gradients. As
splines in tension (Smith, Wessel 1990) it joins what is known without the kinks of a membrane.

One length serves the whole image: where the known part is plain and what is missing is not, a good completion is
smoothed away, and Poisson's equation is better. Beyond the image's border nothing is known, and both terms take it for
flat there.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dcgan_jax.poisson import blend_each, check_blend, laplacian, solve_in_hole

LONGEST = 4.0  # l in pixels, at the most: steps to the solution grow with it
MOST_DETAIL = 3.0  # d, at the most


def smooth_blend(
    completion: Float[Array, "*b h w c"],
    image: Float[Array, "*b h w c"],
    hole: Bool[Array, "*#b h w"],
    sharp: bool = False,
) -> Float[Array, "*b h w c"]:
    """Blends completions into the holes of images, as smooth as the images are where they are known, or as sharp.

    Both terms above are taken for normal errors, whose variances show where the image is known: that of the gradients
    of image - G, and that of the image's second differences. Their ratio is l^2, for each image its own.

    Works under `jit`, `vmap`, `grad` and `jvp`, on the device; images are solved apart from one another.

    Args:
        completion: G(z), on about [-1, 1]; far smaller or larger values meet the bounds of the estimates.
        image: shape and dtype of `completion`. Values in the hole are never read.
        hole: True = missing; leading axes broadcast against those of `completion`.
        sharp: choose d, for each image, such that the gradients in the hole have the energy of the completion's there,
            times that of the image's over the completion's where both are known. Otherwise d = 0, which has the least
            error.

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
        return jnp.where(hole, laplacian(x + square * laplacian(x)) + jnp.all(hole) * x, 0)

    def right_hand_side(detail):
        """What makes the correction x - G, which is known outside the hole."""
        rim = jnp.where(hole, 0, y - guide)
        bent = laplacian(rim) + (1 - detail) * laplacian(guide)
        return jnp.where(hole, -laplacian(rim + square * bent), 0)

    if not sharp:
        x = guide + solve_in_hole(hole, right_hand_side(0.0), matrix)
    else:
        # x is linear in d, and its gradients' energy a parabola.
        both = jnp.concatenate([right_hand_side(0.0), right_hand_side(1.0)])
        smooth, whole = jnp.split(solve_in_hole(hole, both, matrix), 2)
        start, slope = guide + smooth, whole - smooth
        a, b, c = (_gradients(*pair, hole) for pair in ((slope, slope), (start, slope), (start, start)))
        known = ~hole
        ratio = _gradients(y, y, known) / jnp.maximum(_gradients(guide, guide, known), 1e-6)
        goal = _gradients(guide, guide, hole) * ratio
        root = jnp.sqrt(jnp.maximum(b * b - a * (c - goal), 1e-12))
        steepness = jnp.where(a > 1e-6, a, jnp.inf)  # without neighbours in the hole d has no say in it, and is 0
        detail = jnp.clip((root - b) / steepness, 0, MOST_DETAIL)
        x = start + detail * slope
    return jnp.where(hole[..., None], x.transpose(1, 2, 0).astype(image.dtype), image)


def _length_squared(guide, y, hole):
    """l^2: the mean square of the gradients of y - G over that of y's second differences, where they are known."""
    error = y - guide
    gradients, bends = jnp.zeros((), y.dtype), jnp.zeros((), y.dtype)
    pairs, triples = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    for axis in (0, 1):
        known = jnp.moveaxis(~hole, axis, 0)
        two = known[1:] & known[:-1]
        three = two[1:] & two[:-1]
        first, second = (jnp.moveaxis(jnp.diff(x, n, axis=1 + axis), 1 + axis, 1) for x, n in ((error, 1), (y, 2)))
        gradients += jnp.sum(jnp.where(two, first, 0) ** 2)
        bends += jnp.sum(jnp.where(three, second, 0) ** 2)
        pairs, triples = pairs + jnp.sum(two), triples + jnp.sum(three)
    ratio = gradients * triples / jnp.maximum(bends * pairs, 1e-6)
    return jnp.clip(ratio, 0, LONGEST**2)


def _gradients(x, other, where):
    """Products of the differences of neighbours that both count, their sum."""
    down, right = where[1:] & where[:-1], where[:, 1:] & where[:, :-1]
    vertical = jnp.where(down, jnp.diff(x, axis=1) * jnp.diff(other, axis=1), 0)
    return jnp.sum(vertical) + jnp.sum(jnp.where(right, jnp.diff(x, axis=2) * jnp.diff(other, axis=2), 0))
