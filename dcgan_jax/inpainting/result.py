"""The result of an inpainting: status, ranking, blended images."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.blending.smooth import smooth_blend
from dcgan_jax.images.pixels import composite, known_pixels
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.search import Found
from dcgan_jax.inpainting.trace import Trace
from dcgan_jax.masks import importance_weights
from dcgan_jax.priors.prior import Prior

OK, NOT_FINITE, NOTHING_MISSING, NOTHING_KNOWN = range(4)  # values of `InpaintResult.status`
STATUS = ("ok", "not finite", "nothing missing", "nothing known")


class InpaintResult(NamedTuple):
    """Completed images and how their searches went; a row each."""

    images: Shaped[Array, "b h w c"]  # blended, of the input's type; equal to the input where nothing is missing
    completions: Float[Array, "b h w c"]  # G(ẑ), in [−1, 1]; with its features shifted where the search shifts them
    latents: Float[Array, "b latent"]  # ẑ
    context_loss: Float[Array, " b"]
    prior_loss: Float[Array, " b"]
    num_steps: Int[Array, " b"]  # updates of the latent, in the restart that was kept
    status: Int[Array, " b"]  # index into `STATUS`
    labels: Int[Array, " b"]  # class that is given or was found; −1 of an unconditional prior, or a search not finite
    trace: Trace | None = None  # of the restart that was kept; None unless `trace_every` is set
    alternatives: "InpaintResult | None" = None  # `num_completions` of them, [b, k, ...], this one first; None for one
    mean: Shaped[Array, "b h w c"] | None = None  # of the alternatives' images: as a rule closer to the truth, and soft


def known_part(
    config: InpaintConfig, images: Shaped[Array | np.ndarray, "b h w c"], hole: Bool[Array | np.ndarray, "b h w"]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"]]:
    """What a search is given: images in [−1, 1], grey in the hole, and their importance weights."""
    return known_pixels(images, hole), importance_weights(jnp.asarray(hole), window=config.window)


def complete(
    prior: Prior,
    config: InpaintConfig,
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    y: Float[Array, "b h w c"],
    found: Found,
) -> InpaintResult:
    """Keeps the best of each image's searches and blends what they found into the hole.

    Args:
        y: of `known_part`.
        found: of every restart of every image, two axes in front of each field.
    """
    images, hole = jnp.asarray(images), jnp.asarray(hole)
    order = jnp.argsort(_judge(prior, config, hole, found), axis=1)[:, : config.num_completions]
    kept = jax.vmap(lambda restarts, places: jax.tree.map(lambda x: x[places], restarts))(found, order)
    completions = _completions(prior, kept)
    blended = _blend(config, completions, y, hole)
    finite = jnp.isfinite(kept.context_loss + kept.prior_loss)
    finite &= jnp.all(jnp.isfinite(completions) & jnp.isfinite(blended), axis=(2, 3, 4))
    blended = jnp.where(finite[..., None, None, None], blended, 0.0)
    labels = jnp.full(finite.shape, -1, jnp.int32)
    if prior.num_classes:
        label = jnp.argmax(kept.latent[..., -prior.num_classes :], axis=-1).astype(jnp.int32)
        labels = jnp.where(finite, label, labels)
    missing = jnp.sum(hole, axis=(1, 2))[:, None]
    status = jnp.where(missing == 0, NOTHING_MISSING, jnp.where(missing == hole[0].size, NOTHING_KNOWN, OK))
    several = InpaintResult(
        images=jax.vmap(composite, (None, None, 1), 1)(images, hole, blended),
        completions=completions,
        latents=kept.latent,
        context_loss=kept.context_loss,
        prior_loss=kept.prior_loss,
        num_steps=kept.num_steps,
        status=jnp.where(finite, status, NOT_FINITE).astype(jnp.int32),
        labels=labels,
        trace=kept.trace,
    )
    best = jax.tree.map(lambda x: x[:, 0], several)
    if config.num_completions == 1:
        return best
    number = jnp.maximum(jnp.sum(finite, axis=1), 1)[:, None, None, None]
    mean = composite(images, hole, jnp.sum(jnp.clip(blended, -1, 1), axis=1) / number)
    return best._replace(alternatives=several, mean=mean)


def _blend(config, completions, y, hole) -> Float[Array, "b k h w c"]:
    """The completions in the holes, in float."""
    if config.blend == "poisson":
        blend = poisson_blend
    else:
        blend = functools.partial(smooth_blend, sharp=config.blend == "sharp")
    return jax.vmap(blend, (1, None, None), 1)(completions.astype(y.dtype), y, hole)


def _judge(prior, config, hole, found: Found) -> Float[Array, "b restarts"]:
    """The lower, the better; infinite where a loss is not finite."""
    score = found.context_loss + found.prior_loss
    finite = jnp.isfinite(score)
    if config.judge == "central" and config.restarts > 1:
        completions = _completions(prior, found)
        counted = (hole[:, None] & finite[..., None, None])[..., None]
        number = jnp.maximum(jnp.sum(finite, axis=1), 1)[:, None, None, None, None]
        mean = jnp.sum(jnp.where(counted, completions, 0), axis=1, keepdims=True) / number
        score = jnp.sum(jnp.where(counted, (completions - mean) ** 2, 0), axis=(2, 3, 4))
    return jnp.where(finite, score, jnp.inf)


def _completions(prior, found: Found) -> Float[Array, "b k h w c"]:
    """The images of latents, with shifted features if there are shifts; two axes in front of each field."""
    b, k = found.latent.shape[:2]
    latents, shifts = jax.tree.map(lambda x: x.reshape(b * k, *x.shape[2:]), (found.latent, found.shifts))
    images = prior.generate(prior.params, latents, *([shifts] if shifts else []))
    return images.reshape(b, k, *images.shape[1:])
