"""Training of a DCGAN: the step of Goodfellow's algorithm as a pure function of state, batch and key."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, PRNGKeyArray, UInt8

from dcgan_jax.images import figures
from dcgan_jax.images.figures import COLUMNS
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.networks.dcgan import Discriminator, Generator, draw_latents
from dcgan_jax.networks.layers import arithmetic_dtype
from dcgan_jax.networks.normalization import in_turn
from dcgan_jax.parallel.sharding import constrain
from dcgan_jax.priors.dcgan import averaged_params, prior_from_params
from dcgan_jax.priors.labels import row_labels
from dcgan_jax.priors.prior import Prior, generate
from dcgan_jax.training.augmentation import augment
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.losses import discriminator_loss, generator_loss
from dcgan_jax.training.measures import make_measures
from dcgan_jax.training.recipe import NUM_SAMPLES, Measures, Metrics, Recipe


class GANState(NamedTuple):
    """The training state. It holds arrays only."""

    step: Int[Array, ""]  # training steps done
    generator: Any
    average: Any  # moving average of the generator's weights
    discriminator: Any
    discriminator_statistics: Any  # running batch statistics
    generator_optimizer: optax.OptState
    discriminator_optimizer: optax.OptState


R1_EVERY = 16  # steps between two R1 penalties
# Images; for a conditional model, (images, labels).
Batch = UInt8[Array, "kb h w c"] | tuple[UInt8[Array, "kb h w c"], Int[Array, " kb"]]


def init_state(config: TrainConfig, key: PRNGKeyArray) -> GANState:
    """Initialises the state of a new run. Kernels are drawn from N(0, 0.02²), as in Radford et al. 2016.

    Args:
        config: the run's configuration.
        key: random key.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> state = dj.init_state(dj.TrainConfig(model=dj.ModelConfig(image_size=32, base_width=8)), jax.random.key(0))
        >>> int(state.step)
        0
    """
    model = config.model
    generator_key, discriminator_key = jax.random.split(key)
    z = jnp.zeros((1, model.latent_size))
    x = jnp.zeros((1, model.image_size, model.image_size, model.channels))
    generator = Generator(model).init(generator_key, z, train=True)["params"]
    discriminator = Discriminator(model).init(discriminator_key, x, train=True)
    optimizer = _optimizer(config)
    return GANState(
        step=jnp.zeros((), jnp.int32),
        generator=generator,
        average=jax.tree.map(jnp.copy, generator),  # a donated state must not hold one buffer twice
        discriminator=discriminator["params"],
        discriminator_statistics=discriminator["batch_stats"],
        generator_optimizer=optimizer.init(generator),
        discriminator_optimizer=optimizer.init(discriminator["params"]),
    )


def make_train_step(
    config: TrainConfig, batch_sharding: NamedSharding | None = None
) -> Callable[[GANState, Batch, PRNGKeyArray], tuple[GANState, Metrics]]:
    """Builds the training step: k discriminator updates, then one generator update.

    Each discriminator update takes its own slice of the batch and fresh latents. The discriminator normalises real and
    generated images as separate batches. Batch statistics cover the whole batch, over all devices if it is sharded. In
    a conditional model, generated images have the labels of the real ones, and the discriminator gets the labels.

    Args:
        config: the run's configuration. k is `discriminator_steps`. The batch holds k · `batch_size` images, uint8; for
            a conditional model it is (images, labels).
        batch_sharding: the placement of the batch on the devices (`sharding.along_batch`). Generated images get the
            same placement. Pass it whenever the batch is split over devices: without it, XLA computes the generated
            images, and everything that depends on them, in full on every device.

    Returns:
        step(state, batch, key) -> (state, metrics), a pure function for the caller to jit. `key` is the run's key: step
        t uses fold_in(key, t), where t is `state.step`. Metrics: `discriminator_loss` of the last discriminator update,
        `generator_loss`, and the mean probabilities of being real that the discriminator gives to real and generated
        images, `real_probability` and `generated_probability`.

    Source:
        Goodfellow et al. 2014, algorithm 1, as He et al. print it.
    """
    model, k = config.model, config.discriminator_steps
    dtype = arithmetic_dtype(config.compute_dtype)
    generator, discriminator = Generator(model, dtype), Discriminator(model, dtype)
    optimizer = _optimizer(config)

    def make_images(params: Any, z: Array) -> Any:
        return generator.apply({"params": params}, z, train=True, mutable=["batch_stats"])[0]

    def judge(params: Any, statistics: Any, x: Any, labels: Array | None, groups: int = 1) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": statistics}
        label = None if labels is None else jax.nn.one_hot(labels, model.num_classes)
        logits, updated = discriminator.apply(
            variables, x, train=True, label=label, groups=groups, mutable=["batch_stats"]
        )
        return logits, updated["batch_stats"]

    def slope(params: Any, statistics: Any, x: Array, labels: Array | None) -> Array:
        """Returns the mean squared norm of the logits' gradient with respect to the images."""
        gradient = jax.grad(lambda x: jnp.sum(judge(params, statistics, x, labels)[0]))(x)
        return jnp.mean(jnp.sum(gradient**2, axis=(1, 2, 3)))

    def latents(key: PRNGKeyArray, labels: Array | None) -> Array:
        return constrain(draw_latents(model, key, config.batch_size, labels), batch_sharding)

    def update_discriminator(
        state: GANState, real: Array, labels: Array | None, key: PRNGKeyArray, penalise: Array
    ) -> tuple[GANState, Metrics]:
        generated = make_images(state.generator, latents(key, labels))
        both = in_turn(real, generated)
        both_labels = None if labels is None else jnp.repeat(labels, 2)

        def objective(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
            logits, statistics = judge(params, state.discriminator_statistics, both, both_labels, groups=2)
            real_logits, generated_logits = logits.reshape(-1, 2).T
            metrics = {
                "discriminator_loss": discriminator_loss(real_logits, generated_logits, config.loss),
                "real_probability": jnp.mean(jax.nn.sigmoid(real_logits)),
                "generated_probability": jnp.mean(jax.nn.sigmoid(generated_logits)),
            }
            return metrics["discriminator_loss"], (statistics, metrics)

        gradient, (statistics, metrics) = jax.grad(objective, has_aux=True)(state.discriminator)
        if config.r1 > 0:
            # Only every `R1_EVERY` steps, with a weight larger by that factor (Karras et al. 2020, section 3.1).
            def penalty(params: Any) -> Array:
                weight = config.r1 / 2 * R1_EVERY
                return weight * slope(params, state.discriminator_statistics, real, labels)

            steepness = jax.lax.cond(
                penalise, jax.grad(penalty), lambda params: jax.tree.map(jnp.zeros_like, params), state.discriminator
            )
            gradient = jax.tree.map(jnp.add, gradient, steepness)
        updates, optimizer_state = optimizer.update(gradient, state.discriminator_optimizer)
        state = state._replace(
            discriminator=optax.apply_updates(state.discriminator, updates),
            discriminator_statistics=statistics,
            discriminator_optimizer=optimizer_state,
        )
        return state, metrics

    def update_generator(state: GANState, labels: Array | None, key: PRNGKeyArray) -> tuple[GANState, Metrics]:
        z = latents(key, labels)

        def objective(params: Any) -> Array:
            generated = make_images(params, z)
            logits, _ = judge(state.discriminator, state.discriminator_statistics, generated, labels)
            return generator_loss(logits, config.loss)

        loss, gradient = jax.value_and_grad(objective)(state.generator)
        updates, optimizer_state = optimizer.update(gradient, state.generator_optimizer)
        params = optax.apply_updates(state.generator, updates)
        # The first steps use a smaller decay. Otherwise the initial weights would dominate for 1 / (1 - decay) steps.
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.average_decay, (1 + step) / (10 + step))
        state = state._replace(
            generator=params,
            average=optax.incremental_update(params, state.average, 1 - decay),
            generator_optimizer=optimizer_state,
        )
        return state, {"generator_loss": loss}

    def step(state: GANState, batch: Any, key: PRNGKeyArray) -> tuple[GANState, Metrics]:
        batch, labels = _split_batch(model, batch)
        if batch.shape[0] != k * config.batch_size:
            raise ValueError(
                f"`batch` holds {batch.shape[0]} images; a step takes {k * config.batch_size}: "
                f"{k} discriminator updates of batch_size {config.batch_size}"
            )
        augment_key, generator_key, *latent_keys = jax.random.split(jax.random.fold_in(key, state.step), k + 2)
        images = augment(config, batch, augment_key)
        metrics: Metrics = {}
        for i, latent_key in enumerate(latent_keys):
            # Slices with stride k keep each image of a sharded batch on its device.
            part = None if labels is None else labels[i::k]
            state, metrics = update_discriminator(state, images[i::k], part, latent_key, state.step % R1_EVERY == 0)
        state, generator_metrics = update_generator(state, None if labels is None else labels[::k], generator_key)
        return state._replace(step=state.step + 1), metrics | generator_metrics

    return step


def _split_batch(model: ModelConfig, batch: Any) -> tuple[Any, Any]:
    """Returns images, and labels or None."""
    if not model.num_classes:
        if isinstance(batch, tuple):
            raise ValueError("`batch` is (images, labels), but the model has no classes: pass images alone")
        return batch, None
    if not isinstance(batch, tuple) or len(batch) != 2 or batch[1].shape != batch[0].shape[:1]:
        raise ValueError(
            f"the model has {model.num_classes} classes: pass `batch` as (images, labels), one label for each image"
        )
    return batch


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate, b1=config.beta1, b2=config.beta2)


def prior_from_state(state: GANState, config: TrainConfig) -> Prior:
    """Makes the prior of a training state from the moving average of the generator.

    The average gets its own batch statistics. They come from 1,024 latents of a fixed key, so the same state always
    gives the same prior.
    """
    params = averaged_params(config.model, state.average, state.discriminator, state.discriminator_statistics)
    # Copies, because a training step may reuse the buffers of its state.
    return prior_from_params(jax.tree.map(jnp.copy, params), config.model)


def _picture(config: TrainConfig, state: GANState, _: Any, key: PRNGKeyArray) -> UInt8[np.ndarray, "h w 3"]:
    """Shows images of the average generator at fixed latents; in a conditional model, one class in each row."""
    prior = prior_from_state(state, config)
    images = generate(
        prior, draw_latents(config.model, key, NUM_SAMPLES, row_labels(prior.num_classes, NUM_SAMPLES, COLUMNS))
    )
    return figures.tile(np.asarray(images), columns=COLUMNS)


RECIPE = Recipe(
    TrainConfig, init_state, make_train_step, _picture, Measures(prior_from_state, make_measures, "inversion_psnr")
)
