"""The starts of latent searches: latents drawn from the prior, or the encoder's guess and draws around it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from dcgan_jax.images.pixels import known_pixels
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.descent import clip
from dcgan_jax.inpainting.objective import Guess, Point, Problem
from dcgan_jax.masks import importance_weights
from dcgan_jax.priors.labels import keep_label, label_entries, with_label
from dcgan_jax.priors.prior import Prior


def set_up(
    prior: Prior,
    config: InpaintConfig,
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    keys: PRNGKeyArray,
    labels: Int[Array | np.ndarray, " b"] | None = None,
) -> tuple[Problem, Point]:
    """Returns the search problems of the inpainting of a batch, and the starts of its searches.

    Args:
        prior: see `inpaint`.
        config: see `inpaint`.
        images: float in [−1, 1] or uint8. Values in the hole are not read.
        hole: True = missing.
        keys: see `add_starts`.
        labels: see `add_starts`.

    Returns:
        See `add_starts`.
    """
    known, hole = known_pixels(images, hole), jnp.asarray(hole)
    problem = Problem(known, importance_weights(hole, window=config.window))
    return add_starts(prior, config, problem, known, hole, keys, labels)


def add_starts(
    prior: Prior,
    config: InpaintConfig,
    problem: Problem,
    known: Float[Array, "b h w c"],
    hole: Bool[Array, "b h w"],
    keys: PRNGKeyArray,
    labels: Int[Array | np.ndarray, " b"] | None = None,
) -> tuple[Problem, Point]:
    """Returns the search problems of a batch, with guesses and labels, and the starts of its searches.

    Args:
        prior: see `inpaint`.
        config: see `inpaint`.
        problem: the known values and their weights.
        known: what the encoder sees: images in [−1, 1], grey (0) in the hole.
        hole: True = missing.
        keys: one key for each image. Its restart r uses fold_in(key, r).
        labels: the classes, for a conditional prior. −1 lets the search find the label. It then starts from equal
            shares of all classes, or from the encoder's guess.

    Returns:
        Problems with one leading axis (images), and points with two leading axes (images and restarts).
    """
    restarts = jnp.arange(config.restarts)
    keys = jax.vmap(lambda key: jax.vmap(lambda restart: jax.random.fold_in(key, restart))(restarts))(keys)
    start = Point(jax.vmap(jax.vmap(lambda key: prior.sample_latents(key, 1)[0]))(keys))
    shifts: tuple[Array, ...] = ()
    if prior.encode is not None and (config.start == "encoder" or config.encoder_weight):
        mean, deviation, shifts = prior.encode(prior.params, known, hole)
        if config.encoder_weight:
            problem = dataclasses.replace(problem, guess=Guess(mean, deviation))
        if config.start == "encoder":
            start = _around_guess(prior, config, Guess(mean, deviation), shifts, keys)
    if config.latent_bound is not None:
        clipped = jnp.clip(start.latent, -config.latent_bound, config.latent_bound)
        start = start._replace(latent=keep_label(prior.num_classes, clipped, start.latent))
    if prior.num_classes:
        problem, start = _with_labels(prior, config, problem, start, labels)
    if config.guess_length:
        guessed = prior.generate(prior.params, start.latent[:, 0], *([shifts] if prior.feature_shapes else []))
        problem = dataclasses.replace(problem, guessed=guessed)
    return problem, start


def _around_guess(
    prior: Prior, config: InpaintConfig, guess: Guess, shifts: tuple[Array, ...], keys: PRNGKeyArray
) -> Point:
    """Returns the starts: the encoder's mean for the first restart, draws from its Gaussian for the others."""
    mean, deviation = (x[:, None] for x in guess)
    noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, guess.mean.shape[1:], guess.mean.dtype)))(keys)
    latent = clip(prior, config, mean + deviation * noise.at[:, 0].set(0))
    if not config.start_shifts:
        return Point(latent)
    if not shifts:
        raise ValueError(f"`start_shifts` is {config.start_shifts}, but this prior's encoder predicts no shifts: use 0")
    shares = config.start_shifts * (1 - jnp.arange(config.restarts) / max(config.restarts - 1, 1))
    return Point(latent, tuple(shares.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype) * x[:, None] for x in shifts))


def _with_labels(
    prior: Prior, config: InpaintConfig, problem: Problem, start: Point, labels: Int[Array | np.ndarray, " b"] | None
) -> tuple[Problem, Point]:
    labels = jnp.full(start.latent.shape[0], -1) if labels is None else jnp.asarray(labels)
    each = jnp.broadcast_to(labels[:, None], start.latent.shape[:2])
    label: Float[Array, "b r classes"] = label_entries(prior.num_classes, each, start.latent.dtype)
    if prior.encode is not None and config.start == "encoder":
        label = jnp.where((each >= 0)[..., None], label, start.latent[..., -prior.num_classes :])
    return dataclasses.replace(problem, labelled=labels >= 0), start._replace(latent=with_label(start.latent, label))
