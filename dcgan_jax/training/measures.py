"""Measures of a prior that need no pretrained network.

Of a generator: distance, diversity, inversion of held-out images. Of an encoder: the error of its guess.
"""

import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped, UInt8

from dcgan_jax import masks
from dcgan_jax.data import PreparedSet
from dcgan_jax.data.loading import permutation
from dcgan_jax.images.distances import BATCH_SIZE, diversity, sliced_wasserstein
from dcgan_jax.images.inputs import check_images
from dcgan_jax.images.metrics import psnr
from dcgan_jax.images.pixels import to_float, to_uint8
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.inpaint import inpaint
from dcgan_jax.inpainting.objective import Point, Problem
from dcgan_jax.inpainting.result import Status
from dcgan_jax.inpainting.search import Found, search
from dcgan_jax.priors.labels import label_entries, with_label
from dcgan_jax.priors.prior import Prior, generate, sample_latents

COUNT = 1024  # most generated images to compare with as many real ones
INVERTED = 16  # most held-out images to invert
INVERSION = InpaintConfig(num_steps=200, prior_weight=0.0)
COMPLETED = 64  # most held-out images, and most training images, to complete by an encoder's guess
GUESS = InpaintConfig(num_steps=0, start="encoder", start_shifts=1.0, blend="smooth")
HELD_OUT = ("validation", "test")  # splits in order of preference


def inversion_psnr(
    prior: Prior,
    images: Shaped[Array | np.ndarray, "n h w c"],
    key: PRNGKeyArray,
    config: InpaintConfig = INVERSION,
) -> Float[np.ndarray, " n"]:
    """Measures how well a prior can represent images: the PSNR of the best image that a search finds for each.

    The search is the latent search of `inpaint`, with every pixel known and of weight 1. Completions of this prior
    cannot be much better before they are blended. Use images that the prior was not trained on.

    Args:
        prior: the prior.
        images: uint8, or floats in [−1, 1], of the prior's size.
        key: random key. The search for image i starts at a latent drawn with fold_in(key, i).
        config: the configuration of the search; by default 200 steps without the prior loss. `restarts` and `window`
            are not used.

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
    """Returns held-out images of a set that is trained on `split`: the validation split, else the test split."""
    for name in HELD_OUT:
        if name != split and name in prepared.manifest["splits"] and len(prepared.split(name)):
            return prepared.split(name)
    return prepared.images[:0]


def make_measures(prepared: PreparedSet, split: str, key: PRNGKeyArray) -> Callable[[Prior], dict[str, float]]:
    """Builds the function that measures the priors of a run. All runs on a set use the same real images.

    Args:
        prepared: the set of the run.
        split: the split of the training images.
        key: random key of latents, patches and searches. All priors use the same ones.

    Returns:
        measure(prior) -> numbers by name. They compare n generated images with n training images. n is 1,024, or fewer
        if the set is small. A number is left out if the set is too small for it.

        - `swd`: the mean of `sliced_wasserstein` between generated and training images.
        - `swd_floor`: the same between the training images and n other real images. These are held-out images if there
          are n of them, else further training images; n is then at most half their number.
        - `ms_ssim`: the `diversity` of the generated images.
        - `ms_ssim_real`: the `diversity` of the training images.
        - `inversion_psnr`: the mean of `inversion_psnr` over 16 held-out images, or all if there are fewer.

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

    def measure(prior: Prior) -> dict[str, float]:
        values = {}
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


def make_guess_measures(prepared: PreparedSet, split: str, key: PRNGKeyArray) -> Callable[[Prior], dict[str, float]]:
    """Builds the function that measures the encoders of a run. The holes are of the four published kinds in turn.

    Args:
        prepared: the set of the run.
        split: the split of the training images.
        key: random key of the holes. All priors get the same ones.

    Returns:
        measure(prior) -> numbers by name: the mean PSNR, in dB, of the hole completed by the encoder's guess with all
        of its shifts, without a step, blended smoothly.

        - `held_out_psnr`: that of 64 held-out images, or all if there are fewer. It is left out if there are none.
        - `training_psnr`: that of as many training images. If it is far higher, the encoder overfits.

        A number is left out, too, if a guess is not finite.

    Warns:
        UserWarning: the set has no held-out image, so `held_out_psnr` is left out.
    """
    sets = {"held_out_psnr": held_out(prepared, split), "training_psnr": prepared.split(split)}
    # Floats, because a guess rounded to the levels of an even image may have no error at all.
    images = {name: to_float(np.asarray(x[permutation(len(x), 0)[:COMPLETED]])) for name, x in sets.items() if len(x)}
    if "held_out_psnr" not in images:
        warnings.warn(f"{prepared.path} has no held-out images: `held_out_psnr` is left out", stacklevel=2)

    def measure(prior: Prior) -> dict[str, float]:
        values = {}
        for name, x in images.items():
            holes = masks.mixed(key, len(x), x.shape[1])
            result = inpaint(prior, x, holes, key, GUESS)
            if not np.any(np.asarray(result.status) == Status.NOT_FINITE):
                values[name] = round(float(jnp.mean(psnr(result.images, jnp.asarray(x), where=holes))), 6)
        return values

    return measure


@functools.partial(jax.jit, static_argnames="config")
def _inversions(prior: Prior, images: Array, keys: PRNGKeyArray, config: InpaintConfig) -> Array:
    """Returns the best image that a search finds for each image."""
    weights = jnp.ones(images.shape[1:3], images.dtype)

    def one(image: Array, key: PRNGKeyArray) -> Found:
        latent = prior.sample_latents(key, 1)[0]
        if prior.num_classes:  # the search also finds the label
            latent = with_label(latent, label_entries(prior.num_classes, jnp.asarray(-1), latent.dtype))
        return search(prior, config, Problem(image, weights), Point(latent))

    found = jax.vmap(one)(images, keys)
    return prior.generate(prior.params, found.point.latent)
