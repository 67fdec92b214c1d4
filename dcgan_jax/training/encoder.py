"""Training of the encoder, which predicts the start of a search from a masked image.

An encoder belongs to one generator, whose weights stay fixed. It learns from generated images, whose latents are known,
and from real images. For a real image it learns to predict the latent and the feature shifts whose generated image is
nearest to the real one, inside the hole too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from dcgan_jax import masks
from dcgan_jax.images.pixels import known_pixels
from dcgan_jax.inpainting.inpaint import inpaint
from dcgan_jax.networks.dcgan import Generator, draw_latents, init_gan
from dcgan_jax.networks.encoder import Encoder, init_params
from dcgan_jax.networks.filling import fill
from dcgan_jax.networks.layers import arithmetic_dtype
from dcgan_jax.parallel.sharding import constrain
from dcgan_jax.priors.dcgan import prior_from_params
from dcgan_jax.priors.files import load_prior
from dcgan_jax.priors.prior import Prior
from dcgan_jax.training.augmentation import scale_and_flip
from dcgan_jax.training.config import EncoderConfig
from dcgan_jax.training.measures import GUESS, make_guess_measures
from dcgan_jax.training.recipe import SHOWN, Measures, Metrics, Recipe, completion_rows

_KNOWN_WEIGHT = 0.25  # weight of the error over the known pixels, which the blend removes


class EncoderState(NamedTuple):
    """The training state. It holds arrays only."""

    step: Int[Array, ""]  # training steps done
    encoder: Any
    statistics: Any  # running batch statistics
    optimizer: optax.OptState
    prior: Any  # the fixed generator and discriminator, with their statistics


def init_state(config: EncoderConfig, key: PRNGKeyArray) -> EncoderState:
    """Initialises the state of a new run. Its prior is untrained until `adopt` replaces it."""
    encoder = init_params(config.model, key)
    return EncoderState(
        step=jnp.zeros((), jnp.int32),
        encoder=encoder["params"],
        statistics=encoder["batch_stats"],
        optimizer=_optimizer(config).init(encoder["params"]),
        prior=init_gan(config.model),
    )


def adopt(state: EncoderState, params: Any) -> EncoderState:
    """Loads a pretrained prior into a new state.

    Args:
        state: a new state.
        params: `Prior.params`. If they include an encoder, its weights are loaded too.
    """
    state = state._replace(prior={name: params[name] for name in state.prior})
    if "encoder" in params:
        state = state._replace(encoder=params["encoder"]["params"], statistics=params["encoder"]["batch_stats"])
    return state


def make_train_step(
    config: EncoderConfig, batch_sharding: NamedSharding | None = None
) -> Callable[[EncoderState, UInt8[Array, "b h w c"], PRNGKeyArray], tuple[EncoderState, Metrics]]:
    """Builds the training step: one update on real images and half as many generated ones, each with its own hole.

    The encoder predicts a Gaussian N(m, s²) and shifts from an image x with a hole. The loss has these terms:

    - For a real image: the root mean square of G(m) − x in the hole, and the one over the known pixels.
    - For a real image: the root mean square of the error of G(m, shifts) in the hole after a blend, and a quarter of
      the one of G(m, shifts) − x over the known pixels. The blend adds x − G(m, shifts), filled from the known pixels
      into the hole by `fill`.
    - For a generated image x = G(z): `latent_weight` times the mean over dimensions of ((z − m) / s)² / 2 + log s.

    The gradient of a root does not grow with the error, so images that cannot be completed do not dominate.

    Args:
        config: the run's configuration.
        batch_sharding: the placement of the batch on the devices; see `gan.make_train_step`.

    Returns:
        step(state, batch, key) -> (state, metrics), a pure function for the caller to jit. `key` is the run's key: step
        t uses fold_in(key, t), where t is `state.step`. Metrics, on the scale [−1, 1]: `latent_hole_error` and
        `latent_known_error` of G(m), `hole_error` (after the blend) and `known_error` of G(m, shifts); and
        `latent_loss`.
    """
    dtype = arithmetic_dtype(config.compute_dtype)
    encoder, generator, optimizer = Encoder(config.model, dtype), Generator(config.model, dtype), _optimizer(config)

    def step(state: EncoderState, batch: Array, key: PRNGKeyArray) -> tuple[EncoderState, Metrics]:
        n = batch.shape[0]
        flip_key, hole_key, latent_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
        real = scale_and_flip(batch, config.flip, flip_key)
        z = constrain(draw_latents(config.model, latent_key, n // 2), batch_sharding)
        generated: Any = generator.apply(state.prior["generator"], z, train=False)
        # One generated image after every two real ones, so that each device keeps its part of the batch.
        images = jnp.concatenate([real.reshape(n // 2, 2, *real.shape[1:]), generated[:, None]], axis=1)
        images = images.reshape(-1, *real.shape[1:])
        hole = constrain(draw_holes(hole_key, n + n // 2, config.model.image_size), batch_sharding)

        def objective(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
            encoded, updated = encoder.apply(
                {"params": params, "batch_stats": state.statistics},
                known_pixels(images, hole),
                hole,
                train=True,
                mutable=["batch_stats"],
            )
            groups = jax.tree.map(lambda x: x.reshape(n // 2, 3, *x.shape[1:]), (*encoded, hole))
            mean, _, shifts, missing = jax.tree.map(lambda x: x[:, :2].reshape(n, *x.shape[2:]), groups)
            guessed, deviation = groups[0][:, 2], groups[1][:, 2]
            latent = ((z - guessed) / deviation) ** 2 / 2 + jnp.log(deviation)
            metrics = {"latent_loss": jnp.mean(latent)}
            loss = config.latent_weight * metrics["latent_loss"]
            for name, shifting, weight in (("latent_", (), 1.0), ("", shifts, _KNOWN_WEIGHT)):
                found: Any = generator.apply(state.prior["generator"], mean, train=False, shifts=shifting)
                error = real - found
                if shifting:
                    error = error - jnp.where(missing[..., None], fill(error, missing), 0)
                squares = jnp.mean(error**2, axis=-1)
                metrics[name + "hole_error"] = jnp.mean(_root_mean(squares, missing))
                metrics[name + "known_error"] = jnp.mean(_root_mean(squares, ~missing))
                loss = loss + metrics[name + "hole_error"] + weight * metrics[name + "known_error"]
            return loss, (metrics, updated["batch_stats"])

        gradient, (metrics, statistics) = jax.grad(objective, has_aux=True)(state.encoder)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer)
        return state._replace(
            step=state.step + 1,
            encoder=optax.apply_updates(state.encoder, updates),
            statistics=statistics,
            optimizer=optimizer_state,
        ), metrics

    return step


def draw_holes(key: PRNGKeyArray, n: int, size: int) -> Bool[Array, "n size size"]:
    """Draws training holes: the four published kinds in turn. Each is shifted cyclically with probability 1/2.

    A shifted centre is a box anywhere; the edges may cut it into two or four parts. A shifted half is one or two bands.
    """
    hole_key, shift_key, whether_key = jax.random.split(key, 3)
    shift = jax.random.randint(shift_key, (n, 2), 0, size)
    shift = jnp.where(jax.random.bernoulli(whether_key, 0.5, (n, 1)), shift, 0)
    return jax.vmap(lambda hole, by: jnp.roll(hole, by, axis=(0, 1)))(masks.mixed(hole_key, n, size), shift)


def _root_mean(squares: Float[Array, "n h w"], where: Bool[Array, "n h w"]) -> Float[Array, " n"]:
    mean = jnp.sum(jnp.where(where, squares, 0), axis=(1, 2)) / jnp.maximum(jnp.sum(where, axis=(1, 2)), 1)
    return jnp.sqrt(mean + 1e-8)  # the root has no derivative at 0


def _optimizer(config: EncoderConfig) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    return optax.adam(rate, b1=config.beta1, b2=config.beta2)


def encoder_prior(state: EncoderState, config: EncoderConfig) -> Prior:
    """Returns the prior of a training state, with its encoder."""
    encoder = {"params": state.encoder, "batch_stats": state.statistics}
    return prior_from_params(jax.tree.map(jnp.copy, {**state.prior, "encoder": encoder}), config.model)


def _picture(
    config: EncoderConfig, state: EncoderState, images: np.ndarray, key: PRNGKeyArray
) -> UInt8[np.ndarray, "h w 3"]:
    """Shows the first images of the set, masked, and completed from the encoder's guess without search steps."""
    images = np.asarray(images[:SHOWN])
    holes = np.asarray(masks.mixed(key, len(images), config.model.image_size))
    guesses = inpaint(encoder_prior(state, config), images, holes, key, GUESS).images
    return completion_rows(images, holes, np.asarray(guesses))


def _warm_start(config: EncoderConfig, state: EncoderState) -> EncoderState:
    return adopt(state, load_prior(config.prior).params)


RECIPE = Recipe(
    EncoderConfig,
    init_state,
    make_train_step,
    _picture,
    Measures(encoder_prior, make_guess_measures, "held_out_psnr"),
    warm_start=_warm_start,
)
