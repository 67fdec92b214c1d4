"""Poisson's equation in a hole: conjugate gradients with a multigrid preconditioner."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Shaped

from dcgan_jax.masks import check_hole

_DAMPING = 0.8  # damping of the Jacobi smoother
_SWEEPS = 2  # must be at least 2, see `_smooth`
_COARSEST = 4  # longest side of the coarsest grid, in pixels
# A safety limit: Poisson's equation takes about 10 steps, `smooth.py` up to 150. In float64 both take twice as many.
_MAX_STEPS = 500


def check_blend(completion: Any, image: Any, hole: Any) -> None:
    """Checks the arguments of a blend.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    for name, array in (("completion", completion), ("image", image)):
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise ValueError(f"`{name}` is {jnp.result_type(array)}; it takes floats, e.g. uint8 / 127.5 - 1")
        if jnp.ndim(array) < 3:
            raise ValueError(f"`{name}` has shape {jnp.shape(array)}; it takes [..., h, w, c]")
    if jnp.shape(image) != jnp.shape(completion) or jnp.result_type(image) != jnp.result_type(completion):
        raise ValueError(
            f"`image` is {jnp.result_type(image)}{list(jnp.shape(image))} and `completion` "
            f"{jnp.result_type(completion)}{list(jnp.shape(completion))}; pass the same dtype and shape"
        )
    check_hole(hole, jnp.shape(image)[:-1])


# The hole's Laplacian is symmetric positive definite if one pixel is known: the grid is connected, so each component of
# the hole touches a known pixel. Conjugate gradients, preconditioned by one multigrid V-cycle, take about ten steps for
# every mask and size. The coarse grids are Galerkin products over 2x2 cells. They represent holes of any shape exactly,
# single pixels included.


class _Level(NamedTuple):
    """The matrix of one grid: (A x)_i = diagonal_i x_i - sum_j weight_ij x_j. It is 0 outside the hole."""

    vertical: Array  # [h - 1, w], weight of the edge between a pixel and the one below
    horizontal: Array  # [h, w - 1], weight of the edge between a pixel and the one to the right
    diagonal: Array  # [h, w]


class _State(NamedTuple):
    """The state of conjugate gradients for one image."""

    solution: Array  # [c, h, w]
    residual: Array  # [c, h, w]
    direction: Array  # [c, h, w]
    energy: Array  # scalar product of residual and preconditioned residual in the last step
    steps: Array


def neighbour_sum(
    x: Float[Array, "*b h w"],
    vertical: Shaped[Array | np.ndarray, "h-1 w"],
    horizontal: Shaped[Array | np.ndarray, "h w-1"],
) -> Float[Array, "*b h w"]:
    """Sums the 4-neighbours of each pixel inside the image, weighted by the edges to them."""
    rows = [(0, 0)] * (x.ndim - 2)
    return (
        jnp.pad(vertical * x[..., 1:, :], [*rows, (0, 1), (0, 0)])
        + jnp.pad(vertical * x[..., :-1, :], [*rows, (1, 0), (0, 0)])
        + jnp.pad(horizontal * x[..., :, 1:], [*rows, (0, 0), (0, 1)])
        + jnp.pad(horizontal * x[..., :, :-1], [*rows, (0, 0), (1, 0)])
    )


def _apply(level: _Level, x: Array) -> Array:
    return level.diagonal * x - neighbour_sum(x, level.vertical, level.horizontal)


def _pool(x: Array, rows: int = 2, columns: int = 2) -> Array:
    """Sums over cells of rows × columns pixels. Cells at the last rows and columns may be smaller."""
    height, width = x.shape[-2:]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -height % rows), (0, -width % columns)])
    cell = (1,) * (x.ndim - 2) + (rows, columns)
    return jax.lax.reduce_window(x, np.zeros((), x.dtype)[()], jax.lax.add, cell, cell, "VALID")


def _hierarchy(hole: Bool[Array, "h w"], dtype: DTypeLike) -> list[_Level]:
    """Builds the matrices of all grids, the finest first."""
    inside = hole.astype(dtype)
    vertical, horizontal = inside[1:] * inside[:-1], inside[:, 1:] * inside[:, :-1]
    to_known = inside * neighbour_sum(1 - inside, *all_edges(hole.shape, dtype))
    # Without a known pixel the matrix would be singular, so it gets a positive diagonal. The right-hand side is then 0,
    # and so is the solution. Derivatives have other right-hand sides.
    to_known = to_known + jnp.all(hole)
    levels = []
    while True:
        diagonal = to_known + neighbour_sum(jnp.ones_like(to_known), vertical, horizontal)
        levels.append(_Level(vertical, horizontal, diagonal))
        if max(to_known.shape) <= _COARSEST:
            return levels
        # Functions that are constant on each cell overestimate the energy of smooth functions: by a factor of 2 between
        # cells, and of 3/2 between a cell's centre and a known pixel next to the cell.
        vertical, horizontal = _pool(vertical[1::2], 1, 2) / 2, _pool(horizontal[:, 1::2], 2, 1) / 2
        to_known = _pool(to_known) * (2 / 3)


def all_edges(shape: Sequence[int], dtype: DTypeLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights of 1 for all vertical and all horizontal edges of an image."""
    height, width = shape
    return np.ones((height - 1, width), dtype), np.ones((height, width - 1), dtype)


def _smooth(level: _Level, x: Array, b: Array) -> Array:
    """Applies damped Jacobi sweeps to A x = b.

    This must stay a loop of two or more sweeps. Without a loop, XLA's CPU backend fuses each stencil into the next and
    recomputes the inner one at every use. The V-cycle then takes twenty times as long.
    """
    inverse = jnp.where(level.diagonal > 0, _DAMPING / level.diagonal, 0)
    return jax.lax.fori_loop(0, _SWEEPS, lambda _, x: x + inverse * (b - _apply(level, x)), x)


def _v_cycle(levels: list[_Level], b: Array) -> Array:
    """Approximates A^-1 b by a symmetric multigrid V-cycle."""
    level, *coarser = levels
    x = _smooth(level, jnp.zeros_like(b), b)
    if coarser:
        coarse = _v_cycle(coarser, _pool(b - _apply(level, x)))
        height, width = b.shape[-2:]
        fine = jnp.repeat(jnp.repeat(coarse, 2, axis=-2), 2, axis=-1)[..., :height, :width]
        x = x + jnp.where(level.diagonal > 0, fine, 0)
    return _smooth(level, x, b)


def _init(b: Array) -> _State:
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


def _run(matrix: Callable[[Array], Array], levels: list[_Level], b: Array) -> _State:
    """Iterates until the residual is at most ten rounding units of the right-hand side."""
    goal = (10 * float(jnp.finfo(b.dtype).eps)) ** 2 * jnp.vdot(b, b)

    def unfinished(state: _State) -> Array:
        return (jnp.vdot(state.residual, state.residual) > goal) & (state.steps < _MAX_STEPS)

    return jax.lax.while_loop(unfinished, lambda state: _step(matrix, levels, state), _init(b))


def solve_in_hole(
    hole: Bool[Array, "h w"],
    b: Float[Array, "c h w"],
    matrix: Callable[[Float[Array, "c h w"]], Float[Array, "c h w"]] | None = None,
) -> Float[Array, "c h w"]:
    """Solves a linear system for the pixels of a hole, on the device. It has the derivatives of the exact solution.

    Args:
        hole: True = missing.
        b: the right-hand sides, 0 outside the hole.
        matrix: function that multiplies by the matrix. The matrix is symmetric and positive definite in the hole, and 0
            outside. None stands for the hole's Laplacian, which also preconditions every other matrix. A matrix that is
            closer to it takes fewer steps.

    Returns:
        The solutions, 0 outside the hole. The residual is at most ten rounding units of `b`. If `b` is not finite, the
        solution is NaN in the whole hole.
    """
    levels = _hierarchy(hole, b.dtype)
    own = functools.partial(_apply, levels[0]) if matrix is None else matrix

    def solve(matrix: Callable[[Array], Array], b: Array) -> Array:
        # Without scaling, squares of tiny values would become 0, and squares of large values infinite.
        largest = jnp.max(jnp.abs(b))
        scale = jnp.where(largest > 0, largest, 1)
        # Comparisons with NaN are false, so the loop ends at once. Its initial zeros must not pass as a solution.
        return jnp.where(jnp.isfinite(largest), scale * _run(matrix, levels, b / scale).solution, jnp.nan)

    # Derivatives solve a system with the same matrix instead of differentiating the loop. The outer `where` makes their
    # right-hand sides 0 outside the hole too.
    return jnp.where(hole, jax.lax.custom_linear_solve(own, b, solve, symmetric=True), 0)


def laplacian(x: Float[Array, "*b h w"]) -> Float[Array, "*b h w"]:
    """Applies the positive semidefinite Laplacian with free borders: the differences of a pixel to its 4-neighbours."""
    edges = all_edges(x.shape[-2:], x.dtype)
    return x * neighbour_sum(jnp.ones(x.shape[-2:], x.dtype), *edges) - neighbour_sum(x, *edges)


@functools.partial(jax.jit, static_argnames="one")
def blend_each(
    one: Callable[..., Float[Array, "h w c"]],
    completion: Float[Array, "*b h w c"],
    image: Float[Array, "*b h w c"],
    hole: Bool[Array, "*#b h w"],
) -> Float[Array, "*b h w c"]:
    """Blends each image of a batch.

    Args:
        one: blends one image, one(completion, image, hole). It is a module-level function, because JAX compiles once
            for each function object.
        completion: see `poisson_blend`.
        image: see `poisson_blend`.
        hole: see `poisson_blend`.
    """
    lead, shape = image.shape[:-3], image.shape[-3:]
    completion, image = completion.reshape(-1, *shape), image.reshape(-1, *shape)
    if hole.ndim == 2:  # one mask needs one hierarchy
        blended = jax.vmap(one, in_axes=(0, 0, None))(completion, image, hole)
    else:
        holes = jnp.broadcast_to(hole, (*lead, *shape[:2])).reshape(-1, *shape[:2])
        blended = jax.vmap(one)(completion, image, holes)
    return blended.reshape(*lead, *shape)
