"""The latent search of one image; a batch is its `vmap`.

It has the shape of every iterative method here: `init_search`, `search_step`, `end_search`, and `search`, which is all
three.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.objective import _distance, _losses
from dcgan_jax.inpainting.starts import Start, _clip
from dcgan_jax.inpainting.trace import Trace, _record, _traced_steps
from dcgan_jax.priors.labels import keep_label
from dcgan_jax.priors.prior import Prior


class Search(NamedTuple):
    """A search under way: the iterate and the best one so far."""

    start: Start
    num_steps: Int[Array, ""]  # updates done
    running: Bool[Array, ""]  # neither out of steps nor stopped
    latent: Float[Array, " latent"]
    optimizer: optax.OptState
    best_latent: Float[Array, " latent"]
    best_loss: Float[Array, ""]  # infinite before the first step
    earlier_loss: Float[Array, ""]  # the best one when the stopping rule last looked
    refinement: "Refinement | None"  # None unless `refine_steps` is set
    trace: Trace | None  # filled as far as the search has come; None unless `trace_every` is set


class Refinement(NamedTuple):
    """The part of a search that begins when the latent has been found."""

    begun: Bool[Array, ""]
    steps_left: Int[Array, ""]  # one more than updates: the first goes back to the best latent
    shifts: tuple[Float[Array, "_ _ _"], ...]  # of the generator's features
    optimizer: optax.OptState  # of latent and shifts


class Found(NamedTuple):
    """What a search has found."""

    latent: Float[Array, " latent"]  # the best iterate, the last one counted, or the last one; then refined
    shifts: tuple[Float[Array, "_ _ _"], ...]  # of the generator's features: the start's, or refined; there may be none
    context_loss: Float[Array, ""]
    prior_loss: Float[Array, ""]
    num_steps: Int[Array, ""]
    trace: Trace | None


def search(
    prior: Prior,
    config: InpaintConfig,
    image: Float[Array, "h w c"],
    weights: Float[Array, "h w"],
    start: Start,
    optimizer: optax.GradientTransformation | None = None,
) -> Found:
    """Searches for one image from one start.

    Args:
        image: in [−1, 1], finite in the hole.
        weights: importance weights, 0 in the hole.
        start: one of `draw_starts`.
        optimizer: see `inpaint`.
    """

    def step(state):
        return search_step(prior, config, image, weights, state, optimizer)

    state = init_search(prior, config, start, optimizer)
    if config.tolerance:
        state = jax.lax.while_loop(lambda state: state.running, step, state)
    else:  # a count that is known beforehand can be differentiated in reverse
        state = jax.lax.fori_loop(0, most_steps(config), lambda _, state: step(state), state)
    return end_search(prior, config, image, weights, state)


def init_search(
    prior: Prior,
    config: InpaintConfig,
    start: Start,
    optimizer: optax.GradientTransformation | None = None,
) -> Search:
    """A search that has yet to take its first step."""
    latent = start.latent
    no_loss = jnp.full((), jnp.inf, jnp.promote_types(latent.dtype, jnp.float32))
    trace = refinement = None
    if config.refine_steps:
        shifts = start.shifts or tuple(jnp.zeros(shape, latent.dtype) for shape in prior.feature_shapes)
        refinement = Refinement(
            begun=jnp.asarray(config.num_steps == 0),
            steps_left=jnp.asarray(config.refine_steps + 1, jnp.int32),
            shifts=shifts,
            optimizer=_refiner(config).init((latent, shifts)),
        )
    if config.trace_every:
        points = len(_traced_steps(config))
        losses = jnp.zeros(points, no_loss.dtype)
        trace = Trace(jnp.zeros(points, jnp.int32), losses, losses, jnp.zeros((points, *latent.shape), latent.dtype))
    return Search(
        start=start,
        num_steps=jnp.zeros((), jnp.int32),
        running=jnp.asarray(most_steps(config) > 0),
        latent=latent,
        optimizer=_optimizer(config, optimizer).init(latent),
        best_latent=latent,
        best_loss=no_loss,
        earlier_loss=no_loss,
        refinement=refinement,
        trace=trace,
    )


def most_steps(config: InpaintConfig) -> int:
    """How many `search_step` a search takes at the most."""
    return config.num_steps + (config.refine_steps + 1 if config.refine_steps else 0)


def search_step(
    prior: Prior,
    config: InpaintConfig,
    image: Float[Array, "h w c"],
    weights: Float[Array, "h w"],
    search: Search,
    optimizer: optax.GradientTransformation | None = None,
) -> Search:
    """One step: judges the iterate, keeps it if it is the best so far, and moves on, within the bounds.

    With `refine_steps` the features move too once the latent has been found. With a `tolerance`, a search that no
    longer runs stays as it is.
    """
    shifts, searching = search.start.shifts, 1
    if search.refinement is not None:
        # Features that shape the hole alone know the prior loss only, and Adam, which levels gradients, would let
        # them run after the discriminator's weaknesses.
        shifts = search.refinement.shifts
        searching = ~search.refinement.begun | (search.refinement.steps_left > config.refine_steps)

    def objective(z, shifts):
        context, prior_term = _losses(prior, config, image, weights, z, shifts)
        return context + searching * prior_term + _distance(config, search.start, z), (context, prior_term)

    (loss, losses), gradient = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(search.latent, shifts)
    if search.start.labelled is not None:
        still = keep_label(prior.num_classes, gradient[0], jnp.zeros_like(gradient[0]))
        gradient = jnp.where(search.start.labelled, still, gradient[0]), gradient[1]
    best_latent, best_loss = _better(search, loss)
    updates, state = _optimizer(config, optimizer).update(
        gradient[0],
        search.optimizer,
        search.latent,
        value=loss,
        grad=gradient[0],
        value_fn=lambda z: objective(z, shifts)[0],
    )
    num_steps = search.num_steps + 1
    running, earlier_loss = num_steps < config.num_steps, search.earlier_loss
    if config.tolerance:
        look = num_steps % config.patience == 0
        falls = earlier_loss - best_loss > config.tolerance * jnp.abs(best_loss)
        running &= falls | ~look
        earlier_loss = jnp.where(look, best_loss, earlier_loss)
    moved = Search(
        start=search.start,
        num_steps=num_steps,
        running=running,
        latent=_clip(prior, config, jnp.asarray(optax.apply_updates(search.latent, updates)), search.start),
        optimizer=state,
        best_latent=best_latent,
        best_loss=best_loss,
        earlier_loss=earlier_loss,
        refinement=search.refinement,
        trace=_record(config, search, losses),
    )
    if search.refinement is not None:
        refinement = search.refinement._replace(begun=~running)
        moved = moved._replace(running=jnp.asarray(True), refinement=refinement)
        refined = _refine(prior, config, search, best_latent, best_loss, gradient)._replace(trace=moved.trace)
        moved = _where(search.refinement.begun, refined, moved)
    if config.tolerance:
        moved = _where(search.running, moved, search)
    return moved


def _refine(prior, config, search: Search, best_latent, best_loss, gradient) -> Search:
    """A step of the refinement: the first goes back to the best latent, the others move it and the features."""
    refinement = search.refinement
    assert refinement is not None
    updates, optimizer = _refiner(config).update(gradient, refinement.optimizer)
    moved: Any = optax.apply_updates((search.latent, refinement.shifts), updates)
    latent, shifts = moved
    first = refinement.steps_left > config.refine_steps
    found = best_latent if config.keep_best else search.latent
    left = refinement.steps_left - 1
    going = refinement._replace(steps_left=left, shifts=shifts, optimizer=optimizer)
    return search._replace(
        num_steps=search.num_steps + ~first,
        running=left > 0,
        latent=jnp.where(first, found, _clip(prior, config, latent, search.start)),
        best_latent=best_latent,
        best_loss=jnp.where(first, best_loss, search.best_loss),
        refinement=_where(first, refinement._replace(steps_left=left), going),
    )


def end_search(
    prior: Prior,
    config: InpaintConfig,
    image: Float[Array, "h w c"],
    weights: Float[Array, "h w"],
    search: Search,
) -> Found:
    """What the search has found so far."""
    latent, shifts = search.latent, search.start.shifts if search.refinement is None else search.refinement.shifts
    losses = _losses(prior, config, image, weights, latent, shifts)
    end = Trace(search.num_steps, *losses, latent)
    if config.keep_best and not config.refine_steps:
        latent, _ = _better(search, sum(losses) + _distance(config, search.start, latent))
        losses = _losses(prior, config, image, weights, latent, shifts)
    trace = search.trace
    if trace is not None:
        recorded = jnp.asarray(_traced_steps(config)) < search.num_steps

        def fill(points, last):
            return jnp.where(recorded.reshape(-1, *[1] * (points.ndim - 1)), points, last)

        trace = jax.tree.map(fill, trace, end)
    return Found(latent, shifts, *losses, search.num_steps, trace)


def _where(condition, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


def _better(search: Search, loss):
    better = loss < search.best_loss
    best_loss = jnp.where(better, loss.astype(search.best_loss.dtype), search.best_loss)  # a loop keeps its types
    return jnp.where(better, search.latent, search.best_latent), best_loss


def _refiner(config):
    return optax.adam(config.refine_learning_rate, eps_root=1e-30)


def _optimizer(config, optimizer):
    if optimizer is None:
        # Far below any gradient that counts: without it Adam's square root has no derivative where a gradient is 0.
        optimizer = optax.adam(config.learning_rate, eps_root=1e-30)
    return optax.with_extra_args_support(optimizer)  # line searches take the loss and its function
