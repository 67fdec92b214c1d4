"""Where latent searches start."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.priors.labels import keep_label, label_entries, project_onto_simplex, with_label
from dcgan_jax.priors.prior import Prior


class Start(NamedTuple):
    """Where a search starts, and the encoder's Gaussian to which it is drawn; None without `encoder_weight`."""

    latent: Float[Array, "*b latent"]
    shifts: tuple[Float[Array, "*b _ _ _"], ...] = ()  # of the generator's features; none where they begin unshifted
    mean: Float[Array, "*b latent"] | None = None
    deviation: Float[Array, "*b latent"] | None = None
    labelled: Bool[Array, "*b"] | None = None  # whether the label stays as it is; None: it does not, or there is none


def draw_starts(
    prior: Prior,
    config: InpaintConfig,
    known: Float[Array, "b h w c"],
    hole: Bool[Array, "b h w"],
    keys: PRNGKeyArray,
    labels: Int[Array, " b"] | None = None,
) -> Start:
    """Where searches start: at latents drawn from the prior, or at the encoder's best guess and draws around it.

    Args:
        known: images in [−1, 1], grey in the hole.
        hole: True = missing.
        keys: one for each image; its restart r uses fold_in(key, r).
        labels: of a conditional prior, −1 where the search is to find it: it then starts at all classes alike, or at
            the encoder's guess.
    """
    each = jax.vmap(lambda key: jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(config.restarts)))(keys)
    latents = jax.vmap(jax.vmap(lambda key: prior.sample_latents(key, 1)[0]))(each)
    start = Start(latents)
    if prior.encode is not None and (config.start == "encoder" or config.encoder_weight):
        encoded = prior.encode(prior.params, known, hole)
        mean, deviation, shifts = jax.tree.map(lambda x: jnp.repeat(x[:, None], config.restarts, axis=1), encoded)
        if config.encoder_weight:
            start = start._replace(mean=mean, deviation=deviation)
        if config.start == "encoder":
            noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, mean.shape[2:], mean.dtype)))(each)
            drawn = mean + deviation * noise.at[:, 0].set(0)
            start = start._replace(latent=_clip(prior, config, drawn))
        if config.start == "encoder" and config.start_shifts:
            if not shifts:
                raise ValueError(
                    f"`start_shifts` is {config.start_shifts} and this prior's encoder gives no shifts: make it 0"
                )
            shares = config.start_shifts * (1 - jnp.arange(config.restarts) / max(config.restarts - 1, 1))
            shifts = tuple(shares.reshape(-1, *[1] * (x.ndim - 2)).astype(x.dtype) * x for x in shifts)
            start = start._replace(shifts=shifts)
    if config.latent_bound is not None:
        clipped = jnp.clip(start.latent, -config.latent_bound, config.latent_bound)
        start = start._replace(latent=keep_label(prior.num_classes, clipped, start.latent))
    return _label(prior, config, start, labels) if prior.num_classes else start


def _label(prior: Prior, config: InpaintConfig, start: Start, labels) -> Start:
    labels = jnp.full(len(start.latent), -1) if labels is None else labels
    labels = jnp.broadcast_to(labels[:, None], start.latent.shape[:2])
    label, labelled = label_entries(prior.num_classes, labels, start.latent.dtype), labels >= 0
    if prior.encode is not None and config.start == "encoder":
        label = jnp.where(labelled[..., None], label, start.latent[..., -prior.num_classes :])
    return start._replace(latent=with_label(start.latent, label), labelled=labelled)


def _clip(prior, config, latent, start: Start | None = None):
    """The latent within its bounds; its label on the simplex, or where it started if it is given."""
    bounds = prior.latent_bounds if config.latent_bound is None else (-config.latent_bound, config.latent_bound)
    clipped = jnp.clip(latent, *bounds) if config.clip and bounds is not None else latent
    if not prior.num_classes:
        return clipped
    clipped = with_label(clipped, project_onto_simplex(latent[..., -prior.num_classes :]))
    if start is not None and start.labelled is not None:
        clipped = jnp.where(start.labelled, keep_label(prior.num_classes, clipped, start.latent), clipped)
    return clipped
