"""Blending with a second term, which makes the image smooth at small scales.

Poisson's equation keeps every gradient of the completion G, including its noise. Here the result in the hole is

    argmin |grad (x - G)|^2 + l^2 |D^2 x|^2,  x = image on the known pixels.

The first term is the one of Poisson's equation. The second term is the bending energy of a thin plate, which makes x
smooth. D^2 denotes the second derivatives; the mixed one counts twice. Structure longer than the length l comes from
the gradients of the completion. The result is a spline in tension (Smith, Wessel 1990): it joins the known pixels
without the kinks of a membrane. Neither term crosses the image's border.

There is one length l per image. It shrinks as the known pixels, or the completion in the hole, get rougher. So a good
completion of a rough object on a plain background is blended almost as by Poisson's equation.

What has the least error is softer than the original. The sharp blend adds to x a multiple of its own Laplacian, which
exaggerates the detail that x has. For the same sharpness this costs less error than detail that x does not have. The
Laplacian exaggerates the finest detail most, and that of a generated image may be a checkerboard, which transposed
convolutions leave. So neither the gradients nor the second differences may exceed what is expected of them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dcgan_jax.blending.solver import blend_each, check_blend, laplacian, solve_in_hole

LONGEST = 4.0  # largest l in pixels; a larger l takes the solver more steps
MOST_DETAIL = 2.0  # largest multiple of the Laplacian
SHARPNESS = 0.9  # fraction of the expected energies; each 0.1 more costs 0.1 dB on faces
ROUGHNESS = 0.25  # least roughness in the hole, as a fraction of the completion's roughness beyond its noise
_TINY = 1e-18  # least divisor of mean squares; its square is still above float32's smallest number


def smooth_blend(
    completion: Float[Array, "*b h w c"],
    image: Float[Array, "*b h w c"],
    hole: Bool[Array, "*#b h w"],
    sharp: bool = False,
) -> Float[Array, "*b h w c"]:
    """Blends completions into the holes of images. The result is as smooth as the known pixels, or nearly as sharp.

    The result is argmin |grad (x - G)|^2 + l^2 |D^2 x|^2 subject to x = image on the known pixels. D^2 denotes the
    second differences along rows and columns, and the mixed ones twice.

    The model treats both terms as normal errors. l^2 is the ratio of their variances, at most 16, and is computed for
    each image:

    - The numerator is the mean square of the gradients of image - G at known pixels.
    - The denominator is the larger of two numbers. The first is the mean square of the image's second differences along
      rows and columns at known pixels. The second is (s - t) / 4. Here s is the mean square of the completion's second
      differences in the hole, and t is the mean square of the second differences of image - G at known pixels.

    The function works under `jit`, `vmap`, `grad` and `jvp`, on the device. An image's result does not depend on the
    other images of its batch.

    Args:
        completion: G(z), any scale from 1e-6 to 1e9.
        image: same shape and dtype as `completion`. Values in the hole are never read.
        hole: True = missing. Leading axes broadcast against those of `completion`.
        sharp: False gives x, which has the least error. True gives x + d L x in the hole. L x is the Laplacian: the sum
            of a pixel's differences from its 4-neighbours. The number d, from 0 to 2, is the largest for each image
            with which neither the gradients nor the second differences in the hole exceed 0.9 times their expected
            energy. The expected energy is e · cbrt(h / k): e is the energy of the image's differences at known pixels;
            h and k are the energies of the completion's differences in the hole and at known pixels. If there is no
            such number, d is the one with the least energy, usually 0. So it is where no three known pixels lie in a
            row.

    Returns:
        An array of the shape and dtype of `image`, equal to it bit for bit where `hole` is False. It is not clipped. A
        NaN in the completion gives NaN in the image's hole.

    Raises:
        ValueError: a shape or dtype does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> hole = jnp.zeros((8, 8), bool).at[2:5, 3:6].set(True)
        >>> image = jnp.linspace(0, 1, 64).reshape(8, 8, 1)
        >>> bool(jnp.allclose(smooth_blend(jnp.zeros((8, 8, 1)), image, hole), image, atol=1e-4))
        True

    Source:
        The first term: Pérez, Gangnet, Blake, "Poisson image editing", SIGGRAPH 2003. Both terms with G = 0: Smith,
        Wessel, "Gridding with continuous curvature splines in tension", Geophysics 55, 1990.
    """
    check_blend(completion, image, hole)
    one = _sharp_one if sharp else _smooth_one
    return blend_each(one, jnp.asarray(completion), jnp.asarray(image), jnp.asarray(hole))


def _smooth_one(completion: Array, image: Array, hole: Array) -> Array:
    return _blend_one(completion, image, hole, False)


def _sharp_one(completion: Array, image: Array, hole: Array) -> Array:
    return _blend_one(completion, image, hole, True)


def _blend_one(
    completion: Float[Array, "h w c"], image: Float[Array, "h w c"], hole: Bool[Array, "h w"], sharp: bool
) -> Float[Array, "h w c"]:
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    guide, y = (x.astype(dtype).transpose(2, 0, 1) for x in (completion, image))
    y = jnp.where(hole, 0, y)
    square = _length_squared(guide, y, hole)

    def matrix(x: Array) -> Array:
        # Without a known pixel the matrix would be singular. The solution is then 0; any positive diagonal gives it.
        return jnp.where(hole, laplacian(x) + square * _plate(x) + jnp.all(hole) * x, 0)

    known = jnp.where(hole, 0, y - guide)  # the correction x - G outside the hole
    right_hand_side = jnp.where(hole, -laplacian(known) - square * _plate(known + guide), 0)
    x = guide + solve_in_hole(hole, right_hand_side, matrix)
    if sharp:
        x = jnp.where(hole, x, y)
        slope = jnp.where(hole, laplacian(x), 0)
        detail = jnp.minimum(*(_detail(x, slope, guide, hole, order) for order in (1, 2)))
        x = x + jnp.clip(detail, 0, MOST_DETAIL) * slope
    return jnp.where(hole[..., None], x.transpose(1, 2, 0).astype(image.dtype), image)


def _detail(
    x: Float[Array, "c h w"],
    slope: Float[Array, "c h w"],
    guide: Float[Array, "c h w"],
    hole: Bool[Array, "h w"],
    order: int,
) -> Float[Array, ""]:
    """Computes the d with which the differences of x + d · slope in the hole have the energy that is aimed at."""
    # The image is linear in d, so the energy of its differences is a parabola: a d^2 + 2 b d + c.
    _, a = _products(slope, slope, hole, order)
    _, b = _products(x, slope, hole, order)
    energy, c = _products(x, x, hole, order)
    guide_known, guide_missing = _products(guide, guide, hole, order)
    goal = SHARPNESS * energy * jnp.cbrt(jnp.maximum(guide_missing / jnp.maximum(guide_known, _TINY), _TINY))
    # If the energy hardly depends on d, d becomes nearly 0. The code forms ratios first, because products would
    # exceed the range of float32.
    steepness = jnp.where(a > jnp.maximum(1e-10 * (c + goal), _TINY), a, jnp.inf)
    lowest = -b / steepness
    return lowest + jnp.sqrt(jnp.maximum(lowest**2 - (c - goal) / steepness, _TINY))


def _length_squared(
    guide: Float[Array, "c h w"], y: Float[Array, "c h w"], hole: Bool[Array, "h w"]
) -> Float[Array, ""]:
    """Computes l^2 of one image."""
    error = y - guide
    gradients, _ = _products(error, error, hole)
    known, _ = _products(y, y, hole, order=2)
    noise, _ = _products(error, error, hole, order=2)
    _, missing = _products(guide, guide, hole, order=2)
    roughness = jnp.maximum(known, ROUGHNESS * (missing - noise))
    return gradients / jnp.maximum(jnp.maximum(roughness, gradients / LONGEST**2), _TINY)


def _products(
    x: Float[Array, "c h w"], other: Float[Array, "c h w"], hole: Bool[Array, "h w"], order: int = 1
) -> Float[Array, "2"]:
    """Averages the products of two images' differences along rows and columns.

    Returns:
        The mean over differences between known pixels only, and the mean over all other differences.
    """
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


def _plate(x: Float[Array, "c h w"]) -> Float[Array, "c h w"]:
    """Computes the gradient of half the bending energy of a thin plate with free borders. It is 0 for a plane."""

    def energy(x: Array) -> Array:
        down, right, mixed = jnp.diff(x, 2, axis=-2), jnp.diff(x, 2, axis=-1), jnp.diff(jnp.diff(x, axis=-2), axis=-1)
        return (jnp.sum(down**2) + jnp.sum(right**2) + 2 * jnp.sum(mixed**2)) / 2

    return jax.grad(energy)(x)
