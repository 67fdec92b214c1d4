"""Total variation inpainting: fills the hole with the shortest and weakest edges that fit the known pixels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.images.inputs import check_pairs
from dcgan_jax.images.pixels import composite, known_pixels

_CHUNK = 16  # images solved together; all wait for the slowest one, and they should fit into the caches
_CHECK_EVERY = 50  # steps between two evaluations of the gap
_RELAXATION = 1.9  # must be below 2; it takes half as many steps as 1
_PRIMAL_STEP, _DUAL_STEP = 0.5 / 8**0.5, 2.0 / 8**0.5  # their product must not exceed 1 / 8, since |grad|² <= 8
_RESTART = 0.3  # restart when the gap has fallen to this fraction of its value at the last restart


class Solution(NamedTuple):
    """The completions, and their distance from the minimum."""

    image: Float[Array, "*b h w c"]  # equal to the input where known
    total_variation: Float[Array, "*b"]  # total variation of `image`
    gap: Float[Array, "*b"]  # duality gap: `total_variation` minus a lower bound of the minimum
    num_steps: Int[Array, "*b"]


def total_variation(
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    *,
    tolerance: float = 1e-3,
    max_steps: int = 10_000,
) -> Shaped[Array, "b h w c"]:
    """Completes images with the least total variation.

        min_x  sum_i sqrt(sum over channels of (x_below(i) - x_i)² + (x_right(i) - x_i)²)
        subject to x = image on the known pixels,

    This total variation is isotropic and couples the channels. Differences across the image's border count as 0. The
    solver stops when the duality gap shows that the total variation is within `tolerance` of the minimum. The minimum
    may not be unique, as between two parallel edges. The result then depends on the start, the harmonic fill of the
    hole.

    Args:
        images: uint8, or floats in [−1, 1]. Values in the hole are never read.
        hole: True = missing. An image without a known pixel becomes grey.
        tolerance: positive. The solver stops when gap <= tolerance · max(total variation, 1). It checks this every 50
            steps.
        max_steps: most steps for an image. An image of 64 × 64 pixels usually takes a few hundred steps, and up to 2000
            if half of it is missing.

    Returns:
        Images of the shape and dtype of `images`, equal to them bit for bit where known. An image's result does not
        depend on the rest of its batch.

    Raises:
        ValueError: a shape, dtype or setting is wrong.

    Example:
        >>> import jax.numpy as jnp
        >>> hole = jnp.zeros((1, 8, 8), bool).at[:, 2:5, 3:].set(True)
        >>> bool((total_variation(jnp.full((1, 8, 8, 3), 200, jnp.uint8), hole) == 200).all())
        True

    Source: Chambolle, Pock, "A first-order primal-dual algorithm for convex problems with applications to imaging",
    JMIV 2011, algorithm 1 and section 6.2; over-relaxed as in Condat, JOTA 2013, algorithm 3.1; restarted from
    averages as in Applegate et al., "Practical large-scale linear programming using primal-dual hybrid gradient",
    NeurIPS 2021.
    """
    return composite(images, hole, solve(images, hole, tolerance=tolerance, max_steps=max_steps).image)


def solve(
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    *,
    tolerance: float = 1e-3,
    max_steps: int = 10_000,
) -> Solution:
    """Solves the problem of `total_variation`, and also returns total variations, gaps and numbers of steps.

    The images are floats in [−1, 1]. The gap is the primal value minus the dual value,

        sum over known i of y_i · (grad' p)_i  +  sum over missing i of min over lo <= x <= hi of x · (grad' p)_i,

    for a dual field |p_i| <= 1. Here grad' is the transpose of the gradient. lo and hi are the smallest and the largest
    value of the known pixels next to the hole, for each channel. Clipping to them never increases the total variation.
    """
    check_pairs(images, hole)
    _check(tolerance, max_steps)
    return _solve(jnp.asarray(images), jnp.asarray(hole), tolerance, max_steps)


@jax.jit
def _solve(images: Array, hole: Array, tolerance: float, max_steps: int) -> Solution:
    known = known_pixels(images, hole)
    start = poisson_blend(jnp.zeros_like(known), known, hole)

    def solve_one(arrays: tuple[Array, Array, Array]) -> Solution:
        known, hole, start = arrays
        # Channels first makes the innermost axis long enough for vector instructions.
        problem = _problem(known.transpose(2, 0, 1), hole)
        state = init(problem, start.transpose(2, 0, 1))
        state = run(problem, state, tolerance, max_steps)
        return Solution(state.best.transpose(1, 2, 0), state.total_variation, state.gap, state.num_steps)

    # Padded to whole chunks, because a smaller last chunk would be compiled separately.
    count = len(known)
    more = -count % min(_CHUNK, max(count, 1))
    arrays = [jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) for x in (known, hole, start)]
    solutions = jax.lax.map(solve_one, tuple(arrays), batch_size=_CHUNK)
    return jax.tree.map(lambda x: x[:count], solutions)


class Problem(NamedTuple):
    """The problem of one image."""

    known: Array  # [c, h, w], finite in the hole
    hole: Array  # [h, w]
    low: Array  # [c, 1, 1], lower bound of a completion
    high: Array  # [c, 1, 1], upper bound


class Point(NamedTuple):
    """An iterate: an image and a dual field."""

    primal: Array  # [c, h, w], the image
    vertical: Array  # [c, h, w], vertical part of the dual field; its last row is 0
    horizontal: Array  # [c, h, w], horizontal part of the dual field; its last column is 0


class State(NamedTuple):
    """The state of the solver for one image."""

    point: Point
    average: Point  # mean of the iterates since the last restart
    num_averaged: Array
    gap_at_restart: Array
    best: Array  # the image with the least gap so far
    total_variation: Array  # total variation of `best`
    gap: Array  # gap of `best`
    num_steps: Array


def _problem(known: Float[Array, "c h w"], hole: Bool[Array, "h w"]) -> Problem:
    near = jnp.pad(hole, 1)
    near = near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:]
    rim = near & ~hole
    low = jnp.min(jnp.where(rim, known, 1), axis=(1, 2), keepdims=True)
    high = jnp.max(jnp.where(rim, known, -1), axis=(1, 2), keepdims=True)
    some = jnp.any(rim)  # False if no pixel is known, or no pixel is missing
    return Problem(known, hole, jnp.where(some, low, 0), jnp.where(some, high, 0))


def init(problem: Problem, start: Float[Array, "c h w"]) -> State:
    """Returns the initial state. `start` is an image that equals the known pixels."""
    vertical, horizontal = _gradient(start)
    length = _length(vertical, horizontal)
    # The dual value of this field equals the start's total variation, so without a hole the gap is 0 at once.
    direction = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
    point = Point(start, vertical * direction, horizontal * direction)
    best, variation, gap = _evaluate(problem, point)
    zero = jnp.zeros((), start.dtype)
    return State(point, jax.tree.map(jnp.zeros_like, point), zero, gap, best, variation, gap, jnp.zeros((), jnp.int32))


def step(problem: Problem, state: State) -> State:
    """Does one over-relaxed primal-dual step."""
    point = state.point
    primal = jnp.clip(point.primal - _PRIMAL_STEP * _transposed(point), problem.low, problem.high)
    primal = jnp.where(problem.hole, primal, problem.known)
    vertical, horizontal = _gradient(2 * primal - point.primal)
    vertical, horizontal = _unit_ball(
        point.vertical + _DUAL_STEP * vertical, point.horizontal + _DUAL_STEP * horizontal
    )
    new = jax.tree.map(lambda old, new: old + _RELAXATION * (new - old), point, Point(primal, vertical, horizontal))
    num_averaged = state.num_averaged + 1
    average = jax.tree.map(lambda mean, value: mean + (value - mean) / num_averaged, state.average, new)
    return state._replace(point=new, average=average, num_averaged=num_averaged, num_steps=state.num_steps + 1)


def check_gap(problem: Problem, state: State) -> State:
    """Keeps the image with the least gap, and restarts if the gap has fallen enough."""
    # In a wide hole the iterates circle around the solution. Their average is much closer to it.
    points = jax.tree.map(lambda *both: jnp.stack(both), state.average, state.point)
    images, variations, gaps = jax.vmap(_evaluate, in_axes=(None, 0))(problem, points)
    average_wins = gaps[0] < gaps[1]
    image, variation, gap = (jnp.where(average_wins, *both) for both in (images, variations, gaps))
    better = gap < state.gap
    restart = gap < _RESTART * state.gap_at_restart
    back = restart & average_wins
    return State(
        point=jax.tree.map(lambda mean, value: jnp.where(back, mean, value), state.average, state.point),
        average=state.average,  # the next step overwrites it if `num_averaged` is 0
        num_averaged=jnp.where(restart, 0, state.num_averaged),
        gap_at_restart=jnp.where(restart, gap, state.gap_at_restart),
        best=jnp.where(better, image, state.best),
        total_variation=jnp.where(better, variation, state.total_variation),
        gap=jnp.where(better, gap, state.gap),
        num_steps=state.num_steps,
    )


def run(problem: Problem, state: State, tolerance: float, max_steps: int) -> State:
    """Does steps until the gap is small."""

    def unfinished(state: State) -> Array:
        return (state.gap > tolerance * jnp.maximum(state.total_variation, 1)) & (state.num_steps < max_steps)

    def steps(state: State) -> State:
        count = jnp.minimum(_CHECK_EVERY, max_steps - state.num_steps)
        return check_gap(problem, jax.lax.fori_loop(0, count, lambda _, state: step(problem, state), state))

    return jax.lax.while_loop(unfinished, steps, state)


def _evaluate(problem: Problem, point: Point) -> tuple[Array, Array, Array]:
    """Returns the nearest feasible image, its total variation, and its gap to the nearest feasible dual field."""
    image = jnp.where(problem.hole, jnp.clip(point.primal, problem.low, problem.high), problem.known)
    variation = jnp.sum(_length(*_gradient(image)))
    slope = _transposed(Point(image, *_unit_ball(point.vertical, point.horizontal)))
    least = jnp.minimum(problem.low * slope, problem.high * slope)
    return image, variation, variation - jnp.sum(jnp.where(problem.hole, least, image * slope))


def _gradient(x: Float[Array, "c h w"]) -> tuple[Array, Array]:
    """Returns the differences to the pixel below and to the pixel on the right; 0 at the border."""
    below, right = x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1]
    return jnp.pad(below, [(0, 0), (0, 1), (0, 0)]), jnp.pad(right, [(0, 0), (0, 0), (0, 1)])


def _transposed(point: Point) -> Float[Array, "c h w"]:
    """Applies the transpose of the gradient to the dual field."""
    vertical, horizontal = point.vertical[:, :-1], point.horizontal[:, :, :-1]
    return (
        jnp.pad(vertical, [(0, 0), (1, 0), (0, 0)])
        - jnp.pad(vertical, [(0, 0), (0, 1), (0, 0)])
        + jnp.pad(horizontal, [(0, 0), (0, 0), (1, 0)])
        - jnp.pad(horizontal, [(0, 0), (0, 0), (0, 1)])
    )


def _length(vertical: Array, horizontal: Array) -> Float[Array, "h w"]:
    return jnp.sqrt(jnp.sum(vertical**2 + horizontal**2, axis=0))


def _unit_ball(vertical: Array, horizontal: Array) -> tuple[Array, Array]:
    scale = 1 / jnp.maximum(1, _length(vertical, horizontal))
    return vertical * scale, horizontal * scale


def _check(tolerance: float, max_steps: int) -> None:
    if not tolerance > 0:
        raise ValueError(f"`tolerance` is {tolerance!r}; pass a positive number, e.g. 1e-3")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int | np.integer) or max_steps < 1:
        raise ValueError(f"`max_steps` is {max_steps!r}; pass an integer of at least 1")
