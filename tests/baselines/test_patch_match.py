"""PatchMatch against exhaustive search, plain loops and textures that can be completed exactly."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcgan_jax.baselines.patch_match as patch_match_module
from dcgan_jax import masks
from dcgan_jax.baselines.patch_match import (
    Field,
    Settings,
    applicable,
    complete_one,
    field_step,
    init_field,
    make_level,
    patch_match,
    search,
    vote,
)

quick_level = jax.jit(make_level, static_argnums=2)
KEY = jax.random.key(7)
PATCH = 5
H, W = 20, 24
FAST = {"patch_size": PATCH, "num_levels": 2, "num_rounds": 2}


def picture(h=H, w=W, channels=3, seed=0):
    """Smooth noise, so that neighbouring patches are alike as in photographs."""
    coarse = np.random.default_rng(seed).uniform(-1, 1, (h // 4 + 1, w // 4 + 1, channels))
    return np.asarray(jax.image.resize(coarse, (h, w, channels), "cubic"), np.float32).clip(-1, 1)


def square(h=H, w=W):
    hole = np.zeros((h, w), bool)
    hole[6:12, 8:15] = True
    return hole


def cut(image, size=PATCH):
    """All patches, indexed by their upper left pixel."""
    h, w = image.shape[:2]
    return np.stack(
        [image[y : y + size, x : x + size].ravel() for y in range(h - size + 1) for x in range(w - size + 1)]
    )


@pytest.fixture(scope="module")
def searched():
    """One level after its whole search, and the target patches."""
    image, hole = picture(), square()
    level = quick_level(image, hole, PATCH)
    guess = np.where(hole[..., None], picture(seed=1), image)
    field = jax.jit(search, static_argnums=4)(level, guess, init_field(level, KEY), KEY, 8)
    return level, cut(guess), jax.tree.map(np.asarray, field)


def test_levels_hold_the_patches_and_mark_the_sources(searched):
    level, _, _ = searched
    np.testing.assert_array_equal(level.patches, cut(picture()))
    np.testing.assert_array_equal(level.usable, ~cut(square()).any(axis=1))
    assert (np.asarray(level.weights) == 1).all()


def test_votes_count_less_deeper_in_the_hole():
    hole = square()
    hole[15:, 20:] = True
    level = quick_level(picture(), hole, PATCH, 1.5)
    known = np.argwhere(~hole)
    for place, weight in enumerate(np.asarray(level.weights)):
        middle = np.array(divmod(place, W - PATCH + 1)) + PATCH // 2
        depth = np.abs(known - middle).max(axis=1).min()
        np.testing.assert_allclose(weight, 1.5**-depth, rtol=1e-5)


def test_the_field_agrees_with_exhaustive_search(searched):
    level, patches, field = searched
    usable = np.asarray(level.usable)
    sources = np.flatnonzero(usable)
    exact = ((patches[:, None].astype(np.float64) - np.asarray(level.patches)[sources]) ** 2).sum(-1).min(axis=1)
    assert (field.distance[~usable] >= exact[~usable] * (1 - 1e-5)).all()
    assert field.distance[~usable].mean() <= 1.03 * exact[~usable].mean()


def test_distances_are_the_patches_distances_and_sources_are_known(searched):
    level, patches, field = searched
    usable = np.asarray(level.usable)
    assert usable[field.nearest].all()
    there = np.asarray(level.patches)[field.nearest]
    np.testing.assert_allclose(field.distance, ((patches - there) ** 2).sum(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(field.nearest[usable], np.flatnonzero(usable))


def test_drawn_sources_are_known_and_differ():
    level = quick_level(picture(), square(), PATCH)
    drawn = np.asarray(init_field(level, KEY).nearest)
    assert np.asarray(level.usable)[drawn].all()
    assert len(np.unique(drawn[~np.asarray(level.usable)])) > 50


def test_a_step_never_worsens_the_field(searched):
    level, patches, _ = searched
    field = init_field(level, KEY)
    field = Field(field.nearest, jnp.asarray(((patches - np.asarray(level.patches)[field.nearest]) ** 2).sum(-1)))
    better = jax.jit(field_step)(level, patches, field, KEY)
    assert (np.asarray(better.distance) <= np.asarray(field.distance)).all()
    assert np.asarray(better.distance).mean() < 0.7 * np.asarray(field.distance).mean()


def test_propagation_spreads_a_planted_match():
    """The missing part occurs elsewhere in the image. One target knows its match; the others get it from neighbours."""
    image, hole = picture(), square()
    image[:, 12:] = image[:, :12]
    hole = np.roll(hole, 10, axis=1)  # columns 18 to 24 are missing; pixels that wrapped round stay known
    hole[:, :12] = False
    level = quick_level(image, hole, PATCH)
    columns = W - PATCH + 1
    targets = np.flatnonzero(~np.asarray(level.usable))
    told = targets[np.argmax(targets % columns)]
    start = np.asarray(init_field(level, KEY).nearest).copy()
    start[targets] = np.flatnonzero(np.asarray(level.usable))[-1]
    start[told] = told - 12
    assert told % columns >= 12  # so 12 columns to the left lies in the same row
    field = Field(jnp.asarray(start), jnp.zeros(len(start)))
    result = jax.jit(search, static_argnums=4)(level, image, field, KEY, 2)
    assert (np.asarray(result.distance) == 0).all()
    np.testing.assert_array_equal(result.nearest[targets], targets - 12)


@pytest.mark.parametrize("sharpness", [0.0, 0.5])
def test_votes_agree_with_plain_loops(sharpness):
    image, hole = picture(), square()
    hole[:2, :3] = True  # corners, which few patches cover
    level = quick_level(image, hole, PATCH, 1.3)
    usable, weights = np.asarray(level.usable), np.asarray(level.weights, np.float64)
    field = init_field(level, KEY)
    distance = np.where(usable, 0, np.random.default_rng(2).uniform(0, 4, len(usable)))
    nearest, columns = np.asarray(field.nearest), W - PATCH + 1
    total, weight_of = np.zeros(image.shape), np.zeros((H, W, 1))
    for place in np.flatnonzero(~usable):
        (y, x), (v, u) = divmod(place, columns), divmod(nearest[place], columns)
        weight = weights[place] * np.exp(-sharpness * distance[place] / distance[~usable].mean())
        total[y : y + PATCH, x : x + PATCH] += weight * image[v : v + PATCH, u : u + PATCH]
        weight_of[y : y + PATCH, x : x + PATCH] += weight
    result = np.asarray(vote(level, Field(field.nearest, jnp.asarray(distance, jnp.float32)), sharpness))
    np.testing.assert_allclose(result[hole], (total / np.maximum(weight_of, 1e-9))[hole], atol=1e-5)
    assert (result[~hole] == image[~hole]).all()


def test_a_finer_level_starts_from_twice_the_coarse_offsets():
    rows, columns = 12 - PATCH + 1, 24 - PATCH + 1
    row, column = np.divmod(np.arange(rows**2), rows)
    field = Field(jnp.asarray((row + 1) % rows * rows + (column + 2) % rows), jnp.zeros(rows**2))

    @jax.jit
    def enlarged(image, hole):
        coarser, level = make_level(*patch_match_module._halve(image, hole), PATCH), make_level(image, hole, PATCH)
        return patch_match_module._enlarge(field, coarser, level)

    found = np.asarray(enlarged(picture(24, 24), np.zeros((24, 24), bool))).reshape(columns, columns)
    own = np.arange(columns**2).reshape(columns, columns)
    # Away from the border, where no offset wraps round.
    inner = (slice(4, 10), slice(4, 10))
    np.testing.assert_array_equal((found - own)[inner], 2 * columns + 4)
    assert found.min() >= -1 and found.max() < columns**2


def test_a_periodic_texture_of_grey_bytes_is_completed():
    tile = np.random.default_rng(3).integers(0, 256, (6, 6, 1)).astype(np.uint8)
    image = np.tile(tile, (6, 6, 1))[None]
    hole = np.zeros((1, 36, 36), bool)
    hole[:, 14:21, 15:22] = True
    result = np.asarray(patch_match(image, hole, KEY, patch_size=7, num_levels=1, num_rounds=20, num_sweeps=2))
    assert result.dtype == np.uint8 and result.shape == image.shape
    assert (result[~hole] == image[~hole]).all()
    assert np.abs(result.astype(int) - image)[hole].mean() < 1


ODD = 21, 25
HOLES = np.stack([square(*ODD), *np.zeros((4, *ODD), bool)])
HOLES[1, :, ODD[1] // 2 :] = True  # half of the image
HOLES[2, -7:, -9:] = HOLES[2, 0, 0] = True  # corners
HOLES[3, 7:] = True  # so much is missing that no coarser level has a source


@pytest.fixture(scope="module")
def completed():
    """Many tests share this one call; the last image has no hole."""
    images = np.stack([picture(*ODD, seed=i) for i in range(len(HOLES))])
    return images, np.asarray(patch_match(images, HOLES, KEY, **FAST))


def test_known_pixels_keep_their_bits(completed):
    images, result = completed
    assert result.dtype == np.float32
    assert (result.view(np.int32) == images.view(np.int32))[~HOLES].all()
    assert np.isfinite(result).all() and (result[HOLES] != 0).any(axis=-1).all()


def test_filled_pixels_lie_in_the_range_of_the_known_ones(completed):
    """A mean of known pixels lies between the least and the greatest of them."""
    images, result = completed
    for image, filled, hole in zip(images, result, HOLES, strict=True):
        assert (filled >= image[~hole].min(axis=0) - 1e-5).all() and (filled <= image[~hole].max(axis=0) + 1e-5).all()


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_hidden_pixels_are_not_read(completed, garbage):
    images, result = completed
    hidden = np.where(HOLES[..., None], np.float32(garbage), images)
    assert (np.asarray(patch_match(hidden, HOLES, KEY, **FAST)) == result).all()


def test_the_key_decides_the_result(completed):
    images, result = completed
    assert (np.asarray(patch_match(images, HOLES, KEY, **FAST)) == result).all()
    other = np.asarray(patch_match(images, HOLES, jax.random.key(8), **FAST))
    assert (other[HOLES] != result[HOLES]).any()


def test_other_images_of_the_batch_have_no_influence(completed):
    images, result = completed
    others, holes = images[::-1].copy(), HOLES[::-1].copy()
    others[0], holes[0] = images[0], HOLES[0]
    assert (np.asarray(patch_match(others, holes, KEY, **FAST))[0] == result[0]).all()
    alone = np.asarray(patch_match(images[:1], HOLES[:1], KEY, **FAST))
    assert (alone == result[:1]).all()


def test_each_image_of_a_batch_has_its_own_key(completed):
    images, result = completed
    twice = np.asarray(patch_match(images[[0, 0]], HOLES[[0, 0]], KEY, **FAST))
    assert (twice[0] == result[0]).all() and (twice[1] != result[0]).any()


def test_vmap_agrees_with_the_batch(completed):
    images, _ = completed
    settings = Settings(5, 1, 1, 1, 0.5, 1.3)
    keys = jax.random.split(KEY, 2)
    batch = jax.jit(jax.vmap(lambda image, hole, key: complete_one(image, hole, key, settings)))
    one = jax.jit(lambda image, hole, key: complete_one(image, hole, key, settings))
    result = batch(images[:2], HOLES[:2], keys)
    for i in range(2):
        np.testing.assert_allclose(result[i], one(images[i], HOLES[i], keys[i]), atol=1e-5)


def test_without_a_hole_nothing_changes():
    images = np.full((2, 4, 4, 3), np.nan, np.float32)
    result = np.asarray(patch_match(images, np.zeros((2, 4, 4), bool), KEY))
    assert (result.view(np.int32) == images.view(np.int32)).all()
    assert patch_match(images[:0], np.zeros((0, 4, 4), bool), KEY).shape == (0, 4, 4, 3)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_applicable_agrees_with_plain_loops(size):
    rng = np.random.default_rng(4)
    holes = rng.random((40, 7, 9)) < np.linspace(0, 1, 40)[:, None, None]
    expected = [
        any(not hole[y : y + size, x : x + size].any() for y in range(8 - size) for x in range(10 - size))
        for hole in holes
    ]
    assert 0 < sum(expected) < 40
    assert applicable(holes, patch_size=size).tolist() == expected
    assert not applicable(holes, patch_size=11).any()


@pytest.mark.parametrize("kind", ["random", "all"])
def test_a_hole_that_leaves_no_patch_is_refused(kind):
    images = np.zeros((5, 32, 32, 3), np.uint8)
    hole = np.zeros((5, 32, 32), bool)
    hole[3] = True if kind == "all" else masks.random(KEY, 32)
    assert applicable(hole).tolist() == [True, True, True, False, True]
    message = "`hole` of image 3 leaves no patch of 5×5 known pixels to copy"
    with pytest.raises(ValueError, match=re.escape(message)):
        patch_match(images, hole, KEY)


def test_bad_arguments_are_refused_by_name():
    images, hole = np.zeros((2, 16, 16, 3), np.float32), np.zeros((2, 16, 16), bool)
    for arguments, settings, name in [
        ((images[0], hole[0]), {}, "`images`"),
        ((images.astype(np.int32), hole), {}, "`images`"),
        ((images, hole.astype(np.float32)), {}, "`hole`"),
        ((images, hole[0]), {}, "`hole`"),
        ((images, hole[:1]), {}, "`hole`"),
        ((images, hole[:, :8]), {}, "`hole`"),
        ((images, hole), {"patch_size": 4}, "`patch_size`"),
        ((images, hole), {"patch_size": 7.0}, "`patch_size`"),
        ((images, hole), {"num_levels": 0}, "`num_levels`"),
        ((images, hole), {"num_rounds": 1.5}, "`num_rounds`"),
        ((images, hole), {"num_sweeps": True}, "`num_sweeps`"),
        ((images, hole), {"sharpness": -1.0}, "`sharpness`"),
        ((images, hole), {"decay": np.nan}, "`decay`"),
    ]:
        with pytest.raises(ValueError, match=name):
            patch_match(*arguments, KEY, **settings)
