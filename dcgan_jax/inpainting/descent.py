"""One step of a latent search: the gradient at a point, and an update within the prior's bounds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from dcgan_jax.inpainting import trace as traces
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.objective import Losses, Point, Problem, distance, losses
from dcgan_jax.inpainting.trace import Trace
from dcgan_jax.priors.labels import keep_label, project_onto_simplex, with_label
from dcgan_jax.priors.prior import Prior

# Far below any gradient that counts. Without it, Adam's square root has no derivative where a gradient is 0.
_EPSILON_IN_ROOT = 1e-30


class Phase(NamedTuple):
    """What a phase of the search moves, and by which optimiser."""

    optimizer: optax.GradientTransformationExtraArgs
    moves_shifts: bool  # the generator's features too, or the latent alone
    prior_loss: bool  # whether the prior loss counts


class Descent(NamedTuple):
    """A phase under way."""

    point: Point
    optimizer: optax.OptState
    num_steps: Int[Array, ""]  # updates done, over all phases
    trace: Trace | None  # None unless `trace_every` is set


def latent_phase(config: InpaintConfig, optimizer: optax.GradientTransformation | None = None) -> Phase:
    """Returns the first phase: the latent moves, by Adam or another optimiser of optax."""
    if optimizer is None:
        optimizer = optax.adam(config.learning_rate, eps_root=_EPSILON_IN_ROOT)
    return Phase(optax.with_extra_args_support(optimizer), moves_shifts=False, prior_loss=True)


def refinement_phase(config: InpaintConfig) -> Phase:
    """Returns the second phase: the generator's intermediate features move too, by Adam.

    The prior loss does not count. It alone would shape the features that only the hole shows, and Adam, which scales
    all gradients to one size, would let them exploit the discriminator's weaknesses.
    """
    adam = optax.adam(config.refine_learning_rate, eps_root=_EPSILON_IN_ROOT)
    return Phase(optax.with_extra_args_support(adam), moves_shifts=True, prior_loss=False)


def begin(phase: Phase, point: Point, num_steps: Int[Array, ""], trace: Trace | None) -> Descent:
    """Returns a phase that has done no step yet."""
    return Descent(point, phase.optimizer.init(_variables(phase, point)), num_steps, trace)


def step(
    prior: Prior, config: InpaintConfig, phase: Phase, problem: Problem, descent: Descent
) -> tuple[Descent, Losses, Float[Array, ""]]:
    """Moves the point of one image by one update.

    Returns:
        The moved descent; the losses of the point before; and their sum with `distance`, which the update descends.
    """
    point = descent.point

    def objective(variables: Any) -> tuple[Float[Array, ""], Losses]:
        at = Point(*variables) if phase.moves_shifts else Point(variables, point.shifts)
        found = losses(prior, config, problem, at)
        total = found.context + found.prior if phase.prior_loss else found.context
        return total + distance(config, problem, at.latent), found

    variables = _variables(phase, point)
    (loss, found), gradient = jax.value_and_grad(objective, has_aux=True)(variables)
    labelled = problem.labelled
    if labelled is not None:
        gradient = _without_label(prior, labelled, gradient, phase)
    updates, state = phase.optimizer.update(
        gradient,
        descent.optimizer,
        variables,
        value=loss,  # line searches take the loss and its function
        grad=gradient,
        value_fn=lambda variables: objective(variables)[0],
    )
    moved: Any = optax.apply_updates(variables, updates)
    latent, shifts = moved if phase.moves_shifts else (moved, point.shifts)
    latent = clip(prior, config, jnp.asarray(latent))
    if labelled is not None:
        latent = jnp.where(labelled, keep_label(prior.num_classes, latent, point.latent), latent)
    trace = traces.record(config, descent.trace, descent.num_steps, found, point.latent)
    return Descent(Point(latent, shifts), state, descent.num_steps + 1, trace), found, loss


def clip(prior: Prior, config: InpaintConfig, latent: Float[Array, "*b latent"]) -> Float[Array, "*b latent"]:
    """Returns the latent within its bounds, and its label as a mixture of classes."""
    bounds = prior.latent_bounds if config.latent_bound is None else (-config.latent_bound, config.latent_bound)
    clipped = jnp.clip(latent, *bounds) if config.clip and bounds is not None else latent
    if not prior.num_classes:
        return clipped
    return with_label(clipped, project_onto_simplex(latent[..., -prior.num_classes :]))


def _variables(phase: Phase, point: Point) -> Any:
    return (point.latent, point.shifts) if phase.moves_shifts else point.latent


def _without_label(prior: Prior, labelled: Bool[Array, ""], gradient: Any, phase: Phase) -> Any:
    """The gradient with zeros for a label that stays."""
    of_latent = gradient[0] if phase.moves_shifts else gradient
    still = keep_label(prior.num_classes, of_latent, jnp.zeros_like(of_latent))
    of_latent = jnp.where(labelled, still, of_latent)
    return (of_latent, gradient[1]) if phase.moves_shifts else of_latent
