"""Measures of a generator that need no other network: distance, diversity, held-out inversion."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped, UInt8

from dcgan_jax.data import PreparedSet
from dcgan_jax.data.loading import permutation
from dcgan_jax.images.distances import BATCH_SIZE, diversity, sliced_wasserstein
from dcgan_jax.images.inputs import check_images
from dcgan_jax.images.metrics import psnr
from dcgan_jax.images.pixels import to_float, to_uint8
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.objective import Point, Problem
from dcgan_jax.inpainting.search import Found, search
from dcgan_jax.priors.labels import label_entries, with_label
from dcgan_jax.priors.prior import Prior, generate, sample_latents
from dcgan_jax.training.recipe import Measure

COUNT = 1024  # images to compare, generated and real, if the set has as many
INVERTED = 16  # held-out images to search for
INVERSION = InpaintConfig(num_steps=200, prior_weight=0.0)
HELD_OUT = ("validation", "test")  # splits, by preference


def inversion_psnr(
    prior: Prior,
    images: Shaped[Array | np.ndarray, "n h w c"],
    key: PRNGKeyArray,
    config: InpaintConfig = INVERSION,
) -> Float[np.ndarray, " n"]:
    """Returns how well the prior represents images: the PSNR of the best image that a search finds for each.

    It is the library's own latent search, with every pixel known and of weight 1. No completion of this prior, before
    its blend, can be much better. Images that the prior was not trained on tell most.

    Args:
        prior: from `load_prior`, or any decoder.
        images: uint8, or floats in [−1, 1], of the prior's size.
        key: image i starts at a latent drawn with fold_in(key, i).
        config: of the search; by default 200 steps without the prior loss. `restarts` and `window` are not used.

    Returns:
        PSNR of the whole image in dB.

    Raises:
        ValueError: `images` does not fit the prior.
    """
    check_images(images, ("n", *prior.image_shape), taker="this prior")
    images = to_float(images) if images.dtype == np.uint8 else images
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    parts = []
    for i in range(0, len(images), BATCH_SIZE):
        batch = jnp.asarray(images[i : i + BATCH_SIZE])
        parts.append(np.asarray(psnr(_inversions(prior, batch, keys[i : i + BATCH_SIZE], config), batch)))
    return np.concatenate(parts)


def held_out(prepared: PreparedSet, split: str) -> UInt8[np.ndarray, "n h w c"]:
    """Returns the images of a set that training on `split` does not see: the validation split, else the test split."""
    for name in HELD_OUT:
        if name != split and name in prepared.manifest["splits"] and len(prepared.split(name)):
            return prepared.split(name)
    return prepared.images[:0]


def make_measures(prior_of: Callable[[Any], Prior], prepared: PreparedSet, split: str, key: PRNGKeyArray) -> Measure:
    """Builds the function that measures the states of a run. All runs on a set use the same real images.

    Args:
        prior_of: makes the prior of a state.
        prepared: the set of the run.
        split: the training images.
        key: of latents, patches and searches; all states use the same ones.

    Returns:
        measure(state) -> numbers by name. They compare n generated images with n real ones; n is 1,024, or as many as
        the set allows. A number for which the set is too small is left out.

        - `swd`: the mean of `sliced_wasserstein` to n training images. `swd_floor`: the same between these and n other
          real images: held-out ones if there are n, else training images (n is then at most half of those).
        - `ms_ssim`: the `diversity` of the generated images. `ms_ssim_real`: that of the training images.
        - `inversion_psnr`: the mean of `inversion_psnr` over 16 held-out images, or as many as there are.

    Warns:
        UserWarning: the set has no held-out image, so `inversion_psnr` is left out.
    """
    training, unseen = prepared.split(split), held_out(prepared, split)
    chosen, spare = permutation(len(training), 0), permutation(len(unseen), 0)
    n = min(COUNT, len(training))
    if len(unseen) >= n:
        others = unseen, spare[:n]
    else:
        n = min(n, len(training) // 2)
        others = training, chosen[n : 2 * n]
    if not len(unseen):
        warnings.warn(f"{prepared.path} has no held-out images: `inversion_psnr` is left out", stacklevel=2)
    latent_key, patch_key, search_key = jax.random.split(key, 3)

    def real() -> np.ndarray:
        return np.asarray(training[chosen[:n]])

    @functools.cache
    def of_real_images() -> dict[str, float]:
        values = {}
        if n >= 1:
            values["swd_floor"] = sliced_wasserstein(np.asarray(others[0][others[1]]), real(), patch_key).mean
        if n >= 2:
            values["ms_ssim_real"] = diversity(real())
        return values

    def measure(state: Any) -> dict[str, float]:
        prior, values = prior_of(state), {}
        if n >= 1:
            latents = sample_latents(prior, latent_key, n)
            parts = (generate(prior, latents[i : i + BATCH_SIZE]) for i in range(0, n, BATCH_SIZE))
            generated = np.concatenate([to_uint8(np.asarray(part)) for part in parts])
            values["swd"] = sliced_wasserstein(generated, real(), patch_key).mean
            if n >= 2:
                values["ms_ssim"] = diversity(generated)
        if len(unseen):
            images = np.asarray(unseen[spare[:INVERTED]])
            values["inversion_psnr"] = float(inversion_psnr(prior, images, search_key, INVERSION).mean())
        values |= of_real_images()
        return {name: round(value, 6) for name, value in values.items() if np.isfinite(value)}

    return measure


@functools.partial(jax.jit, static_argnames="config")
def _inversions(prior: Prior, images: Array, keys: PRNGKeyArray, config: InpaintConfig) -> Array:
    """The best image that a search finds for each image."""
    weights = jnp.ones(images.shape[1:3], images.dtype)

    def one(image: Array, key: PRNGKeyArray) -> Found:
        latent = prior.sample_latents(key, 1)[0]
        if prior.num_classes:  # the search finds the label, too
            latent = with_label(latent, label_entries(prior.num_classes, jnp.asarray(-1), latent.dtype))
        return search(prior, config, Problem(image, weights), Point(latent))

    found = jax.vmap(one)(images, keys)
    return prior.generate(prior.params, found.point.latent)
