"""Low-rank matrix completion: each channel's hole is filled so that few singular values carry the channel."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.images.inputs import check_pairs
from dcgan_jax.images.pixels import composite, known_pixels

_CHUNK = 48  # channels solved side by side: all of them wait for the slowest


class Solution(NamedTuple):
    """What was found for each channel."""

    image: Float[Array, "*b h w c"]  # equal to the given one where known
    residual: Float[Array, "*b c"]  # the last step's, relative, see `solve`
    num_steps: Int[Array, "*b c"]


def low_rank(
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    *,
    rank: int = 24,
    penalty: float = 1.0,
    tolerance: float = 1e-3,
    round_steps: int = 20,
    max_steps: int = 40,
) -> Shaped[Array, "b h w c"]:
    """Completes images by truncated nuclear norm regularisation, channel by channel.

        min_X  |X|_* - max over A A' = I, B B' = I of tr(A X B')   subject to X = channel on the known pixels,

    which is the sum of all singular values but the `rank` largest. Rounds alternate: A and B are the first singular
    vectors of X; then the convex problem for these A and B is solved by alternating directions (ADMM). Both start from
    the harmonic filling of the hole. The problem is not convex as a whole, so the result depends on that start; above
    all where whole rows or columns are missing, as the singular values alone say nothing about these.

    Args:
        images: uint8, or floats in [−1, 1]. Values in the hole are never read.
        hole: True = missing. An image without a known pixel becomes grey.
        rank: r >= 0, the number of singular values that are free; 0 is the plain nuclear norm.
        penalty: beta > 0 of ADMM: singular values are shrunk by 1 / beta a step. It changes the way to the solution
            and, the problem not being convex, which one is found.
        tolerance: relative residual, positive: a round ends when a step's is not above it, see `solve`, and a channel
            is done when a round changes it by no more than this.
        round_steps: bound of the steps of a round.
        max_steps: bound of the steps of all rounds together. On photographs the default ends before the tolerance is
            met, which scores better than the limit does: the start is only partly forgotten.

    Returns:
        Shape and dtype of `images`, equal to them bit for bit where known. An image's result does not depend on the
        others of its batch.

    Raises:
        ValueError: a shape, dtype or setting does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> hole = jnp.zeros((1, 8, 8), bool).at[:, 2:5, 3:].set(True)
        >>> bool((low_rank(jnp.full((1, 8, 8, 3), 200, jnp.uint8), hole) == 200).all())
        True

    Source: Hu, Zhang, Ye, Li, He, "Fast and accurate matrix completion via truncated nuclear norm regularization",
    IEEE TPAMI 2013, algorithms 1 and 2 (TNNR-ADMM).
    """
    settings = {"rank": rank, "penalty": penalty, "tolerance": tolerance}
    return composite(images, hole, solve(images, hole, **settings, round_steps=round_steps, max_steps=max_steps).image)


def solve(
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    *,
    rank: int = 24,
    penalty: float = 1.0,
    tolerance: float = 1e-3,
    round_steps: int = 20,
    max_steps: int = 40,
) -> Solution:
    """Solves as `low_rank` does, and says how well: floats, not clipped to [−1, 1], residuals and numbers of steps.

    With the copy W of X that is right on the known pixels, and its value W0 a step before, the residual is
    max(|X - W|, |W - W0|) / |W| in Frobenius norms: primal and dual residual of ADMM.
    """
    check_pairs(images, hole)
    _check(rank, penalty, tolerance, round_steps, max_steps)
    return _solve(jnp.asarray(images), jnp.asarray(hole), rank, penalty, tolerance, round_steps, max_steps)


@jax.jit
def _solve(images, hole, rank, penalty, tolerance, round_steps, max_steps):
    known = known_pixels(images, hole)
    start = poisson_blend(jnp.zeros_like(known), known, hole)
    batch, height, width, channels = known.shape

    def solve_one(arrays):
        known, hole, start = arrays
        problem = _Problem(known, hole, jnp.asarray(penalty, known.dtype))
        state = run(problem, init(problem, start, rank), rank, tolerance, round_steps, max_steps)
        return state.filled, state.residual, state.num_steps

    def split(x):
        return x.transpose(0, 3, 1, 2).reshape(-1, height, width)

    arrays = split(known), jnp.repeat(hole, channels, axis=0), split(start)
    # Without more to fill it up, the last, smaller chunk would be compiled apart.
    missing = -len(arrays[0]) % min(_CHUNK, max(len(arrays[0]), 1))
    arrays = [jnp.pad(x, [(0, missing), (0, 0), (0, 0)]) for x in arrays]
    filled, *statistics = jax.lax.map(solve_one, tuple(arrays), batch_size=_CHUNK)
    filled = filled[: batch * channels].reshape(batch, channels, height, width).transpose(0, 2, 3, 1)
    return Solution(filled, *(x[: batch * channels].reshape(batch, channels) for x in statistics))


class _Problem(NamedTuple):
    known: Array  # [h, w], one channel, anything finite in the hole
    hole: Array  # [h, w]
    penalty: Array


class _State(NamedTuple):
    filled: Array  # [h, w], W of the paper: right where known
    dual: Array  # [h, w], Y of the paper
    directions: Array  # [h, w], A'B of the paper: the first singular vectors, U_r V_r'
    at_refresh: Array  # [h, w], `filled` when `directions` were taken
    residual: Array
    round_steps: Array  # done in this round
    num_steps: Array
    running: Array


def init(problem: _Problem, start: Float[Array, "h w"], rank) -> _State:
    """Starts from a channel that is right where known."""
    _, directions = shrink(start, 0.0, rank)
    running = jnp.any(problem.hole)
    residual = jnp.where(running, jnp.inf, 0).astype(start.dtype)
    count = jnp.zeros((), jnp.int32)
    # The solution's dual is minus the directions on the missing pixels.
    return _State(start, -directions, directions, start, residual, count, count, running)


def step(problem: _Problem, state: _State, rank, tolerance, round_steps, max_steps) -> _State:
    """One step of ADMM, and new directions where it ends a round."""
    penalty = problem.penalty
    low, directions = shrink(state.filled - state.dual / penalty, 1 / penalty, rank)
    filled = jnp.where(problem.hole, low + (state.directions + state.dual) / penalty, problem.known)
    size = jnp.maximum(_norm(filled), jnp.finfo(filled.dtype).tiny)
    residual = jnp.maximum(_norm(low - filled), _norm(filled - state.filled)) / size
    steps, num_steps = state.round_steps + 1, state.num_steps + 1
    ends = (residual <= tolerance) | (steps >= round_steps)
    settled = ends & (_norm(filled - state.at_refresh) <= tolerance * size)
    return _State(
        filled=filled,
        dual=state.dual + penalty * (low - filled),
        directions=jnp.where(ends, directions, state.directions),
        at_refresh=jnp.where(ends, filled, state.at_refresh),
        residual=residual,
        round_steps=jnp.where(ends, 0, steps),
        num_steps=num_steps,
        running=~settled & (num_steps < max_steps),
    )


def run(problem: _Problem, state: _State, rank, tolerance, round_steps, max_steps) -> _State:
    """Steps until a round changes nothing."""

    def body(state):
        return step(problem, state, rank, tolerance, round_steps, max_steps)

    return jax.lax.while_loop(lambda state: state.running, body, state)


def shrink(
    matrix: Float[Array, "m n"], threshold: Float[Array, ""] | float, rank: Int[Array, ""] | int
) -> tuple[Float[Array, "m n"], Float[Array, "m n"]]:
    """Lowers all singular values by `threshold`, to 0 at least; and U_r V_r' of the first `rank` singular vectors.

    Of singular vectors whose values are below 1/1000 of the largest nothing is said: they count as absent.
    """
    if matrix.shape[0] < matrix.shape[1]:
        low, directions = shrink(matrix.T, threshold, rank)
        return low.T, directions.T
    # By the Gram matrix, since XLA's SVD takes 2.3 times as long on the CPU (64 x 64, in batches). That squares the
    # condition, but what is lost are values below the threshold, and what is left is measured again as |M v|.
    multiply = functools.partial(jnp.matmul, precision="highest")  # GPUs would take TF32
    _, right = jnp.linalg.eigh(multiply(matrix.T, matrix))
    scaled = multiply(matrix, right)
    values = jnp.linalg.norm(scaled, axis=0)
    floor = jnp.maximum(values[-1] * 1e-6, jnp.finfo(values.dtype).tiny)  # less would be flushed to 0
    low = multiply(scaled * jnp.maximum(1 - threshold / jnp.maximum(values, floor), 0), right.T)
    first = (jnp.arange(len(values)) >= len(values) - rank) & (values > 1e-3 * values[-1])
    # Vectors of rounding errors are not orthogonal: with them the convex problem would have no minimum.
    directions = multiply(scaled * jnp.where(first, 1 / jnp.maximum(values, floor), 0), right.T)
    return low, directions


def _norm(x):
    return jnp.sqrt(jnp.sum(x**2))


def _check(rank, penalty, tolerance, round_steps, max_steps) -> None:
    for name, value in (("penalty", penalty), ("tolerance", tolerance)):
        if not value > 0:
            raise ValueError(f"`{name}` is {value!r}; it takes a positive number")
    for name, value, least in (("rank", rank, 0), ("round_steps", round_steps, 1), ("max_steps", max_steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"`{name}` is {value!r}; it takes an integer of at least {least}")
