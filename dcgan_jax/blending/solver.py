"""Poisson's equation in a hole: conjugate gradients with a multigrid preconditioner."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dcgan_jax.masks import check_hole

_DAMPING = 0.8  # of the Jacobi smoother
_SWEEPS = 2  # must be at least 2, see `_smooth`
_COARSEST = 4  # longest side of the coarsest grid
# Never reached: Poisson's equation takes about ten, smoothness.py up to 150, in float64 each twice as many.
_MAX_STEPS = 500


def check_blend(completion, image, hole) -> None:
    """Raises ValueError where shapes and types are not those of a blend."""
    for name, array in (("completion", completion), ("image", image)):
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise ValueError(f"`{name}` is {jnp.result_type(array)}; it takes floats, e.g. uint8 / 127.5 - 1")
        if jnp.ndim(array) < 3:
            raise ValueError(f"`{name}` has shape {jnp.shape(array)}; it takes [..., h, w, c]")
    if jnp.shape(image) != jnp.shape(completion) or jnp.result_type(image) != jnp.result_type(completion):
        raise ValueError(
            f"`image` is {jnp.result_type(image)}{list(jnp.shape(image))} and `completion` "
            f"{jnp.result_type(completion)}{list(jnp.shape(completion))}; they take the same dtype and shape"
        )
    check_hole(hole, jnp.shape(image)[:-1])


# The hole's Laplacian is symmetric positive definite whenever one pixel is known: the grid is connected, so
# each component of the hole touches a known pixel. Conjugate gradients, preconditioned by one multigrid
# V-cycle, then need about ten steps whatever the mask and the size. The coarse grids are Galerkin products
# over 2x2 cells, so ragged holes and single pixels are represented exactly; no geometry is assumed.


class _Level(NamedTuple):
    """A grid of the hierarchy: (A x)_i = diagonal_i x_i - sum_j weight_ij x_j; all zero outside the hole."""

    vertical: Array  # [h - 1, w], weight of the edge between a pixel and the one below
    horizontal: Array  # [h, w - 1], weight of the edge between a pixel and the one to the right
    diagonal: Array  # [h, w]


class _State(NamedTuple):
    """Conjugate gradients for one image."""

    solution: Array  # [c, h, w]
    residual: Array  # [c, h, w]
    direction: Array  # [c, h, w]
    energy: Array  # residual . preconditioned residual, of the step before
    steps: Array


def _neighbours(x, vertical, horizontal):
    """Weighted sum over the 4-neighbours inside the image."""
    rows = [(0, 0)] * (x.ndim - 2)
    return (
        jnp.pad(vertical * x[..., 1:, :], [*rows, (0, 1), (0, 0)])
        + jnp.pad(vertical * x[..., :-1, :], [*rows, (1, 0), (0, 0)])
        + jnp.pad(horizontal * x[..., :, 1:], [*rows, (0, 0), (0, 1)])
        + jnp.pad(horizontal * x[..., :, :-1], [*rows, (0, 0), (1, 0)])
    )


def _apply(level: _Level, x):
    return level.diagonal * x - _neighbours(x, level.vertical, level.horizontal)


def _pool(x, rows: int = 2, columns: int = 2):
    """Sums over cells; the last ones may be cut by the border."""
    height, width = x.shape[-2:]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -height % rows), (0, -width % columns)])
    cell = (1,) * (x.ndim - 2) + (rows, columns)
    return jax.lax.reduce_window(x, np.zeros((), x.dtype)[()], jax.lax.add, cell, cell, "VALID")


def _hierarchy(hole, dtype) -> list[_Level]:
    inside = hole.astype(dtype)
    vertical, horizontal = inside[1:] * inside[:-1], inside[:, 1:] * inside[:, :-1]
    to_known = inside * _neighbours(1 - inside, *_all_edges(hole.shape, dtype))
    # Without a known pixel the matrix would be singular (its right-hand side is 0 and so is e, but a
    # derivative's is not): any positive diagonal keeps e = 0.
    to_known = to_known + jnp.all(hole)
    levels = []
    while True:
        diagonal = to_known + _neighbours(jnp.ones_like(to_known), vertical, horizontal)
        levels.append(_Level(vertical, horizontal, diagonal))
        if max(to_known.shape) <= _COARSEST:
            return levels
        # Cell-wise constants overestimate the energy of smooth functions: twice between cells, 3/2 times
        # between a cell's centre and a known pixel beyond its side.
        vertical, horizontal = _pool(vertical[1::2], 1, 2) / 2, _pool(horizontal[:, 1::2], 2, 1) / 2
        to_known = _pool(to_known) * (2 / 3)


def _all_edges(shape, dtype):
    height, width = shape
    return np.ones((height - 1, width), dtype), np.ones((height, width - 1), dtype)


def _smooth(level: _Level, x, b):
    """Damped Jacobi sweeps.

    Kept as a loop of two or more: XLA's CPU backend fuses straight-line stencils into one another, recomputes
    the inner ones at every use, and the V-cycle takes twenty times as long.
    """
    inverse = jnp.where(level.diagonal > 0, _DAMPING / level.diagonal, 0)
    return jax.lax.fori_loop(0, _SWEEPS, lambda _, x: x + inverse * (b - _apply(level, x)), x)


def _v_cycle(levels: list[_Level], b):
    """A symmetric approximation of A^-1 b."""
    level, *coarser = levels
    x = _smooth(level, jnp.zeros_like(b), b)
    if coarser:
        coarse = _v_cycle(coarser, _pool(b - _apply(level, x)))
        height, width = b.shape[-2:]
        fine = jnp.repeat(jnp.repeat(coarse, 2, axis=-2), 2, axis=-1)[..., :height, :width]
        x = x + jnp.where(level.diagonal > 0, fine, 0)
    return _smooth(level, x, b)


def _init(b) -> _State:
    zero = jnp.zeros_like(b)
    return _State(zero, b, zero, jnp.ones((), b.dtype), jnp.zeros((), jnp.int32))


def _step(matrix: Callable[[Array], Array], levels: list[_Level], state: _State) -> _State:
    z = _v_cycle(levels, state.residual)
    energy = jnp.vdot(state.residual, z)
    direction = z + (energy / state.energy) * state.direction
    product = matrix(direction)
    length = energy / jnp.vdot(direction, product)
    solution = state.solution + length * direction
    return _State(solution, state.residual - length * product, direction, energy, state.steps + 1)


def _run(matrix: Callable[[Array], Array], levels: list[_Level], b) -> _State:
    """Steps until the residual is ten rounding units of the right-hand side."""
    goal = (10 * float(jnp.finfo(b.dtype).eps)) ** 2 * jnp.vdot(b, b)

    def unfinished(state):
        return (jnp.vdot(state.residual, state.residual) > goal) & (state.steps < _MAX_STEPS)

    return jax.lax.while_loop(unfinished, lambda state: _step(matrix, levels, state), _init(b))


def solve_in_hole(
    hole: Bool[Array, "h w"],
    b: Float[Array, "c h w"],
    matrix: Callable[[Float[Array, "c h w"]], Float[Array, "c h w"]] | None = None,
) -> Float[Array, "c h w"]:
    """Solves for what is 0 outside the hole, on the device, with the derivatives of the exact solution.

    Args:
        b: the right-hand sides, 0 outside the hole.
        matrix: symmetric and positive definite in the hole, 0 outside; by default the hole's Laplacian, which
            preconditions any other: the nearer it is, the fewer steps.

    Returns:
        The solutions, to ten rounding units of `b`; NaN where `b` is not finite.
    """
    levels = _hierarchy(hole, b.dtype)
    own = functools.partial(_apply, levels[0]) if matrix is None else matrix

    def solve(matrix, b):
        # Squares of tiny values would be 0, and those of large ones infinite.
        largest = jnp.max(jnp.abs(b))
        scale = jnp.where(largest > 0, largest, 1)
        # Comparisons with NaN are false: the loop stops at once, and the zeros it started from must not pass.
        return jnp.where(jnp.isfinite(largest), scale * _run(matrix, levels, b / scale).solution, jnp.nan)

    # Derivatives solve with the same matrix instead of going through the loop, and their right-hand sides too must be 0
    # outside the hole.
    return jnp.where(hole, jax.lax.custom_linear_solve(own, b, solve, symmetric=True), 0)


def laplacian(x: Float[Array, "*b h w"]) -> Float[Array, "*b h w"]:
    """Sum of the differences to the 4-neighbours inside the image, positive definite: -Delta with free borders."""
    edges = _all_edges(x.shape[-2:], x.dtype)
    return x * _neighbours(jnp.ones(x.shape[-2:], x.dtype), *edges) - _neighbours(x, *edges)


@functools.partial(jax.jit, static_argnames="one")
def blend_each(
    one: Callable[..., Float[Array, "h w c"]],
    completion: Float[Array, "*b h w c"],
    image: Float[Array, "*b h w c"],
    hole: Bool[Array, "*#b h w"],
) -> Float[Array, "*b h w c"]:
    """Blends each image of a batch by `one(completion, image, hole)`."""
    lead, shape = image.shape[:-3], image.shape[-3:]
    completion, image = completion.reshape(-1, *shape), image.reshape(-1, *shape)
    if hole.ndim == 2:  # one mask, one hierarchy
        blended = jax.vmap(one, in_axes=(0, 0, None))(completion, image, hole)
    else:
        holes = jnp.broadcast_to(hole, (*lead, *shape[:2])).reshape(-1, *shape[:2])
        blended = jax.vmap(one)(completion, image, holes)
    return blended.reshape(*lead, *shape)
