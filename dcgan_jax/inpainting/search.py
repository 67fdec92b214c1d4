"""The latent search of one image: descend to a latent, keep the best, refine it. `vmap` searches for a batch.

Like every iterative method here, it consists of `init`, `step` and `finish`. `search` does all three.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from dcgan_jax.inpainting import descent, trace
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.descent import Descent
from dcgan_jax.inpainting.objective import Losses, Point, Problem, distance, losses
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


def step(prior: Prior, config: InpaintConfig, problem: Problem, search: Search, optimizer: Optimizer = None) -> Search:
    """Evaluates the latent, keeps it if it is the best so far, and moves it. A stopped search does not change."""
    phase = descent.latent_phase(config, optimizer)
    moved, found, loss = descent.step(prior, config, phase, problem, search.descent)
    best = _better(search.best, search.descent.point.latent, found, loss)
    running, earlier_loss = moved.num_steps < config.num_steps, search.earlier_loss
    if config.tolerance:
        look = moved.num_steps % config.patience == 0
        improves = earlier_loss - best.loss > config.tolerance * jnp.abs(best.loss)
        running &= improves | ~look
        earlier_loss = jnp.where(look, best.loss, earlier_loss)
    after = Search(moved, best, running, earlier_loss)
    return _where(search.running, after, search) if config.tolerance else after


def finish(prior: Prior, config: InpaintConfig, problem: Problem, search: Search) -> Found:
    """Chooses the best or the last latent of the first phase, refines it, and closes the trace."""
    state = search.descent
    last = losses(prior, config, problem, state.point)
    total = last.context + last.prior + distance(config, problem, state.point.latent)
    best = _better(search.best, state.point.latent, last, total)
    kept, kept_losses = (best.latent, best.losses) if config.keep_best else (state.point.latent, last)
    if not config.refine_steps:
        points = trace.close(config, state.trace, state.num_steps, last, state.point.latent)
        return Found(Point(kept, state.point.shifts), kept_losses, state.num_steps, points)
    phase = descent.refinement_phase(config)
    shifts = state.point.shifts or tuple(jnp.zeros(shape, kept.dtype) for shape in prior.feature_shapes)
    state = descent.begin(phase, Point(kept, shifts), state.num_steps, state.trace)
    state = jax.lax.fori_loop(
        0, config.refine_steps, lambda _, state: descent.step(prior, config, phase, problem, state)[0], state
    )
    last = losses(prior, config, problem, state.point)
    points = trace.close(config, state.trace, state.num_steps, last, state.point.latent)
    return Found(state.point, last, state.num_steps, points)


def _better(best: Best, latent: Float[Array, " latent"], found: Losses, loss: Float[Array, ""]) -> Best:
    """Returns the better of two latents. A latent whose loss is NaN is never better."""
    dtype = best.loss.dtype  # a loop keeps its types
    other = Best(latent, Losses(*(x.astype(dtype) for x in found)), loss.astype(dtype))
    return _where(loss < best.loss, other, best)


def _where(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)
