"""What a latent search minimises: context loss, prior loss, distance from the encoder's guess."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dcgan_jax.inpainting.starts import Start
from dcgan_jax.priors.prior import Prior


def prior_loss(generated_logits: Float[Array, " n"], weight: float) -> Float[Array, " n"]:
    """λ log(1 − D(G(z))) = −λ softplus(logit), for each image (Yeh et al. 2017, equation 5)."""
    return -weight * jax.nn.softplus(generated_logits)


def context_loss(
    completions: Float[Array, "n h w c"], images: Float[Array, "n h w c"], weights: Float[Array, "n h w"]
) -> Float[Array, " n"]:
    """Σ W |G(z) − y| over pixels and channels, for each image on the scale [−1, 1] (Yeh et al. 2017, equation 4)."""
    return jnp.sum(weights[..., None] * jnp.abs(completions - images), axis=(1, 2, 3))


def _losses(prior, config, image, weights, z, shifts=()):
    completion = generate_one(prior, z, shifts)[None]
    context = context_loss(completion, image[None], weights[None])[0]
    if prior.discriminate is None or config.prior_weight == 0:
        return context, jnp.zeros_like(context)
    return context, prior_loss(prior.discriminate(prior.params, completion), config.prior_weight)[0]


def _distance(config, start: Start, z):
    """The negative logarithm of the encoder's Gaussian, weighted, up to a constant."""
    if start.mean is None:
        return 0.0
    return config.encoder_weight / 2 * jnp.sum(((z - start.mean) / start.deviation) ** 2)


def generate_one(prior: Prior, z: Float[Array, " latent"], shifts: tuple[Array, ...]) -> Float[Array, "h w c"]:
    """The image of a latent, with the features shifted if there are shifts."""
    if not shifts:
        return prior.generate(prior.params, z[None])[0]
    return prior.generate(prior.params, z[None], tuple(x[None] for x in shifts))[0]
