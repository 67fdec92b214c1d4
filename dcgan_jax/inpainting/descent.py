"""One step of a latent search: the gradient at a point, and an update within the prior's bounds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from dcgan_jax.inpainting import trace as traces
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.objective import Losses, Point, Problem, distance, losses_at
from dcgan_jax.inpainting.trace import Trace
from dcgan_jax.priors.labels import keep_label, project_onto_simplex, with_label
from dcgan_jax.priors.prior import Prior

# Negligible beside any squared gradient. Without it, Adam's square root has no derivative where a gradient is 0.
_EPSILON_IN_ROOT = 1e-30


class Phase(NamedTuple):
    """A phase of the search: its optimiser, its variables and its loss."""

    optimizer: optax.GradientTransformationExtraArgs
    moves_shifts: bool  # True: moves latent and feature shifts; False: moves the latent only
    with_prior_loss: bool  # whether the loss includes the prior loss


class Descent(NamedTuple):
    """The state of a phase."""

    point: Point
    optimizer: optax.OptState
    num_steps: Int[Array, ""]  # updates done in all phases so far
    trace: Trace | None  # None unless `trace_every` is set


def latent_phase(config: InpaintConfig, optimizer: optax.GradientTransformation | None = None) -> Phase:
    """Returns the first phase, which moves the latent by Adam or another optimiser of optax."""
    if optimizer is None:
        optimizer = optax.adam(config.learning_rate, eps_root=_EPSILON_IN_ROOT)
    return Phase(optax.with_extra_args_support(optimizer), moves_shifts=False, with_prior_loss=True)


def refinement_phase(config: InpaintConfig) -> Phase:
    """Returns the second phase, which also moves the generator's intermediate features, by Adam.

    This phase leaves out the prior loss. Features inside the hole would have no other loss. Adam scales all gradients
    to one size, so these features would learn to exploit the discriminator's weaknesses.
    """
    adam = optax.adam(config.refine_learning_rate, eps_root=_EPSILON_IN_ROOT)
    return Phase(optax.with_extra_args_support(adam), moves_shifts=True, with_prior_loss=False)


def begin(phase: Phase, point: Point, num_steps: Int[Array, ""], trace: Trace | None) -> Descent:
    """Returns the initial state of a phase."""
    return Descent(point, phase.optimizer.init(_variables(phase, point)), num_steps, trace)


def step(
    prior: Prior, config: InpaintConfig, phase: Phase, problem: Problem, descent: Descent
) -> tuple[Descent, Losses, Float[Array, ""]]:
    """Moves the point of one image by one update.

    Returns:
        The next state; the losses of the point before the update; and the loss that the update descends. It is the sum
        of the phase's losses and `distance`.
    """
    point = descent.point

    def objective(variables: Any) -> tuple[Float[Array, ""], Losses]:
        at = Point(*variables) if phase.moves_shifts else Point(variables, point.shifts)
        losses = losses_at(prior, config, problem, at)
        total = losses.context + losses.prior if phase.with_prior_loss else losses.context
        return total + distance(config, problem, at.latent), losses

    variables = _variables(phase, point)
    (loss, losses), gradient = jax.value_and_grad(objective, has_aux=True)(variables)
    labelled = problem.labelled
    if labelled is not None:
        gradient = _without_label(prior, labelled, gradient, phase)
    updates, state = phase.optimizer.update(
        gradient,
        descent.optimizer,
        variables,
        value=loss,  # line searches need the loss and its function
        grad=gradient,
        value_fn=lambda variables: objective(variables)[0],
    )
    moved: Any = optax.apply_updates(variables, updates)
    latent, shifts = moved if phase.moves_shifts else (moved, point.shifts)
    latent = clip(prior, config, jnp.asarray(latent))
    if labelled is not None:
        latent = jnp.where(labelled, keep_label(prior.num_classes, latent, point.latent), latent)
    trace = traces.record(config, descent.trace, descent.num_steps, losses, point.latent)
    return Descent(Point(latent, shifts), state, descent.num_steps + 1, trace), losses, loss


def clip(prior: Prior, config: InpaintConfig, latent: Float[Array, "*b latent"]) -> Float[Array, "*b latent"]:
    """Clips the latent to its bounds. A label is projected to a mixture: entries of 0 or more whose sum is 1."""
    bounds = prior.latent_bounds if config.latent_bound is None else (-config.latent_bound, config.latent_bound)
    clipped = jnp.clip(latent, *bounds) if config.clip and bounds is not None else latent
    if not prior.num_classes:
        return clipped
    return with_label(clipped, project_onto_simplex(latent[..., -prior.num_classes :]))


def _variables(phase: Phase, point: Point) -> Any:
    return (point.latent, point.shifts) if phase.moves_shifts else point.latent


def _without_label(prior: Prior, labelled: Bool[Array, ""], gradient: Any, phase: Phase) -> Any:
    """Returns the gradient with zeros for a label that must not change."""
    of_latent = gradient[0] if phase.moves_shifts else gradient
    unlabelled = keep_label(prior.num_classes, of_latent, jnp.zeros_like(of_latent))
    of_latent = jnp.where(labelled, unlabelled, of_latent)
    return (of_latent, gradient[1]) if phase.moves_shifts else of_latent
