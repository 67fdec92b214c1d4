"""Poisson blending: gradients from the completion, values at the hole's boundary from the image (Pérez et al. 2003)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dcgan_jax.blending.solver import all_edges, blend_each, check_blend, neighbour_sum, solve_in_hole


def poisson_blend(
    completion: Float[Array, "*b h w c"], image: Float[Array, "*b h w c"], hole: Bool[Array, "*#b h w"]
) -> Float[Array, "*b h w c"]:
    """Blends a completion into the hole of an image by Poisson's equation, on the device.

    The result is `argmin_x |grad x - grad completion|^2` subject to `x = image` on the known pixels. The gradient is
    taken over the pairs of 4-neighbours inside the image, so the image's own border is free (Neumann).

    The unknown is the correction `e = x - completion`. At each missing pixel i, `sum_j (e_i - e_j) = 0` over its
    neighbours j inside the image. At known neighbours `e = image - completion`. If the whole image is missing, e = 0.

    The function works under `jit`, `vmap`, `grad` and `jvp`; it has the derivatives of the exact solution. An image's
    result does not depend on the other images of its batch. A NaN in the completion gives NaN in the image's hole.

    Args:
        completion: any scale. Its values at known pixels matter too: they set the correction at the hole's boundary.
        image: same shape and dtype as `completion`. Values in the hole are never read.
        hole: True = missing (the papers' M is its opposite). Leading axes broadcast against those of `completion`.

    Returns:
        An array of the shape and dtype of `image`, equal to it bit for bit where `hole` is False. It is not clipped:
        its values may lie outside the range of both inputs.

    Raises:
        ValueError: a shape or dtype does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> hole = jnp.zeros((8, 8), bool).at[:4].set(True)
        >>> completion = jnp.zeros((8, 8, 1))
        >>> bool(jnp.allclose(poisson_blend(completion, completion + 0.5, hole), 0.5, atol=1e-5))
        True

    Source: Pérez, Gangnet, Blake, "Poisson image editing", SIGGRAPH 2003, eq. 7, 8. Used by Yeh et al., CVPR 2017,
    eq. 6, 7.
    """
    check_blend(completion, image, hole)
    return blend_each(_blend_one, jnp.asarray(completion), jnp.asarray(image), jnp.asarray(hole))


def _blend_one(
    completion: Float[Array, "h w c"], image: Float[Array, "h w c"], hole: Bool[Array, "h w"]
) -> Float[Array, "h w c"]:
    missing = hole[..., None]
    image = jnp.where(missing, 0, image)
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    # Channels first makes the innermost axis long enough for vector instructions.
    boundary = jnp.where(missing, 0, image - completion).astype(dtype).transpose(2, 0, 1)
    correction = solve_in_hole(hole, jnp.where(hole, neighbour_sum(boundary, *all_edges(hole.shape, dtype)), 0))
    blended = completion + correction.transpose(1, 2, 0).astype(completion.dtype)
    return jnp.where(missing, blended, image)
