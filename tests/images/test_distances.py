"""The distance between two sets of images against SciPy, and the diversity of one against a loop."""

import jax
import numpy as np
import pytest
from pictures import smooth_images
from plain import plain_ms_ssim
from scipy import ndimage, stats

from dcgan_jax.images import distances as distances_module

KEY = jax.random.key(7)


def plain_pyramid(image):
    """The levels of one channel [h, h], by Burt and Adelson's two-dimensional kernel."""
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
    """The distance at each level of the pyramid, with SciPy's Wasserstein distance for each direction."""
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
def test_the_distance_agrees_with_scipy(side, channels, monkeypatch):
    assert distances_module._DIRECTIONS == 512
    monkeypatch.setattr(distances_module, "_DIRECTIONS", 64)
    a, b = smooth_images(2, side, channels), smooth_images(2, side, channels, seed=1)
    b = b // 2 + b[:, ::-1] // 4
    found, expected = distances_module.sliced_wasserstein(a, b, KEY), plain_distance(a, b, KEY)
    assert list(found.levels) == list(expected) == [x for x in (64, 32, 16) if x <= side]
    np.testing.assert_allclose(list(found.levels.values()), list(expected.values()), rtol=1e-4)
    assert found.mean == np.mean(list(found.levels.values()))


def test_the_distance_does_not_depend_on_scale_or_batches(monkeypatch):
    a, b = smooth_images(5, 32), smooth_images(5, 32, seed=1)
    expected = distances_module.sliced_wasserstein(a, b, KEY)
    scaled = distances_module.sliced_wasserstein(a / np.float32(127.5) - 1, b / np.float32(127.5) - 1, KEY)
    np.testing.assert_allclose(scaled.mean, expected.mean, rtol=1e-3)
    monkeypatch.setattr(distances_module, "_PROJECTIONS", 1000)
    np.testing.assert_allclose(distances_module.sliced_wasserstein(a, b, KEY).mean, expected.mean, rtol=1e-5)
    monkeypatch.setattr(distances_module, "BATCH_SIZE", 2)
    np.testing.assert_allclose(distances_module.sliced_wasserstein(a, b, KEY).mean, expected.mean, rtol=1e-5)
    assert distances_module.sliced_wasserstein(a, b, jax.random.key(8)).mean != expected.mean


def test_a_difference_shows_on_its_own_level():
    a, b = smooth_images(64, 32), smooth_images(64, 32, seed=1)
    floor = distances_module.sliced_wasserstein(a, b, KEY).levels
    rng = np.random.default_rng(2)
    fine = distances_module.sliced_wasserstein(a, np.where(rng.random(b.shape) < 0.01, 255, b), KEY).levels
    assert fine[32] > 2 * floor[32] and fine[16] < 1.2 * floor[16]
    coarse = distances_module.sliced_wasserstein(a, b + 60 * np.sign(rng.normal(size=(64, 1, 1, 3))), KEY).levels
    assert coarse[16] > 2 * floor[16] and coarse[32] < 1.2 * floor[32]
    same = distances_module.sliced_wasserstein(a, np.repeat(b[:1], 64, axis=0), KEY).levels
    assert same[16] > 2 * floor[16] and same[32] > 2 * floor[32]


def test_patches_are_drawn_uniformly():
    places = np.asarray(distances_module._places(KEY, 0, 128, 16)).reshape(-1, 2)
    counts = np.histogram2d(*places.T, bins=10, range=[(-0.5, 9.5)] * 2)[0]
    assert counts.sum() == 128 * 128
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_constant_images_have_a_finite_distance():
    grey = np.full((2, 16, 16, 1), 7, np.uint8)
    assert distances_module.sliced_wasserstein(grey, grey + 1, KEY).mean == 0
    assert distances_module.sliced_wasserstein(grey, smooth_images(2, 16, 1), KEY).mean > 100


def test_sets_that_cannot_be_compared_are_refused():
    for a, b in (
        (smooth_images(2, 32), smooth_images(3, 32)),
        (smooth_images(0, 32), smooth_images(0, 32)),
        (smooth_images(2, 32)[0],) * 2,
    ):
        with pytest.raises(ValueError, match=r"`a` has shape .* one shape"):
            distances_module.sliced_wasserstein(a, b, KEY)
    for a in (smooth_images(2, 8), smooth_images(2, 24), smooth_images(2, 32)[:, :16]):
        with pytest.raises(ValueError, match="squares of 16, 32, 64"):
            distances_module.sliced_wasserstein(a, a, KEY)


def test_diversity_is_the_mean_over_disjoint_pairs(monkeypatch):
    images = smooth_images(7, 32, 1)
    expected = np.mean([plain_ms_ssim(images[i], images[i + 3], 255.0)[0] for i in range(3)])
    np.testing.assert_allclose(distances_module.diversity(images), expected, atol=2e-5)
    monkeypatch.setattr(distances_module, "BATCH_SIZE", 2)
    np.testing.assert_allclose(distances_module.diversity(images), expected, atol=2e-5)
    np.testing.assert_allclose(distances_module.diversity(np.repeat(images[:1], 4, axis=0)), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="pass at least 2"):
        distances_module.diversity(images[:1])
