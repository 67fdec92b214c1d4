"""Holes and importance weights against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dcgan_jax import masks
from dcgan_jax.errors import UserError

KEYS = jax.random.split(jax.random.key(7), 24)


def brute_force_weights(hole, window):
    """Yeh et al., eq. 3, pixel by pixel."""
    h, w = hole.shape
    weights = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            around = [
                hole[r, c]
                for r in range(i - window // 2, i + window // 2 + 1)
                for c in range(j - window // 2, j + window // 2 + 1)
                if 0 <= r < h and 0 <= c < w
            ]
            weights[i, j] = 0 if hole[i, j] else sum(around) / len(around)
    return weights


@pytest.mark.parametrize("window", [1, 3, 7, 31])
def test_importance_weights_agree_with_brute_force(window):
    rng = np.random.default_rng(0)
    hole = rng.random((3, 12, 17)) < np.array([0.05, 0.5, 0.95])[:, None, None]
    hole[0, 0, 0] = hole[0, -1, 5] = True
    weights = masks.importance_weights(hole, window)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, [brute_force_weights(one, window) for one in hole], rtol=1e-6)


def test_importance_weights_of_a_half_agree_with_values_by_hand():
    hole = jnp.zeros((8, 8), bool).at[:4].set(True)
    weights = masks.importance_weights(hole)
    assert (weights[:4] == 0).all() and (weights[7] == 0).all()
    np.testing.assert_allclose(weights[4], 3 / 7, rtol=1e-6)  # 3 of the 7 rows of the window are missing
    np.testing.assert_allclose(weights[5], 2 / 6, rtol=1e-6)  # the window is cut at the border
    np.testing.assert_allclose(weights[6], 1 / 5, rtol=1e-6)


def test_importance_weights_agree_under_jit_vmap_and_with_more_axes():
    hole = np.random.default_rng(1).random((2, 3, 9, 9)) < 0.4
    weights = masks.importance_weights(hole)
    assert weights.shape == hole.shape
    assert (jax.jit(jax.vmap(masks.importance_weights))(hole) == weights).all()
    assert (masks.importance_weights(hole[1, 2]) == weights[1, 2]).all()
    assert (masks.importance_weights(np.zeros((4, 4), bool)) == 0).all()
    assert (masks.importance_weights(np.ones((4, 4), bool)) == 0).all()


@pytest.mark.parametrize("window", [0, 4, -3, 7.0, True])
def test_a_bad_window_is_refused_by_name(window):
    with pytest.raises(ValueError, match="`window`"):
        masks.importance_weights(np.zeros((8, 8), bool), window)


@pytest.mark.parametrize("hole", [np.zeros((8, 8), np.float32), np.zeros((8, 8), np.uint8), np.zeros(8, bool)])
def test_a_bad_hole_is_refused_by_name(hole):
    with pytest.raises(ValueError, match="`hole`"):
        masks.importance_weights(hole)


def test_center_is_the_middle_square():
    hole = np.asarray(masks.center(64))
    assert hole.dtype == bool and hole[16:48, 16:48].all() and hole.sum() == 32 * 32


def test_half_covers_each_of_four_halves():
    drawn = np.asarray(masks.by_name("half", KEYS, 16))
    halves = {one.tobytes() for one in drawn}
    expected = []
    for rows, columns in ((slice(8), slice(None)), (slice(8, None), slice(None))):
        one = np.zeros((16, 16), bool)
        one[rows, columns] = True
        expected += [one.tobytes(), one.T.copy().tobytes()]
    assert halves == set(expected)


def test_random_is_independent_per_pixel():
    drawn = np.asarray(masks.by_name("random", KEYS, 64))
    assert abs(drawn.mean() - 0.8) < 0.01
    # Neighbours are uncorrelated: both missing in 0.8^2 of all pairs.
    assert abs((drawn[:, 1:] & drawn[:, :-1]).mean() - 0.64) < 0.01
    assert abs((drawn[:, :, 1:] & drawn[:, :, :-1]).mean() - 0.64) < 0.01
    assert 0.2 < np.asarray(masks.random(KEYS[0], 64, 0.3)).mean() < 0.4


def test_pattern_misses_exactly_its_fraction_in_blobs():
    drawn = np.asarray(masks.by_name("pattern", KEYS, 64))
    assert (drawn.sum((1, 2)) == 1024).all()
    # In blobs nearly all neighbours of a missing pixel are missing; with independent pixels a quarter would be.
    assert (drawn[:, 1:] & drawn[:, :-1]).mean() > 0.75 * 0.25
    # The lattice leaves no trace: every pixel is missing about equally often.
    many = np.asarray(masks.by_name("pattern", jax.random.split(jax.random.key(0), 400), 16)).mean(axis=0)
    assert abs(many - 0.25).max() < 0.1
    for fraction, count in ((1.0, 256), (0.1, 26)):
        assert int(masks.pattern(KEYS[0], 16, fraction).sum()) == count


@pytest.mark.parametrize("name", masks.NAMES)
def test_a_named_mask_is_one_draw_for_each_key(name):
    drawn = masks.by_name(name, KEYS[:5], 16)
    assert drawn.shape == (5, 16, 16) and drawn.dtype == jnp.bool_
    one = masks.center(16) if name == "center" else getattr(masks, name)(KEYS[3], 16)
    assert (drawn[3] == one).all() and (masks.by_name(name, KEYS[:5], 16) == drawn).all()
    if name != "center":
        assert len({np.asarray(x).tobytes() for x in drawn}) > 1


def test_bad_drawing_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match=r"`name`.*center, half, random, pattern"):
        masks.by_name("circle", KEYS, 16)
    with pytest.raises(ValueError, match="`size`"):
        masks.center(0)
    with pytest.raises(ValueError, match="`fraction`"):
        masks.random(KEYS[0], 16, 80)
    with pytest.raises(ValueError, match="`fraction`"):
        masks.pattern(KEYS[0], 16, -0.1)


def test_mask_levels_from_128_are_missing(tmp_path):
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    expected = [[False, False, True, True]]
    Image.fromarray(levels).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([levels] * 3, axis=-1)).save(tmp_path / "colour.png")
    Image.fromarray(levels).convert("P").save(tmp_path / "palette.png")
    for name in ("grey.png", "colour.png", "palette.png"):
        hole = masks.read_hole(tmp_path / name)
        assert hole.dtype == bool and hole.tolist() == expected
    Image.fromarray(levels >= 128).save(tmp_path / "bits.png")
    assert masks.read_hole(str(tmp_path / "bits.png")).tolist() == expected


def test_a_bad_mask_file_is_refused_in_one_line(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "deep.tiff")
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "header.png").write_bytes((tmp_path / "cut.png").read_bytes()[:20])
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    for name, reason in [
        ("deep.tiff", "samples are floats"),
        ("text.png", "cannot be read"),
        ("cut.png", "cannot be read"),
        ("header.png", "cannot be read"),
        ("absent.png", "does not exist"),
        (".", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=reason) as error:
            masks.read_hole(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_mask_is_read_upright(tmp_path):
    pixels = np.zeros((4, 6), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "mask.png", exif=exif)
    assert (masks.read_hole(tmp_path / "mask.png") == np.rot90(pixels, -1).astype(bool)).all()
