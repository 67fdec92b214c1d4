"""The latent search of one image: it moves a latent, keeps the best one, and refines it. `vmap` searches a batch.

Like every iterative method here, it has `init` and `step`. `finish` makes the result, and `search` does all three.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from dcgan_jax.inpainting import descent, trace
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.descent import Descent
from dcgan_jax.inpainting.objective import Losses, Point, Problem, distance, losses_at
from dcgan_jax.inpainting.trace import Trace
from dcgan_jax.priors.prior import Prior

Optimizer = optax.GradientTransformation | None


class Best(NamedTuple):
    """The latent with the least loss so far. Before the first step the loss is infinite."""

    latent: Float[Array, " latent"]
    losses: Losses
    loss: Float[Array, ""]  # the objective: the sum of both losses and the distance from the guess


class Search(NamedTuple):
    """The state of a search in its first phase."""

    descent: Descent
    best: Best
    running: Bool[Array, ""]  # steps are left, and the stopping rule has not stopped the search
    earlier_loss: Float[Array, ""]  # the best loss at the last check of the stopping rule


class Found(NamedTuple):
    """The result of a search."""

    point: Point  # the best or the last latent, refined if `refine_steps` is set
    losses: Losses
    num_steps: Int[Array, ""]  # updates, refinement included
    trace: Trace | None  # None unless `trace_every` is set


def search(prior: Prior, config: InpaintConfig, problem: Problem, start: Point, optimizer: Optimizer = None) -> Found:
    """Searches for one image from one start.

    Args:
        prior: see `inpaint`.
        config: see `inpaint`.
        problem: the search problem of the image.
        start: the start of the search.
        optimizer: see `inpaint`.
    """
    state = init(config, start, optimizer)
    if config.tolerance:
        state = jax.lax.while_loop(
            lambda state: state.running, lambda state: step(prior, config, problem, state, optimizer), state
        )
    else:  # a loop with a fixed number of steps has a reverse-mode derivative
        state = jax.lax.fori_loop(
            0, config.num_steps, lambda _, state: step(prior, config, problem, state, optimizer), state
        )
    return finish(prior, config, problem, state)


def init(config: InpaintConfig, start: Point, optimizer: Optimizer = None) -> Search:
    """Returns the initial state of a search."""
    dtype = jnp.promote_types(start.latent.dtype, jnp.float32)
    infinite = jnp.full((), jnp.inf, dtype)
    points = trace.empty(config, start.latent, dtype)
    return Search(
        descent=descent.begin(descent.latent_phase(config, optimizer), start, jnp.zeros((), jnp.int32), points),
        best=Best(start.latent, Losses(infinite, jnp.zeros((), dtype)), infinite),
        running=jnp.asarray(config.num_steps > 0),
        earlier_loss=infinite,
    )


def step(prior: Prior, config: InpaintConfig, problem: Problem, state: Search, optimizer: Optimizer = None) -> Search:
    """Evaluates the latent, keeps it if it is the best so far, and moves it. A stopped search does not change."""
    phase = descent.latent_phase(config, optimizer)
    moved, losses, loss = descent.step(prior, config, phase, problem, state.descent)
    best = _better(state.best, state.descent.point.latent, losses, loss)
    running, earlier_loss = moved.num_steps < config.num_steps, state.earlier_loss
    if config.tolerance:
        is_check = moved.num_steps % config.patience == 0
        improves = earlier_loss - best.loss > config.tolerance * jnp.abs(best.loss)
        running &= improves | ~is_check
        earlier_loss = jnp.where(is_check, best.loss, earlier_loss)
    after = Search(moved, best, running, earlier_loss)
    return _where(state.running, after, state) if config.tolerance else after


def finish(prior: Prior, config: InpaintConfig, problem: Problem, state: Search) -> Found:
    """Chooses the best or the last latent of the first phase, refines it, and closes the trace."""
    point, num_steps = state.descent.point, state.descent.num_steps
    last = losses_at(prior, config, problem, point)
    total = last.context + last.prior + distance(config, problem, point.latent)
    best = _better(state.best, point.latent, last, total)
    kept, kept_losses = (best.latent, best.losses) if config.keep_best else (point.latent, last)
    if not config.refine_steps:
        points = trace.close(config, state.descent.trace, num_steps, last, point.latent)
        return Found(Point(kept, point.shifts), kept_losses, num_steps, points)
    phase = descent.refinement_phase(config)
    shifts = point.shifts or tuple(jnp.zeros(shape, kept.dtype) for shape in prior.feature_shapes)
    refined = jax.lax.fori_loop(
        0,
        config.refine_steps,
        lambda _, refined: descent.step(prior, config, phase, problem, refined)[0],
        descent.begin(phase, Point(kept, shifts), num_steps, state.descent.trace),
    )
    last = losses_at(prior, config, problem, refined.point)
    points = trace.close(config, refined.trace, refined.num_steps, last, refined.point.latent)
    return Found(refined.point, last, refined.num_steps, points)


def _better(best: Best, latent: Float[Array, " latent"], losses: Losses, loss: Float[Array, ""]) -> Best:
    """Returns the better of two latents. A latent whose loss is NaN is never better."""
    dtype = best.loss.dtype  # a loop keeps its types
    other = Best(latent, Losses(*(x.astype(dtype) for x in losses)), loss.astype(dtype))
    return _where(loss < best.loss, other, best)


def _where(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)
