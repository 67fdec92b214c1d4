"""The objective of a latent search: context loss, prior loss, and the distance from the encoder's guess."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.priors.prior import Prior


class Guess(NamedTuple):
    """The encoder's guess: a Gaussian over latents."""

    mean: Float[Array, "*b latent"]
    deviation: Float[Array, "*b latent"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Problem:
    """The search problem of one image.

    Attributes:
        measured: the known values. For an inpainting, the image [h, w, c] in [−1, 1], grey (0) in the hole. For any
            other measurement, a vector.
        weights: the weights of these values, without the last axis. For an inpainting, the importance weights [h, w],
            0 in the hole. For any other measurement, one number.
        guess: the loss includes the distance from it; None without `encoder_weight`.
        labelled: True: the label is given and fixed; None without classes.
        guessed: the image of the encoder's guess, with all its shifts; None without `guess_length`.
        measure: measure(image [h, w, c]) -> the values to compare, of any shape; None compares the image itself.
    """

    measured: Float[Array, "*b _"] | Float[Array, "*b h w c"]
    weights: Float[Array, "*b"] | Float[Array, "*b h w"]
    guess: Guess | None = None
    labelled: Bool[Array, "*b"] | None = None
    guessed: Float[Array, "*b h w c"] | None = None
    measure: Callable[[Array], Array] | None = dataclasses.field(metadata={"static": True}, default=None)


class Point(NamedTuple):
    """The variables of a search."""

    latent: Float[Array, "*b latent"]
    shifts: tuple[Float[Array, "*b _ _ _"], ...] = ()  # offsets of the generator's features; () for none


class Losses(NamedTuple):
    """The losses of a point."""

    context: Float[Array, "*b"]
    prior: Float[Array, "*b"]


def context_loss(
    values: Float[Array, "n *shape _"], measured: Float[Array, "n *shape _"], weights: Float[Array, "n *#shape"]
) -> Float[Array, " n"]:
    """Returns Σ W |values − measured| for each image.

    With the images G(z) as values this is Yeh et al. 2017, equation 4, on the scale [−1, 1].
    """
    return jnp.sum(weights[..., None] * jnp.abs(values - measured), axis=tuple(range(1, values.ndim)))


def prior_loss(generated_logits: Float[Array, " n"], weight: float) -> Float[Array, " n"]:
    """Returns λ log(1 − D(G(z))) = −λ softplus(logit), for each image (Yeh et al. 2017, equation 5)."""
    return -weight * jax.nn.softplus(generated_logits)


def losses_at(prior: Prior, config: InpaintConfig, problem: Problem, point: Point) -> Losses:
    """Returns the losses of one image at a point. The prior loss is 0 if there is no discriminator or no weight."""
    completion = generate_one(prior, point)[None]
    values = completion if problem.measure is None else problem.measure(completion[0]).reshape(1, -1)
    context = context_loss(values, problem.measured[None], problem.weights[None])[0]
    if prior.discriminate is None or config.prior_weight == 0:
        return Losses(context, jnp.zeros_like(context))
    return Losses(context, prior_loss(prior.discriminate(prior.params, completion), config.prior_weight)[0])


def distance(config: InpaintConfig, problem: Problem, latent: Float[Array, " latent"]) -> Float[Array, ""] | float:
    """Returns `encoder_weight` times the encoder's negative log density, up to a constant; 0 without a guess."""
    if problem.guess is None:
        return 0.0
    mean, deviation = problem.guess
    return config.encoder_weight / 2 * jnp.sum(((latent - mean) / deviation) ** 2)


def generate_one(prior: Prior, point: Point) -> Float[Array, "h w c"]:
    """Returns the image of one point."""
    if not point.shifts:
        return prior.generate(prior.params, point.latent[None])[0]
    return prior.generate(prior.params, point.latent[None], tuple(x[None] for x in point.shifts))[0]
