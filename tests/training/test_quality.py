"""Measures of a generator against SciPy, loops and searches by hand; what training measures, and where."""

import dataclasses
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_reports
import tiny
import trainings
from plain import plain_ms_ssim
from scipy import ndimage, stats

import dcgan_jax as dj
from dcgan_jax.data import PreparedSet, open_prepared
from dcgan_jax.errors import UserError
from dcgan_jax.images import distances as distances_module
from dcgan_jax.images.pixels import to_uint8
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.objective import Point, Problem
from dcgan_jax.inpainting.search import search
from dcgan_jax.training import measures
from dcgan_jax.training.config import TrainConfig

compiled_once = trainings.compiled_once
KEY = jax.random.key(7)


def pictures(n, side, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(n, side, side, channels)), (0, 2, 2, 0))
    return np.clip(128 + 300 * smooth, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------ distance


def plain_pyramid(image):
    """One channel [h, h], level after level, from the two-dimensional kernel of Burt and Adelson."""
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    image, levels = image.astype(np.float64), []
    while len(image) > 16:
        small = ndimage.convolve(image, kernel, mode="mirror")[::2, ::2]
        spread = np.zeros_like(image)
        spread[::2, ::2] = small
        levels.append(image - ndimage.convolve(spread, 4 * kernel, mode="mirror"))
        image = small
    return [*levels, image]


def plain_distance(a, b, key):
    """Per level of the pyramid, with SciPy's Wasserstein distance for each direction."""
    *keys, direction_key = jax.random.split(key, 3)
    side, channels = a.shape[2:]
    directions = np.asarray(jax.random.normal(direction_key, (64, 49 * channels)), np.float64)
    directions /= np.sqrt((directions**2).sum(1, keepdims=True))
    result = {}
    while side >= 16:
        sets = []
        for images, set_key in zip((a, b), keys, strict=True):
            places = np.asarray(distances_module._places(set_key, 0, len(images), side))
            patches = []
            for image, corners in zip(images, places, strict=False):
                level = [next(x for x in plain_pyramid(image[..., c]) if len(x) == side) for c in range(channels)]
                patches += [[x[r : r + 7, c : c + 7].ravel() for x in level] for r, c in corners]
            patches = np.array(patches)  # [n 128, c, 49]
            for c in range(channels):
                patches[:, c] = (patches[:, c] - patches[:, c].mean()) / patches[:, c].std()
            sets.append(patches.reshape(len(patches), -1))
        one, other = (x @ directions.T for x in sets)
        distances = [stats.wasserstein_distance(x, y) for x, y in zip(one.T, other.T, strict=True)]
        result[side] = 1000 * np.mean(distances)
        side //= 2
    return result


@pytest.mark.parametrize(("side", "channels"), [(64, 1), (32, 3)])
def test_distance_is_scipys(side, channels, monkeypatch):
    assert distances_module._DIRECTIONS == 512
    monkeypatch.setattr(distances_module, "_DIRECTIONS", 64)
    a, b = pictures(2, side, channels), pictures(2, side, channels, seed=1)
    b = b // 2 + b[:, ::-1] // 4
    found, expected = distances_module.sliced_wasserstein(a, b, KEY), plain_distance(a, b, KEY)
    assert list(found.levels) == list(expected) == [x for x in (64, 32, 16) if x <= side]
    np.testing.assert_allclose(list(found.levels.values()), list(expected.values()), rtol=1e-4)
    assert found.mean == np.mean(list(found.levels.values()))


def test_distance_does_not_depend_on_scale_or_batches(monkeypatch):
    a, b = pictures(5, 32), pictures(5, 32, seed=1)
    expected = distances_module.sliced_wasserstein(a, b, KEY)
    scaled = distances_module.sliced_wasserstein(a / np.float32(127.5) - 1, b / np.float32(127.5) - 1, KEY)
    np.testing.assert_allclose(scaled.mean, expected.mean, rtol=1e-3)
    monkeypatch.setattr(distances_module, "_PROJECTIONS", 1000)
    np.testing.assert_allclose(distances_module.sliced_wasserstein(a, b, KEY).mean, expected.mean, rtol=1e-5)
    monkeypatch.setattr(distances_module, "BATCH_SIZE", 2)
    np.testing.assert_allclose(distances_module.sliced_wasserstein(a, b, KEY).mean, expected.mean, rtol=1e-5)
    assert distances_module.sliced_wasserstein(a, b, jax.random.key(8)).mean != expected.mean


def test_distance_tells_sets_apart_on_the_level_of_the_difference():
    a, b = pictures(64, 32), pictures(64, 32, seed=1)
    floor = distances_module.sliced_wasserstein(a, b, KEY).levels
    rng = np.random.default_rng(2)
    fine = distances_module.sliced_wasserstein(a, np.where(rng.random(b.shape) < 0.01, 255, b), KEY).levels
    assert fine[32] > 2 * floor[32] and fine[16] < 1.2 * floor[16]
    coarse = distances_module.sliced_wasserstein(a, b + 60 * np.sign(rng.normal(size=(64, 1, 1, 3))), KEY).levels
    assert coarse[16] > 2 * floor[16] and coarse[32] < 1.2 * floor[32]
    same = distances_module.sliced_wasserstein(a, np.repeat(b[:1], 64, axis=0), KEY).levels
    assert same[16] > 2 * floor[16] and same[32] > 2 * floor[32]


def test_every_place_of_a_patch_is_as_likely():
    places = np.asarray(distances_module._places(KEY, 0, 128, 16)).reshape(-1, 2)
    counts = np.histogram2d(*places.T, bins=10, range=[(-0.5, 9.5)] * 2)[0]
    assert counts.sum() == 128 * 128
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_constant_images_are_at_a_finite_distance():
    grey = np.full((2, 16, 16, 1), 7, np.uint8)
    assert distances_module.sliced_wasserstein(grey, grey + 1, KEY).mean == 0
    assert distances_module.sliced_wasserstein(grey, pictures(2, 16, 1), KEY).mean > 100


def test_sets_that_cannot_be_compared_are_refused():
    for a, b in ((pictures(2, 32), pictures(3, 32)), (pictures(0, 32), pictures(0, 32)), (pictures(2, 32)[0],) * 2):
        with pytest.raises(ValueError, match=r"`a` has shape .* one shape"):
            distances_module.sliced_wasserstein(a, b, KEY)
    for a in (pictures(2, 8), pictures(2, 24), pictures(2, 32)[:, :16]):
        with pytest.raises(ValueError, match="squares of 16, 32, 64"):
            distances_module.sliced_wasserstein(a, a, KEY)


# ------------------------------------------------------------------------------------------ diversity


def test_diversity_is_the_mean_over_disjoint_pairs(monkeypatch):
    images = pictures(7, 32, 1)
    expected = np.mean([plain_ms_ssim(images[i], images[i + 3], 255.0)[0] for i in range(3)])
    np.testing.assert_allclose(distances_module.diversity(images), expected, atol=2e-5)
    monkeypatch.setattr(distances_module, "BATCH_SIZE", 2)
    np.testing.assert_allclose(distances_module.diversity(images), expected, atol=2e-5)
    np.testing.assert_allclose(distances_module.diversity(np.repeat(images[:1], 4, axis=0)), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="pass at least 2"):
        distances_module.diversity(images[:1])


# ------------------------------------------------------------------------------------------ inversion

CONFIG = InpaintConfig(num_steps=30, prior_weight=0.0)


def test_inversion_is_a_search_of_the_complete_image(monkeypatch):
    prior, images = tiny.tanh_prior((8, 8, 1)), pictures(5, 8, 1)
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


def test_inversion_finds_what_the_prior_makes_and_nothing_else():
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
    """Measures of few images and steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"COUNT": 24, "INVERTED": 3, "INVERSION": CONFIG}.items():
            patch.setattr(measures, name, value)
        yield


@pytest.fixture(scope="module")
def measured(digits, tmp_path_factory):
    """A run that is measured after its steps 4 and 6, and its last state."""
    run = tmp_path_factory.mktemp("runs") / "measured"
    return run, trainings.train(TRAIN, digits, run)


def test_a_run_writes_what_its_generator_measures(measured, digits):
    run, state = measured
    lines = {line["step"]: line for line in trainings.metrics_of(run)}
    assert {step: NAMES & line.keys() for step, line in lines.items()} == {3: set(), 4: NAMES, 6: NAMES}
    assert "generator_loss" in lines[4]
    found, prepared = lines[6], open_prepared(digits)
    # The same once more, from the state and the images that the documentation names.
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


def test_resumed_measures_are_uninterrupted_ones(measured, digits, tmp_path):
    """And so are those of a run whose first part took none."""
    trainings.train(dataclasses.replace(TRAIN, num_steps=3, measure_every=0), digits, tmp_path)
    trainings.train(TRAIN, digits, tmp_path)
    assert trainings.metrics_of(tmp_path) == trainings.metrics_of(measured[0])


def test_measures_are_shown(measured):
    curves = test_reports.points(measured[0])
    lines = trainings.metrics_of(measured[0])
    for name in NAMES:
        steps, values = zip(*curves[name], strict=True)
        assert steps == (4, 6)
        np.testing.assert_allclose(values, [line[name] for line in lines if name in line], rtol=1e-6)


@pytest.fixture
def chosen(monkeypatch):
    """The images that each measure is given."""
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
    """A set whose images are their own numbers."""
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
        ({"train": 3000, "test": 1023}, 1024, (0, 3000), 16),  # too few held out: other training images
        ({"train": 1438, "test": 359}, 719, (0, 1438), 16),
        ({"train": 30, "validation": 0, "test": 40}, 30, (30, 70), 16),
        ({"train": 3, "test": 2}, 1, (0, 3), 2),
        ({"train": 1, "test": 1}, 1, (1, 2), 1),
        ({"train": 9}, 4, (0, 9), 0),
        ({"train": 1}, 0, None, 0),
    ],
)
def test_which_images_are_compared(counts, n, others, inverted, chosen, tmp_path):
    make = lambda: measures.make_measures(lambda state: None, numbered(tmp_path, **counts), "train", KEY)  # noqa: E731
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
        (generated, real, _), (floor, again, _), (_, third, _) = chosen["sliced_wasserstein"]  # the floor once
        numbers, beside = (x[:, 0, 0, 0].tolist() for x in (real, floor))
        assert len(generated) == n == len(set(numbers)) == len(set(beside)) and not set(numbers) & set(beside)
        assert all(0 <= i < counts["train"] for i in numbers) and all(others[0] <= i < others[1] for i in beside)
        assert (again == real).all() and (third == real).all()
    if inverted:
        images = chosen["inversion_psnr"][0][1][:, 0, 0, 0].tolist()
        assert len(set(images)) == inverted and all(counts["train"] <= i for i in images)


def test_a_run_on_the_test_split_is_measured_on_the_other():
    prepared = numbered(Path("set"), train=2, validation=3, test=4)
    held = {split: measures.held_out(prepared, split)[:, 0, 0, 0].tolist() for split in ("train", "validation", "test")}
    assert held == {"train": [2, 3, 4], "validation": [5, 6, 7, 8], "test": [2, 3, 4]}


def test_what_is_not_finite_is_not_written(chosen, tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "diversity", lambda images: float("nan"))
    monkeypatch.setattr(measures, "inversion_psnr", lambda *args: np.array([np.inf]))
    measure = measures.make_measures(lambda state: None, numbered(tmp_path, train=8, test=8), "train", KEY)
    assert measure(None) == {"swd": 2.0, "swd_floor": 2.0}


def test_colour_and_64_pixels_are_measured():
    prepared = PreparedSet(Path("set"), pictures(6, 64), None, {"splits": {"train": [0, 4], "validation": [4, 6]}})
    found = measures.make_measures(lambda state: tiny.tanh_prior((64, 64, 3)), prepared, "train", KEY)(None)
    assert found.keys() == NAMES and all(map(np.isfinite, found.values()))


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3]), (2, [2, 3]), (3, [3]), (5000, [3])])
def test_the_last_step_is_measured_if_any_is(every, steps):
    config = dataclasses.replace(TRAIN, num_steps=3, measure_every=every)
    assert [step for step in range(1, 4) if config.is_measured(step)] == steps


def test_how_often_may_differ_when_a_run_is_resumed():
    assert "measure_every" in TrainConfig.RESUMABLE
    with pytest.raises(UserError, match="`measure_every`"):
        dataclasses.replace(TRAIN, measure_every=-1)
    record = {name: value for name, value in TRAIN.to_json().items() if name != "measure_every"}
    assert TrainConfig.from_json(record).measure_every == TrainConfig().measure_every  # of a run from before
