"""Training of the context encoder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, PRNGKeyArray, UInt8

from dcgan_jax import masks
from dcgan_jax.baselines.config import ContextEncoderConfig
from dcgan_jax.baselines.context_encoder import ContextEncoder, Network, context_encoder
from dcgan_jax.images.pixels import known_pixels
from dcgan_jax.networks.dcgan import Discriminator
from dcgan_jax.networks.layers import arithmetic_dtype
from dcgan_jax.networks.normalization import in_turn
from dcgan_jax.parallel.sharding import constrain
from dcgan_jax.training.augmentation import scale_and_flip
from dcgan_jax.training.losses import discriminator_loss, generator_loss
from dcgan_jax.training.recipe import SHOWN, Metrics, Recipe, completion_rows


class ContextEncoderState(NamedTuple):
    """The training state. It holds arrays only."""

    step: Int[Array, ""]  # training steps done
    encoder: Any
    encoder_statistics: Any
    adversary: Any
    adversary_statistics: Any
    encoder_optimizer: optax.OptState
    adversary_optimizer: optax.OptState


def init_state(config: ContextEncoderConfig, key: PRNGKeyArray) -> ContextEncoderState:
    """Initialises the state of a new run."""
    encoder_key, adversary_key = jax.random.split(key)
    x = jnp.zeros((1, *config.image_shape))
    encoder = Network(config).init(encoder_key, x, jnp.zeros(x.shape[:3], bool), train=True)
    adversary = Discriminator(config.adversary).init(adversary_key, x, train=True)
    encoder_optimizer, adversary_optimizer = _optimizers(config)
    return ContextEncoderState(
        step=jnp.zeros((), jnp.int32),
        encoder=encoder["params"],
        encoder_statistics=encoder["batch_stats"],
        adversary=adversary["params"],
        adversary_statistics=adversary["batch_stats"],
        encoder_optimizer=encoder_optimizer.init(encoder["params"]),
        adversary_optimizer=adversary_optimizer.init(adversary["params"]),
    )


def make_train_step(
    config: ContextEncoderConfig, batch_sharding: NamedSharding | None = None
) -> Callable[[ContextEncoderState, UInt8[Array, "b h w c"], PRNGKeyArray], tuple[ContextEncoderState, Metrics]]:
    """Builds the training step: one update of the encoder and one of the adversary, on the same batch and holes.

    Each kind of mask is used for a quarter of the batch. F is the network, M is 1 in the hole and 0 elsewhere, and D is
    the adversary. The encoder minimises (1 − λ) E ‖M (x − F)‖² / |M| − λ E log D(composite), on the scale [−1, 1].

    Args:
        config: the run's configuration. λ is `adversarial_weight`.
        batch_sharding: the placement of the batch on the devices; see `training.gan.make_train_step`.

    Returns:
        step(state, batch, key) -> (state, metrics), a pure function for the caller to jit. `key` is the run's key: step
        t uses fold_in(key, t), where t is `state.step`. Metrics: `reconstruction_loss`, `adversarial_loss` and
        `discriminator_loss`.

    Source:
        Pathak et al. 2016, equations 1 to 3. The adversary sees whole images, as in the paper for holes of any shape.
    """
    dtype = arithmetic_dtype(config.compute_dtype)
    network, discriminator = Network(config, dtype), Discriminator(config.adversary, dtype)
    encoder_optimizer, adversary_optimizer = _optimizers(config)

    def judge(params: Any, statistics: Any, x: Array, groups: int = 1) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = discriminator.apply(variables, x, train=True, groups=groups, mutable=["batch_stats"])
        return logits, updated["batch_stats"]

    def paint(params: Any, statistics: Any, images: Array, hole: Array) -> tuple[Array, Array, Any]:
        variables = {"params": params, "batch_stats": statistics}
        painted, updated = network.apply(
            variables, known_pixels(images, hole), hole, train=True, mutable=["batch_stats"]
        )
        return painted, jnp.where(hole[..., None], painted, images), updated["batch_stats"]

    def step(
        state: ContextEncoderState, batch: UInt8[Array, "b h w c"], key: PRNGKeyArray
    ) -> tuple[ContextEncoderState, Metrics]:
        flip_key, hole_key = jax.random.split(jax.random.fold_in(key, state.step))
        images = scale_and_flip(batch, config.flip, flip_key)
        hole = constrain(masks.mixed(hole_key, images.shape[0], config.image_size), batch_sharding)

        def encoder_objective(params: Any) -> tuple[Array, tuple[Metrics, Any, Array]]:
            painted, completed, statistics = paint(params, state.encoder_statistics, images, hole)
            missing = jnp.sum(hole, axis=(1, 2)) * images.shape[-1]
            error = jnp.sum((hole[..., None] * (painted - images)) ** 2, axis=(1, 2, 3)) / missing
            logits, _ = judge(state.adversary, state.adversary_statistics, completed)
            metrics = {
                "reconstruction_loss": jnp.mean(error),
                "adversarial_loss": generator_loss(logits, "non_saturating"),
            }
            weight = config.adversarial_weight
            loss = (1 - weight) * metrics["reconstruction_loss"] + weight * metrics["adversarial_loss"]
            return loss, (metrics, statistics, completed)

        gradient, (metrics, statistics, completed) = jax.grad(encoder_objective, has_aux=True)(state.encoder)
        updates, optimizer = encoder_optimizer.update(gradient, state.encoder_optimizer)
        encoder = optax.apply_updates(state.encoder, updates)

        def adversary_objective(params: Any) -> tuple[Array, Any]:
            logits, seen = judge(params, state.adversary_statistics, in_turn(images, completed), groups=2)
            real, painted = logits.reshape(-1, 2).T
            return discriminator_loss(real, painted), seen

        (loss, seen), gradient = jax.value_and_grad(adversary_objective, has_aux=True)(state.adversary)
        updates, adversary_state = adversary_optimizer.update(gradient, state.adversary_optimizer)
        return ContextEncoderState(
            step=state.step + 1,
            encoder=encoder,
            encoder_statistics=statistics,
            adversary=optax.apply_updates(state.adversary, updates),
            adversary_statistics=seen,
            encoder_optimizer=optimizer,
            adversary_optimizer=adversary_state,
        ), metrics | {"discriminator_loss": loss}

    return step


def from_state(state: ContextEncoderState, config: ContextEncoderConfig) -> ContextEncoder:
    """Returns the context encoder of a training state."""
    return ContextEncoder({"params": state.encoder, "batch_stats": state.encoder_statistics}, config)


def _optimizers(config: ContextEncoderConfig) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    def adam(rate: float) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, config.num_steps), b1=config.beta1, b2=config.beta2)

    return adam(config.learning_rate), adam(config.learning_rate / 10)


def _picture(
    config: ContextEncoderConfig, state: ContextEncoderState, images: np.ndarray, key: PRNGKeyArray
) -> UInt8[np.ndarray, "h w 3"]:
    """Shows the first images of the set, masked and completed."""
    images = np.asarray(images[:SHOWN])
    holes = np.asarray(masks.mixed(key, len(images), config.image_size))
    network = from_state(state, config)
    return completion_rows(images, holes, np.asarray(context_encoder(network, images, holes)))


RECIPE = Recipe(ContextEncoderConfig, init_state, make_train_step, _picture)
