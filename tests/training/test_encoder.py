"""The encoder: its training step against plain networks, its holes, its run, and the resulting prior."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import trainings
from jax import lax

import dcgan_jax as dj
from dcgan_jax import masks
from dcgan_jax.command import main
from dcgan_jax.data import open_prepared
from dcgan_jax.data.loading import permutation
from dcgan_jax.errors import UserError
from dcgan_jax.networks.dcgan import draw_latents
from dcgan_jax.training import encoder
from dcgan_jax.training.augmentation import scale_and_flip
from dcgan_jax.training.config import EncoderConfig

MODEL = dj.ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=6)
CONFIG = EncoderConfig(batch_size=4, learning_rate=1e-2, num_steps=6, model=MODEL, latent_weight=0.3)


@pytest.fixture(scope="module")
def prior():
    state = plain.some_state(dj.TrainConfig(model=MODEL))
    return dj.prior_from_state(state, dj.TrainConfig(model=MODEL))


def some_state(prior, seed=0):
    rng = np.random.default_rng(seed)
    state = jax.eval_shape(lambda: encoder.init_state(CONFIG, jax.random.key(0)))
    optimizer = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.optimizer)
    weights = jax.tree.map(
        lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape) if x.ndim > 1 else rng.uniform(0.5, 1.5, x.shape)),
        (state.encoder, state.statistics),
    )
    weights = jax.tree.map(lambda x: x.astype(jnp.float32), weights)
    state = state._replace(
        step=jnp.zeros((), jnp.int32), encoder=weights[0], statistics=weights[1], optimizer=optimizer
    )
    return encoder.adopt(state, prior.params)


def plain_encoder(params, known, hole, statistics=None):
    def leaky(x, name):
        x, _ = plain.batch_norm(x, params[name], statistics and statistics[name])
        return jnp.where(x > 0, x, 0.2 * x)

    whole = plain.fill(known, hole)
    x, sides, shifts = jnp.concatenate([known, hole[..., None].astype(known.dtype), whole], axis=-1), [], []
    for i in range(3):
        x = lax.conv_general_dilated(x, params[f"down_{i}"], (2, 2), "SAME", dimension_numbers=plain.DIMENSIONS)
        x = leaky(x, f"norm_{i}")
        sides.append(x)
    z = leaky(x.reshape(len(x), -1) @ params["dense"]["kernel"], "norm_dense")
    mean, spread = jnp.split(z @ params["latent"]["kernel"] + params["latent"]["bias"], 2, axis=-1)
    for i in range(3):
        if i > 0:
            x = plain.conv_up(x, params[f"up_{i}"]) + sides[2 - i] @ params[f"side_{i}"]["kernel"]
            x = leaky(x, f"norm_up_{i}")
        shifts.append(x @ params[f"shift_{i}"]["kernel"] + params[f"shift_{i}"]["bias"])
    return jnp.tanh(mean), 0.01 + jnp.log1p(jnp.exp(spread)), shifts


def test_a_step_follows_the_gradients_of_the_plain_losses(prior):
    state, key = some_state(prior), jax.random.key(3)
    batch = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 1), np.uint8)
    after, metrics = plain.quick_jit(encoder.make_train_step(CONFIG))(state, batch, key)
    flip_key, hole_key, latent_key = jax.random.split(jax.random.fold_in(key, 0), 3)
    real, z = scale_and_flip(batch, False, flip_key), draw_latents(MODEL, latent_key, 2)
    holes = np.asarray(encoder.draw_holes(hole_key, 6, 32))
    generator = prior.params["generator"]
    real_ones, generated_ones = np.array([0, 1, 3, 4]), np.array([2, 5])

    def losses(params):
        generated, _ = plain.generator(generator["params"], z, generator["batch_stats"])
        images = jnp.concatenate([real[:2], generated[:1], real[2:], generated[1:]])
        mean, deviation, shifts = plain_encoder(params, jnp.where(holes[..., None], 0, images), holes)
        guess, sure = mean[generated_ones], deviation[generated_ones]
        latent = jnp.mean(((z - guess) / sure) ** 2 / 2 + jnp.log(sure))
        parts = {"latent_loss": latent}
        for name, some in (("latent_", ()), ("", [shift[real_ones] for shift in shifts])):
            found, _ = plain.generator(generator["params"], mean[real_ones], generator["batch_stats"], some)
            error = real - found
            if some:
                missing = holes[real_ones]
                error = jnp.where(missing[..., None], error - plain.fill(error, missing), error)
            squares = jnp.mean(error**2, axis=-1)
            for part, where in (("hole", holes[real_ones]), ("known", ~holes[real_ones])):
                each = [jnp.sqrt(jnp.sum(x * w) / jnp.sum(w)) for x, w in zip(squares, where, strict=True)]
                parts[f"{name}{part}_error"] = jnp.stack(each).mean()
        return parts

    for name, value in plain.quick_jit(losses)(state.encoder).items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3)

    def objective(params):
        parts = losses(params)
        return sum(parts.values()) - 0.7 * parts["latent_loss"] - 0.75 * parts["known_error"]

    # Adam's first step is the rate times the sign of the gradient.
    for path, slope in jax.tree_util.tree_leaves_with_path(plain.quick_jit(jax.grad(objective))(state.encoder)):
        old, new = (dict(jax.tree_util.tree_leaves_with_path(tree))[path] for tree in (state.encoder, after.encoder))
        large = np.abs(slope) > 1e-3 * np.abs(slope).max()
        moved = np.asarray(new - old)[large]
        assert np.mean(np.isclose(moved, -1e-2 * np.sign(np.asarray(slope)[large]), rtol=0.05)) > 0.98, path
    jax.tree.map(np.testing.assert_array_equal, after.prior, state.prior)
    assert int(after.step) == 1


def test_holes_are_the_paper_s_with_half_of_the_squares_shifted():
    holes = np.asarray(encoder.draw_holes(jax.random.key(0), 400, 32))
    center = np.asarray(masks.center(32))
    kinds = [(holes[i::4] == center).all(axis=(1, 2)).mean() for i in range(4)]
    assert 0.35 < kinds[0] < 0.65 and kinds[1:] == [0, 0, 0]
    np.testing.assert_array_equal(holes[0::4].sum(axis=(1, 2)), center.sum())
    np.testing.assert_array_equal(holes[1::4].sum(axis=(1, 2)), 512)
    assert abs(holes[2::4].mean() - 0.8) < 0.01 and abs(holes[3::4].mean() - 0.25) < 0.01


def test_a_run_becomes_a_prior_with_its_encoder(prior, digits, tmp_path):
    dj.save_prior(prior, tmp_path / "gan.safetensors")
    arguments = ["train-encoder", "--data", str(digits), "--run", str(tmp_path / "run"), "--quiet"]
    arguments += ["--prior", str(tmp_path / "gan.safetensors"), "--batch-size", "8", "--log-every", "1"]
    assert main.main([*arguments, "--num-steps", "2", "--checkpoint-every", "1"]) == 0
    (tmp_path / "gan.safetensors").unlink()  # the run contains the prior that it trains the encoder for
    found = dj.load_prior(tmp_path / "run")
    np.testing.assert_array_equal(
        found.params["generator"]["params"]["up_0"], prior.params["generator"]["params"]["up_0"]
    )
    dj.save_prior(found, tmp_path / "both.safetensors")
    again = dj.load_prior(tmp_path / "both.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found.params, again.params)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    config = dj.InpaintConfig(num_steps=0, start="encoder", start_shifts=1.0)
    one, other = (dj.inpaint(p, images, masks.center(32), jax.random.key(0), config) for p in (found, again))
    np.testing.assert_array_equal(one.images, other.images)
    known = np.where(np.asarray(masks.center(32))[..., None], 0, images / np.float32(127.5) - 1)
    encoded = found.params["encoder"]
    mean, _, shifts = plain_encoder(encoded["params"], known, jnp.stack([masks.center(32)] * 2), encoded["batch_stats"])
    np.testing.assert_allclose(one.latents, mean, atol=1e-4)
    generator = found.params["generator"]
    expected, _ = plain.generator(generator["params"], mean, generator["batch_stats"], shifts)
    np.testing.assert_allclose(one.completions, expected, atol=1e-4)


def test_a_run_measures_its_guesses_and_keeps_the_best(prior, digits, tmp_path):
    dj.save_prior(prior, tmp_path / "gan.safetensors")
    run = tmp_path / "run"
    arguments = ["train-encoder", "--data", str(digits), "--run", str(run), "--quiet", "--num-steps", "4"]
    arguments += ["--prior", str(tmp_path / "gan.safetensors"), "--batch-size", "8", "--checkpoint-every", "2"]
    assert main.main([*arguments, "--measure-every", "2"]) == 0
    lines = [line for line in trainings.metrics_of(run) if "held_out_psnr" in line]
    assert [line["step"] for line in lines] == [2, 4]
    prepared = open_prepared(digits)
    kept = {4: dj.load_prior(run)}
    shutil.rmtree(run / "checkpoints" / "4")
    kept[2] = dj.load_prior(run)
    key = jax.random.split(jax.random.key(0), 3)[2]
    for name, split in (("held_out_psnr", "test"), ("training_psnr", "train")):
        whole = prepared.split(split)
        images = np.asarray(whole[permutation(len(whole), 0)[:64]]) / np.float32(127.5) - 1
        holes = np.asarray(masks.mixed(key, len(images), 32))
        config = dj.InpaintConfig(num_steps=0, start="encoder", start_shifts=1.0, blend="smooth")
        for line in lines:
            completed = np.asarray(dj.inpaint(kept[line["step"]], images, holes, jax.random.key(1), config).images)
            squares = (completed.astype(float) - images) ** 2
            errors = [square[hole].mean() for square, hole in zip(squares, holes, strict=True)]
            assert line[name] == pytest.approx(np.mean(10 * np.log10(2**2 / np.array(errors))), abs=1e-3)
    best = max(lines, key=lambda line: line["held_out_psnr"])["step"]
    trainings.assert_same(dj.load_prior(run / "best.safetensors").params, kept[best].params)


def test_training_continues_from_the_prior_s_encoder(prior):
    one = some_state(prior)
    there = {**prior.params, "encoder": {"params": one.encoder, "batch_stats": one.statistics}}
    fresh = jax.tree.map(jnp.zeros_like, one)
    jax.tree.map(np.testing.assert_array_equal, encoder.adopt(fresh, there).encoder, one.encoder)
    jax.tree.map(np.testing.assert_array_equal, encoder.adopt(fresh, there).statistics, one.statistics)
    jax.tree.map(np.testing.assert_array_equal, encoder.adopt(fresh, prior.params).encoder, fresh.encoder)


def test_a_file_of_an_earlier_encoder_gives_what_it_gave(prior, tmp_path):
    """Encoders of version 0.2.0 saw known pixels and hole only. Files without a filled hole load as equal encoders."""
    state = some_state(prior)
    earlier = {**state.encoder, "down_0": state.encoder["down_0"][:, :, :2]}
    whole = encoder.encoder_prior(state._replace(encoder=earlier), CONFIG)
    dj.save_prior(whole, tmp_path / "earlier.safetensors")
    found = dj.load_prior(tmp_path / "earlier.safetensors")
    known = np.random.default_rng(5).uniform(-1, 1, (2, 32, 32, 1)).astype(np.float32)
    holes = jnp.stack([masks.center(32)] * 2)
    known = np.where(np.asarray(holes)[..., None], 0, known)
    blind = {**earlier, "down_0": jnp.concatenate([earlier["down_0"], jnp.zeros((5, 5, 1, 4))], axis=2)}
    expected = plain_encoder(blind, known, holes, state.statistics)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
        found.encode(found.params, known, holes),
        (*expected[:2], tuple(expected[2])),
    )


def test_wrong_configurations_are_refused():
    for changes, message in (
        ({"latent_weight": 0.0}, "`latent_weight` of EncoderConfig is 0.0"),
        ({"batch_size": 5}, "`batch_size` of EncoderConfig is 5; it takes an even number"),
        ({"num_steps": 0}, "`num_steps` of EncoderConfig is 0"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(CONFIG, **changes)
