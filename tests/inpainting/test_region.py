"""The region of a photograph that a prior completes, and how it is scaled to the prior's size."""

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut
from tiny import tanh_prior

from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.region import Region, find_region, shrink

SIZE = 8
PRIOR = tanh_prior((SIZE, SIZE, 3))
RNG = np.random.default_rng(3)
PHOTO = np.asarray(Image.fromarray(RNG.integers(0, 256, (4, 5, 3), np.uint8)).resize((37, 29)))  # 29 rows, 37 columns
HOLE = np.zeros(PHOTO.shape[:2], bool)
HOLE[10:17, 12:20] = True


@pytest.mark.parametrize("shape", [(20, 20), (21, 13), (8, 16), (5, 6)])
def test_a_small_pixel_is_known_only_if_all_its_sources_are(shape):
    region = Region(0, 0, shape[1], shape[0])
    rng = np.random.default_rng(0)
    hole = rng.random(shape) < 0.05
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    small, touched = shrink(image, hole, region, (SIZE, SIZE))
    assert small.shape == (SIZE, SIZE, 3) and 0 < touched.sum() < touched.size
    # Light one missing pixel: every small pixel that it reaches must be missing.
    for i, j in np.argwhere(hole):
        lit = np.zeros((*shape, 3), np.uint8)
        lit[i, j] = 255
        goes_into = shrink(lit, np.zeros(shape, bool), region, (SIZE, SIZE))[0].any(axis=-1)
        assert (touched >= goes_into).all()
        # One missing pixel makes nothing missing that is more than a small pixel away.
        alone = np.zeros(shape, bool)
        alone[i, j] = True
        rows, columns = np.nonzero(shrink(image, alone, region, (SIZE, SIZE))[1])
        steps = [max(n / SIZE, 1) for n in shape]
        for place, centre, step, n in zip((rows, columns), (i, j), steps, shape, strict=True):
            assert (abs((place + 0.5) * n / SIZE - (centre + 0.5)) <= 1.5 * step).all()
    # Hidden values have no influence, and known small pixels are means of known pixels.
    other = np.where(hole[..., None], 255 - image, image)
    assert (shrink(other, hole, region, (SIZE, SIZE))[0] == small).all()
    grey = np.full((*shape, 3), 77, np.uint8)
    assert (shrink(grey, hole, region, (SIZE, SIZE))[0][~touched] == 77).all()


@pytest.mark.parametrize("factor", [2, 5])
def test_enlarged_images_and_holes_shrink_to_the_originals(factor):
    small = RNG.random((SIZE, SIZE)) < 0.8
    image = RNG.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    large, hole = (x.repeat(factor, axis=0).repeat(factor, axis=1) for x in (image, small))
    found, touched = shrink(large, hole, Region(0, 0, *hole.shape[::-1]), (SIZE, SIZE))
    assert (touched == small).all() and (found[~small] == image[~small]).all()


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ((10, 17), (12, 20), (4, 0, 29, 29)),  # in the middle: the centred square
        ((0, 29), (30, 37), (8, 0, 29, 29)),  # at the right edge
        ((3, 4), (2, 5), (2, 0, 29, 29)),  # moved by as little as possible
    ],
)
def test_the_square_moves_no_further_than_the_hole_needs(rows, columns, expected):
    hole = np.zeros(PHOTO.shape[:2], bool)
    hole[slice(*rows), slice(*columns)] = True
    assert find_region(PRIOR, PHOTO, hole, "center").region == expected


def test_an_oblong_prior_has_regions_of_its_proportions():
    prior = tanh_prior((4, 10, 3))
    assert find_region(prior, PHOTO, HOLE, "center").region == (0, 7, 37, 15)
    assert find_region(prior, PHOTO[:, :10], HOLE[:, :10], "center").region == (0, 12, 10, 4)


ASTRONAUT = astronaut()  # NASA's photograph of Eileen Collins, 512x512, in the public domain
NOSE = np.zeros((512, 512), bool)
NOSE[105:135, 212:242] = True


@pytest.mark.parametrize("scale", [1, 4])
def test_a_face_is_found(scale):
    image, hole = (x.repeat(scale, axis=0).repeat(scale, axis=1) for x in (ASTRONAUT, NOSE))
    region = find_region(PRIOR, image, hole, "face").region
    left, top, width, height = (x / scale for x in region)
    assert width == height and 90 < width < 130  # judged by eye: 116 pixels from (168, 42)
    assert abs(left + width / 2 - 226) < 12 and abs(top + height / 2 - 100) < 12
    other = np.where(hole[..., None], 255 - image, image)
    assert find_region(PRIOR, other, hole, "face").region == region


def test_images_without_a_usable_face_are_refused():
    with pytest.raises(UserError, match=r"no face was found .*LEFT,TOP,WIDTH,HEIGHT"):
        find_region(PRIOR, PHOTO.repeat(4, axis=0).repeat(4, axis=1), np.zeros((116, 148), bool), "face")
    with pytest.raises(UserError, match="no face was found"):
        find_region(PRIOR, np.zeros((1, 4000, 3), np.uint8), np.zeros((1, 4000), bool), "face")
    with pytest.raises(UserError, match="no face was found"):
        find_region(PRIOR, ASTRONAUT, np.ones((512, 512), bool), "face")
    hole = NOSE.copy()
    hole[300:310, 50:60] = True
    with pytest.raises(UserError, match="100 missing pixels lie outside the region"):
        find_region(PRIOR, ASTRONAUT, hole, "face")


FACES = dataclasses.replace(PRIOR, crop="celeba")


def test_without_a_face_the_surroundings_of_the_hole_are_completed():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    hole = np.zeros((200, 300), bool)
    hole[60:80, 200:240] = True
    region, outside, note = find_region(FACES, noise, hole, None)
    assert region == (180, 30, 80, 80) and outside == 0
    assert note == "no face was found, so the surroundings of the hole were completed, by a prior for faces"
    hole[150:, 290:] = True  # twice its length is more than there is
    assert find_region(FACES, noise, hole, None).region == (100, 0, 200, 200)
    assert find_region(FACES, ASTRONAUT, NOSE, None).note is None


def test_weak_detections_count_only_as_faces_around_a_hole(monkeypatch):
    hidden, hole = ASTRONAUT.copy(), np.zeros((512, 512), bool)
    hole[75:115, 190:265] = True
    hidden[hole] = 128  # both eyes
    assert find_region(FACES, hidden, hole, None).note is None
    asked = []
    monkeypatch.setattr(cv2, "CascadeClassifier", lambda path: asked.append(path) or NoFaces())
    for one, detectors in ((hole, 3), (np.zeros_like(hole), 1)):
        asked.clear()
        assert "no face was found" in find_region(FACES, hidden, one, None).note and len(asked) == detectors


class NoFaces:
    def detectMultiScale(self, *_):
        return []


def test_a_mask_that_seems_inverted_is_named():
    with pytest.raises(UserError, match=r"95% of the image is missing, .*White pixels of a mask are missing.*invert"):
        find_region(FACES, PHOTO, np.broadcast_to(np.arange(37) >= 2, PHOTO.shape[:2]), None)
    around = np.ones((512, 512), bool)
    around[40:160, 160:290] = False  # the face is all that is known
    with pytest.raises(UserError, match=r"94% of the image is missing, .*invert"):
        find_region(FACES, ASTRONAUT, around, None)


def test_missing_pixels_outside_the_region_are_counted_and_noted_where_they_are_filled():
    hole = NOSE.copy()
    hole[300:310, 50:60] = True
    region, outside, note = find_region(FACES, ASTRONAUT, hole, None, "smooth")
    assert region == find_region(FACES, ASTRONAUT, NOSE, None).region and outside == 100
    assert note == "100 missing pixels outside the region were filled smoothly"
    with pytest.raises(UserError, match="`elsewhere` is 'noise'; it takes smooth"):
        find_region(FACES, ASTRONAUT, hole, None, "noise")


@pytest.mark.parametrize(
    ("crop", "region"), [(None, (4, 0, 29, 29)), ("center", (4, 0, 29, 29)), ("stretch", (0, 0, 37, 29))]
)
def test_the_prior_decides_the_default_region(crop, region):
    assert find_region(dataclasses.replace(PRIOR, crop=crop), PHOTO, HOLE, None).region == region
