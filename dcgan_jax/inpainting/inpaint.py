"""Inpainting by latent search: the latent whose image agrees with what is known, blended into the hole.

A batch is searched by the `vmap` of `search.search` over images and restarts, under one `jit` with the blend.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

from dcgan_jax.errors import UserError
from dcgan_jax.images.inputs import check_hole_fits, check_images, check_known_values, image_keys
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.result import InpaintResult, complete, known_part
from dcgan_jax.inpainting.search import search
from dcgan_jax.inpainting.starts import draw_starts
from dcgan_jax.parallel.sharding import spread
from dcgan_jax.priors.labels import check_labels
from dcgan_jax.priors.prior import Prior, image_shape


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
    check_images(images, ("b", *image_shape(prior)), taker="this prior")
    check_hole_fits(hole, images.shape[:3], shared=True)
    n = images.shape[0]
    keys = image_keys(key, n)
    if n == 0:
        raise ValueError("`images` holds no image")
    hole = jnp.broadcast_to(hole, images.shape[:3])
    if labels is not None or prior.num_classes:
        labels = check_labels(prior.num_classes, -1 if labels is None else labels, n)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((prior, images, hole, keys, labels))):
        return inpaint_batch(prior, images, hole, keys, config, optimizer, labels)
    check_known_values(images, hole)
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
