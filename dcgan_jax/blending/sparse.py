"""Poisson blending on the host, by sparse factorisation."""

from collections.abc import Callable

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Bool, Float

from dcgan_jax.blending.solver import check_blend


def poisson_blend_sparse(
    completion: Float[np.ndarray, "*b h w c"],
    image: Float[np.ndarray, "*b h w c"],
    hole: Bool[np.ndarray, "*#b h w"],
) -> Float[np.ndarray, "*b h w c"]:
    """Computes `poisson_blend` on the host, by a sparse factorisation in float64.

    Each distinct hole is factorised once, for all channels of all images with this hole.

    Args:
        completion: any scale.
        image: same shape and dtype as `completion`. Values in the hole are never read.
        hole: True = missing. Leading axes broadcast against those of `completion`.

    Returns:
        An array of the shape and dtype of `image`, equal to it bit for bit where `hole` is False. It is not clipped.

    Raises:
        ValueError: a shape or dtype does not fit.

    Example:
        >>> import numpy as np
        >>> hole = np.eye(8, dtype=bool)
        >>> completion = np.zeros((8, 8, 1), np.float32)
        >>> bool(np.allclose(poisson_blend_sparse(completion, completion + 0.5, hole), 0.5))
        True

    Source: Pérez et al., SIGGRAPH 2003, eq. 7, 8.
    """
    completion, image, hole = np.asarray(completion), np.asarray(image), np.asarray(hole)
    check_blend(completion, image, hole)
    height, width, channels = image.shape[-3:]
    holes = np.broadcast_to(hole, (*image.shape[:-3], height, width)).reshape(-1, height, width)
    blended = image.reshape(-1, height, width, channels).copy()
    completions = completion.reshape(blended.shape)

    same_mask: dict[bytes, list[int]] = {}
    for i, one in enumerate(holes):
        same_mask.setdefault(one.tobytes(), []).append(i)
    for members in same_mask.values():
        one = holes[members[0]]
        solve = _sparse_solver(one) if one.any() and not one.all() else None
        for i in members:
            filled = completions[i][one].astype(np.float64)
            if solve is not None:
                filled += solve(blended[i][~one].astype(np.float64) - completions[i][~one])
            blended[i][one] = filled.astype(blended.dtype)
    return blended.reshape(image.shape)


def _sparse_solver(hole: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Factorises the matrix of one hole.

    Returns:
        A function: correction at the known pixels [k, c] -> correction at the missing pixels [m, c].
    """
    index = np.arange(hole.size).reshape(hole.shape)
    first = np.concatenate([index[1:].ravel(), index[:, 1:].ravel()])
    second = np.concatenate([index[:-1].ravel(), index[:, :-1].ravel()])
    pairs = (np.concatenate([first, second]), np.concatenate([second, first]))
    adjacency = scipy.sparse.csr_matrix((np.ones(2 * first.size), pairs), shape=(hole.size, hole.size))
    missing = hole.ravel()
    from_missing = adjacency[missing]
    to_known = from_missing[:, ~missing]
    degree = scipy.sparse.diags(np.asarray(from_missing.sum(axis=1)).ravel())
    # SuperLU's options for a symmetric positive definite matrix.
    factor = scipy.sparse.linalg.splu(
        (degree - from_missing[:, missing]).tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    return lambda known: factor.solve(to_known @ known)
