"""The training step of a DCGAN against one written plainly, in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest

from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.networks.dcgan import draw_latents
from dcgan_jax.networks.layers import STATISTICS_DECAY
from dcgan_jax.training.augmentation import augment
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.gan import init_state, make_train_step

MODEL = ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=6)
# These cover every option of the step: each loss, and R1 with and without labels.
SINGLE = TrainConfig(model=MODEL, batch_size=4, learning_rate=1e-3)
DOUBLE = TrainConfig(
    model=dataclasses.replace(MODEL, channels=3, latent="normal"),
    batch_size=4,
    discriminator_steps=2,
    loss="hinge",
    r1=2.0,
    flip=True,
    noise=0.1,
    beta1=0.7,
    average_decay=0.15,
)
CONDITIONAL = TrainConfig(
    model=dataclasses.replace(MODEL, num_classes=3),
    batch_size=4,
    discriminator_steps=2,
    loss="saturating",
    r1=2.0,
    flip=True,
)


def draw_batch(config, seed=0, n=None):
    n = n or config.batch_size * config.discriminator_steps
    size, channels = config.model.image_size, config.model.channels
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, size, size, channels), np.uint8)
    classes = config.model.num_classes
    return (images, rng.integers(0, classes, n, np.int32)) if classes else images


SINGLE_STEP = plain.quick_jit(make_train_step(SINGLE))


def plain_adam(config, params, gradient, moments):
    mu, nu, count = moments
    params, mu, nu = plain.adam(params, gradient, mu, nu, count + 1, config.learning_rate, config.beta1, config.beta2)
    return params, (mu, nu, count + 1)


@functools.partial(plain.quick_jit, static_argnums=0)
def plain_discriminator_update(config, state, real, z, labels):
    generated, _ = plain.generator(state["generator"], z)

    def loss(params):
        real_logits, real_seen = plain.discriminator(params, real, labels=labels)
        generated_logits, generated_seen = plain.discriminator(params, generated, labels=labels)
        if config.loss == "hinge":
            value = jnp.mean(jnp.maximum(1 - real_logits, 0)) + jnp.mean(jnp.maximum(1 + generated_logits, 0))
        else:
            value = -jnp.mean(jnp.log(jax.nn.sigmoid(real_logits)))
            value -= jnp.mean(jnp.log(1 - jax.nn.sigmoid(generated_logits)))
        if config.r1:
            slopes = jax.grad(lambda x: jnp.sum(plain.discriminator(params, x, labels=labels)[0]))(real)
            due = 16 * (state["step"] % 16 == 0)
            value += due * config.r1 / 2 * jnp.mean(jnp.sum(slopes**2, axis=(1, 2, 3)))
        return value, (real_seen, generated_seen)

    gradient, seen = jax.grad(loss, has_aux=True)(state["discriminator"])
    statistics = state["statistics"]
    for one in seen:
        statistics = jax.tree.map(
            lambda old, new: STATISTICS_DECAY * old + (1 - STATISTICS_DECAY) * new, statistics, one
        )
    params, moments = plain_adam(config, state["discriminator"], gradient, state["discriminator_moments"])
    return state | {"discriminator": params, "discriminator_moments": moments, "statistics": statistics}


@functools.partial(plain.quick_jit, static_argnums=0)
def plain_generator_update(config, state, z, labels):
    def objective(params):
        generated, _ = plain.generator(params, z)
        logits, _ = plain.discriminator(state["discriminator"], generated, labels=labels)
        if config.loss == "hinge":
            return -jnp.mean(logits)
        probability = jax.nn.sigmoid(logits)
        return jnp.mean(jnp.log(1 - probability) if config.loss == "saturating" else -jnp.log(probability))

    gradient = jax.grad(objective)(state["generator"])
    params, moments = plain_adam(config, state["generator"], gradient, state["generator_moments"])
    t = state["step"]
    decay = jnp.minimum(config.average_decay, (1 + t) / (10 + t))
    average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state["average"], params)
    return state | {"generator": params, "generator_moments": moments, "average": average, "step": t + 1}


@functools.partial(plain.quick_jit, static_argnums=0)
def plain_inputs(config, step, batch, key):
    """Augmented images, their labels, and the latents of each pass of the generator (its own update is last)."""
    model, k = config.model, config.discriminator_steps
    keys = jax.random.split(jax.random.fold_in(key, step), k + 2)
    batch, labels = batch if model.num_classes else (batch, None)

    def draw(key, i):
        """Latents, then one-hot labels scaled to a variance of 1/3 an entry."""
        if labels is None:
            return draw_latents(model, key, config.batch_size)
        latents = jax.random.uniform(key, (config.batch_size, model.latent_dim), minval=-1.0, maxval=1.0)
        return jnp.concatenate([latents, (model.latent_dim / 3) ** 0.5 * jnp.eye(model.num_classes)[labels[i::k]]], 1)

    images = augment(config, batch, keys[0]).astype(jnp.float64)
    return images, labels, [*(draw(keys[2 + i], i) for i in range(k)), draw(keys[1], 0)]


def plain_step(config, state, batch, key):
    """One step of Goodfellow's algorithm 1 with plain networks, losses and Adam."""
    k = config.discriminator_steps
    images, labels, latents = plain_inputs(config, state["step"], batch, key)
    parts = [None if labels is None else labels[i::k] for i in range(k)]
    for i in range(k):
        state = plain_discriminator_update(config, state, images[i::k], latents[i], parts[i])
    return plain_generator_update(config, state, latents[k], parts[0])


def as_plain(state):
    def moments(optimizer):
        adam = optimizer[0]
        return adam.mu, adam.nu, adam.count

    return {
        "step": state.step,
        "generator": state.generator,
        "average": state.average,
        "discriminator": state.discriminator,
        "statistics": state.discriminator_statistics,
        "generator_moments": moments(state.generator_optimizer),
        "discriminator_moments": moments(state.discriminator_optimizer),
    }


@pytest.mark.parametrize(
    "config",
    [SINGLE, DOUBLE, CONDITIONAL],
    ids=["non-saturating", "hinge, R1, k = 2", "conditional, saturating, R1, k = 2"],
)
def test_three_steps_agree_with_the_plain_algorithm(config, float64):
    key = jax.random.key(4)
    state = plain.some_state(config)
    step = SINGLE_STEP if config is SINGLE else plain.quick_jit(make_train_step(config))
    expected = as_plain(state)
    for t in range(3):
        batch = draw_batch(config, seed=t)
        state, _ = step(state, batch, key)
        expected = plain_step(config, expected, batch, key)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-7), as_plain(state), expected)
    assert state.step == 3 and all(x.dtype != jnp.float32 for x in jax.tree.leaves(state))


def test_a_step_is_a_pure_function_of_state_batch_and_key(float64):
    step, state = SINGLE_STEP, plain.some_state(SINGLE)
    batch, key = draw_batch(SINGLE), jax.random.key(1)
    (one, metrics), (two, again) = step(state, batch, key), step(state, batch, key)
    jax.tree.map(np.testing.assert_array_equal, (one, metrics), (two, again))
    other_key, _ = step(state, batch, jax.random.key(2))
    other_time, _ = step(state._replace(step=state.step + 1), batch, key)
    other_batch, _ = step(state, draw_batch(SINGLE, seed=1), key)
    for other in (other_key, other_time, other_batch):
        assert not np.array_equal(one.generator["up_0"], other.generator["up_0"])


def test_metrics_agree_with_the_losses(float64):
    state = plain.some_state(SINGLE)
    batch, key = draw_batch(SINGLE), jax.random.key(1)
    after, metrics = SINGLE_STEP(state, batch, key)
    keys = jax.random.split(jax.random.fold_in(key, 0), 3)

    @plain.quick_jit
    def logits(discriminator, key):
        images = plain.generator(state.generator, draw_latents(MODEL, key, 4))[0]
        return (
            plain.discriminator(discriminator, jnp.float64(batch) / 127.5 - 1)[0],
            plain.discriminator(discriminator, images.astype(jnp.float64))[0],
        )

    real, generated = logits(state.discriminator, keys[2])
    _, judged = logits(after.discriminator, keys[1])
    expected = {
        "discriminator_loss": np.mean(np.log1p(np.exp(-real))) + np.mean(np.log1p(np.exp(generated))),
        "generator_loss": np.mean(np.log1p(np.exp(-judged))),
        "real_probability": np.mean(1 / (1 + np.exp(-real))),
        "generated_probability": np.mean(1 / (1 + np.exp(-generated))),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(("t", "decay"), [(0, 0.1), (8, 0.5), (100_000, 0.999)])
def test_the_average_follows_its_decay(t, decay, float64):
    step, state = SINGLE_STEP, plain.some_state(SINGLE)
    state = state._replace(step=jnp.int32(t), average=jax.tree.map(lambda x: x + 1, state.average))
    after, _ = step(state, draw_batch(SINGLE), jax.random.key(1))
    jax.tree.map(
        lambda average, old, new: np.testing.assert_allclose(average, decay * old + (1 - decay) * new, atol=1e-6),
        after.average,
        state.average,
        after.generator,
    )


def test_bfloat16_keeps_weights_and_optimiser_in_float32():
    config = dataclasses.replace(SINGLE, compute_dtype="bfloat16")
    state = jax.eval_shape(lambda key: init_state(config, key), jax.random.key(0))
    run = jax.make_jaxpr(make_train_step(config), return_shape=True)
    jaxpr, (after, metrics) = run(state, draw_batch(config), jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(x.dtype == jnp.float32 for x in metrics.values())
    assert "bf16" in str(jaxpr)


@pytest.mark.parametrize(("config", "n"), [(SINGLE, 3), (SINGLE, 8), (DOUBLE, 4)])
def test_a_batch_of_another_size_is_refused(config, n):
    state = jax.eval_shape(lambda key: init_state(config, key), jax.random.key(0))
    with pytest.raises(ValueError, match=f"`batch` holds {n} images; a step takes {4 * config.discriminator_steps}"):
        jax.eval_shape(make_train_step(config), state, draw_batch(config, n=n), jax.random.key(0))


def test_only_a_conditional_model_takes_labels():
    conditional, plain_state = (
        jax.eval_shape(lambda key, config=config: init_state(config, key), jax.random.key(0))
        for config in (CONDITIONAL, SINGLE)
    )
    images, labels = draw_batch(CONDITIONAL)
    for batch in (images, (images, labels[1:]), (images,)):
        with pytest.raises(ValueError, match=r"the model has 3 classes: pass `batch` as \(images, labels\)"):
            jax.eval_shape(make_train_step(CONDITIONAL), conditional, batch, jax.random.key(0))
    with pytest.raises(ValueError, match="the model has no classes: pass images alone"):
        jax.eval_shape(make_train_step(SINGLE), plain_state, (images, labels), jax.random.key(0))


def test_the_initial_average_is_a_copy_of_the_generator():
    """No array occurs twice, because it could not be donated then."""

    @plain.quick_jit
    def draw(key):
        state = init_state(SINGLE, key)
        arrays = jax.tree.leaves(state)
        assert len({id(x) for x in arrays}) == len(arrays)
        return state

    state = draw(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, state.generator, state.average)
    assert not np.array_equal(state.generator["up_0"], draw(jax.random.key(1)).generator["up_0"])
