"""The context encoder's network and losses against plain NumPy and XLA, and its run from command to file."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from jax import lax
from trainings import load_state

import dcgan_jax as dj
from dcgan_jax import masks
from dcgan_jax.baselines import context_encoder as ce
from dcgan_jax.baselines import context_encoder_training
from dcgan_jax.command import main
from dcgan_jax.errors import UserError
from dcgan_jax.storage import checkpoints

CONFIG = ce.ContextEncoderConfig(image_size=32, channels=1, base_width=4, batch_size=8, num_steps=4)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 32, 32, 1), np.uint8)


@pytest.fixture(scope="module")
def state():
    """A state with initial weights and the batch statistics of a trained network."""
    state = plain.quick_jit(context_encoder_training.init_state, static_argnums=0)(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(1)
    statistics = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype), state.encoder_statistics)
    return state._replace(encoder_statistics=statistics)


@pytest.fixture(scope="module")
def encoder(state):
    return context_encoder_training.from_state(state, CONFIG)


def paint(params, statistics, known, hole):
    """The network built from XLA's own convolutions, with given batch statistics or the batch's own."""
    x = jnp.concatenate([known, hole[..., None].astype(known.dtype)], axis=-1)
    depth = len(CONFIG.widths)
    for i in range(depth):
        x = lax.conv_general_dilated(x, params[f"down_{i}"], (2, 2), "SAME", dimension_numbers=plain.DIMENSIONS)
        x, _ = plain.batch_norm(x, params[f"down_norm_{i}"], statistics and statistics[f"down_norm_{i}"])
        x = jnp.where(x > 0, x, 0.2 * x)
    flat = x.reshape(x.shape[0], 16, -1)
    # Each of the 4×4 positions of a channel depends on the others, and on no other channel.
    wise = [flat[:, :, c] @ params["channel_wise"][:, :, c] for c in range(flat.shape[-1])]
    x = jnp.stack(wise, axis=-1).reshape(x.shape) @ params["across_channels"]["kernel"]
    for i in range(depth):
        x, _ = plain.batch_norm(x, params[f"up_norm_{i}"], statistics and statistics[f"up_norm_{i}"])
        x = lax.conv_transpose(
            jnp.maximum(x, 0),
            params[f"up_{i}"],
            (2, 2),
            "SAME",
            dimension_numbers=plain.DIMENSIONS,
            transpose_kernel=True,
        )
    return jnp.tanh(x + params["bias"])


quick_paint = plain.quick_jit(paint)


def test_completions_are_the_output_of_the_plain_network(state, encoder):
    holes = np.array(masks.mixed(jax.random.key(2), 8, 32))
    floats = IMAGES / np.float32(127.5) - 1
    painted = quick_paint(state.encoder, state.encoder_statistics, np.where(holes[..., None], 0, floats), holes)
    completed = np.asarray(ce.context_encoder(encoder, floats, holes, blend=False))
    np.testing.assert_array_equal(completed[~holes], floats[~holes])
    np.testing.assert_allclose(completed[holes], np.asarray(painted)[holes], atol=1e-4)
    levels = np.asarray(ce.context_encoder(encoder, IMAGES, holes, blend=False))
    assert levels.dtype == np.uint8 and (levels[~holes] == IMAGES[~holes]).all()
    assert np.abs(levels[holes] - (np.asarray(painted)[holes] + 1) * 127.5).max() <= 0.51


def test_hidden_pixels_and_other_images_of_the_batch_have_no_influence(encoder):
    holes = np.array(masks.mixed(jax.random.key(2), 8, 32))
    floats = IMAGES / np.float32(127.5) - 1
    completed = np.asarray(ce.context_encoder(encoder, floats, holes))
    hidden = np.where(holes[..., None], np.float32(np.nan), floats)
    np.testing.assert_array_equal(ce.context_encoder(encoder, hidden, holes), completed)
    others = np.concatenate([floats[:1], floats[:0:-1]])
    other_holes = np.concatenate([holes[:1], holes[:0:-1]])
    np.testing.assert_array_equal(ce.context_encoder(encoder, others, other_holes)[0], completed[0])


def test_every_kind_of_mask_is_drawn_equally_often():
    holes = np.asarray(masks.mixed(jax.random.key(0), 8, 32))
    assert (holes[[0, 4]] == np.asarray(masks.center(32))).all()
    areas = holes.sum((1, 2)) / 32**2
    np.testing.assert_allclose(areas[[1, 5]], 0.5)
    np.testing.assert_allclose(areas[[2, 6]], 0.8, atol=0.06)
    np.testing.assert_allclose(areas[[3, 7]], 0.25, atol=1e-3)
    assert (holes[3] != holes[7]).any() and (holes[2] != holes[6]).any()


def test_a_step_reports_the_plain_losses_and_follows_their_gradients(state):
    """The losses equal the plain network's; Adam's first update has the size of the learning rate."""
    config = dataclasses.replace(CONFIG, adversarial_weight=0.25, num_steps=10)
    key = jax.random.key(3)
    after, metrics = plain.quick_jit(context_encoder_training.make_train_step(config))(state, jnp.asarray(IMAGES), key)
    hole_key = jax.random.split(jax.random.fold_in(key, 0))[1]
    holes = np.array(masks.mixed(hole_key, 8, 32))
    real = jnp.asarray(IMAGES / np.float32(127.5) - 1)

    def losses(encoder, adversary):
        painted = paint(encoder, None, jnp.where(holes[..., None], 0, real), holes)
        squares = jnp.sum(jnp.where(holes[..., None], painted - real, 0) ** 2, axis=(1, 2, 3))
        error = squares / holes.sum((1, 2))
        completed = jnp.where(holes[..., None], painted, real)
        logits, _ = plain.discriminator(adversary, completed)
        fool = jnp.mean(jnp.logaddexp(0, -logits))
        real_logits, _ = plain.discriminator(adversary, real)
        judge = jnp.mean(jnp.logaddexp(0, -real_logits)) + jnp.mean(jnp.logaddexp(0, logits))
        return 0.75 * jnp.mean(error) + 0.25 * fool, (jnp.mean(error), fool, judge)

    quick = plain.quick_jit(jax.value_and_grad(losses, has_aux=True))
    (_, expected), gradient = quick(state.encoder, state.adversary)
    names = ("reconstruction_loss", "adversarial_loss", "discriminator_loss")
    np.testing.assert_allclose([metrics[name] for name in names], expected, rtol=2e-4)
    first_moment = after.encoder_optimizer[0].mu
    for name in ("down_0", "channel_wise", "up_2"):
        np.testing.assert_allclose(first_moment[name], 0.5 * gradient[name], atol=2e-5, rtol=2e-3)
    assert after.step == 1
    # The discriminator's gradient does not reach the encoder, and it has a learning rate of its own.
    moved = np.abs(np.asarray(after.adversary["down_0"] - state.adversary["down_0"]))
    assert np.median(moved) == pytest.approx(config.learning_rate / 10, rel=1e-2)


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "encoder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            context_encoder_training, "SHOWN", len(IMAGES)
        )  # other tests use the program that draws the samples
        assert train(digits, run) == 0
        yield run


def train(digits, run, *more):
    options = "--image-size 32 --channels 1 --base-width 4 --batch-size 8 --num-steps 4 --log-every 1 --quiet"
    return main.main(["train-context-encoder", "--data", str(digits), "--run", str(run), *options.split(), *more])


def test_a_run_writes_samples_and_resumes_exactly(run, digits, tmp_path, capsys):
    assert (run / "samples" / "0000004.png").is_file()
    kept = load_state(run, context_encoder_training.RECIPE)[0]
    other = tmp_path / "resumed"
    assert train(digits, other, "--checkpoint-every", "2") == 0
    shutil.rmtree(max(checkpoints.checkpoint_paths(other).items())[1])
    assert train(digits, other, "--checkpoint-every", "2") == 0
    resumed = load_state(other, context_encoder_training.RECIPE)[0]
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    # The learning rate falls to 0 over the run, so a longer run is a different run.
    assert train(digits, run, "--num-steps", "6") == 2
    assert "differs in num_steps (4 there, 6 here)" in capsys.readouterr().err


def test_a_saved_file_completes_as_its_run_does(run, tmp_path):
    encoder = ce.load(run)
    holes = np.array(masks.mixed(jax.random.key(2), 8, 32))
    ce.save(encoder, tmp_path / "encoder.safetensors")
    again = ce.load(tmp_path / "encoder.safetensors")
    assert again.config == encoder.config
    np.testing.assert_array_equal(ce.context_encoder(again, IMAGES, holes), ce.context_encoder(encoder, IMAGES, holes))


def test_runs_and_files_of_another_kind_are_refused(run, digits_run, tmp_path, capsys):
    with pytest.raises(UserError, match="holds a run of kind dcgan, not context-encoder"):
        ce.load(digits_run.run)
    assert main.main(["sample", "--prior", str(run), "--out", str(tmp_path / "x.png")]) == 2
    assert "holds a run of kind context-encoder, which has no prior" in capsys.readouterr().err
    assert train(digits_run.data, digits_run.run) == 2
    assert "holds a run of kind dcgan" in capsys.readouterr().err
    with pytest.raises(UserError, match="its format is 'dcgan_jax prior', not 'dcgan_jax context encoder'"):
        from dcgan_jax.priors.files import packaged_priors

        ce.load(packaged_priors()["digits-64"])
    with pytest.raises(UserError, match="there is no context encoder 'nowhere'"):
        ce.load("nowhere")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 6, "multiple of 4"),
        ("base_width", 3, "even"),
        ("adversarial_weight", 1.0, "from 0 to below 1"),
        ("image_size", 48, "one of 32, 64, 128, 256"),
    ],
)
def test_wrong_settings_are_refused_by_name(field, value, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **{field: value})


def test_images_of_another_size_are_refused(encoder):
    with pytest.raises(ValueError, match=r"this context encoder takes \[b, 32, 32, 1\]"):
        ce.context_encoder(encoder, np.zeros((2, 64, 64, 1), np.uint8), np.zeros((2, 64, 64), bool))


def test_export_writes_the_file_and_a_card(run, tmp_path):
    out = tmp_path / "encoder.safetensors"
    assert main.main(["export", "--run", str(run), "--out", str(out), "--half"]) == 0
    halved, whole = (jax.tree.leaves(ce.load(place).params) for place in (out, run))
    for a, b in zip(halved, whole, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b).astype(np.float16) if b.ndim > 1 else b)
    card = out.with_suffix(".md").read_text()
    assert "context encoder" in card and "4 steps, 32 images seen" in card and "32×32 pixels in grey" in card


def test_blending_is_the_poisson_blend_of_the_completion(encoder):
    holes = np.array(masks.mixed(jax.random.key(2), 8, 32))
    floats = IMAGES / np.float32(127.5) - 1
    known = np.where(holes[..., None], np.float32(0), floats)
    painted = np.asarray(quick_paint(encoder.params["params"], encoder.params["batch_stats"], known, holes))
    expected = np.clip(dj.poisson_blend_sparse(painted, known, holes), -1, 1)
    blended = np.asarray(ce.context_encoder(encoder, floats, holes, blend=True))
    np.testing.assert_allclose(blended[holes], expected[holes], atol=5e-4)
    assert (blended[~holes] == floats[~holes]).all()
