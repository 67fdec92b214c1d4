"""The trace of a latent search: some of its latents and losses, for plots and animations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.objective import Losses


class Trace(NamedTuple):
    """The points of a search at its start, after every `trace_every` steps, and at its end.

    If a search stopped early, copies of its last point fill the remaining places.
    """

    num_steps: Int[Array, "*b t"]  # updates done
    context_loss: Float[Array, "*b t"]
    prior_loss: Float[Array, "*b t"]
    latents: Float[Array, "*b t latent"]


def empty(config: InpaintConfig, latent: Float[Array, " latent"], dtype: jnp.dtype) -> Trace | None:
    """Returns a trace without points; None if `config.trace_every` is 0.

    Args:
        config: the configuration of the search.
        latent: a latent of the search; only its shape and type are used.
        dtype: the type of the losses.
    """
    if not config.trace_every:
        return None
    count = len(_steps(config))
    zeros = jnp.zeros(count, dtype)
    return Trace(jnp.zeros(count, jnp.int32), zeros, zeros, jnp.zeros((count, *latent.shape), latent.dtype))


def record(
    config: InpaintConfig,
    trace: Trace | None,
    num_steps: Int[Array, ""],
    losses: Losses,
    latent: Float[Array, " latent"],
) -> Trace | None:
    """Returns the trace with this point added, if a point is due after `num_steps` updates."""
    if trace is None:
        return None
    place, rest = jnp.divmod(num_steps, config.trace_every)
    place = jnp.where(rest == 0, place, len(_steps(config)))  # beyond the end: dropped
    point = Trace(num_steps, losses.context, losses.prior, latent)
    return jax.tree.map(lambda points, one: points.at[place].set(one, mode="drop"), trace, point)


def close(
    config: InpaintConfig,
    trace: Trace | None,
    num_steps: Int[Array, ""],
    losses: Losses,
    latent: Float[Array, " latent"],
) -> Trace | None:
    """Returns the trace with the last point in all remaining places."""
    if trace is None:
        return None
    recorded = jnp.asarray(_steps(config)) < num_steps

    def fill(points: Array, last: Array) -> Array:
        return jnp.where(recorded.reshape(-1, *[1] * (points.ndim - 1)), points, last)

    return jax.tree.map(fill, trace, Trace(num_steps, losses.context, losses.prior, latent))


def _steps(config: InpaintConfig) -> list[int]:
    """Returns the numbers of updates after which points are recorded."""
    last = config.num_steps + config.refine_steps
    return [*range(0, last, config.trace_every), last]
