"""Generator and discriminator: shapes, parameter counts, values, batch statistics and latents."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from flax.traverse_util import flatten_dict

from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.networks.dcgan import Discriminator, Generator, draw_latents, generator_statistics
from dcgan_jax.networks.layers import STATISTICS_DECAY
from dcgan_jax.training.config import TrainConfig

TINY = ModelConfig(image_size=32, channels=3, base_width=4, latent_dim=6)
GREY = dataclasses.replace(TINY, channels=1)


def init(model, key):
    """Variables of generator and discriminator."""
    generator_key, discriminator_key = jax.random.split(key)
    z = jnp.zeros((1, model.latent_dim))
    x = jnp.zeros((1, model.image_size, model.image_size, model.channels))
    return Generator(model).init(generator_key, z, train=True), Discriminator(model).init(
        discriminator_key, x, train=True
    )


def far_from_init(variables, seed):
    """The same variables with weights and statistics that are neither 0, nor 1, nor small."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(
            0.2 * rng.standard_normal(x.shape) if x.ndim > 1 else rng.uniform(0.5, 2, x.shape), x.dtype
        ),
        variables,
    )


@pytest.fixture(scope="module")
def tiny():
    generator, discriminator = jax.eval_shape(lambda key: init(TINY, key), jax.random.key(0))
    generator, discriminator = far_from_init((generator, discriminator), 1)
    z = jax.random.normal(jax.random.key(2), (5, TINY.latent_dim))
    x = jax.random.uniform(jax.random.key(3), (5, 32, 32, 3), minval=-1)
    return generator, discriminator, z, x


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "widths"),
    [(32, [4, 8, 16]), (64, [4, 8, 16, 32]), (128, [4, 8, 16, 32, 32]), (256, [4, 8, 16, 32, 32, 32])],
)
def test_every_size_has_the_expected_shapes_and_widths(size, widths, channels):
    model = ModelConfig(image_size=size, channels=channels, base_width=4, latent_dim=10)
    generator, discriminator = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))
    for train in (True, False):
        run = jax.eval_shape(
            lambda v, z, train=train: Generator(model).apply(v, z, train=train, mutable=["batch_stats"])[0],
            generator,
            jnp.zeros((7, 10)),
        )
        assert run.shape == (7, size, size, channels) and run.dtype == jnp.float32
        run = jax.eval_shape(
            lambda v, x, train=train: Discriminator(model).apply(v, x, train=train, mutable=["batch_stats"])[0],
            discriminator,
            jnp.zeros((7, size, size, channels)),
        )
        assert run.shape == (7,) and run.dtype == jnp.float32

    found = {name: x.shape for name, x in flatten_dict(generator["params"], sep="/").items()}
    inward = [channels, *widths]
    expected = {"dense/kernel": (10, 16 * widths[-1]), "bias": (channels,)}
    for i, (outer, inner) in enumerate(itertools.pairwise(inward[::-1])):
        expected |= {f"up_{i}": (5, 5, inner, outer)}
        expected |= {f"norm_{i}/{part}": (outer,) for part in ("scale", "bias")}
    assert found == expected  # so there is no batch norm after the last convolution

    found = {name: x.shape for name, x in flatten_dict(discriminator["params"], sep="/").items()}
    expected = {"dense/kernel": (16 * widths[-1], 1), "dense/bias": (1,), "bias": (widths[0],)}
    for i, (outer, inner) in enumerate(itertools.pairwise(inward)):
        expected |= {f"down_{i}": (5, 5, outer, inner)}
        if i > 0:  # there is no batch norm at the input
            expected |= {f"norm_{i}/{part}": (inner,) for part in ("scale", "bias")}
    assert found == expected


def test_the_default_network_has_the_published_parameter_counts():
    generator, discriminator = jax.eval_shape(lambda key: init(ModelConfig(), key), jax.random.key(0))
    count = lambda variables: sum(x.size for x in jax.tree.leaves(variables["params"]))  # noqa: E731
    kernels = 25 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512)
    assert count(generator) == 100 * 8192 + kernels + 2 * (64 + 128 + 256 + 512) + 3
    assert count(discriminator) == kernels + 2 * (128 + 256 + 512) + 64 + 8192 + 1


def test_initial_weights_are_normal_with_deviation_0_02():
    model = ModelConfig(image_size=32, base_width=16)
    for variables in plain.quick_jit(lambda key: init(model, key))(jax.random.key(5)):
        for name, x in flatten_dict(variables["params"], sep="/").items():
            x = np.asarray(x) - (1 if name.endswith("scale") else 0)
            if name.endswith("bias"):
                assert (x == 0).all(), name
            else:
                error = 0.02 / np.sqrt(x.size)
                assert abs(x.mean()) < 4 * error and abs(x.std() - 0.02) < 4 * error, name
        for name, x in flatten_dict(variables["batch_stats"], sep="/").items():
            assert x.dtype == jnp.float32, name


@pytest.mark.parametrize("train", [True, False])
def test_outputs_agree_with_the_plain_networks(tiny, train):
    generator, discriminator, z, x = tiny

    @jax.jit
    def both(generator, discriminator):
        return (
            Generator(TINY).apply(generator, z, train=train, mutable=["batch_stats"]),
            Discriminator(TINY).apply(discriminator, x, train=train, mutable=["batch_stats"]),
        )

    @plain.quick_jit
    def written_out(generator, discriminator):
        statistics = [None if train else variables["batch_stats"] for variables in (generator, discriminator)]
        return (
            plain.generator(generator["params"], z, statistics[0]),
            plain.discriminator(discriminator["params"], x, statistics[1]),
        )

    (images, after), (logits, judged) = both(generator, discriminator)
    (expected_images, seen), (expected_logits, judged_seen) = written_out(generator, discriminator)
    np.testing.assert_allclose(images, expected_images, atol=2e-5)
    np.testing.assert_allclose(logits, expected_logits, rtol=2e-5, atol=2e-5)
    assert np.std(images) > 0.1 and np.abs(images).max() <= 1
    if train:  # the generator stores the batch's statistics, the discriminator a running mean
        decay = STATISTICS_DECAY
        judged_seen = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, discriminator["batch_stats"], judged_seen
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (after["batch_stats"], judged["batch_stats"]),
        (seen, judged_seen),
    )


def test_batch_statistics_are_means_and_variances_over_batch_and_pixels(tiny):
    generator, _, z, _ = tiny
    _, after = jax.jit(lambda z: Generator(TINY).apply(generator, z, train=True, mutable=["batch_stats"]))(z)
    x = np.asarray(z, np.float64) @ np.asarray(generator["params"]["dense"]["kernel"], np.float64)
    x = x.reshape(-1, TINY.widths[-1])  # one row for each pixel
    np.testing.assert_allclose(after["batch_stats"]["norm_0"]["mean"], x.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["batch_stats"]["norm_0"]["var"], x.var(0), rtol=1e-4)


def test_leaky_relu_has_slope_0_2_below_zero():
    """Each kernel picks one pixel and batch norm does nothing, so only the leaky ReLUs act."""
    model = ModelConfig(image_size=32, channels=1, base_width=1)
    _, variables = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables["params"])
    params["down_0"][1, 1] = params["down_1"][1, 1, :, 0] = params["down_2"][1, 1, 0, 0] = 1.0  # every second pixel
    params["dense"]["kernel"][:] = 1.0
    params["norm_1"]["scale"][:] = params["norm_2"]["scale"][:] = np.sqrt(1 + 1e-5)
    statistics = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables["batch_stats"])
    for name in statistics:
        statistics[name]["var"][:] = 1.0
    x = np.stack([np.full((32, 32, 1), 1.0), np.full((32, 32, 1), -1.0)]).astype(np.float32)
    variables = {"params": params, "batch_stats": statistics}
    logits = jax.jit(lambda x: Discriminator(model).apply(variables, x, train=False))(x)
    np.testing.assert_allclose(logits, [16.0, -16.0 * 0.2**3], rtol=1e-5)


def test_at_inference_an_image_does_not_depend_on_its_batch(tiny):
    generator, discriminator, z, x = tiny
    generate = jax.jit(lambda z: Generator(TINY).apply(generator, z, train=False))
    judge = jax.jit(lambda x: Discriminator(TINY).apply(discriminator, x, train=False))
    for function, batch in ((generate, z), (judge, x)):
        alone = function(batch)
        others = function(batch.at[1:].set(7.0))
        moved = function(jnp.roll(batch, 2, axis=0))
        np.testing.assert_array_equal(alone[0], others[0])
        np.testing.assert_array_equal(alone, np.roll(moved, -2, axis=0))
        assert not np.array_equal(alone[1], others[1])


def test_bfloat16_changes_the_arithmetic_and_no_stored_type(tiny):
    generator, discriminator, z, x = tiny
    half = jnp.dtype(jnp.bfloat16)
    weights = jax.eval_shape(lambda key: Generator(TINY, half).init(key, z, train=True), jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(weights))

    def both(dtype):
        images, after = Generator(TINY, dtype).apply(generator, z, train=True, mutable=["batch_stats"])
        logits, judged = Discriminator(TINY, dtype).apply(discriminator, x, train=True, mutable=["batch_stats"])
        return images, logits, (after, judged)

    images, logits, stored = jax.jit(lambda: both(half))()
    exact_images, exact_logits, _ = jax.jit(lambda: both(None))()
    assert images.dtype == logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stored))
    convolutions = re.findall(r"(\w+)\[[\d,]*\] = conv_", str(jax.make_jaxpr(lambda: both(half))()))
    assert len(convolutions) >= 6 and set(convolutions) == {"bf16"}
    assert 0 < np.abs(images - exact_images).mean() < 0.02
    assert 0 < np.abs(logits - exact_logits).mean() < 0.02 * np.abs(exact_logits).mean() + 0.02


def test_shifts_are_added_to_the_features_before_each_relu(tiny):
    generator, _, z, _ = tiny
    rng = np.random.default_rng(0)
    shifts = [jnp.asarray(rng.standard_normal((5, 4 << i, 4 << i, 16 >> i)), jnp.float32) for i in range(3)]
    found = Generator(TINY).apply(generator, z, train=False, shifts=shifts)
    params, statistics = generator["params"], generator["batch_stats"]
    x = (z @ params["dense"]["kernel"]).reshape(5, 4, 4, 16)
    for i, shift in enumerate(shifts):
        x = jnp.maximum(plain.batch_norm(x, params[f"norm_{i}"], statistics[f"norm_{i}"])[0] + shift, 0)
        x = jax.lax.conv_transpose(
            x, params[f"up_{i}"], (2, 2), "SAME", dimension_numbers=plain.DIMENSIONS, transpose_kernel=True
        )
    np.testing.assert_allclose(found, jnp.tanh(x + params["bias"]), atol=1e-5)


def test_latents_follow_the_model_prior():
    uniform = np.asarray(draw_latents(GREY, jax.random.key(0), 5000))
    assert uniform.shape == (5000, 6) and uniform.min() < -0.99 and 0.99 < uniform.max() <= 1 and uniform.min() >= -1
    np.testing.assert_allclose(uniform.std(), 3**-0.5, rtol=0.02)
    normal = np.asarray(draw_latents(dataclasses.replace(GREY, latent="normal"), jax.random.key(0), 5000))
    assert np.abs(normal).max() > 3
    np.testing.assert_allclose(normal.std(), 1, rtol=0.02)


def test_latents_of_a_conditional_model_end_in_a_label():
    model = dataclasses.replace(GREY, num_classes=3)
    latents = np.asarray(draw_latents(model, jax.random.key(0), 3000))
    assert latents.shape == (3000, 9)
    np.testing.assert_array_equal(latents[:, :6], draw_latents(GREY, jax.random.key(0), 3000))
    assert (np.sort(latents[:, 6:]) == [0, 0, 1]).all()
    np.testing.assert_allclose(latents[:, 6:].mean(0), 1 / 3, atol=4 * 0.5 / np.sqrt(3000))
    given = np.asarray(draw_latents(model, jax.random.key(0), 3, np.array([2, 0, 2])))
    np.testing.assert_array_equal(given[:, 6:], np.eye(3)[[2, 0, 2]])
    np.testing.assert_array_equal(draw_latents(model, jax.random.key(0), 3, 1)[:, 6:], np.eye(3)[[1, 1, 1]])


def test_generator_statistics_are_the_mean_over_fresh_batches():
    params = plain.some_state(TrainConfig(model=GREY)).average
    found = jax.jit(lambda p: generator_statistics(GREY, p, jax.random.key(1), batches=3, size=8))(params)

    @plain.quick_jit
    def batch_statistics(params, key):
        return plain.generator(params, draw_latents(GREY, key, 8))[1]

    batches = [batch_statistics(params, key) for key in jax.random.split(jax.random.key(1), 3)]
    expected = jax.tree.map(lambda *x: np.mean(x, axis=0), *batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
