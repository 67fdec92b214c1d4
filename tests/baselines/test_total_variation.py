"""Total variation inpainting against a smooth convex solver in float64 and cases with known solutions."""

import jax
import numpy as np
import pytest
import scipy.optimize

from dcgan_jax import masks
from dcgan_jax.baselines import total_variation as module
from dcgan_jax.baselines.total_variation import solve, total_variation


def differences(x):
    """[h, w, c] -> [h, w, 2 c], pixel by pixel."""
    down, right = np.zeros_like(x), np.zeros_like(x)
    down[:-1], right[:, :-1] = np.diff(x, axis=0), np.diff(x, axis=1)
    return np.concatenate([down, right], axis=-1)


def variation(x):
    return np.sqrt((differences(np.asarray(x, np.float64)) ** 2).sum(-1)).sum()


def least_variation(image, hole):
    """The least total variation: L-BFGS on sqrt(.² + epsilon²) in float64, with epsilon lowered in stages."""
    image = np.where(hole[..., None], 0, image).astype(np.float64)

    def filled(values):
        x = image.copy()
        x[hole] = values.reshape(-1, x.shape[-1])
        return x

    def objective(values, epsilon):
        slopes = differences(filled(values))
        lengths = np.sqrt((slopes**2).sum(-1, keepdims=True) + epsilon**2)
        down, right = np.split(slopes / lengths, 2, axis=-1)
        gradient = -down - right
        gradient[1:] += down[:-1]
        gradient[:, 1:] += right[:, :-1]
        return lengths.sum(), gradient[hole].ravel()

    values = np.zeros(hole.sum() * image.shape[-1])
    for epsilon in 10.0 ** -np.arange(1, 6):
        options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-9}
        values = scipy.optimize.minimize(objective, values, (epsilon,), "L-BFGS-B", jac=True, options=options).x
    return variation(filled(values))


SIZE = 8


def stack():
    """All four kinds of holes, one at a corner, and one that leaves a single pixel."""
    corner, most = np.zeros((2, SIZE, SIZE), bool)
    corner[:4, :3] = corner[-2:, -5:] = True
    most[:] = True
    most[2, 5] = False
    drawn = [np.asarray(masks.by_name(n, jax.random.split(jax.random.key(3), 1), SIZE)[0]) for n in masks.NAMES]
    return np.stack([*drawn, corner, most])


HOLES = stack()
IMAGES = np.random.default_rng(0).uniform(-1, 1, (len(HOLES), SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """The images of this file fill one chunk and part of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", 4)
        yield


@pytest.fixture(scope="module")
def solution():
    """Many tests share this one call."""
    return jax.tree.map(np.asarray, solve(IMAGES, HOLES))


@pytest.mark.parametrize("i", range(len(HOLES)))
def test_the_solution_agrees_with_a_smooth_solver(solution, i):
    least = least_variation(IMAGES[i], HOLES[i])
    found = variation(solution.image[i])
    assert found == pytest.approx(solution.total_variation[i], rel=1e-5)
    assert least * (1 - 1e-5) - 1e-3 <= found <= least * (1 + 1e-3) + 1e-3
    assert found - least <= solution.gap[i] + 1e-4


def test_the_gap_bounds_the_error_however_early_the_solver_stops(solution):
    early = solve(IMAGES, HOLES, max_steps=3)
    assert (early.num_steps <= 3).all()
    # A dual value is a lower bound of every primal value, so also of the best one known.
    assert (early.total_variation - early.gap <= solution.total_variation + 1e-4).all()
    assert (early.gap > solution.gap).any()


def test_a_finished_solution_is_within_the_tolerance(solution):
    assert (solution.gap <= 1e-3 * np.maximum(solution.total_variation, 1)).all() and (solution.gap > -1e-4).all()
    closer = solve(IMAGES, HOLES, tolerance=1e-4)
    assert (closer.gap <= 1e-4 * np.maximum(closer.total_variation, 1)).all()
    assert (closer.num_steps >= solution.num_steps).all()


def test_a_strip_between_two_colours_is_filled_monotonically():
    image, hole = np.zeros_like(IMAGES), np.zeros_like(HOLES)
    image[:, :3], image[:, 6:] = (-0.5, 0.2, 0.9), (0.5, 0.1, -0.9)
    hole[:, 3:6] = True
    found = solve(image, hole)
    assert float(found.total_variation[0]) == pytest.approx(8 * np.linalg.norm([1, 0.1, 1.8]), rel=1e-3)
    steps = np.diff(np.asarray(found.image[0]), axis=0)
    assert (steps[..., 0] > -1e-3).all() and (steps[..., 1:] < 1e-3).all()


def test_a_straight_edge_is_continued_through_a_hole():
    """The straight edge is the shortest. A harmonic fill would blur it."""
    image, hole = np.full_like(IMAGES, -0.7), np.zeros_like(HOLES)
    image[:, :, 4:] = 0.6
    hole[:, 3:5, 2:6] = True
    found = solve(image, hole, tolerance=1e-5)
    assert float(found.total_variation[0]) == pytest.approx(8 * 1.3 * 3**0.5, rel=1e-4)
    np.testing.assert_allclose(found.image, image, atol=0.02)


def test_constant_images_stay_constant():
    """Even when all pixels but one are missing."""
    image = np.full(IMAGES.shape, 77, np.uint8)
    hidden = np.where(HOLES[..., None], 200, image).astype(np.uint8)
    assert (np.asarray(total_variation(hidden, HOLES)) == image).all()


def test_hidden_pixels_are_never_read(solution):
    for value in (np.nan, np.inf, 1e6):
        hidden = np.where(HOLES[..., None], np.float32(value), IMAGES)
        assert (np.asarray(solve(hidden, HOLES).image) == solution.image).all()


def test_known_pixels_stay_bit_for_bit():
    result = np.asarray(total_variation(IMAGES, HOLES))
    assert result.dtype == np.float32 and (result[~HOLES] == IMAGES[~HOLES]).all()
    levels = np.random.default_rng(1).integers(0, 256, IMAGES.shape, np.uint8)
    result = np.asarray(total_variation(levels, HOLES))
    assert result.dtype == np.uint8 and (result[~HOLES] == levels[~HOLES]).all()


def test_values_stay_in_the_range_of_the_hole_s_rim(solution):
    for image, given, hole in zip(solution.image, IMAGES, HOLES, strict=True):
        for channel in range(3):
            known = given[~hole][:, channel]
            assert (image[hole][:, channel] >= known.min()).all() and (image[hole][:, channel] <= known.max()).all()


def test_other_images_place_and_chunk_have_no_influence(solution):
    order = [3, 0, 5, 1, 2, 4]
    rolled = solve(IMAGES[order], HOLES[order])
    assert (np.asarray(rolled.image) == solution.image[order]).all()
    assert (np.asarray(rolled.num_steps) == solution.num_steps[order]).all()
    one = solve(IMAGES[3:4], HOLES[3:4])
    np.testing.assert_allclose(one.image[0], solution.image[3], atol=1e-3)


def test_all_missing_gives_grey_and_none_missing_gives_the_image():
    hole = np.zeros_like(HOLES)
    hole[0] = True
    found = solve(np.where(hole[..., None], np.float32(np.nan), IMAGES), hole)
    assert (np.asarray(found.image[0]) == 0).all() and (np.asarray(found.image[1:]) == IMAGES[1:]).all()
    assert (np.asarray(found.num_steps) == 0).all()
    levels = np.full(IMAGES.shape, 9, np.uint8)
    assert (np.asarray(total_variation(levels, hole))[0] == 128).all()


def test_oblong_images_are_completed():
    rng = np.random.default_rng(2)
    image = rng.uniform(-1, 1, (1, 5, 11, 1)).astype(np.float32)
    hole = rng.random((1, 5, 11)) < 0.6
    found = solve(image, hole)
    least = least_variation(image[0], hole[0])
    assert variation(found.image[0]) == pytest.approx(least, rel=1e-3)


def test_bad_arguments_are_refused_by_name():
    hole = np.zeros((2, SIZE, SIZE), bool)
    images = np.zeros((2, SIZE, SIZE, 3), np.float32)
    for arguments, settings, name in [
        ((images[0], hole[0]), {}, "`images`"),
        ((images.astype(np.int32), hole), {}, "`images`"),
        ((images, hole.astype(np.uint8)), {}, "`hole`"),
        ((images, hole[:1]), {}, "`hole`"),
        ((images, hole[:, :4]), {}, "`hole`"),
        ((images, hole), {"tolerance": 0}, "`tolerance`"),
        ((images, hole), {"tolerance": float("nan")}, "`tolerance`"),
        ((images, hole), {"max_steps": 0}, "`max_steps`"),
        ((images, hole), {"max_steps": 1.5}, "`max_steps`"),
    ]:
        with pytest.raises(ValueError, match=name):
            total_variation(*arguments, **settings)
