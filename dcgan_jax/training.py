"""The training step of Goodfellow's algorithm as a pure function of state, batch and key."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from dcgan_jax.config import ModelConfig, TrainConfig
from dcgan_jax.losses import discriminator_loss, generator_loss
from dcgan_jax.networks import Discriminator, Generator


class GANState(NamedTuple):
    """All that a training run carries from step to step; arrays only."""

    step: Int[Array, ""]  # training steps done
    generator: Any
    average: Any  # moving average of the generator's weights
    discriminator: Any
    discriminator_statistics: Any  # running batch statistics
    generator_optimizer: optax.OptState
    discriminator_optimizer: optax.OptState


Metrics = dict[str, Float[Array, ""]]


def draw_latents(model: ModelConfig, key: PRNGKeyArray, n: int) -> Float[Array, "n latent"]:
    """Draws n latents from the model's prior: uniform on [−1, 1] or standard normal."""
    if model.latent == "uniform":
        return jax.random.uniform(key, (n, model.latent_dim), minval=-1.0, maxval=1.0)
    return jax.random.normal(key, (n, model.latent_dim))


def init_state(config: TrainConfig, key: PRNGKeyArray) -> GANState:
    """Draws the weights of a new run, N(0, 0.02) as Radford et al. 2016 have it.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> state = dj.init_state(dj.TrainConfig(model=dj.ModelConfig(image_size=32, base_width=8)), jax.random.key(0))
        >>> int(state.step)
        0
    """
    model = config.model
    generator_key, discriminator_key = jax.random.split(key)
    z = jnp.zeros((1, model.latent_dim))
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
    config: TrainConfig,
) -> Callable[[GANState, UInt8[Array, "kb h w c"], PRNGKeyArray], tuple[GANState, Metrics]]:
    """Builds the step: k discriminator updates on k slices of the batch and fresh latents, then one of the generator.

    The discriminator sees real and generated images in separate passes. Batch statistics are those of the whole batch,
    over all devices when the step is jitted with a sharded batch.

    Args:
        config: k is `discriminator_steps`; the batch holds k · `batch_size` images.

    Returns:
        step(state, batch, key) -> (state, metrics), pure; the caller jits it. `key` is the run's key: step t uses
        fold_in(key, t), t being `state.step`. Metrics: `discriminator_loss` (of the last of the k updates),
        `generator_loss`, and the mean probabilities `real_probability` and `generated_probability` the
        discriminator gave.

    Source:
        Goodfellow et al. 2014, algorithm 1, as He et al. print it.
    """
    model, k = config.model, config.discriminator_steps
    dtype = None if config.compute_dtype == "float32" else jnp.dtype(config.compute_dtype)
    generator, discriminator = Generator(model, dtype), Discriminator(model, dtype)
    optimizer = _optimizer(config)

    def generate(params, z):
        return generator.apply({"params": params}, z, train=True, mutable=["batch_stats"])[0]

    def judge(params, statistics, x):
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = discriminator.apply(variables, x, train=True, mutable=["batch_stats"])
        return logits, updated["batch_stats"]

    def update_discriminator(state: GANState, real, z):
        generated = generate(state.generator, z)

        def objective(params):
            real_logits, statistics = judge(params, state.discriminator_statistics, real)
            generated_logits, statistics = judge(params, statistics, generated)
            metrics = {
                "discriminator_loss": discriminator_loss(real_logits, generated_logits),
                "real_probability": jnp.mean(jax.nn.sigmoid(real_logits)),
                "generated_probability": jnp.mean(jax.nn.sigmoid(generated_logits)),
            }
            return metrics["discriminator_loss"], (statistics, metrics)

        gradient, (statistics, metrics) = jax.grad(objective, has_aux=True)(state.discriminator)
        updates, optimizer_state = optimizer.update(gradient, state.discriminator_optimizer)
        state = state._replace(
            discriminator=optax.apply_updates(state.discriminator, updates),
            discriminator_statistics=statistics,
            discriminator_optimizer=optimizer_state,
        )
        return state, metrics

    def update_generator(state: GANState, z):
        def objective(params):
            logits, _ = judge(state.discriminator, state.discriminator_statistics, generate(params, z))
            return generator_loss(logits, config.loss)

        loss, gradient = jax.value_and_grad(objective)(state.generator)
        updates, optimizer_state = optimizer.update(gradient, state.generator_optimizer)
        params = optax.apply_updates(state.generator, updates)
        # The first steps are averaged over a shorter memory, or the initial weights would linger for 1 / (1 - decay).
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.average_decay, (1 + step) / (10 + step))
        state = state._replace(
            generator=params,
            average=optax.incremental_update(params, state.average, 1 - decay),
            generator_optimizer=optimizer_state,
        )
        return state, {"generator_loss": loss}

    def step(state: GANState, batch, key):
        if batch.shape[0] != k * config.batch_size:
            raise ValueError(
                f"`batch` holds {batch.shape[0]} images; a step takes {k * config.batch_size}: "
                f"{k} discriminator updates of batch_size {config.batch_size}"
            )
        augment_key, generator_key, *latent_keys = jax.random.split(jax.random.fold_in(key, state.step), k + 2)
        images = augment(config, batch, augment_key)
        metrics: Metrics = {}
        for i, latent_key in enumerate(latent_keys):
            # Slices with stride k stay on their device where the batch is sharded.
            state, metrics = update_discriminator(
                state, images[i::k], draw_latents(model, latent_key, config.batch_size)
            )
        state, generator_metrics = update_generator(state, draw_latents(model, generator_key, config.batch_size))
        return state._replace(step=state.step + 1), metrics | generator_metrics

    return step


def to_floats(batch: UInt8[Array, "n h w c"], flip: bool, key: PRNGKeyArray) -> Float[Array, "n h w c"]:
    """Scales to [−1, 1] and, with `flip`, mirrors half of the images left to right."""
    images = batch.astype(jnp.float32) / 127.5 - 1.0
    if flip:
        mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def augment(config: TrainConfig, batch: UInt8[Array, "n h w c"], key: PRNGKeyArray) -> Float[Array, "n h w c"]:
    """Scales to [−1, 1], mirrors half of the images and adds Gaussian noise, as the configuration says."""
    flip_key, noise_key = jax.random.split(key)
    images = to_floats(batch, config.flip, flip_key)
    if config.noise > 0:
        images = images + config.noise * jax.random.normal(noise_key, images.shape)
    return images


def generator_statistics(model: ModelConfig, params: Any, key: PRNGKeyArray, batches: int = 16, size: int = 64) -> Any:
    """Batch-norm statistics that belong to these generator weights: the mean of those of `batches` fresh batches.

    Averaged weights need statistics of their own: with the raw network's the images fall apart.
    """
    generator = Generator(model)

    def one(batch_key):
        z = draw_latents(model, batch_key, size)
        return generator.apply({"params": params}, z, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    statistics = jax.lax.map(one, jax.random.split(key, batches))
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), statistics)


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate, b1=config.beta1, b2=config.beta2)
