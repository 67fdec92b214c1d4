"""The trace of a latent search."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Trace(NamedTuple):
    """How a search went: its iterates at the start, after every `trace_every` steps, and at the end.

    Where a search stopped early, its end fills the places that are left.
    """

    num_steps: Int[Array, "*b t"]  # updates done
    context_loss: Float[Array, "*b t"]
    prior_loss: Float[Array, "*b t"]
    latents: Float[Array, "*b t latent"]


def _traced_steps(config):
    last = config.num_steps + config.refine_steps
    return [*range(0, last, config.trace_every), last]


def _record(config, search, losses):
    """The trace with the iterate of `search` in it, if it is due."""
    if search.trace is None:
        return None
    place, rest = jnp.divmod(search.num_steps, config.trace_every)
    place = jnp.where(rest == 0, place, len(_traced_steps(config)))  # beyond the end: dropped
    return jax.tree.map(
        lambda points, point: points.at[place].set(point, mode="drop"),
        search.trace,
        Trace(search.num_steps, losses[0], losses[1], search.latent),
    )
