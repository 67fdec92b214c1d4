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

_STATIC = {"static": True}  # part of the compiled program rather than its arguments
_UNKNOWN = (0, 0, 0)  # a shape that must be found by tracing


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Prior:
    """A generative model for latent searches: a pytree of arrays, and static functions.

    Build one from any differentiable decoder. `load_prior`, `prior_from_state` and `prior_from_pytorch` build one from
    a DCGAN. Functions are compared by identity, so define them once, at module level: a new function causes a new
    compilation.

    Attributes:
        params: the parameters, any pytree of arrays.
        generate: generate(params, z [n, latent_dim]) -> images [n, h, w, c] in [−1, 1]. Each image depends on its own
            latent only.
        sample_latents: sample_latents(key, n) -> [n, latent_dim].
        latent_bounds: (lowest, highest) value of a latent's entries; None without bounds. They do not apply to labels.
        discriminate: discriminate(params, x) -> logits [n], above 0 for a real image; None without a discriminator.
        model: the configuration of a DCGAN; None for any other decoder.
        crop: the crop of the training images, one of `config.SET_CROPS`; None if unknown.
        encode: encode(params, known [n, h, w, c], hole [n, h, w]) -> (mean, deviation, shifts); None without an
            encoder. `known` is grey (0) in the hole. Mean and deviation [n, latent_dim] are a Gaussian over the
            latents that fit the known pixels. `shifts` are feature offsets from which a search starts, or ().
        feature_shapes: shapes of the decoder's intermediate features that a search may refine; () for none. If there
            are any, `generate` takes a third argument: a tuple of arrays [n, *shape], which it adds to these features.
        num_classes: number of classes; 0 for none. With classes, the last entries of a latent are its label:
            `sample_latents` gives one-hot labels, and a search finds entries of 0 or more whose sum is 1.
        image_shape: height, width and channels of the images. If it is not given, it is found by tracing `generate`.

    Example:
        >>> import dcgan_jax as dj, jax, jax.numpy as jnp
        >>> def decode(params, z):
        ...     return jnp.tanh(z @ params).reshape(-1, 8, 8, 1)
        >>> def draw(key, n):
        ...     return jax.random.normal(key, (n, 5))
        >>> prior = dj.Prior(params=jnp.ones((5, 64)), generate=decode, sample_latents=draw)
        >>> prior.image_shape
        (8, 8, 1)
        >>> dj.generate(prior, dj.sample_latents(prior, jax.random.key(0), 3)).shape
        (3, 8, 8, 1)
    """

    params: Any
    generate: Callable[..., Array] = dataclasses.field(metadata=_STATIC)
    sample_latents: Callable[[PRNGKeyArray, int], Array] = dataclasses.field(metadata=_STATIC)
    latent_bounds: tuple[float, float] | None = dataclasses.field(metadata=_STATIC, default=None)
    discriminate: Callable[[Any, Array], Array] | None = dataclasses.field(metadata=_STATIC, default=None)
    model: ModelConfig | None = dataclasses.field(metadata=_STATIC, default=None)
    crop: str | None = dataclasses.field(metadata=_STATIC, default=None)
    encode: Callable[[Any, Array, Array], tuple[Array, Array, tuple[Array, ...]]] | None = dataclasses.field(
        metadata=_STATIC, default=None
    )
    feature_shapes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata=_STATIC, default=())
    num_classes: int = dataclasses.field(metadata=_STATIC, default=0)
    image_shape: tuple[int, int, int] = dataclasses.field(metadata=_STATIC, default=_UNKNOWN)

    def __post_init__(self) -> None:
        if self.image_shape == _UNKNOWN:
            images = jax.eval_shape(
                lambda params, key: self.generate(params, self.sample_latents(key, 1)), self.params, jax.random.key(0)
            )
            object.__setattr__(self, "image_shape", images.shape[1:])


def sample_latents(
    prior: Prior, key: PRNGKeyArray, n: int, labels: int | Int[Array | np.ndarray, "*n"] | None = None
) -> Float[Array, "n latent"]:
    """Draws n latents from the prior's distribution.

    Args:
        prior: any prior.
        key: random key.
        n: number of latents.
        labels: for a conditional prior, the class of each latent, or one class for all, counted from 0. By default the
            classes are drawn.

    Raises:
        ValueError: `labels` are given, but the prior does not have these classes.
    """
    latents = prior.sample_latents(key, n)
    if labels is None:
        return latents
    labels = check_labels(prior.num_classes, labels, n)
    if not isinstance(labels, Tracer) and bool((labels < 0).any()):
        raise ValueError(
            f"`labels` contains {int(labels.min())}; the classes of this prior are 0 to {prior.num_classes - 1}"
        )
    return with_label(latents, label_entries(prior.num_classes, labels, latents.dtype))


def generate(prior: Prior, z: Float[Array, "n latent"]) -> Float[Array, "n h w c"]:
    """Generates images in [−1, 1]. Each depends on its own latent only.

    Raises:
        ValueError: `z` is not a floating-point array [n, latent_dim].

    Example:
        >>> import dcgan_jax as dj, jax
        >>> prior = dj.load_prior("faces-64")  # doctest: +SKIP
        >>> x = dj.generate(prior, dj.sample_latents(prior, jax.random.key(0), 4))  # doctest: +SKIP
    """
    z = jnp.asarray(z)
    if z.ndim != 2 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"`z` is {z.dtype}{list(z.shape)}; pass a floating-point array [n, latent_dim]")
    if prior.model is not None and z.shape[1] != prior.model.latent_size:
        raise ValueError(
            f"`z` has latents of {z.shape[1]} entries; the latents of this prior have {prior.model.latent_size}"
        )
    return _generate(prior, z)


def discriminate(prior: Prior, x: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """Returns the discriminator's logits: above 0 for an image that it judges real, of whatever class.

    Args:
        prior: a prior with a discriminator.
        x: images in [−1, 1].

    Raises:
        ValueError: the prior has no discriminator, or `x` is not a floating-point batch of the prior's image shape.
    """
    if prior.discriminate is None:
        raise ValueError("`prior` has no discriminator: pass one where you make the prior")
    x = jnp.asarray(x)
    shape = prior.image_shape
    if x.ndim != 4 or x.shape[1:] != shape or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`x` is {x.dtype}{list(x.shape)}; pass a floating-point array [n, {', '.join(map(str, shape))}]"
        )
    return _discriminate(prior, x)


@jax.jit
def _generate(prior: Prior, z: Array) -> Array:
    return prior.generate(prior.params, z)


@jax.jit
def _discriminate(prior: Prior, x: Array) -> Array:
    discriminate: Any = prior.discriminate
    return discriminate(prior.params, x)
