"""Poisson blending: gradients from the completion, colours at the rim from the image (Perez et al. 2003)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dcgan_jax.blending.solver import _all_edges, _neighbours, blend_each, check_blend, solve_in_hole


def poisson_blend(
    completion: Float[Array, "*b h w c"], image: Float[Array, "*b h w c"], hole: Bool[Array, "*#b h w"]
) -> Float[Array, "*b h w c"]:
    """Blends a completion into the hole of an image, on the device.

    The result is `argmin_x |grad x - grad completion|^2` subject to `x = image` on the known pixels. The
    gradient is taken over the pairs of 4-neighbours inside the image, so the image's own edge is free
    (Neumann). Solved for the correction `e = x - completion`: at each missing pixel i, `sum_j (e_i - e_j) =
    0` over its neighbours j inside the image, with `e = image - completion` at known neighbours. Where the
    whole image is missing, e = 0.

    Works under `jit`, `vmap`, `grad` and `jvp`; derivatives are those of the exact solution. Images are
    solved apart from one another: an image's result does not depend on the others of its batch. A NaN in the
    completion gives NaN in the image's hole.

    Args:
        completion: any scale; its values at known pixels count too, as they set the correction at the rim.
        image: shape and dtype of `completion`. Values in the hole are never read.
        hole: True = missing (the papers' M is its opposite); leading axes broadcast against those of
            `completion`.

    Returns:
        Shape and dtype of `image`: equal to it bit for bit where `hole` is False. Never clipped: the range
        may exceed that of both inputs.

    Raises:
        ValueError: a shape or dtype does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> hole = jnp.zeros((8, 8), bool).at[:4].set(True)
        >>> completion = jnp.zeros((8, 8, 1))
        >>> bool(jnp.allclose(poisson_blend(completion, completion + 0.5, hole), 0.5, atol=1e-5))
        True

    Source: Perez, Gangnet, Blake, "Poisson image editing", SIGGRAPH 2003, eq. 7, 8; used by Yeh et al., CVPR
    2017, eq. 6, 7.
    """
    check_blend(completion, image, hole)
    return blend_each(_blend_one, jnp.asarray(completion), jnp.asarray(image), jnp.asarray(hole))


def _blend_one(completion, image, hole):
    """One image: [h, w, c], [h, w, c], [h, w]."""
    missing = hole[..., None]
    image = jnp.where(missing, 0, image)
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    # Channels first: the innermost axis is then long enough for vector instructions.
    rim = jnp.where(missing, 0, image - completion).astype(dtype).transpose(2, 0, 1)
    correction = solve_in_hole(hole, jnp.where(hole, _neighbours(rim, *_all_edges(hole.shape, dtype)), 0))
    blended = completion + correction.transpose(1, 2, 0).astype(completion.dtype)
    return jnp.where(missing, blended, image)
