"""The losses of generator and discriminator, from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def discriminator_loss(
    real_logits: Float[Array, " n"], generated_logits: Float[Array, " n"], kind: str = "non_saturating"
) -> Float[Array, ""]:
    """Returns the discriminator's loss.

    Args:
        real_logits: the discriminator's logits for real images.
        generated_logits: the discriminator's logits for generated images.
        kind: "hinge" is E max(0, 1 − real) + E max(0, 1 + generated) (Lim, Ye 2017). Any other kind is
            −E log D(x) − E log(1 − D(G(z))), where D is the sigmoid of the logit (Goodfellow et al. 2014, equation 1).
    """
    if kind == "hinge":
        return jnp.mean(jax.nn.relu(1 - real_logits)) + jnp.mean(jax.nn.relu(1 + generated_logits))
    return jnp.mean(jax.nn.softplus(-real_logits)) + jnp.mean(jax.nn.softplus(generated_logits))


def generator_loss(generated_logits: Float[Array, " n"], kind: str) -> Float[Array, ""]:
    """Returns the generator's loss.

    Args:
        generated_logits: the discriminator's logits for generated images.
        kind: "saturating" is E log(1 − D(G(z))), as He et al. print Goodfellow's algorithm. "non_saturating" is
            −E log D(G(z)), whose gradient does not vanish when the discriminator is right (Goodfellow et al. 2014,
            section 3). "hinge" is the negative mean logit (Lim, Ye 2017).
    """
    if kind == "hinge":
        return -jnp.mean(generated_logits)
    if kind == "saturating":
        return -jnp.mean(jax.nn.softplus(generated_logits))
    return jnp.mean(jax.nn.softplus(-generated_logits))
