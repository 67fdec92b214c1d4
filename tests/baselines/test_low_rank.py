"""Low-rank completion against NumPy in float64 and matrices of known rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcgan_jax import masks
from dcgan_jax.baselines import low_rank as module
from dcgan_jax.baselines.low_rank import low_rank, shrink, solve

SIZE = 24
STEPS = 4000
CLOSE = {"tolerance": 1e-6, "round_steps": STEPS, "max_steps": STEPS}


def low_rank_images(rank, count=4, size=SIZE):
    rng = np.random.default_rng(rank)
    images = np.einsum("bhrc,bwrc->bhwc", *rng.standard_normal((2, count, size, rank, 3)))
    return (images / np.abs(images).max((1, 2), keepdims=True)).astype(np.float32)


def scattered_holes(share, count=4, size=SIZE):
    return np.random.default_rng(7).random((count, size, size)) < share


def nuclear_norm(x):
    return np.linalg.svd(x, compute_uv=False).sum()


def least_nuclear_norm(channel, hole, penalty=1.0, steps=3000):
    """argmin |X|_* subject to X = channel where known: ADMM in float64 with NumPy's SVD."""
    known = np.where(hole, 0, channel).astype(np.float64)
    copy, dual = known.copy(), np.zeros_like(known)
    for _ in range(steps):
        u, s, v = np.linalg.svd(copy - dual / penalty, full_matrices=False)
        low = (u * np.maximum(s - 1 / penalty, 0)) @ v
        copy = np.where(hole, low + dual / penalty, known)
        dual += penalty * (low - copy)
    return copy


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """The channels of four images fill one chunk and part of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", 9)
        yield


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (9, 17), (17, 9)])
def test_shrinking_agrees_with_numpys_singular_values(shape):
    matrix = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    for threshold, rank in ((0.0, 0), (s[4] + 0.01, 3), (2 * s[0], 8)):
        low, directions = shrink(jnp.asarray(matrix), threshold, rank)
        np.testing.assert_allclose(low, (u * np.maximum(s - threshold, 0)) @ v, atol=1e-4)
        np.testing.assert_allclose(directions, u[:, :rank] @ v[:rank], atol=1e-4)


def test_directions_that_are_only_rounding_errors_are_left_out():
    """With a spectral norm above 1 the convex problem would have no minimum."""
    matrix = low_rank_images(2)[0, :, :, 0] * 30
    _, directions = shrink(jnp.asarray(matrix), 0.0, 9)
    values = np.linalg.svd(np.asarray(directions, np.float64), compute_uv=False)
    np.testing.assert_allclose(values[:2], 1, atol=1e-4)
    assert (values[2:] < 1e-3).all()
    for part in shrink(jnp.zeros((5, 5)), 0.0, 3):
        assert (np.asarray(part) == 0).all()


@pytest.mark.parametrize("rank", [2, 3])
def test_a_matrix_of_low_rank_is_recovered(rank):
    images, hole = low_rank_images(rank), scattered_holes(0.4)
    found = solve(images, hole, rank=rank, **CLOSE | {"round_steps": 50})
    np.testing.assert_allclose(found.image, images, atol=1e-3)
    assert (np.asarray(found.residual) < 1e-4).all()


def test_without_free_singular_values_the_nuclear_norm_is_least():
    images, hole = low_rank_images(6), scattered_holes(0.5)
    found = solve(images, hole, rank=0, **CLOSE)
    for i, c in ((0, 0), (3, 2)):
        expected = least_nuclear_norm(images[i, :, :, c], hole[i])
        channel = np.asarray(found.image[i, :, :, c], np.float64)
        assert nuclear_norm(channel) == pytest.approx(nuclear_norm(expected), rel=1e-4)
        np.testing.assert_allclose(channel, expected, atol=2e-3)


def test_the_penalty_does_not_change_a_convex_solution():
    images, hole = low_rank_images(6), scattered_holes(0.5)
    one, other = (solve(images, hole, rank=0, penalty=penalty, **CLOSE).image for penalty in (1.0, 3.0))
    np.testing.assert_allclose(one, other, atol=2e-3)


IMAGES = low_rank_images(5)
HOLES = np.stack([np.asarray(masks.by_name(n, jax.random.split(jax.random.key(3), 1), SIZE)[0]) for n in masks.NAMES])


@pytest.fixture(scope="module")
def solution():
    return jax.tree.map(np.asarray, solve(IMAGES, HOLES))


def test_every_kind_of_hole_gives_finite_values(solution):
    assert np.isfinite(solution.image).all() and (solution.num_steps > 0).all()
    assert (solution.image[~HOLES] == IMAGES[~HOLES]).all()


def test_hidden_pixels_are_never_read(solution):
    for value in (np.nan, np.inf, 1e6):
        hidden = np.where(HOLES[..., None], np.float32(value), IMAGES)
        assert (np.asarray(solve(hidden, HOLES).image) == solution.image).all()


def test_known_pixels_stay_bit_for_bit():
    result = np.asarray(low_rank(IMAGES, HOLES))
    assert result.dtype == np.float32 and (result[~HOLES] == IMAGES[~HOLES]).all()
    assert np.abs(result).max() <= 1
    levels = np.random.default_rng(1).integers(0, 256, IMAGES.shape, np.uint8)
    result = np.asarray(low_rank(levels, HOLES))
    assert result.dtype == np.uint8 and (result[~HOLES] == levels[~HOLES]).all()


def test_other_images_and_the_place_in_the_batch_have_no_influence(solution):
    order = [3, 0, 2, 1]
    rolled = solve(IMAGES[order], HOLES[order])
    np.testing.assert_allclose(rolled.image, solution.image[order], atol=1e-4)
    np.testing.assert_array_equal(rolled.image[0], solution.image[3])  # both times the first image of its chunk
    np.testing.assert_array_equal(rolled.num_steps[0], solution.num_steps[3])
    others = np.where((np.arange(4) == 1)[:, None, None, None], IMAGES, 0.5).astype(np.float32)
    np.testing.assert_array_equal(solve(others, HOLES).image[1], solution.image[1])


def test_a_single_image_agrees_with_the_batch(solution):
    single = solve(IMAGES[2:3], HOLES[2:3])
    # Another shape may round differently, and the Gram matrix squares the condition number. With jax 0.10.1 and 0.12.0
    # float32 is up to 3.5e-4 from float64 here, after the same number of steps. The solver's own tolerance is 1e-3.
    np.testing.assert_array_equal(single.num_steps[0], solution.num_steps[2])
    np.testing.assert_allclose(single.image[0], solution.image[2], atol=1e-3)


def test_all_missing_gives_grey_and_none_missing_gives_the_image():
    hole = np.zeros((4, SIZE, SIZE), bool)
    hole[0] = True
    found = solve(np.where(hole[..., None], np.float32(np.nan), IMAGES), hole)
    assert (np.asarray(found.image[0]) == 0).all() and (np.asarray(found.image[1:]) == IMAGES[1:]).all()
    assert (np.asarray(found.num_steps[1:]) == 0).all()


def test_constant_images_stay_constant():
    images = np.full((4, SIZE, SIZE, 3), 77, np.uint8)
    hidden = np.where(HOLES[..., None], 200, images).astype(np.uint8)
    assert (np.asarray(low_rank(hidden, HOLES)) == images).all()


def test_oblong_images_of_one_channel_are_completed():
    rng = np.random.default_rng(2)
    image = np.outer(rng.uniform(0.3, 1, 12), rng.uniform(0.3, 1, 20)).astype(np.float32)[None, :, :, None]
    hole = rng.random((1, 12, 20)) < 0.4
    np.testing.assert_allclose(low_rank(image, hole, rank=1, max_steps=1000), image, atol=2e-3)


def test_bad_arguments_are_refused_by_name():
    hole = np.zeros((2, 8, 8), bool)
    images = np.zeros((2, 8, 8, 3), np.float32)
    for arguments, settings, name in [
        ((images[0], hole[0]), {}, "`images`"),
        ((images.astype(np.int32), hole), {}, "`images`"),
        ((images, hole.astype(np.uint8)), {}, "`hole`"),
        ((images, hole[:1]), {}, "`hole`"),
        ((images, hole), {"rank": -1}, "`rank`"),
        ((images, hole), {"rank": 2.0}, "`rank`"),
        ((images, hole), {"penalty": 0}, "`penalty`"),
        ((images, hole), {"tolerance": float("nan")}, "`tolerance`"),
        ((images, hole), {"round_steps": 0}, "`round_steps`"),
        ((images, hole), {"max_steps": 0}, "`max_steps`"),
    ]:
        with pytest.raises(ValueError, match=name):
            low_rank(*arguments, **settings)
