"""Conversion to uint8, grids, labels and PNG files."""

import numpy as np
import pytest
from PIL import Image

from dcgan_jax.images import figures, pixels


def test_uint8_survives_the_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    unit = pixels.to_float(levels)
    assert unit.dtype == np.float32 and unit[0] == -1 and unit[255] == 1
    np.testing.assert_allclose(unit, levels / 127.5 - 1, atol=1e-7)
    assert (pixels.to_uint8(unit) == levels).all()


def test_to_uint8_rounds_and_clips():
    unit = (np.arange(255) + 0.5) / 127.5 - 1
    assert set(pixels.to_uint8(unit + 1e-4) - np.arange(255)) == {1}
    assert set(pixels.to_uint8(unit - 1e-4) - np.arange(255)) == {0}
    given = np.array([-7, -1.001, 1.001, 7, np.inf, -np.inf, np.nan])
    assert pixels.to_uint8(given).tolist() == [0, 0, 255, 255, 255, 0, 128]


def test_the_masked_view_hides_only_the_hole():
    image = np.random.default_rng(0).integers(0, 255, (2, 4, 5, 3)).astype(np.uint8)
    hole = np.zeros((4, 5), bool)
    hole[1, 2:] = True
    view = figures.masked_view(image, hole)
    assert (view[:, 1, 2:] == 255).all() and (view[:, ~hole] == image[:, ~hole]).all()
    lost = np.where(hole[..., None], np.nan, pixels.to_float(image))
    assert (figures.masked_view(lost, hole) == view).all()
    assert (figures.masked_view(image, hole, level=128)[:, hole] == 128).all()


def test_tile_places_every_image():
    image = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 1)).astype(np.uint8)
    grid = figures.tile(image, columns=3, pad=1)
    assert grid.shape == (9, 20, 3) and grid.dtype == np.uint8
    for i in range(5):
        top, left = (i // 3) * 5, (i % 3) * 7
        assert (grid[top : top + 4, left : left + 6] == image[i]).all()
    assert (grid[4] == 255).all() and (grid[:, 6] == 255).all() and (grid[5:, 14:] == 255).all()
    assert (figures.tile(pixels.to_float(image), columns=3, pad=1) == grid).all()


def test_a_strip_has_one_row_for_each_image():
    rng = np.random.default_rng(0)
    columns = rng.integers(0, 255, (4, 3, 8, 8, 3)).astype(np.uint8)
    whole = figures.strip(*columns)
    assert whole.shape == (28, 38, 3)
    for row in range(3):
        for column in range(4):
            cell = whole[row * 10 : row * 10 + 8, column * 10 : column * 10 + 8]
            assert (cell == columns[column, row]).all()
    assert (figures.strip(None, *columns[1:]) == whole[:, 10:]).all()
    # uint8 and float images may be mixed.
    assert (figures.strip(columns[0], columns[1], pixels.to_float(columns[2]), columns[3]) == whole).all()


def test_labels_are_written_beside_an_unchanged_grid():
    grid = np.full((66, 130, 3), 77, np.uint8)
    figure = figures.labelled(grid, ["first", "a longer second"], ["masked", "blended"])
    assert (figure[-66:, -130:] == grid).all()
    left, top = figure.shape[1] - 130, figure.shape[0] - 66
    beside, above = figure[top:, :left], figure[:top, left:]
    assert left > 60 and top > 10 and (figure[:top, :left] == 255).all()
    for margin in (beside[:33], beside[33:], above[:, :65], above[:, 65:]):
        assert margin.min() < 60 and (margin == 255).mean() > 0.5
    assert (figures.labelled(grid, [], []) == grid).all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_a_png_file_keeps_every_pixel(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    path = tmp_path / "figure.png"
    path.write_text("older")
    figures.save_png(path, array)
    assert (np.asarray(Image.open(path)).reshape(shape) == array).all()
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_text("older")

    def full_disk(*_):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        figures.save_png(path, np.zeros((2, 2), np.uint8))
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"] and path.read_text() == "older"


def test_bad_arguments_are_refused_by_name(tmp_path):
    image = np.zeros((2, 4, 4, 3), np.uint8)
    for call, name in [
        (lambda: pixels.to_uint8(image), "`images`"),
        (lambda: pixels.to_float(image.astype(np.float32)), "`images`"),
        (lambda: figures.masked_view(image, np.zeros((4, 4))), "`hole`"),
        (lambda: figures.masked_view(image, np.zeros((3, 4), bool)), "`hole`"),
        (lambda: figures.tile(image[0], 2), "`images`"),
        (lambda: figures.tile(image[..., :2], 2), "`images`"),
        (lambda: figures.tile(image.astype(np.int32), 2), "`images`"),
        (lambda: figures.tile(image, 0), "`columns`"),
        (lambda: figures.strip(image, image, image[:1], image), "`completion`"),
        (lambda: figures.labelled(image, [], []), "`grid`"),
        (lambda: figures.save_png(tmp_path / "x.png", image), "`array`"),
    ]:
        with pytest.raises(ValueError, match=name):
            call()
