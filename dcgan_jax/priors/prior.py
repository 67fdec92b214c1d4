"""The prior: a trained generator ready for use, or any other differentiable decoder."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.priors.labels import check_labels, label_entries, with_label


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Prior:
    """What a latent search needs of a generative model: a pytree of arrays plus static functions.

    Build one from any differentiable decoder; `load_prior` and `prior_from_state` build it from a DCGAN. Functions
    compare by identity, so define them once, at module level: a new function means a new compilation.

    Attributes:
        params: arrays, any pytree.
        generate: generate(params, z [n, latent_dim]) -> images [n, h, w, c] in [−1, 1], each from its own latent alone.
        sample_latents: sample_latents(key, n) -> [n, latent_dim].
        latent_bounds: (lowest, highest) value of a latent's entries, or None; a label's have their own.
        discriminate: discriminate(params, x) -> logits [n], above 0 for a real image; None where there is no critic.
        model: the configuration of a DCGAN; None for any other decoder.
        crop: how the training images were cut out, a name in `data.CROPS`, or None where nobody said.
        encode: encode(params, known [n, h, w, c], hole [n, h, w]) -> (mean, deviation, shifts): the latents that may
            lie behind what is known (grey, 0, in the hole), as a Gaussian with mean and deviation [n, latent_dim], and
            the shifts of features (see below) from which a search starts, () for none; None without an encoder.
        feature_shapes: shapes of the decoder's intermediate features that a search may refine, if `generate` takes a
            third argument: a tuple of arrays [n, *shape] that are added to them. () if it takes none.
        num_classes: how many of a latent's entries, the last ones, are a label: 0 and 1 as `sample_latents` draws it,
            0 or above and of sum 1 while a search looks for it; 0 where the prior knows no classes.

    Example:
        >>> import dcgan_jax as dj, jax, jax.numpy as jnp
        >>> def decode(params, z):
        ...     return jnp.tanh(z @ params).reshape(-1, 8, 8, 1)
        >>> def draw(key, n):
        ...     return jax.random.normal(key, (n, 5))
        >>> prior = dj.Prior(params=jnp.ones((5, 64)), generate=decode, sample_latents=draw)
        >>> dj.generate(prior, dj.sample_latents(prior, jax.random.key(0), 3)).shape
        (3, 8, 8, 1)
    """

    params: Any
    generate: Callable[..., Array] = dataclasses.field(metadata={"static": True})
    sample_latents: Callable[[PRNGKeyArray, int], Array] = dataclasses.field(metadata={"static": True})
    latent_bounds: tuple[float, float] | None = dataclasses.field(default=None, metadata={"static": True})
    discriminate: Callable[[Any, Array], Array] | None = dataclasses.field(default=None, metadata={"static": True})
    model: ModelConfig | None = dataclasses.field(default=None, metadata={"static": True})
    crop: str | None = dataclasses.field(default=None, metadata={"static": True})
    encode: Callable[[Any, Array, Array], tuple[Array, Array, tuple[Array, ...]]] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    feature_shapes: tuple[tuple[int, ...], ...] = dataclasses.field(default=(), metadata={"static": True})
    num_classes: int = dataclasses.field(default=0, metadata={"static": True})


def sample_latents(
    prior: Prior, key: PRNGKeyArray, n: int, labels: int | Int[Array | np.ndarray, "*n"] | None = None
) -> Float[Array, "n latent"]:
    """Draws n latents from the prior's distribution.

    Args:
        prior: any.
        key: of the draws.
        n: how many.
        labels: of a conditional prior, the class of each, or one for all, from 0 on; by default they are drawn too.

    Raises:
        ValueError: there is no such class, or the prior knows none.
    """
    latents = prior.sample_latents(key, n)
    if labels is None:
        return latents
    labels = check_labels(prior.num_classes, labels, n)
    if not isinstance(labels, Tracer) and bool((labels < 0).any()):
        raise ValueError(f"`labels` has {int(labels.min())}; it takes classes from 0 to {prior.num_classes - 1}")
    return with_label(latents, label_entries(prior.num_classes, labels, latents.dtype))


def generate(prior: Prior, z: Float[Array, "n latent"]) -> Float[Array, "n h w c"]:
    """Generates images in [−1, 1]; each depends on its own latent alone.

    Raises:
        ValueError: `z` is not of shape [n, latent_dim] or not of floating point.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> prior = dj.load_prior("faces-64")  # doctest: +SKIP
        >>> x = dj.generate(prior, dj.sample_latents(prior, jax.random.key(0), 4))  # doctest: +SKIP
    """
    z = jnp.asarray(z)
    if z.ndim != 2 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"`z` is {z.dtype}{list(z.shape)}; it takes floating point [n, latent_dim]")
    if prior.model is not None and z.shape[1] != prior.model.latent_size:
        raise ValueError(f"`z` has {z.shape[1]} entries a latent; this prior's latents have {prior.model.latent_size}")
    return _generate(prior, z)


def discriminate(prior: Prior, x: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """The discriminator's logits: above 0 where it takes the image for a real one, of whichever class.

    Args:
        prior: one with a discriminator.
        x: images in [−1, 1].

    Raises:
        ValueError: the prior has no discriminator, or `x` is not a batch of its images.
    """
    if prior.discriminate is None:
        raise ValueError("`prior` has no discriminator: give `discriminate` to `Prior`, or do without the prior loss")
    x = jnp.asarray(x)
    shape = image_shape(prior)
    if x.ndim != 4 or x.shape[1:] != shape or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`x` is {x.dtype}{list(x.shape)}; this prior takes floating point [n, {', '.join(map(str, shape))}]"
        )
    return _discriminate(prior, x)


def image_shape(prior: Prior) -> tuple[int, int, int]:
    """Height, width and channels of the prior's images, without computing one."""
    if prior.model is not None:
        return prior.model.image_size, prior.model.image_size, prior.model.channels
    images = jax.eval_shape(
        lambda params, key: prior.generate(params, prior.sample_latents(key, 1)),
        prior.params,
        jax.random.key(0),
    )
    return images.shape[1:]


@jax.jit
def _generate(prior, z):
    return prior.generate(prior.params, z)


@jax.jit
def _discriminate(prior, x):
    return prior.discriminate(prior.params, x)
