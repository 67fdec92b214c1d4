"""Photographs of any size: known pixels, the blend at full size, wrong arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import constant_prior, tanh_prior

import dcgan_jax as dj
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting import photograph
from dcgan_jax.inpainting.region import Region, enlarge

SIZE = 8
KEY = jax.random.key(5)
CONFIG = dj.InpaintConfig(num_steps=3, learning_rate=0.1)
PRIOR = tanh_prior((SIZE, SIZE, 3))
RNG = np.random.default_rng(3)
PHOTO = np.asarray(Image.fromarray(RNG.integers(0, 256, (4, 5, 3), np.uint8)).resize((37, 29)))  # 29 rows, 37 columns
HOLE = np.zeros(PHOTO.shape[:2], bool)
HOLE[10:17, 12:20] = True


def test_jax_arrays_give_the_same_result_as_numpy_arrays():
    result = dj.inpaint_photograph(PRIOR, jnp.asarray(PHOTO), jnp.asarray(HOLE), KEY, CONFIG)
    assert (result.images == dj.inpaint_photograph(PRIOR, PHOTO, HOLE, KEY, CONFIG).images).all()


def test_an_image_of_the_prior_s_size_is_not_scaled():
    image = RNG.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    hole = RNG.random((SIZE, SIZE)) < 0.3
    result = dj.inpaint_photograph(PRIOR, image, hole, KEY, CONFIG)
    expected = dj.inpaint(PRIOR, image[None], hole[None], KEY, CONFIG)
    for name in ("images", "completions", "latents", "context_loss", "status"):
        assert (np.asarray(getattr(result, name)) == np.asarray(getattr(expected, name))[0]).all(), name


@pytest.mark.parametrize("crop", [None, "center", "stretch", "6,5,20,15"])
def test_known_pixels_keep_their_bits_and_hidden_pixels_have_no_influence(crop):
    result = dj.inpaint_photograph(PRIOR, PHOTO, HOLE, KEY, CONFIG, crop=crop)
    assert result.images.shape == PHOTO.shape and result.images.dtype == np.uint8
    assert (result.images[~HOLE] == PHOTO[~HOLE]).all() and (result.images[HOLE] != PHOTO[HOLE]).mean() > 0.8
    other = np.where(HOLE[..., None], 255 - PHOTO, PHOTO)
    assert (dj.inpaint_photograph(PRIOR, other, HOLE, KEY, CONFIG, crop=crop).images == result.images).all()


@pytest.mark.parametrize("limit", [photograph._SPARSE_MOST, 0])
def test_the_blend_is_made_at_full_size(monkeypatch, limit):
    """The photograph is the enlarged completion plus a constant, so the blend must restore it, also at the edges."""
    monkeypatch.setattr(photograph, "_SPARSE_MOST", limit)  # once by factorisation and once on the device
    completion = np.linspace(-0.6, 0.6, SIZE * SIZE * 3, dtype=np.float32).reshape(SIZE, SIZE, 3)
    prior = constant_prior(completion)
    for crop, corner in (("0,0,24,24", 0), ("5,3,24,24", 3)):
        region = Region.parse(crop)
        image = np.zeros((30, 33, 3), np.uint8)
        levels = (enlarge(completion, region) + 0.2 + 1) * 127.5
        image[region.rows, region.columns] = np.round(levels)
        hole = np.zeros((30, 33), bool)
        hole[region.top + 8 : region.top + 20, region.left + 4 : region.left + 19] = True
        if corner == 0:
            hole[:4, :5] = True  # at the image's own edge
        result = dj.inpaint_photograph(prior, image, hole, KEY, CONFIG, crop=crop)
        assert abs(result.images.astype(int) - image)[hole].max() <= 1


def test_a_smooth_blend_is_smooth_at_full_size():
    """The blend leaves out the noise of a completion when the photograph is smooth."""
    completion = np.linspace(-0.6, 0.6, SIZE * SIZE * 3, dtype=np.float32).reshape(SIZE, SIZE, 3)
    image = np.round((enlarge(completion, Region(0, 0, 24, 24)) + 1) * 127.5).astype(np.uint8)
    noisy = completion + np.random.default_rng(0).normal(0, 0.2, completion.shape).astype(np.float32)
    hole = np.zeros((24, 24), bool)
    hole[8:20, 4:19] = True
    errors = []
    for blend in ("poisson", "smooth"):
        config = dataclasses.replace(CONFIG, blend=blend)
        result = dj.inpaint_photograph(constant_prior(noisy), image, hole, KEY, config, crop="0,0,24,24")
        errors.append(np.abs(result.images.astype(int) - image)[hole].mean())
    assert errors[1] < 0.5 * errors[0]


def test_a_hole_at_the_region_s_edge_is_blended_with_the_pixels_beyond():
    prior = constant_prior(np.zeros((SIZE, SIZE, 3), np.float32))
    image = np.full((20, 40, 3), 90, np.uint8)
    hole = np.zeros((20, 40), bool)
    hole[:, 10:30] = True  # the whole region
    result = dj.inpaint_photograph(prior, image, hole, KEY, CONFIG, crop="10,0,20,20")
    assert (result.images == 90).all()  # a flat completion takes the level of its surroundings


def test_missing_pixels_outside_the_region_are_filled_by_a_harmonic_function():
    ramp = np.repeat(np.linspace(20, 220, 40).astype(np.uint8)[None, :, None], 20, axis=0).repeat(3, axis=2)
    hole = np.zeros((20, 40), bool)
    hole[5:12, 8:14] = True  # inside
    hole[6:14, 26:34] = True  # outside
    with pytest.warns(UserWarning, match="64 missing pixels outside the region were filled smoothly"):
        result = dj.inpaint_photograph(PRIOR, ramp, hole, KEY, CONFIG, crop="0,0,20,20", elsewhere="smooth")
    assert (result.images[~hole] == ramp[~hole]).all()
    outside = hole & (np.arange(40) >= 20)
    assert np.abs(result.images[outside].astype(int) - ramp[outside]).max() <= 2  # a ramp is harmonic
    hole[:, :20] = False  # nothing is missing in the region
    with pytest.warns(UserWarning, match="64 missing pixels"):
        alone = dj.inpaint_photograph(PRIOR, ramp, hole, KEY, CONFIG, crop="0,0,20,20", elsewhere="smooth")
    np.testing.assert_array_equal(alone.images[hole], result.images[hole])


def test_a_hole_across_the_edge_of_the_region_is_filled_without_a_seam():
    prior = constant_prior(np.zeros((SIZE, SIZE, 3), np.float32))
    ramp = np.repeat(np.linspace(20, 220, 40).astype(np.uint8)[None, :, None], 20, axis=0).repeat(3, axis=2)
    hole = np.zeros((20, 40), bool)
    hole[5:14, 14:28] = True
    with pytest.warns(UserWarning, match="72 missing pixels outside"):
        result = dj.inpaint_photograph(prior, ramp, hole, KEY, CONFIG, crop="0,0,20,20", elsewhere="smooth")
    assert (result.images[~hole] == ramp[~hole]).all()
    across = result.images[..., 0].astype(int)
    assert np.abs(np.diff(across, axis=1)).max() < 25 and np.abs(across - ramp[..., 0])[hole].mean() < 12


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ("round", "`crop` is 'round'; use one of center, face, stretch, or LEFT,TOP,WIDTH,HEIGHT"),
        ("1,2,3", "`crop` is '1,2,3'"),
        ("1,2,50,3", "does not lie inside an image of 37x29"),
        ("1,2,0,3", "does not lie inside"),
        ("0,0,15,15", "41 missing pixels lie outside the region 0,0,15,15"),
    ],
)
def test_impossible_regions_are_refused(crop, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        dj.inpaint_photograph(PRIOR, PHOTO, HOLE, KEY, CONFIG, crop=crop)


def test_a_hole_wider_than_any_square_is_refused():
    hole = np.zeros(PHOTO.shape[:2], bool)
    hole[3, :] = True
    with pytest.raises(UserError, match=r'8 missing pixels lie outside the region 0,0,29,29 .* or "stretch"'):
        dj.inpaint_photograph(PRIOR, PHOTO, hole, KEY, CONFIG)


@pytest.mark.parametrize(
    ("image", "hole"),
    [
        (PHOTO.astype(np.float32), HOLE),
        (PHOTO[..., :1], HOLE),
        (PHOTO, HOLE[:5]),
        (PHOTO, HOLE.astype(np.float32)),
    ],
)
def test_wrong_arrays_are_refused(image, hole):
    with pytest.raises(ValueError, match=r"`image` is float32|`image` has shape|`hole` is"):
        dj.inpaint_photograph(PRIOR, image, hole, KEY, CONFIG)
