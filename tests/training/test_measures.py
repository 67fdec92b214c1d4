"""Measures of a generator: inversion against searches by hand, and what a training run measures."""

import dataclasses
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import trainings
from events import read_curves
from pictures import smooth_images

import dcgan_jax as dj
from dcgan_jax.data import PreparedSet, open_prepared
from dcgan_jax.errors import UserError
from dcgan_jax.images import distances as distances_module
from dcgan_jax.images.pixels import to_uint8
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.objective import Point, Problem
from dcgan_jax.inpainting.search import search
from dcgan_jax.training import gan, measures
from dcgan_jax.training.config import TrainConfig

compiled_once = trainings.compiled_once
KEY = jax.random.key(7)


# ------------------------------------------------------------------------------------------ inversion

CONFIG = InpaintConfig(num_steps=30, prior_weight=0.0)


def test_inversion_equals_a_search_of_the_complete_image(monkeypatch):
    prior, images = tiny.tanh_prior((8, 8, 1)), smooth_images(5, 8, 1)
    floats = images / 127.5 - 1
    expected = []
    for i, image in enumerate(floats.astype(np.float32)):
        start = Point(prior.sample_latents(jax.random.fold_in(KEY, i), 1)[0])
        found = search(prior, CONFIG, Problem(jnp.asarray(image), jnp.ones((8, 8))), start)
        made = np.asarray(dj.generate(prior, found.point.latent[None]))[0]
        expected.append(10 * np.log10(4 / np.mean((made - floats[i]) ** 2)))
    found = measures.inversion_psnr(prior, images, KEY, CONFIG)
    assert found.shape == (5,) and np.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    monkeypatch.setattr(measures, "BATCH_SIZE", 2)
    np.testing.assert_allclose(measures.inversion_psnr(prior, images, KEY, CONFIG), expected, rtol=1e-4)
    np.testing.assert_allclose(
        measures.inversion_psnr(prior, floats.astype(np.float32), KEY, CONFIG), expected, rtol=1e-4
    )


def test_inversion_finds_only_images_that_the_prior_makes():
    prior = tiny.tanh_prior((8, 8, 1))
    made = np.asarray(dj.generate(prior, dj.sample_latents(prior, jax.random.key(1), 4)))
    assert (measures.inversion_psnr(prior, made, KEY) > 35).all()
    constant = tiny.constant_prior(np.zeros((8, 8, 1), np.float32))
    grey = np.full((1, 8, 8, 1), 0.2, np.float32)
    np.testing.assert_allclose(measures.inversion_psnr(constant, grey, KEY, CONFIG), 20, rtol=1e-5)
    with pytest.raises(ValueError, match=r"this prior takes \[n, 8, 8, 1\]"):
        measures.inversion_psnr(prior, made[:, :4], KEY)


# ------------------------------------------------------------------------------------------ in training

TRAIN = dataclasses.replace(trainings.CONFIG, log_every=3, measure_every=4)
NAMES = {"swd", "swd_floor", "ms_ssim", "ms_ssim_real", "inversion_psnr"}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Reduces the measures to few images and steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"COUNT": 24, "INVERTED": 3, "INVERSION": CONFIG}.items():
            patch.setattr(measures, name, value)
        yield


@pytest.fixture(scope="module")
def measured(digits, tmp_path_factory):
    """A run that is measured after steps 4 and 6, and its last state."""
    run = tmp_path_factory.mktemp("runs") / "measured"
    return run, trainings.train(TRAIN, digits, run)


def test_a_run_writes_the_measures_of_its_generator(measured, digits):
    run, state = measured
    lines = {line["step"]: line for line in trainings.metrics_of(run)}
    assert {step: NAMES & line.keys() for step, line in lines.items()} == {3: set(), 4: NAMES, 6: NAMES}
    assert "generator_loss" in lines[4]
    found, prepared = lines[6], open_prepared(digits)
    # The measures again, from the state and the images that the documentation names.
    train, test = prepared.split("train"), prepared.split("test")
    real, others = (x[measures.permutation(len(x), 0)[:24]] for x in (train, test))
    keys = jax.random.split(jax.random.split(jax.random.key(TRAIN.seed), 3)[2], 3)
    prior = dj.prior_from_state(state, TRAIN)
    made = to_uint8(np.asarray(dj.generate(prior, dj.sample_latents(prior, keys[0], 24))))
    expected = {
        "swd": distances_module.sliced_wasserstein(made, real, keys[1]).mean,
        "swd_floor": distances_module.sliced_wasserstein(others, real, keys[1]).mean,
        "ms_ssim": distances_module.diversity(made),
        "ms_ssim_real": distances_module.diversity(real),
        "inversion_psnr": measures.inversion_psnr(prior, others[:3], keys[2], CONFIG).mean(),
    }
    assert {name: found[name] for name in NAMES} == pytest.approx(expected, rel=1e-4)
    assert found["swd"] > found["swd_floor"] == lines[4]["swd_floor"]
    assert found["inversion_psnr"] != lines[4]["inversion_psnr"]


def test_a_resumed_run_writes_the_measures_of_an_uninterrupted_one(measured, digits, tmp_path):
    """Even if its first part took no measures."""
    trainings.train(dataclasses.replace(TRAIN, num_steps=3, measure_every=0), digits, tmp_path)
    trainings.train(TRAIN, digits, tmp_path)
    assert trainings.metrics_of(tmp_path) == trainings.metrics_of(measured[0])


def test_tensorboard_shows_the_measures(measured):
    curves = read_curves(measured[0])
    lines = trainings.metrics_of(measured[0])
    for name in NAMES:
        steps, values = zip(*curves[name], strict=True)
        assert steps == (4, 6)
        np.testing.assert_allclose(values, [line[name] for line in lines if name in line], rtol=1e-6)


def test_the_prior_that_measured_best_is_kept(digits, tmp_path, monkeypatch):
    """Through resuming, and for all commands that take a prior."""
    qualities = {2: 20.0, 4: 22.0, 6: 21.0, 8: 23.0}
    made = gan.RECIPE.measures._replace(make=lambda *args: lambda prior: {"inversion_psnr": qualities[steps]})
    trainings.replace_recipe(monkeypatch, measures=made)
    states, best = {}, tmp_path / "best.safetensors"
    for steps in qualities:
        states[steps] = trainings.train(dataclasses.replace(TRAIN, num_steps=steps, measure_every=2), digits, tmp_path)
        expected = dj.prior_from_state(states[max(states, key=qualities.__getitem__)], TRAIN)
        trainings.assert_same(dj.load_prior(best).params, expected.params)
        assert dj.load_prior(best).crop == dj.load_prior(tmp_path).crop


@pytest.fixture
def chosen(monkeypatch):
    """Records the images that each measure gets."""
    given = {}
    monkeypatch.setattr(measures, "COUNT", 1024)
    monkeypatch.setattr(measures, "INVERTED", 16)

    def record(name, value):
        monkeypatch.setattr(measures, name, lambda *args: given.setdefault(name, []).append(args) or value)

    record("sliced_wasserstein", distances_module.SlicedWasserstein({16: 1.0}, 2.0))
    record("diversity", 0.5)
    record("inversion_psnr", np.array([10.0, 20.0]))
    monkeypatch.setattr(measures, "sample_latents", lambda prior, key, n: np.zeros((n, 1)))
    monkeypatch.setattr(measures, "generate", lambda prior, z: np.zeros((len(z), 32, 32, 1), np.float32))
    return given


def numbered(tmp_path, **counts):
    """A prepared set in which each image holds its own number."""
    total, splits = 0, {}
    for name, count in counts.items():
        splits[name] = [total, total + count]
        total += count
    images = np.broadcast_to(np.arange(total, dtype=np.uint32).reshape(-1, 1, 1, 1), (total, 32, 32, 1))
    return PreparedSet(tmp_path, images, None, {"splits": splits})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("counts", "n", "others", "inverted"),
    [
        ({"train": 3000, "validation": 1100, "test": 2000}, 1024, (3000, 4100), 16),
        ({"train": 3000, "test": 1024}, 1024, (3000, 4024), 16),
        ({"train": 3000, "test": 1023}, 1024, (0, 3000), 16),  # too few held-out images: other training images are used
        ({"train": 1438, "test": 359}, 719, (0, 1438), 16),
        ({"train": 30, "validation": 0, "test": 40}, 30, (30, 70), 16),
        ({"train": 3, "test": 2}, 1, (0, 3), 2),
        ({"train": 1, "test": 1}, 1, (1, 2), 1),
        ({"train": 9}, 4, (0, 9), 0),
        ({"train": 1}, 0, None, 0),
    ],
)
def test_the_documented_images_are_compared(counts, n, others, inverted, chosen, tmp_path):
    make = lambda: measures.make_measures(numbered(tmp_path, **counts), "train", KEY)  # noqa: E731
    if inverted:
        measure = make()
    else:
        with pytest.warns(UserWarning, match="no held-out images: `inversion_psnr` is left out") as said:
            measure = make()
        assert len(said) == 1
    with warnings.catch_warnings(action="error"):
        found = [measure(None), measure(None)]
    assert found[0] == found[1]
    expected = {"swd": 2.0, "swd_floor": 2.0} if n else {}
    expected |= {"ms_ssim": 0.5, "ms_ssim_real": 0.5} if n > 1 else {}
    assert found[0] == expected | ({"inversion_psnr": 15.0} if inverted else {})
    if n:
        (generated, real, _), (floor, again, _), (_, third, _) = chosen[
            "sliced_wasserstein"
        ]  # the floor is computed once
        numbers, beside = (x[:, 0, 0, 0].tolist() for x in (real, floor))
        assert len(generated) == n == len(set(numbers)) == len(set(beside)) and not set(numbers) & set(beside)
        assert all(0 <= i < counts["train"] for i in numbers) and all(others[0] <= i < others[1] for i in beside)
        assert (again == real).all() and (third == real).all()
    if inverted:
        images = chosen["inversion_psnr"][0][1][:, 0, 0, 0].tolist()
        assert len(set(images)) == inverted and all(counts["train"] <= i for i in images)


def guessing(value):
    """A prior whose encoder guesses an image of one value."""

    def generate(params, z, shifts=()):
        return jnp.broadcast_to(z[:, 0, None, None, None], (len(z), 32, 32, 1))

    def encode(params, known, hole):
        guess = jnp.full((len(known), 1), value)
        return guess, jnp.ones_like(guess), (jnp.zeros((len(known), 1)),)

    draw = lambda key, n: jax.random.uniform(key, (n, 1))  # noqa: E731
    return dj.Prior({}, generate, draw, (-1.0, 1.0), encode=encode, feature_shapes=((1,),))


def test_guesses_without_held_out_images_or_finite_values_are_left_out():
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 1), np.uint8)
    whole = PreparedSet(Path("set"), images, None, {"splits": {"train": [0, 8], "test": [8, 12]}})
    alone = PreparedSet(Path("set"), images, None, {"splits": {"train": [0, 12]}})
    measure = measures.make_guess_measures(whole, "train", KEY)
    found = measure(guessing(0.5))
    assert found.keys() == {"held_out_psnr", "training_psnr"} and all(map(np.isfinite, found.values()))
    assert measure(guessing(np.nan)) == {}
    with pytest.warns(UserWarning, match="no held-out images: `held_out_psnr` is left out"):
        measure = measures.make_guess_measures(alone, "train", KEY)
    assert measure(guessing(0.5)).keys() == {"training_psnr"}


def test_held_out_images_come_from_other_splits():
    prepared = numbered(Path("set"), train=2, validation=3, test=4)
    held = {split: measures.held_out(prepared, split)[:, 0, 0, 0].tolist() for split in ("train", "validation", "test")}
    assert held == {"train": [2, 3, 4], "validation": [5, 6, 7, 8], "test": [2, 3, 4]}


def test_measures_that_are_not_finite_are_left_out(chosen, tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "diversity", lambda images: float("nan"))
    monkeypatch.setattr(measures, "inversion_psnr", lambda *args: np.array([np.inf]))
    measure = measures.make_measures(numbered(tmp_path, train=8, test=8), "train", KEY)
    assert measure(None) == {"swd": 2.0, "swd_floor": 2.0}


def test_colour_images_of_64_pixels_are_measured():
    prepared = PreparedSet(Path("set"), smooth_images(6, 64), None, {"splits": {"train": [0, 4], "validation": [4, 6]}})
    found = measures.make_measures(prepared, "train", KEY)(tiny.tanh_prior((64, 64, 3)))
    assert found.keys() == NAMES and all(map(np.isfinite, found.values()))


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3]), (2, [2, 3]), (3, [3]), (5000, [3])])
def test_the_last_step_is_measured_if_any_step_is(every, steps):
    config = dataclasses.replace(TRAIN, num_steps=3, measure_every=every)
    assert [step for step in range(1, 4) if config.is_measured(step)] == steps


def test_a_resumed_run_may_be_measured_at_another_interval():
    assert "measure_every" in TrainConfig.RESUMABLE
    with pytest.raises(UserError, match="`measure_every`"):
        dataclasses.replace(TRAIN, measure_every=-1)
    record = {name: value for name, value in TRAIN.to_json().items() if name != "measure_every"}
    assert (
        TrainConfig.from_json(record).measure_every == TrainConfig().measure_every
    )  # the record of a run from before this setting existed
