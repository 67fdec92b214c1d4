"""The result of an inpainting: the choice among restarts, the blend into the hole, and the status."""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.blending.smooth import smooth_blend
from dcgan_jax.images.pixels import composite
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.objective import Losses, Point, Problem
from dcgan_jax.inpainting.search import Found
from dcgan_jax.inpainting.trace import Trace
from dcgan_jax.priors.prior import Prior


class Status(enum.IntEnum):
    """The status of a completed image."""

    OK = 0
    NOT_FINITE = 1  # a loss or a pixel is NaN or infinite
    NOTHING_MISSING = 2
    NOTHING_KNOWN = 3

    @property
    def words(self) -> str:
        """The status in words, such as "not finite"."""
        return self.name.lower().replace("_", " ")


class InpaintResult(NamedTuple):
    """Completed images and the data of their searches. Each field has one row for each image.

    Attributes:
        images: the results, of the input's type; known pixels equal the input.
        completions: the generated images G(ẑ) in [−1, 1], including the feature shifts of the search if there are any.
            With `guess_length`, a completion has the structure of the encoder's guess. With several completions, their
            mean has it.
        latents: the latents ẑ that were found.
        context_loss: the context loss at ẑ.
        prior_loss: the prior loss at ẑ.
        num_steps: number of updates of the restart that was kept.
        status: a `Status`.
        labels: the class that was given or found; −1 if the prior has no classes or the status is NOT_FINITE.
        trace: the trace of the restart that was kept; None unless `trace_every` is set.
        alternatives: the `num_completions` best results [b, k, ...], best first; None if `num_completions` is 1.
        mean: the mean of the alternatives' images. It is softer than each of them, and usually nearer to the original.
            None if `num_completions` is 1.
    """

    images: Shaped[Array, "b h w c"]
    completions: Float[Array, "b h w c"]
    latents: Float[Array, "b latent"]
    context_loss: Float[Array, " b"]
    prior_loss: Float[Array, " b"]
    num_steps: Int[Array, " b"]
    status: Int[Array, " b"]
    labels: Int[Array, " b"]
    trace: Trace | None = None
    alternatives: "InpaintResult | None" = None
    mean: Shaped[Array, "b h w c"] | None = None


def assemble(
    prior: Prior,
    config: InpaintConfig,
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    problems: Problem,
    found: Found,
) -> InpaintResult:
    """Keeps the best restarts of each image and blends their completions into the hole.

    Args:
        prior: see `inpaint`.
        config: see `inpaint`.
        images: the images that the caller gave.
        hole: True = missing.
        problems: the search problems of the batch.
        found: the results of all searches. Each field has two leading axes: images and restarts.
    """
    images, hole = jnp.asarray(images), jnp.asarray(hole)

    def blend(completions: Float[Array, "b k h w c"]) -> Float[Array, "b k h w c"]:
        return _blend(config, completions, problems.measured, hole)

    return collect(prior, config, images, hole, blend, _status(hole), problems, found)


def collect(
    prior: Prior,
    config: InpaintConfig,
    images: Shaped[Array, "b h w c"],
    hole: Bool[Array, "b h w"],
    blend: Callable[[Float[Array, "b k h w c"]], Float[Array, "b k h w c"]],
    status: Int[Array, " b"],
    problems: Problem,
    found: Found,
) -> InpaintResult:
    """Keeps the best restarts of each image, and blends their completions.

    Args:
        prior: see `inpaint`.
        config: see `inpaint`.
        images: the images whose known pixels are kept.
        hole: the pixels that the blend sets: True = missing.
        blend: turns the completions of each image into results, which are not clipped.
        status: the status of each image if its values are finite.
        problems: see `assemble`.
        found: see `assemble`.
    """
    order = jnp.argsort(_rank(prior, config, hole, found), axis=1)[:, : config.num_completions]
    kept = jax.vmap(lambda restarts, places: jax.tree.map(lambda x: x[places], restarts))(found, order)
    completions = _completions(prior, kept.point)
    finite = jnp.isfinite(_total(kept.losses)) & _are_finite(completions)
    if problems.guessed is not None:
        completions = _with_structure(completions, finite, problems.guessed, config.guess_length)
    blended = blend(completions)
    finite &= _are_finite(completions) & _are_finite(blended)  # the guess may not be finite
    blended = jnp.where(finite[..., None, None, None], blended, 0.0)
    several = InpaintResult(
        images=jax.vmap(composite, (None, None, 1), 1)(images, hole, blended),
        completions=completions,
        latents=kept.point.latent,
        context_loss=kept.losses.context,
        prior_loss=kept.losses.prior,
        num_steps=kept.num_steps,
        status=jnp.where(finite, status[:, None], Status.NOT_FINITE).astype(jnp.int32),
        labels=_labels(prior, kept.point.latent, finite),
        trace=kept.trace,
    )
    best = jax.tree.map(lambda x: x[:, 0], several)
    if config.num_completions == 1:
        return best
    mean = composite(images, hole, _mean(jnp.clip(blended, -1, 1), finite))
    return best._replace(alternatives=several, mean=mean)


def _with_structure(
    completions: Float[Array, "b k h w c"], finite: Bool[Array, "b k"], guessed: Float[Array, "b h w c"], length: float
) -> Float[Array, "b k h w c"]:
    """Adds one smooth image to all completions of an image. The mean of the finite ones then has that structure."""
    return completions + _smoothed(guessed - _mean(completions, finite), length)[:, None]


def _mean(images: Float[Array, "b k h w c"], among: Bool[Array, "b k"]) -> Float[Array, "b h w c"]:
    """Returns the mean of some of the images of each row; 0 if there are none."""
    number = jnp.maximum(jnp.sum(among, axis=1), 1)[:, None, None, None]
    return jnp.sum(jnp.where(among[..., None, None, None], images, 0), axis=1) / number


def _are_finite(images: Float[Array, "b k h w c"]) -> Bool[Array, "b k"]:
    return jnp.all(jnp.isfinite(images), axis=(2, 3, 4))


def _total(losses: Losses) -> Float[Array, "b r"]:
    return losses.context + losses.prior


def _status(hole: Bool[Array, "b h w"]) -> Int[Array, " b"]:
    missing = jnp.sum(hole, axis=(1, 2))
    status = jnp.where(missing == hole[0].size, Status.NOTHING_KNOWN, Status.OK)
    return jnp.where(missing == 0, Status.NOTHING_MISSING, status)


def _labels(prior: Prior, latents: Float[Array, "b k latent"], finite: Bool[Array, "b k"]) -> Int[Array, "b k"]:
    none = jnp.full(finite.shape, -1, jnp.int32)
    if not prior.num_classes:
        return none
    return jnp.where(finite, jnp.argmax(latents[..., -prior.num_classes :], axis=-1).astype(jnp.int32), none)


def _blend(
    config: InpaintConfig,
    completions: Float[Array, "b k h w c"],
    known: Float[Array, "b h w c"],
    hole: Bool[Array, "b h w"],
) -> Float[Array, "b k h w c"]:
    """Returns the images with the completions blended into their holes, not clipped."""

    def blend(completion: Array, image: Array, hole: Array) -> Array:
        if config.blend == "poisson":
            return poisson_blend(completion, image, hole)
        return smooth_blend(completion, image, hole, sharp=config.blend == "sharp")

    return jax.vmap(blend, (1, None, None), 1)(completions.astype(known.dtype), known, hole)


def _rank(prior: Prior, config: InpaintConfig, hole: Bool[Array, "b h w"], found: Found) -> Float[Array, "b r"]:
    """Returns a score for each restart; lower is better. The score is infinite if a loss is not finite."""
    score = _total(found.losses)
    finite = jnp.isfinite(score)
    if config.judge == "central" and config.restarts > 1:
        completions = _completions(prior, found.point)
        finite &= _are_finite(completions)
        counted = (hole[:, None] & finite[..., None, None])[..., None]
        mean = _mean(completions, finite)[:, None]
        score = jnp.sum(jnp.where(counted, (completions - mean) ** 2, 0), axis=(2, 3, 4))
    return jnp.where(finite, score, jnp.inf)


def _smoothed(images: Float[Array, "*b h w c"], length: float) -> Float[Array, "*b h w c"]:
    """Smooths images by a normal window whose standard deviation is `length` pixels. Windows end at the border."""

    def window(side: int) -> Array:
        place = np.arange(side)
        weights = np.exp(-0.5 * ((place[:, None] - place) / length) ** 2)
        return jnp.asarray(weights / weights.sum(axis=1, keepdims=True), images.dtype)

    rows, columns = window(images.shape[-3]), window(images.shape[-2])
    return jnp.einsum("ij,...jkc,lk->...ilc", rows, images, columns, precision="highest")


def _completions(prior: Prior, points: Point) -> Float[Array, "b k h w c"]:
    """Generates the images of points with two leading axes."""
    b, k = points.latent.shape[:2]
    latents, shifts = jax.tree.map(lambda x: x.reshape(b * k, *x.shape[2:]), points)
    images = prior.generate(prior.params, latents, *([shifts] if shifts else []))
    return images.reshape(b, k, *images.shape[1:])
