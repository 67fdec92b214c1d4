"""Conditional priors: labels in latents, searches with given or unknown labels, and the commands."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import saved
from PIL import Image
from tiny import arrays, tanh_prior

import dcgan_jax as dj
from dcgan_jax.command import main
from dcgan_jax.command.inpaint import Job, inpaint_folder
from dcgan_jax.errors import UserError
from dcgan_jax.images import figures, pixels
from dcgan_jax.inpainting.starts import set_up
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.networks.dcgan import Discriminator
from dcgan_jax.priors.labels import check_label, project_onto_simplex
from dcgan_jax.training import encoder, gan
from dcgan_jax.training.config import EncoderConfig, TrainConfig
from dcgan_jax.training.encoder import encoder_prior
from dcgan_jax.training.loop import train
from dcgan_jax.training.measures import inversion_psnr

MODEL = ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=6, num_classes=3)
CONFIG = TrainConfig(model=MODEL, batch_size=8)
KEY = jax.random.key(0)

# ---------------------------------------------------------------- a decoder whose classes differ clearly

CLASSES, CODE, SIDE = 4, 3, 8
RNG = np.random.default_rng(0)
PATTERNS = RNG.choice([-1.0, 1.0], (CLASSES, SIDE * SIDE))
MATRIX = np.concatenate([0.15 * RNG.standard_normal((CODE, SIDE * SIDE)), PATTERNS])


def decode(params, z):
    return jnp.tanh(z @ params).reshape(-1, SIDE, SIDE, 1)


def draw(key, n):
    code = jax.random.uniform(key, (n, CODE), minval=-1.0, maxval=1.0)
    labels = jax.random.randint(jax.random.fold_in(key, 0), (n,), 0, CLASSES)
    return jnp.concatenate([code, jax.nn.one_hot(labels, CLASSES)], axis=1)


PRIOR = dj.Prior(jnp.asarray(MATRIX, jnp.float32), decode, draw, (-1.0, 1.0), num_classes=CLASSES)
SEARCH = dj.InpaintConfig(num_steps=30, window=3)
TRUE = np.array([3, 0, 2, 1, 3])
IMAGES = dj.generate(PRIOR, dj.sample_latents(PRIOR, jax.random.key(1), len(TRUE), labels=TRUE))
HOLES = RNG.random((len(TRUE), SIDE, SIDE)) < 0.5


def test_a_search_finds_the_label():
    result = dj.inpaint(PRIOR, IMAGES, HOLES, KEY, SEARCH)
    np.testing.assert_array_equal(result.labels, TRUE)
    label = np.asarray(result.latents)[:, CODE:]
    assert (label >= 0).all() and np.abs(label.sum(1) - 1).max() < 1e-5
    assert label[np.arange(len(TRUE)), TRUE].min() > 0.8
    assert result.labels.dtype == np.int32


def test_given_labels_stay_and_labels_of_minus_one_are_found():
    given = np.array([1, 0, -1, 2, -1])
    config = dataclasses.replace(SEARCH, restarts=2, trace_every=1, clip=False)
    result = dj.inpaint(PRIOR, IMAGES, HOLES, KEY, config, labels=given)
    free = dj.inpaint(PRIOR, IMAGES, HOLES, KEY, config)
    np.testing.assert_array_equal(result.labels, np.where(given < 0, TRUE, given))
    for i, label in enumerate(given):
        if label >= 0:
            assert (np.asarray(result.trace.latents)[i, :, CODE:] == np.eye(CLASSES)[label]).all()
        else:  # as without labels: the search starts from no class
            np.testing.assert_array_equal(result.latents[i], free.latents[i])
            np.testing.assert_array_equal(result.trace.latents[i][0, CODE:], np.full(CLASSES, 1 / CLASSES))
    assert (np.asarray(result.trace.latents)[:, 0, :CODE] != np.asarray(result.latents)[:, :CODE]).all()


def test_a_labelled_search_equals_a_search_with_that_class_s_decoder():
    """With the class's pattern as a constant, the prior has no classes."""
    pattern = jnp.asarray(PATTERNS[2], jnp.float32)
    alone = dj.Prior(
        PRIOR.params[:CODE],
        lambda params, z: jnp.tanh(z @ params + pattern).reshape(-1, SIDE, SIDE, 1),
        lambda key, n: draw(key, n)[:, :CODE],
        (-1.0, 1.0),
    )
    expected = dj.inpaint(alone, IMAGES, HOLES, KEY, SEARCH)
    found = dj.inpaint(PRIOR, IMAGES, HOLES, KEY, SEARCH, labels=2)
    np.testing.assert_allclose(found.latents[:, :CODE], expected.latents, atol=1e-4)
    np.testing.assert_array_equal(expected.labels, [-1] * len(TRUE))


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_a_stream_with_labels_equals_inpaint(tolerance):
    config = dataclasses.replace(SEARCH, tolerance=tolerance, patience=5)
    labels = np.array([1, -1, 2, 1, -1])
    given = [1, None, 2, np.int64(1), -1]
    pairs = [(*pair, None, label) for *pair, label in zip(IMAGES, HOLES, given, strict=True)]
    items = list(dj.inpaint_stream(PRIOR, pairs, KEY, config, batch_size=len(TRUE)))
    expected = dj.inpaint(PRIOR, IMAGES, HOLES, KEY, config, labels=labels)
    for name, rows in arrays(expected).items():
        np.testing.assert_array_equal(np.stack([arrays(item)[name] for item in items]), rows, err_msg=name)


def test_inversion_finds_the_label():
    assert inversion_psnr(PRIOR, np.asarray(IMAGES), KEY, dj.InpaintConfig(num_steps=100)).min() > 25


def test_the_projection_is_the_nearest_point_of_the_simplex():
    x = np.random.default_rng(1).normal(0, 1, (20, 6))
    found = np.asarray(project_onto_simplex(jnp.asarray(x, jnp.float32)))
    for row, near in zip(x, found, strict=True):
        low, high = row.min() - 1, row.max()  # the subtracted value, by bisection
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if np.maximum(row - middle, 0).sum() > 1 else (low, middle)
        np.testing.assert_allclose(near, np.maximum(row - low, 0), atol=1e-6)
    inside = np.array([0.2, 0.5, 0.3], np.float32)
    np.testing.assert_allclose(project_onto_simplex(jnp.asarray(inside)), inside, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (4, "`labels` contains 4; the classes of this prior are 0 to 3"),
        ([0, 1, -2, 1, 0], "`labels` contains -2; the classes of this prior are 0 to 3"),
        ([0, 1], r"`labels` is int64\[2\]; pass one integer, or \[5\] integers"),
        (1.0, r"`labels` is float64\[\]; pass one integer"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, says):
    with pytest.raises(ValueError, match=says):
        dj.inpaint(PRIOR, IMAGES, HOLES, KEY, SEARCH, labels=labels if isinstance(labels, float) else np.array(labels))
    with pytest.raises(ValueError, match=says):
        dj.sample_latents(PRIOR, KEY, 5, labels=np.array(labels))


def test_labels_of_a_prior_without_classes_are_refused():
    prior, image = tanh_prior((4, 4, 1)), np.zeros((1, 4, 4, 1), np.float32)
    hole = np.zeros((4, 4), bool)
    with pytest.raises(ValueError, match="this prior has no classes: leave it out"):
        dj.inpaint(prior, image, hole, KEY, SEARCH, labels=0)
    with pytest.raises(ValueError, match="label 0 of `pairs`: `labels` is given, but this prior has no classes"):
        next(dj.inpaint_stream(prior, [(image[0], hole, None, 0)], KEY, SEARCH))
    with pytest.raises(ValueError, match="`labels` contains -1; the classes of this prior are 0 to 3"):
        dj.sample_latents(PRIOR, KEY, 1, labels=-1)
    with pytest.raises(UserError, match="`label` is 2, but this prior has no classes"):
        check_label(prior.num_classes, 2)
    with pytest.raises(UserError, match="`label` is 4; the classes of this prior are 0 to 3"):
        check_label(PRIOR.num_classes, 4)


# ---------------------------------------------------------------- the networks


def test_a_logit_without_a_label_is_the_logarithm_of_the_mean_odds():
    state = plain.some_state(CONFIG)
    x = jax.random.uniform(KEY, (5, 32, 32, 1), minval=-1)
    variables = {"params": state.discriminator, "batch_stats": state.discriminator_statistics}

    @plain.quick_jit
    def judge(variables):
        network = Discriminator(MODEL)
        each = [network.apply(variables, x, train=False, label=jnp.eye(3)[jnp.full(5, c)]) for c in range(3)]
        return network.apply(variables, x, train=False), jnp.stack(each)

    found, each = map(np.asarray, judge(variables))
    for c in range(3):
        expected, _ = plain.discriminator(variables["params"], x, variables["batch_stats"], labels=np.full(5, c))
        np.testing.assert_allclose(each[c], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, np.log(np.mean(np.exp(each.astype(np.float64)), axis=0)), rtol=1e-5, atol=1e-6)
    assert np.ptp(each, axis=0).min() > 1e-3


def test_an_encoder_predicts_the_label():
    """A search starts at the predicted label, and its restarts draw labels on the simplex."""
    config = EncoderConfig(model=MODEL, batch_size=4)
    state = plain.quick_jit(lambda key: encoder.init_state(config, key))(KEY)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    after, _ = jax.eval_shape(encoder.make_train_step(config), state, images, KEY)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    # An untrained encoder predicts shifts of 0.
    moved = {name: jax.tree.map(lambda x: x + 0.1, x) for name, x in state.encoder.items() if name.startswith("shift")}
    prior = encoder_prior(state._replace(encoder=state.encoder | moved), config)
    known, hole = images / np.float32(127.5) - 1, np.zeros((4, 32, 32), bool)
    search = dj.InpaintConfig(num_steps=0, start="encoder", start_shifts=0.5, restarts=2, keep_best=False)

    @plain.quick_jit
    def guess(known):
        keys, labels = jax.random.split(KEY, 4), jnp.array([-1, -1, 2, 0])
        return prior.encode(prior.params, known, hole), set_up(prior, search, known, hole, keys, labels)

    (mean, deviation, shifts), (problems, starts) = guess(known)
    assert mean.shape == deviation.shape == (4, 9)
    np.testing.assert_allclose(mean[:, 6:].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(starts.latent[:2, 0], mean[:2], atol=1e-5)
    label = np.asarray(starts.latent[:2, 1, 6:])
    np.testing.assert_allclose(label.sum(-1), 1, rtol=1e-5)
    assert (label >= 0).all() and not np.allclose(label, mean[:2, 6:], atol=1e-3)
    np.testing.assert_array_equal(starts.latent[2:, :, 6:], np.eye(3)[[[2, 2], [0, 0]]])
    np.testing.assert_array_equal(problems.labelled, [False, False, True, True])
    for start, shift in zip(starts.shifts, shifts, strict=True):  # with given and with unknown labels
        assert np.abs(shift).max() > 0.05
        np.testing.assert_allclose(start[:, 0], 0.5 * shift, rtol=1e-6)
        assert (start[:, 1] == 0).all()


# ---------------------------------------------------------------- runs and commands


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """The folder of a run of four steps on the handwritten digits, by the command."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = "--conditional --base-width 4 --latent-dim 6 --channels 1 --image-size 32 --batch-size 16 --num-steps 4"
    options += " --measure-every 0 --checkpoint-every 2 --log-every 2 --quiet"
    assert main.main(["train", "--data", str(digits), "--run", str(folder), *options.split()]) == 0
    return folder


@pytest.fixture(scope="module")
def weights(run, tmp_path_factory):
    """The file of the run's exported prior."""
    path = tmp_path_factory.mktemp("priors") / "prior.safetensors"
    assert main.main(["export", "--run", str(run), "--out", str(path)]) == 0
    return path


def test_a_conditional_run_becomes_a_conditional_prior(run, weights):
    prior, again = dj.load_prior(run), dj.load_prior(weights)
    assert prior.model.num_classes == prior.num_classes == 10
    assert json.loads((run / "config.json").read_text())["config"]["model"]["num_classes"] == 10
    assert again.num_classes == 10 and "conditional on 10 classes" in weights.with_suffix(".md").read_text()
    z = dj.sample_latents(again, KEY, 3, labels=7)
    assert z.shape == (3, 16) and (z[:, 13] == 1).all()
    np.testing.assert_array_equal(dj.generate(again, z), dj.generate(prior, z))
    with pytest.raises(ValueError, match="the latents of this prior have 16"):
        dj.generate(prior, z[:, :6])


def test_a_resumed_run_equals_an_uninterrupted_one(run, digits, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    config = dj.TrainConfig.from_json(json.loads((run / "config.json").read_text())["config"])
    train(gan.RECIPE, config, digits, tmp_path / "run", progress=False)
    name = "checkpoints/4"
    assert saved.by_orbax(tmp_path / "run" / name) == saved.by_orbax(run / name)
    assert (tmp_path / "run/samples/0000004.png").read_bytes() == (run / "samples/0000004.png").read_bytes()


def test_the_commands_take_a_label(weights, digits, tmp_path):
    grid, one, out = tmp_path / "grid.png", tmp_path / "one.npz", tmp_path / "out"
    assert main.main(["sample", "--prior", str(weights), "--out", str(grid), "--quiet"]) == 0
    with Image.open(grid) as picture:
        height, width = picture.height, picture.width
        assert height > width  # ten rows of eight, one row for each class
        shown = np.asarray(picture.convert("L"))
    labels = np.repeat(np.arange(10), 8)
    prior = dj.load_prior(weights)
    expected = np.asarray(dj.generate(prior, dj.sample_latents(prior, KEY, 80, labels)))
    np.testing.assert_array_equal(shown, figures.tile(expected, columns=8)[..., 0])
    assert main.main(["sample", "--prior", str(weights), "--out", str(one), "--count=3", "--label=3", "--quiet"]) == 0
    with np.load(one) as file:
        expected = pixels.to_uint8(np.asarray(dj.generate(prior, dj.sample_latents(prior, KEY, 3, 3))))
        np.testing.assert_array_equal(file["arr_0"][..., :1], expected)
    command = ["inpaint", "--prior", str(weights), "--images", str(digits), "--masks=center", "--out", str(out)]
    command += ["--count=2", "--num-steps=2", "--quiet"]
    assert main.main([*command, "--label=3"]) == 0
    lines = list(map(json.loads, (out / "results.jsonl").read_text().splitlines()))
    assert [line["label"] for line in lines] == [3, 3]
    again = Job(digits, "center", out, dj.InpaintConfig(num_steps=2), count=2, progress=False)
    before = [inpaint_folder(prior, dataclasses.replace(again, label=label)).before for label in (3, None)]
    assert before == [2, 0]  # without a label the images are completed again
    assert len((out / "results.jsonl").read_text().splitlines()) == 2


def test_an_unknown_label_is_one_line(weights, digits, tmp_path, capsys):
    command = ["sample", "--prior", str(weights), "--out", str(tmp_path / "a.png"), "--label=10"]
    assert main.main(command) == 2
    assert capsys.readouterr().err == "dcgan-jax: `label` is 10; the classes of this prior are 0 to 9\n"
    assert main.main(["train", "--data", str(digits), "--run", str(tmp_path / "run"), "--num-classes=1"]) == 2
    assert "`num_classes` of ModelConfig is 1; it takes 0, or 2 or more" in capsys.readouterr().err


def relabelled(digits, folder, labels, names):
    """The digits with other labels, or with none if `labels` is None."""
    folder.mkdir()
    for file in digits.iterdir():
        if file.name not in ("labels.npy", "manifest.json"):
            (folder / file.name).symlink_to(file)
    manifest = json.loads((digits / "manifest.json").read_text()) | {"class_names": names}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if labels is not None:
        np.save(folder / "labels.npy", labels.astype(np.int32))
    return folder


def test_sets_whose_labels_do_not_fit_are_one_line(digits, tmp_path):
    labels, names = np.load(digits / "labels.npy"), [str(i) for i in range(10)]
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, num_classes=10))
    none = relabelled(digits, tmp_path / "none", None, [])
    with pytest.raises(UserError, match="none has no labels, but the model has 10 classes: train without classes"):
        train(gan.RECIPE, config, none, tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="has labels up to 9, but the model has 3 classes: set num_classes to 10"):
        train(gan.RECIPE, CONFIG, digits, tmp_path / "run", progress=False)
    some = relabelled(digits, tmp_path / "some", np.where(np.arange(len(labels)) == 5, -1, labels), names)
    with pytest.raises(UserError, match="has 1 images without a label, but the model has 10 classes"):
        train(gan.RECIPE, config, some, tmp_path / "run", progress=False)
    few = relabelled(digits, tmp_path / "few", labels % 9, names)
    late = dataclasses.replace(config, batch_size=10**6)
    with (
        pytest.warns(UserWarning, match=r"no images of 1 of 10 classes, such as class 9"),
        pytest.raises(UserError, match="lower `batch_size`"),
    ):
        train(gan.RECIPE, late, few, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    assert main.main(["train", "--data", str(none), "--run", str(tmp_path / "run"), "--conditional"]) == 2
