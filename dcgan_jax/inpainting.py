"""Inpainting by latent search: the latent whose image agrees with what is known, blended into the hole.

A batch is searched by the `vmap` of `search.search` over images and restarts, under one `jit` with the blend.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from dcgan_jax import sharding
from dcgan_jax.compositing import check_type, composite, known_pixels
from dcgan_jax.config import InpaintConfig
from dcgan_jax.errors import UserError
from dcgan_jax.masks import importance_weights
from dcgan_jax.poisson import poisson_blend
from dcgan_jax.prior import Prior, check_labels, image_shape
from dcgan_jax.search import Found, Trace, draw_starts, search
from dcgan_jax.smoothness import smooth_blend

OK, NOT_FINITE, NOTHING_MISSING, NOTHING_KNOWN = range(4)  # values of `InpaintResult.status`
LARGEST = 2.0  # of a known pixel on [-1, 1]; beyond lie images on another scale
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


def inpaint(
    prior: Prior,
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "*b h w"],
    key: PRNGKeyArray,
    config: InpaintConfig | None = None,
    optimizer: optax.GradientTransformation | None = None,
    labels: int | Int[Array | np.ndarray, "*b"] | None = None,
) -> InpaintResult:
    """Completes masked images: a latent search for each, then a Poisson blend into its hole.

    ẑ = argmin Σ W |G(z) − y| + λ log(1 − D(G(z))) by Adam or another optimiser, then `poisson_blend(G(ẑ), y, hole)`,
    or `smooth_blend` where `config.blend` says so.
    An image's result depends on the image, its hole and its key alone, bit for bit in batches of the same shape; what
    lies in the hole has no influence, be it NaN.

    Args:
        prior: of `load_prior`, or any decoder.
        images: float in [−1, 1] or uint8, of the prior's size.
        hole: True where a pixel is missing (the paper's M is its opposite); one for each image, or one [h, w] for all.
        key: one key, of which image i uses fold_in(key, i), or an array of b keys.
        config: by default `InpaintConfig()`. With a `tolerance` there is no gradient in reverse through the search.
        optimizer: any of optax, line searches included, in place of Adam at `config.learning_rate`. Make it once:
            optax's functions compare by identity, and a new one means a new compilation.
        labels: of a conditional prior, each image's class, or one for all; −1, the default, where the search is to find
            it, which it does among mixtures of the classes, from all alike.

    Returns:
        `InpaintResult`. Missing pixels of `images` are clipped to the range of images, and grey (0, or 128 in uint8)
        where the status is not finite. An image with nothing missing comes back as it is; one with nothing known is a
        free sample, shaped by the discriminator alone; the status says so. On several local devices the batch is
        spread over them.

    Raises:
        ValueError: shapes or types do not fit together, or a known pixel is not finite or far out of range (under
            `jit`, where values cannot be looked at, the status tells of the former).

    Example:
        >>> import dcgan_jax as dj, jax
        >>> prior = dj.load_prior("faces-64")  # doctest: +SKIP
        >>> hole = dj.masks.center(64)
        >>> result = dj.inpaint(prior, images, hole, jax.random.key(0))  # doctest: +SKIP

    Source:
        Yeh et al. 2017, equations 3 to 6.
    """
    config = InpaintConfig() if config is None else config
    check_config(prior, config)
    shape = image_shape(prior)
    for name, array in (("images", images), ("hole", hole)):
        if not isinstance(array, jax.Array | np.ndarray):
            raise ValueError(f"`{name}` is a {type(array).__name__}; it takes an array of NumPy or JAX")
    if images.ndim != 4 or images.shape[1:] != shape:
        raise ValueError(
            f"`images` is {list(images.shape)}; this prior completes images of [b, {', '.join(map(str, shape))}]: "
            "scale them to its size"
        )
    check_type("`images`", images.dtype)
    n, (h, w, _) = images.shape[0], shape
    if hole.dtype != bool or hole.shape not in ((h, w), (n, h, w)):
        raise ValueError(
            f"`hole` is {hole.dtype}{list(hole.shape)}; it takes bool [{h}, {w}] or [{n}, {h}, {w}], True where missing"
        )
    keys = image_keys(key, n)
    if n == 0:
        raise ValueError("`images` holds no image")
    hole = jnp.broadcast_to(hole, (n, h, w))
    if labels is not None or prior.num_classes:
        labels = check_labels(prior, -1 if labels is None else labels, n)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((prior, images, hole, keys, labels))):
        return inpaint_batch(prior, images, hole, keys, config, optimizer, labels)
    if images.dtype != np.uint8:
        _refuse_bad_values(images, hole)
    prior, (images, hole, keys, labels) = spread(prior, (images, hole, keys, labels))
    result = inpaint_batch(prior, images, hole, keys, config, optimizer, labels)
    return jax.tree.map(lambda x: x[:n], result) if images.shape[0] > n else result


def check_config(prior: Prior, config: InpaintConfig) -> None:
    """Raises UserError, a ValueError, where the configuration asks for what the prior has not."""
    if (config.start == "encoder" or config.encoder_weight) and prior.encode is None:
        asks = '`start` is "encoder"' if config.start == "encoder" else f"`encoder_weight` is {config.encoder_weight:g}"
        raise UserError(f"{asks} and this prior has no encoder: `dcgan-jax train-encoder` makes one for it")
    for name in ("refine_steps", "start_shifts"):
        if getattr(config, name) and not prior.feature_shapes:
            raise ValueError(
                f"`{name}` is {getattr(config, name)} and this prior's decoder takes no shifts of features: make it 0"
            )


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


@functools.partial(jax.jit, static_argnames=("config", "optimizer"))
def inpaint_batch(
    prior: Prior,
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    keys: PRNGKeyArray,
    config: InpaintConfig,
    optimizer: optax.GradientTransformation | None,
    labels: Int[Array | np.ndarray, " b"] | None = None,
) -> InpaintResult:
    """What `inpaint` does once it has checked its arguments."""
    y, weights = known_part(config, images, hole)

    def one(image, weights, starts):
        return jax.vmap(lambda start: search(prior, config, image, weights, start, optimizer))(starts)

    starts = draw_starts(prior, config, y, jnp.asarray(hole), keys, None if labels is None else jnp.asarray(labels))
    return complete(prior, config, images, hole, y, jax.vmap(one)(y, weights, starts))


def _refuse_bad_values(images, hole):
    largest = np.asarray(_largest(images, hole), np.float32)
    bad = np.flatnonzero(~(largest <= LARGEST))
    if not bad.size:
        return
    what = f"reach {largest[bad[0]]:g}: scale them to [-1, 1]"
    if not np.isfinite(largest[bad[0]]):
        what = "are not finite: mark them as missing in `hole`"
    raise ValueError(f"`images` has known pixels, in image {bad[0]} first, that {what}")


@jax.jit
def _largest(images, hole):
    """The largest absolute value of each image's known pixels; NaN or infinite if one of these is."""
    return jnp.max(jnp.abs(jnp.where(hole[..., None], 0, images)), axis=(1, 2, 3))


def typed_key(key: PRNGKeyArray | Array) -> PRNGKeyArray:
    """A random key, or an array of them, given as such or in the older kind."""
    key = jnp.asarray(key)
    if key.dtype == jnp.uint32 and key.ndim:
        key = jax.random.wrap_key_data(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"`key` is {key.dtype}{list(key.shape)}; it takes a random key, such as jax.random.key(0)")
    return key


def image_keys(key: PRNGKeyArray | Array, n: int) -> PRNGKeyArray:
    """A typed key for each of n images: as many as are given, or fold_in(key, i)."""
    key = typed_key(key)
    if key.shape not in ((), (n,)):
        raise ValueError(f"`key` holds {list(key.shape)} keys; it takes one key, or one for each of the {n} images")
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))


def spread(prior: Prior, batch: tuple[Any, ...]) -> tuple[Prior, tuple[Any, ...]]:
    """Pads a batch to a multiple of this process's devices and spreads it over them; one device changes nothing."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return prior, batch
    mesh = sharding.data_mesh(devices)
    missing = -jax.tree.leaves(batch)[0].shape[0] % mesh.size
    if missing:
        batch = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[:1], missing, axis=0)]), batch)
    return jax.device_put(prior, sharding.replicated(mesh)), jax.device_put(batch, sharding.along_batch(mesh))
