"""Ten mistakes of published implementations of this method, each tested from end to end."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from plain import quick_jit
from tiny import LATENT, arrays, constant_prior, draw_latents

import dcgan_jax as dj
from dcgan_jax.command.inpaint import Job, inpaint_folder

SIZE, BATCH = 32, 5
# All tests with a DCGAN use this search and batch, so that they share two programs, for float and uint8 images.
SEARCH = dj.InpaintConfig(num_steps=10, learning_rate=0.1)
NO_STEPS = dj.InpaintConfig(num_steps=0, window=5)


@functools.cache
def inputs():
    """Images, holes of every kind, and keys, for two batches."""
    rng, n = np.random.default_rng(0), 2 * BATCH
    images = rng.uniform(-1, 1, (n, SIZE, SIZE, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), n)
    drawn = [np.asarray(dj.masks.by_name(name, keys, SIZE)) for name in dj.masks.NAMES]
    return images, np.stack([drawn[i % 4][i] for i in range(n)]), np.asarray(jax.random.key_data(keys))


def to_levels(images):
    return np.floor(images * 127.5 + 128).astype(np.uint8)


def assert_same_bits(a, b, row_a=slice(None), row_b=slice(None)):
    for (name, x), y in zip(arrays(a).items(), arrays(b).values(), strict=True):
        assert np.asarray(x[row_a]).tobytes() == np.asarray(y[row_b]).tobytes(), name


def test_1_trained_weights_restore_in_a_new_process(digits_run, digits_prior, tmp_path):
    latents = np.asarray(dj.sample_latents(digits_prior, jax.random.key(1), 4))
    np.save(tmp_path / "latents.npy", latents)
    script = (
        "import sys, numpy as np, dcgan_jax as dj; run, folder = sys.argv[1:]; prior = dj.load_prior(run); "
        "images = dj.generate(prior, np.load(folder + '/latents.npy')); np.save(folder + '/images.npy', images); "
        "np.save(folder + '/logits.npy', dj.discriminate(prior, images))"
    )
    subprocess.run([sys.executable, "-c", script, digits_run.run, tmp_path], check=True)
    images = np.asarray(dj.generate(digits_prior, latents))
    assert np.load(tmp_path / "images.npy").tobytes() == images.tobytes()
    assert np.load(tmp_path / "logits.npy").tobytes() == np.asarray(dj.discriminate(digits_prior, images)).tobytes()


def test_2_an_image_does_not_depend_on_its_batch(digits_prior):
    images, holes, keys = inputs()

    def run(rows):
        rows = np.array(rows)
        return dj.inpaint(digits_prior, images[rows], holes[rows], keys[rows], SEARCH)

    result = run(range(BATCH))
    # Other places in the batch, other images, copies of the same image.
    for rows in ([1, 2, 3, 4, 0], [4, 3, 2, 1, 0], [5, 6, 1, 7, 8], [9, 5, 6, 7, 3], [2, 2, 2, 2, 2]):
        other = run(rows)
        for place, row in enumerate(rows):
            if row < BATCH:
                assert_same_bits(result, other, row, place)
    # The last batch of a stream, which is padded.
    triples = [(images[i], holes[i], keys[i]) for i in [*range(5, 10), 3, 1]]
    streamed = list(dj.inpaint_stream(digits_prior, triples, jax.random.key(0), SEARCH, BATCH))
    assert_same_bits(result, streamed[5], 3, ...)
    assert_same_bits(result, streamed[6], 1, ...)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_3_hidden_pixels_do_not_leak(digits_prior, dtype):
    images, holes, keys = (x[:BATCH] for x in inputs())
    noise = np.random.default_rng(9).integers(0, 256, images.shape)
    hidden_values = (np.nan, np.inf, -np.inf, 1e30, noise)
    if dtype == np.uint8:
        images, hidden_values = to_levels(images), (0, 255, noise)
    result = dj.inpaint(digits_prior, images, holes, keys, SEARCH)
    assert (np.asarray(result.status) == 0).all()
    for hidden in hidden_values:
        spoilt = np.where(holes[..., None], np.asarray(hidden).astype(dtype), images)
        assert_same_bits(result, dj.inpaint(digits_prior, spoilt, holes, keys, SEARCH))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_4_known_pixels_do_not_change(digits_prior, dtype):
    images, holes, keys = (x[:BATCH] for x in inputs())
    # Known floats outside the range also stay unchanged.
    images = to_levels(images) if dtype == np.uint8 else 1.5 * images
    completed = np.asarray(dj.inpaint(digits_prior, images, holes, keys, SEARCH).images)
    assert completed.dtype == dtype
    assert completed[~holes].tobytes() == images[~holes].tobytes()
    assert (completed[holes] != images[holes]).mean() > 0.9
    assert dtype == np.uint8 or abs(completed[holes]).max() <= 1


def test_5_weights_are_those_of_the_formula():
    rng = np.random.default_rng(2)
    holes = rng.random((3, 8, 8)) < np.array([0.1, 0.3, 0.6])[:, None, None]
    holes[0, 2:5, :3] = True
    images, completion = rng.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32), rng.uniform(-1, 1, (8, 8, 3))
    result = dj.inpaint(constant_prior(completion), images, holes, jax.random.key(0), NO_STEPS)
    for image, hole, loss in zip(images, holes, result.context_loss, strict=True):
        expected = 0.0
        for i, j in np.argwhere(~hole):  # known pixels only
            around = [(i + down, j + right) for down in range(-2, 3) for right in range(-2, 3)]
            missing = [hole[place] for place in around if min(place) >= 0 and max(place) < 8]
            expected += np.mean(missing) * abs(completion[i, j] - image[i, j]).sum()
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_6_blending_is_exact_where_the_truth_is_the_completion_plus_a_constant():
    rng, size = np.random.default_rng(3), 12
    completion = rng.uniform(-0.7, 0.7, (size, size, 3)).astype(np.float32)
    holes = np.zeros((8, size, size), bool)
    for k in range(4):  # the four halves, each of which touches three borders of the image
        holes[k] = np.rot90(np.arange(size)[:, None] < np.full(size, size // 2), k)
    holes[4], holes[4, 5, 5] = True, False  # one known pixel
    holes[5] = rng.random((size, size)) < 0.8
    holes[6, 2:6, 2:6] = holes[6, 8:, 8:] = holes[6, :2, 9:] = True  # three holes, two in corners
    holes[7, :, 3:7] = True  # from border to border
    truth = completion + np.array([0.2, -0.1, 0.25], np.float32)
    images = np.where(holes[..., None], np.float32(0), truth)
    result = dj.inpaint(constant_prior(completion), images, holes, jax.random.key(0), NO_STEPS)
    np.testing.assert_allclose(result.images, np.broadcast_to(truth, images.shape), atol=2e-5)


@pytest.mark.parametrize("count", [0, BATCH, BATCH + 1, 2 * BATCH + 3])
def test_7_no_image_is_dropped(count):
    # Each image has its own grey. The blend fills the hole with it, which tells the images apart.
    levels = np.linspace(-0.9, 0.9, count, dtype=np.float32)
    hole = np.zeros((8, 8), bool)
    hole[4, 4] = True
    pairs = ((np.full((8, 8, 1), level), hole) for level in levels)
    stream = dj.inpaint_stream(constant_prior(np.zeros((8, 8, 1))), pairs, jax.random.key(0), NO_STEPS, BATCH)
    filled = [item.images[4, 4, 0] for item in stream]
    assert len(filled) == count
    np.testing.assert_allclose(filled, levels, atol=1e-5)


def test_8_every_image_has_its_own_mask_from_a_file(digits_prior, tmp_path):
    images, holes, _ = (x[:BATCH].copy() for x in inputs())
    holes[1] = False
    holes[1, 3:9, 20:] = holes[1, 15:30, 2:11] = True  # two rectangles, unlike the other holes
    levels = to_levels(images[..., 0])
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(BATCH):
        Image.fromarray(levels[i]).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(np.where(holes[i], 255, 0).astype(np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    paths = tmp_path / "images", str(tmp_path / "masks"), tmp_path / "out"
    assert inpaint_folder(digits_prior, Job(*paths, SEARCH, batch_size=BATCH, progress=False)).not_finite == 0
    for i in range(BATCH):
        with Image.open(tmp_path / "out" / f"{i}.png") as file:
            changed = np.asarray(file) != levels[i]
        assert not changed[~holes[i]].any() and changed[holes[i]].mean() > 0.9


def dark_images(params, z):
    return (z @ params).reshape(-1, 4, 4, 1) - 0.5


def test_9_every_step_clips_starts_afresh_and_keeps_one_scale():
    # The known pixels are black (-1). G(z) is between -0.9 and -0.1 for every latent: brighter than black, and darker
    # than the black of images in [0, 1]. So the gradient is the same at every step, and Adam moves each entry of the
    # latent by the learning rate. If gradients accumulated, it would move by less.
    slopes, bounds, rate, steps = np.array([0.2, -0.1, 0.1]), (-1.0, 0.75), 0.15, 4
    prior = dj.Prior(jnp.asarray(np.outer(slopes, np.ones(16)), jnp.float32), dark_images, draw_latents, bounds)
    hole = np.zeros((4, 4), bool)
    hole[1, 1] = True
    keys = jax.random.split(jax.random.key(0), 8)
    starts = np.stack([draw_latents(jax.random.fold_in(key, 0), 1)[0] for key in keys])
    config = dj.InpaintConfig(num_steps=steps, learning_rate=rate, keep_best=False)
    result = dj.inpaint(prior, np.zeros((8, 4, 4, 1), np.uint8), hole, keys, config)
    latents = starts
    for _ in range(steps):
        latents = np.clip(latents - rate * np.sign(slopes), *bounds)
    assert (latents == bounds[0]).any() and (latents == bounds[1]).any() and (abs(latents) < 0.7).any()
    np.testing.assert_allclose(result.latents, latents, atol=1e-5)
    completions = latents @ slopes - 0.5
    np.testing.assert_allclose(result.completions - completions[:, None, None, None], 0, atol=1e-5)
    # The window covers the whole image, so each of the 15 known pixels has the weight 1/16.
    np.testing.assert_allclose(result.context_loss, 15 / 16 * (completions + 1), atol=1e-5)


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (64, 3), (128, 1), (256, 3)])
def test_10_sizes_and_channels_by_configuration(size, channels):
    config, state, images = large(size, channels)
    result = jax.eval_shape(functools.partial(complete, config), state, images)
    assert result.images.shape == result.completions.shape == images.shape == (2, size, size, channels)
    assert result.images.dtype == np.uint8 and result.latents.shape == (2, LATENT)


def test_10_a_large_image():
    config, state, images = large(128, 1)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: abs(rng.normal(0, 0.1, x.shape)).astype(x.dtype), state)
    result = quick_jit(functools.partial(complete, config))(state, images)
    assert (np.asarray(result.status) == 0).all()
    hole = np.asarray(dj.masks.center(128))
    assert (np.asarray(result.images)[:, ~hole] == 200).all() and (np.asarray(result.images)[:, hole] != 200).any()


def large(size, channels):
    """The configuration, the shapes of the state, and images."""
    config = dj.TrainConfig(model=dj.ModelConfig(image_size=size, channels=channels, base_width=1, latent_dim=LATENT))
    state = jax.eval_shape(functools.partial(dj.init_state, config), jax.random.key(0))
    return config, state, np.full((2, size, size, channels), 200, np.uint8)


def complete(config, state, images):
    prior = dj.prior_from_state(state, config)
    key, hole = jax.random.key(0), dj.masks.center(config.model.image_size)
    return dj.inpaint(prior, images, hole, key, dj.InpaintConfig(num_steps=1))
