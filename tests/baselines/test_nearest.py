"""The nearest training image against a search by loops."""

import numpy as np
import pytest

import dcgan_jax as dj
from dcgan_jax import masks
from dcgan_jax.baselines import nearest as nearest_module
from dcgan_jax.baselines.nearest import nearest, nearest_index

SIZE, COUNT = 12, 6
RNG = np.random.default_rng(0)
TRAINING = RNG.integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)
IMAGES = RNG.integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
HOLES = np.stack([np.asarray(masks.center(SIZE))] * 2 + [RNG.random((SIZE, SIZE)) < 0.8 for _ in range(4)])


def by_loops(images, holes, training):
    best = []
    for image, hole in zip(images.astype(int), holes, strict=True):
        squares = [((image[~hole] - other[~hole]) ** 2).sum() for other in training.astype(int)]
        best.append(int(np.argmin(squares)))
    return best


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_nearest_image_is_the_one_that_loops_find(block, monkeypatch):
    monkeypatch.setattr(nearest_module, "BLOCK_BYTES", block * 8 * SIZE * SIZE * 3)
    assert nearest_index(IMAGES, HOLES, TRAINING).tolist() == by_loops(IMAGES, HOLES, TRAINING)


def test_one_level_of_difference_decides_and_the_first_of_equals_wins():
    """All pixels are bright and one differs by one level: float32 could not see that difference."""
    training = np.full((4, SIZE, SIZE, 3), 255, np.uint8)
    training[[0, 1, 3], 0, 0, 0] = 254, 253, 254
    images = np.full((1, SIZE, SIZE, 3), 255, np.uint8)
    images[0, 0, 0, 0] = 254
    assert nearest_index(images, HOLES[:1], training).tolist() == [0]
    images[0, 0, 0, 0] = 255
    assert nearest_index(images, HOLES[:1], training).tolist() == [2]


def test_a_training_image_finds_itself_and_fills_its_hole():
    chosen = TRAINING[[5, 39, 0, 7, 7, 12]]
    hidden = np.where(HOLES[..., None], np.uint8(77), chosen)
    for blend in (True, False):
        assert (np.asarray(nearest(hidden, HOLES, TRAINING, blend=blend)) == chosen).all()


def test_the_hole_is_blended_or_copied():
    floats, training = (x / np.float32(127.5) - 1 for x in (IMAGES, TRAINING))
    chosen = training[by_loops(IMAGES, HOLES, TRAINING)]
    copied = np.asarray(nearest(floats, HOLES, training, blend=False))
    np.testing.assert_array_equal(copied, np.where(HOLES[..., None], chosen, floats))
    blended = np.asarray(nearest(floats, HOLES, training))
    expected = np.clip(dj.poisson_blend_sparse(chosen, floats, HOLES), -1, 1)
    np.testing.assert_allclose(blended[HOLES], expected[HOLES], atol=1e-4)
    assert (blended[~HOLES] == floats[~HOLES]).all()


def test_hidden_pixels_are_not_read():
    floats, training = (x / np.float32(127.5) - 1 for x in (IMAGES, TRAINING))
    hidden = np.where(HOLES[..., None], np.float32(np.nan), floats)
    np.testing.assert_array_equal(nearest(hidden, HOLES, training), nearest(floats, HOLES, training))


@pytest.mark.parametrize("training", [TRAINING[:0], TRAINING[:, :8], TRAINING.astype(np.float32)])
def test_training_images_of_another_shape_or_type_are_refused(training):
    with pytest.raises(ValueError, match="`training` is"):
        nearest(IMAGES, HOLES, training)
