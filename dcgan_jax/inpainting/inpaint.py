"""Inpainting of a batch: one program for all latent searches, by `vmap` over images and restarts, and the blend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

from dcgan_jax.errors import UserError
from dcgan_jax.images.inputs import check_hole_fits, check_images, check_known_values, image_keys
from dcgan_jax.inpainting.config import InpaintConfig, default_config
from dcgan_jax.inpainting.objective import Point, Problem
from dcgan_jax.inpainting.result import InpaintResult, assemble
from dcgan_jax.inpainting.search import Found, search
from dcgan_jax.inpainting.starts import set_up
from dcgan_jax.parallel.sharding import spread
from dcgan_jax.priors.labels import check_labels
from dcgan_jax.priors.prior import Prior


def inpaint(
    prior: Prior,
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "*b h w"],
    key: PRNGKeyArray,
    config: InpaintConfig | None = None,
    optimizer: optax.GradientTransformation | None = None,
    labels: int | Int[Array | np.ndarray, "*b"] | None = None,
) -> InpaintResult:
    """Completes masked images: a latent search for each image, then a blend of the generated image into the hole.

    The search finds ẑ = argmin Σ W |G(z) − y| + λ log(1 − D(G(z))) by Adam or another optimiser. The blend is
    `poisson_blend(G(ẑ), y, hole)`, or `smooth_blend` if `config.blend` selects it.

    The result of an image depends only on the image, its hole, its key and its label. In batches of the same shape it
    is the same bit for bit. Values in the hole have no influence, not even NaN. The batch is split over all local
    devices.

    Args:
        prior: the prior, from `load_prior` or made from any decoder.
        images: float in [−1, 1] or uint8, of the prior's size.
        hole: True where a pixel is missing (the opposite of the paper's M); one for each image, or one [h, w] for all.
        key: one key, from which image i uses fold_in(key, i); or an array of b keys.
        config: the configuration of the search. The default is the preset "best" if the prior has an encoder, and
            `InpaintConfig()` otherwise. With a `tolerance`, the search has no reverse-mode derivative.
        optimizer: an optimiser of optax in place of Adam at `config.learning_rate`; line searches work too. Make it
            once: optax's functions are compared by identity, so a new one causes a new compilation.
        labels: for a conditional prior, the class of each image, or one class for all. With −1, the default, the search
            finds the label. It starts from equal shares of all classes and moves through mixtures of classes.

    Returns:
        `InpaintResult`. Missing pixels of `images` are clipped to the range of images. They are grey (0, or 128 in
        uint8) if the status is "not finite". An image without missing pixels is returned unchanged. An image without
        known pixels becomes a free sample, which only the prior loss guides.

    Raises:
        ValueError: shapes or types do not fit together, or a known pixel is not finite or outside [−2, 2]. Under `jit`
            values cannot be checked; the status then reports pixels that are not finite.
        UserError: the configuration needs an encoder, but the prior has none.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> prior = dj.load_prior("faces-64")  # doctest: +SKIP
        >>> hole = dj.masks.center(64)
        >>> result = dj.inpaint(prior, images, hole, jax.random.key(0))  # doctest: +SKIP

    Source:
        Yeh et al. 2017, equations 3 to 6.
    """
    config = default_config(prior) if config is None else config
    check_config(prior, config)
    check_images(images, ("b", *prior.image_shape), taker="this prior")
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
    """Checks that the prior has what the configuration needs.

    Raises:
        UserError: `encoder_weight` or `start` needs an encoder, but the prior has none.
        ValueError: `refine_steps` or `start_shifts` needs feature shifts, but the prior's decoder takes none.
    """
    if (config.start == "encoder" or config.encoder_weight) and prior.encode is None:
        setting = (
            '`start` is "encoder"' if config.start == "encoder" else f"`encoder_weight` is {config.encoder_weight:g}"
        )
        raise UserError(f"{setting}, but this prior has no encoder: train one with `dcgan-jax train-encoder`")
    for name in ("refine_steps", "start_shifts"):
        if getattr(config, name) and not prior.feature_shapes:
            raise ValueError(
                f"`{name}` is {getattr(config, name)}, but the decoder of this prior takes no feature shifts: use 0"
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
    """Inpaints a batch in one program for search and blend. The arguments must have been checked."""
    problems, starts = set_up(prior, config, images, hole, keys, labels)

    def search_image(problem: Problem, starts: Point) -> Found:
        return jax.vmap(lambda start: search(prior, config, problem, start, optimizer))(starts)

    return assemble(prior, config, images, hole, problems, jax.vmap(search_image)(problems, starts))
