"""Low-rank matrix completion: fills the hole of each channel so that a few singular values describe the channel."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.images.inputs import check_pairs
from dcgan_jax.images.pixels import composite, known_pixels

_CHUNK = 48  # channels solved together; all wait for the slowest one


class Solution(NamedTuple):
    """The completions, and the final state of each channel's solver."""

    image: Float[Array, "*b h w c"]  # equal to the input where known
    residual: Float[Array, "*b c"]  # relative residual of the last step; see `solve`
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

    This objective is the sum of all singular values except the `rank` largest. Each round takes A and B from the first
    singular vectors of X, and then solves the convex problem for these A and B by alternating directions (ADMM). The
    start is the harmonic fill of the hole. The whole problem is not convex, so the result depends on the start. This
    matters most if whole rows or columns are missing, because singular values do not determine them.

    Args:
        images: uint8, or floats in [−1, 1]. Values in the hole are never read.
        hole: True = missing. An image without a known pixel becomes grey.
        rank: number of singular values without penalty, 0 or more; 0 gives the plain nuclear norm.
        penalty: beta > 0 of ADMM. Each step shrinks the singular values by 1 / beta. It changes the path of the solver
            and, because the problem is not convex, also the solution.
        tolerance: positive. A round ends when the residual of a step is at most this; see `solve`. A channel stops when
            the relative change in a round is at most this.
        round_steps: most steps of a round.
        max_steps: most steps of all rounds together. On photographs the default stops before the tolerance is met. This
            scores better than the converged result, because it keeps part of the start.

    Returns:
        Images of the shape and dtype of `images`, equal to them bit for bit where known. An image's result does not
        depend on the rest of its batch.

    Raises:
        ValueError: a shape, dtype or setting is wrong.

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
    """Solves the problem of `low_rank`, and also returns residuals and numbers of steps.

    The images are floats, not clipped to [−1, 1]. The residual is max(|X - W|, |W - W0|) / |W| in Frobenius norms, the
    larger of ADMM's primal and dual residual. W is the copy of X that equals the known pixels, and W0 is W one step
    earlier.
    """
    check_pairs(images, hole)
    _check(rank, penalty, tolerance, round_steps, max_steps)
    return _solve(jnp.asarray(images), jnp.asarray(hole), rank, penalty, tolerance, round_steps, max_steps)


@jax.jit
def _solve(
    images: Array, hole: Array, rank: int, penalty: float, tolerance: float, round_steps: int, max_steps: int
) -> Solution:
    known = known_pixels(images, hole)
    start = poisson_blend(jnp.zeros_like(known), known, hole)
    batch, height, width, channels = known.shape

    def solve_one(arrays: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        known, hole, start = arrays
        problem = Problem(known, hole, jnp.asarray(penalty, known.dtype))
        state = run(problem, init(problem, start, rank), rank, tolerance, round_steps, max_steps)
        return state.filled, state.residual, state.num_steps

    def by_channel(x: Float[Array, "b h w c"]) -> Float[Array, "b*c h w"]:
        return x.transpose(0, 3, 1, 2).reshape(-1, height, width)

    arrays = by_channel(known), jnp.repeat(hole, channels, axis=0), by_channel(start)
    # Padded to whole chunks, because a smaller last chunk would be compiled separately.
    missing = -len(arrays[0]) % min(_CHUNK, max(len(arrays[0]), 1))
    arrays = [jnp.pad(x, [(0, missing), (0, 0), (0, 0)]) for x in arrays]
    filled, *statistics = jax.lax.map(solve_one, tuple(arrays), batch_size=_CHUNK)
    filled = filled[: batch * channels].reshape(batch, channels, height, width).transpose(0, 2, 3, 1)
    return Solution(filled, *(x[: batch * channels].reshape(batch, channels) for x in statistics))


class Problem(NamedTuple):
    """The problem of one channel of an image."""

    known: Array  # [h, w], finite in the hole
    hole: Array  # [h, w]
    penalty: Array


class State(NamedTuple):
    """The state of the solver for one channel."""

    filled: Array  # [h, w], the paper's W, equal to the known pixels
    dual: Array  # [h, w], the paper's Y
    directions: Array  # [h, w], the paper's A'B: U_r V_r' of the first singular vectors
    at_refresh: Array  # [h, w], `filled` at the time when `directions` were computed
    residual: Array
    round_steps: Array  # steps done in this round
    num_steps: Array  # steps done in all rounds
    running: Array


def init(problem: Problem, start: Float[Array, "h w"], rank: int | Array) -> State:
    """Returns the initial state. `start` is a channel that equals the known pixels."""
    _, directions = shrink(start, 0.0, rank)
    running = jnp.any(problem.hole)
    residual = jnp.where(running, jnp.inf, 0).astype(start.dtype)
    count = jnp.zeros((), jnp.int32)
    # On the missing pixels, the dual variable of the solution equals minus the directions.
    return State(start, -directions, directions, start, residual, count, count, running)


def step(
    problem: Problem,
    state: State,
    rank: int | Array,
    tolerance: float | Array,
    round_steps: int | Array,
    max_steps: int | Array,
) -> State:
    """Does one step of ADMM. At the end of a round it computes new directions."""
    penalty = problem.penalty
    low, directions = shrink(state.filled - state.dual / penalty, 1 / penalty, rank)
    filled = jnp.where(problem.hole, low + (state.directions + state.dual) / penalty, problem.known)
    size = jnp.maximum(_norm(filled), jnp.finfo(filled.dtype).tiny)
    residual = jnp.maximum(_norm(low - filled), _norm(filled - state.filled)) / size
    steps, num_steps = state.round_steps + 1, state.num_steps + 1
    ends = (residual <= tolerance) | (steps >= round_steps)
    settled = ends & (_norm(filled - state.at_refresh) <= tolerance * size)
    return State(
        filled=filled,
        dual=state.dual + penalty * (low - filled),
        directions=jnp.where(ends, directions, state.directions),
        at_refresh=jnp.where(ends, filled, state.at_refresh),
        residual=residual,
        round_steps=jnp.where(ends, 0, steps),
        num_steps=num_steps,
        running=~settled & (num_steps < max_steps),
    )


def run(
    problem: Problem,
    state: State,
    rank: int | Array,
    tolerance: float | Array,
    round_steps: int | Array,
    max_steps: int | Array,
) -> State:
    """Does steps until a round changes almost nothing."""

    def body(state: State) -> State:
        return step(problem, state, rank, tolerance, round_steps, max_steps)

    return jax.lax.while_loop(lambda state: state.running, body, state)


def shrink(
    matrix: Float[Array, "m n"], threshold: Float[Array, ""] | float, rank: Int[Array, ""] | int
) -> tuple[Float[Array, "m n"], Float[Array, "m n"]]:
    """Shrinks the singular values of a matrix, and returns its leading singular vectors.

    Returns:
        The matrix with all singular values reduced by `threshold`, but not below 0; and U_r V_r' of the first `rank`
        singular vectors. Vectors are left out if their singular value is below 1/1000 of the largest.
    """
    if matrix.shape[0] < matrix.shape[1]:
        low, directions = shrink(matrix.T, threshold, rank)
        return low.T, directions.T
    # Uses the Gram matrix, because XLA's SVD takes 2.3 times as long on a CPU (batches of 64 x 64). This squares the
    # condition number. But it only loses values below the threshold; the others are computed again as |M v|.
    multiply = functools.partial(jnp.matmul, precision="highest")  # else GPUs use TF32
    _, right = jnp.linalg.eigh(multiply(matrix.T, matrix))
    scaled = multiply(matrix, right)
    values = jnp.linalg.norm(scaled, axis=0)
    floor = jnp.maximum(values[-1] * 1e-6, jnp.finfo(values.dtype).tiny)  # smaller numbers would be flushed to 0
    low = multiply(scaled * jnp.maximum(1 - threshold / jnp.maximum(values, floor), 0), right.T)
    first = (jnp.arange(len(values)) >= len(values) - rank) & (values > 1e-3 * values[-1])
    # Vectors of rounding errors are not orthogonal. With them the convex problem would have no minimum.
    directions = multiply(scaled * jnp.where(first, 1 / jnp.maximum(values, floor), 0), right.T)
    return low, directions


def _norm(x: Float[Array, "h w"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(x**2))


def _check(rank: int, penalty: float, tolerance: float, round_steps: int, max_steps: int) -> None:
    for name, value in (("penalty", penalty), ("tolerance", tolerance)):
        if not value > 0:
            raise ValueError(f"`{name}` is {value!r}; pass a positive number")
    for name, value, least in (("rank", rank, 0), ("round_steps", round_steps, 1), ("max_steps", max_steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"`{name}` is {value!r}; pass an integer of at least {least}")
