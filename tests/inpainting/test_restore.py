"""Restoration from other measurements: the values they give, agreement with them, and wrong arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from searches import CONFIG, HOLES, IMAGES, KEY, UNIFORM, H, W
from tiny import arrays, constant_prior, tanh_prior

import dcgan_jax as dj
from dcgan_jax import measurements
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.config import default_config
from dcgan_jax.inpainting.result import Status

PRIOR = tanh_prior((8, 8, 3))
SEARCH = dj.InpaintConfig(num_steps=30, learning_rate=0.1)
LOW = measurements.LowResolution(4)
TRUE = jnp.asarray([[0.5, -0.3, 0.2], [-0.4, 0.6, 0.1]], jnp.float32)
ORIGINALS = dj.generate(PRIOR, TRUE)


def curved(image):
    """A measurement that is not linear, of a shape of its own."""
    return jnp.tanh(2 * LOW(image)).ravel()


def pair(image):
    return image, image


def half(image):
    """Values of fewer bits than the image has."""
    return LOW(image).astype(jnp.bfloat16)


def whole(image):
    return image.astype(jnp.int32)


# ------------------------------------------------------------------------------------------ measurements


def test_the_measurements_are_their_definitions():
    image = np.random.default_rng(0).uniform(-1, 1, (8, 12, 3)).astype(np.float32)
    means = [[image[i : i + 4, j : j + 4].mean((0, 1)) for j in (0, 4, 8)] for i in (0, 4)]
    np.testing.assert_allclose(LOW(jnp.asarray(image)), means, atol=1e-6)
    np.testing.assert_allclose(
        measurements.Grey()(jnp.asarray(image))[..., 0],
        0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2],
        atol=1e-6,
    )
    np.testing.assert_array_equal(measurements.Grid(5)(jnp.asarray(image)), image[[0, 5]][:, [0, 5, 10]])
    np.testing.assert_array_equal(measurements.Identity()(jnp.asarray(image)), image)
    assert LOW == measurements.LowResolution(4) and hash(LOW) == hash(measurements.LowResolution(4))


# ------------------------------------------------------------------------------------------ restoration


def test_a_completion_that_is_not_finite_where_nothing_is_measured_does_not_rank_the_others():
    """A measurement may not see all pixels, so that the loss of such a completion is finite."""

    def spoilt(params, z, shifts=()):
        x = PRIOR.generate(params, z)
        return jnp.where((z[:, 0] < 0)[:, None, None, None] & (jnp.arange(8) > 5)[:, None], jnp.nan, x)

    def seen(image):
        return image[:, :5]

    prior = dataclasses.replace(PRIOR, generate=spoilt, discriminate=None)
    config = dj.InpaintConfig(num_steps=0, restarts=8, num_completions=8, judge="central", prior_weight=0.0)
    result = dj.restore(prior, jax.vmap(seen)(ORIGINALS), seen, KEY, config)
    kept = result.alternatives
    good = np.asarray(kept.latents)[..., 0] >= 0
    assert 0 < good.sum() < good.size
    np.testing.assert_array_equal(np.asarray(kept.status) != Status.NOT_FINITE, good)
    for i in range(len(good)):
        assert good[i][: good[i].sum()].all()  # the finite ones come first,
        completions = np.asarray(kept.completions[i])[good[i]]
        apart = ((completions - completions.mean(axis=0)) ** 2).sum(axis=(1, 2, 3))
        assert (np.diff(apart) >= -1e-4).all()  # in the order of their distance from their mean


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_with_known_pixels_it_is_inpaint(dtype):
    images = IMAGES if dtype == np.float32 else ((IMAGES + 1) * 127.5).astype(np.uint8)
    expected = dj.inpaint(UNIFORM, images, HOLES, KEY, CONFIG)
    result = dj.restore(UNIFORM, images, measurements.Known(HOLES), KEY, CONFIG)
    for name, value in arrays(expected).items():
        np.testing.assert_array_equal(value, getattr(result, name), err_msg=name)


@pytest.mark.parametrize(
    "measure", [LOW, measurements.Grey(), measurements.Grid(4), curved], ids="low grey grid curved".split()
)
def test_the_search_finds_the_image_and_agrees_with_the_values(measure):
    measured = jax.vmap(measure)(ORIGINALS)
    result = dj.restore(PRIOR, measured, measure, KEY, dataclasses.replace(SEARCH, num_steps=150, learning_rate=0.03))
    np.testing.assert_allclose(result.completions, ORIGINALS, atol=0.1)
    np.testing.assert_allclose(jax.vmap(measure)(result.images), measured, atol=1e-3)
    np.testing.assert_allclose(result.images, ORIGINALS, atol=0.1)
    assert (result.status == Status.OK).all() and result.images.dtype == jnp.float32
    differences = np.abs(jax.vmap(measure)(result.completions) - measured).reshape(2, -1)
    np.testing.assert_allclose(result.context_loss, 8 * 8 * 3 * differences.mean(axis=1), rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, np.float64])
@pytest.mark.parametrize("measure", [LOW, half], ids=["low", "half"])
def test_values_may_have_any_type_of_floats(measure, dtype):
    measured = np.asarray(jax.vmap(LOW)(ORIGINALS), dtype)
    result = dj.restore(PRIOR, measured, measure, KEY, SEARCH, np.array(0.0))
    assert result.images.dtype == jnp.float32
    np.testing.assert_allclose(jax.vmap(LOW)(result.images), measured.astype(np.float32), atol=1e-2)


def test_noise_may_have_more_bits_than_the_values(float64):
    measured = np.asarray(jax.vmap(LOW)(ORIGINALS), np.float32)
    config = dataclasses.replace(SEARCH, num_steps=2)
    found, expected = (dj.restore(PRIOR, measured, LOW, KEY, config, noise) for noise in (np.float64(0.1), 0.1))
    np.testing.assert_array_equal(found.images, expected.images)


def test_noise_is_not_kept():
    noise = 0.3
    measured = ORIGINALS + noise * jax.random.normal(jax.random.key(3), ORIGINALS.shape)
    result = dj.restore(PRIOR, measured, measurements.Identity(), KEY, SEARCH, noise)
    exact = dj.restore(PRIOR, measured, measurements.Identity(), KEY, SEARCH)
    np.testing.assert_allclose(exact.images, jnp.clip(measured, -1, 1), atol=1e-3)
    error, before = (float(jnp.sqrt(jnp.mean((x - ORIGINALS) ** 2))) for x in (result.images, exact.images))
    assert error < 0.5 * before


def test_several_restarts_give_alternatives_and_their_mean():
    config = dataclasses.replace(SEARCH, restarts=3, num_completions=2)
    measured = jax.vmap(LOW)(ORIGINALS)
    result = dj.restore(PRIOR, measured, LOW, KEY, config)
    assert result.alternatives is not None and result.alternatives.images.shape == (2, 2, 8, 8, 3)
    np.testing.assert_allclose(result.mean, result.alternatives.images.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(result.images, result.alternatives.images[:, 0])


def test_it_works_under_jit_and_grad_and_each_image_stands_alone():
    measured = jax.vmap(LOW)(ORIGINALS)
    keys = jax.random.split(KEY, 2)
    result = dj.restore(PRIOR, measured, LOW, keys, SEARCH)
    traced = jax.jit(lambda y, s: dj.restore(PRIOR, y, LOW, keys, SEARCH, s).images)(measured, 0.0)
    np.testing.assert_allclose(traced, result.images, atol=1e-4)
    swapped = dj.restore(PRIOR, measured[::-1], LOW, keys[::-1], SEARCH)
    np.testing.assert_array_equal(swapped.images[::-1], result.images)
    # Where the images agree with the block means, so do their derivatives.
    gradient = jax.grad(lambda y: jnp.sum(jax.vmap(LOW)(dj.restore(PRIOR, y, LOW, keys, SEARCH).images)))(measured)
    np.testing.assert_allclose(gradient, 1, atol=1e-2)


def test_an_encoder_sees_a_smooth_image_without_a_hole():
    def encode(params, known, hole):
        mean = jnp.mean(known, axis=(1, 2)) + jnp.where(jnp.any(hole), 100, 0)
        return mean, jnp.ones_like(mean), ()

    prior = dataclasses.replace(PRIOR, encode=encode)
    measured = jax.vmap(LOW)(ORIGINALS)
    result = dj.restore(prior, measured, LOW, KEY, dj.InpaintConfig(start="encoder", num_steps=0))
    np.testing.assert_allclose(result.latents, measured.mean(axis=(1, 2)), atol=0.1)


def test_an_encoder_sees_the_mean_of_the_priors_images_where_nothing_is_measured():
    def encode(params, known, hole):
        mean = known[:, -1, -1]
        return mean, jnp.ones_like(mean), ()

    image = np.random.default_rng(4).uniform(-0.9, 0.9, (8, 8, 3)).astype(np.float32)
    prior = dataclasses.replace(constant_prior(image), encode=encode)
    corner = measurements.Grid(8)
    result = dj.restore(prior, image[None, :1, :1], corner, KEY, dj.InpaintConfig(start="encoder", num_steps=0))
    np.testing.assert_allclose(result.latents[0], image[-1, -1], atol=1e-5)


def test_the_structure_of_a_guess_is_not_taken():
    def encode(params, known, hole):
        mean = jnp.mean(known, axis=(1, 2))
        return mean, jnp.ones_like(mean), ()

    prior = dataclasses.replace(PRIOR, encode=encode)
    config = dataclasses.replace(SEARCH, start="encoder")
    measured = jax.vmap(LOW)(ORIGINALS)
    one, other = (
        dj.restore(prior, measured, LOW, KEY, dataclasses.replace(config, guess_length=length)) for length in (0.0, 2.0)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_noisy_values_are_not_refined():
    best = dj.InpaintConfig.preset("best")
    encoded = dataclasses.replace(PRIOR, encode=lambda params, known, hole: None, feature_shapes=((1, 1, 1),))
    assert default_config(encoded, noisy=True) == dataclasses.replace(best, refine_steps=0)
    assert default_config(encoded) == best
    assert default_config(PRIOR, noisy=True) == dj.InpaintConfig()


# ------------------------------------------------------------------------------------------ wrong arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measured": np.zeros((1, 2, 3, 3), np.float32)}, r"`measured` has shape \[1, 2, 3, 3\]; .* \[b, 2, 2, 3\]"),
        ({"measured": np.zeros((1, 2, 2, 3), np.uint8)}, "`measured` is uint8; pass floats"),
        ({"measured": [[0.0]]}, "`measured` is a list"),
        ({"measured": np.zeros((0, 2, 2, 3), np.float32)}, "holds no value"),
        ({"measured": np.full((1, 2, 2, 3), np.nan, np.float32)}, "row 0 of `measured` has values that are not finite"),
        ({"measured": np.full((1, 2, 2, 3), 200, np.float32)}, r"`measured` has values up to 200; .* \[-1, 1\]"),
        ({"measure": "grey"}, "`measure` is a str; pass a function"),
        ({"measure": pair}, "`measure` returns tuple; it must return one array of floats"),
        ({"measure": whole}, "`measure` returns int32"),
        ({"measure": measurements.LowResolution(3)}, "`factor` is 3, which does not divide an image of 8 by 8"),
        ({"measure": measurements.Known(np.zeros((8, 8), bool)), "noise": 0.1}, "known pixels are exact"),
        ({"noise": -1.0}, "`noise` is -1.0"),
        ({"noise": np.nan}, "`noise` is nan"),
        ({"noise": "much"}, "`noise` is much"),
        ({"noise": np.array([0.1])}, r"`noise` is \[0.1\]"),
        ({"noise": 1j}, "`noise` is 1j"),
        ({"config": dj.InpaintConfig(start="encoder")}, "this prior has no encoder"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"measured": np.zeros((1, 2, 2, 3), np.float32), "measure": LOW, "key": KEY, "config": SEARCH} | change
    with pytest.raises((ValueError, UserError), match=message):
        dj.restore(PRIOR, **arguments)


@pytest.mark.parametrize("value", [0, -2, 2.5, "4", True])
def test_wrong_sizes_are_named(value):
    with pytest.raises(ValueError, match="`factor` is"):
        measurements.LowResolution(value)
    with pytest.raises(ValueError, match="`step` is"):
        measurements.Grid(value)


def test_grey_takes_three_channels():
    with pytest.raises(ValueError, match="3 channels; this one has 2"):
        dj.restore(UNIFORM, np.zeros((1, H, W, 1), np.float32), measurements.Grey(), KEY, CONFIG)
