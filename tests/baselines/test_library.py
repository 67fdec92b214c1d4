"""Methods of other libraries: cases with known solutions, and rules that hold for all methods."""

import numpy as np
import pytest

from dcgan_jax import masks
from dcgan_jax.baselines.library import biharmonic, navier_stokes, telea

METHODS = [telea, navier_stokes, biharmonic]
SIZE = 24
RNG = np.random.default_rng(0)
HOLE = np.zeros((2, SIZE, SIZE), bool)
HOLE[0] = np.asarray(masks.center(SIZE))
HOLE[1, 5:9, :7] = True
IMAGES = RNG.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_known_pixels_stay_and_hidden_pixels_are_not_read(method, channels):
    images = IMAGES[..., :channels]
    found = method(images, HOLE)
    assert found.dtype == np.uint8 and (found[~HOLE] == images[~HOLE]).all()
    hidden = np.where(HOLE[..., None], 255 - images, images)
    assert (method(hidden, HOLE) == found).all()
    assert (method(images[1:], HOLE[1:]) == found[1:]).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_image_is_continued(method):
    images = np.full((2, SIZE, SIZE, 3), 120, np.uint8)
    found = method(np.where(HOLE[..., None], np.uint8(9), images), HOLE).astype(int)
    assert np.abs(found - 120).max() <= (0 if method is biharmonic else 3)  # OpenCV rounds intermediate values


def test_the_biharmonic_method_continues_a_slope():
    """Linear functions are biharmonic. At the border, where a harmonic fill is flat, the slope nearly continues."""
    ramp = np.broadcast_to(10 * np.arange(SIZE)[:, None, None], (SIZE, SIZE, 3)).astype(np.uint8)
    hole = np.zeros((2, SIZE, SIZE), bool)
    hole[0, 8:14, 9:16] = hole[1, :3, 6:18] = True
    images = np.stack([ramp, ramp])
    found = biharmonic(np.where(hole[..., None], np.uint8(0), images), hole).astype(int)
    assert np.abs(found - images)[0].max() <= 1 and np.abs(found - images)[1][:3].mean() < 10


@pytest.mark.parametrize("method", METHODS)
def test_images_with_nothing_missing_or_nothing_known_are_completed(method):
    hole = np.zeros((2, SIZE, SIZE), bool)
    hole[1] = True
    found = method(IMAGES, hole)
    assert (found[0] == IMAGES[0]).all() and (found[1] == 128).all()


@pytest.mark.parametrize("method", METHODS)
def test_wrong_input_is_refused_by_name(method):
    with pytest.raises(ValueError, match="`images` is float32; pass uint8"):
        method(IMAGES.astype(np.float32), HOLE)
    with pytest.raises(ValueError, match="`hole` is bool"):
        method(IMAGES, HOLE[:1])
