"""Images and masks on disk: how they are paired by name and read."""

import shutil

import folders
import numpy as np
import pytest
from folders import HOLE, KNOWN, NAMES, PIXELS, SIZE, lines, read, run
from PIL import Image

from dcgan_jax.errors import UserError

images, mask = folders.images, folders.mask


def test_masks_are_paired_with_images_by_stem(images, tmp_path):
    holes = {}
    (tmp_path / "masks").mkdir()
    for i, name in enumerate(NAMES):
        holes[name] = np.roll(HOLE, i, axis=0) if i else HOLE.T
        Image.fromarray(holes[name]).save(tmp_path / "masks" / f"{name}.bmp")
    Image.fromarray(HOLE).save(tmp_path / "masks" / "unused.png")
    run(images, tmp_path / "masks", tmp_path / "out")
    for name, hole in holes.items():
        changed = (read(tmp_path / "out" / f"{name}.png") != PIXELS[name]).any(axis=-1)
        assert not changed[~hole].any() and changed[hole].mean() > 0.9
    (tmp_path / "masks" / "b.1.bmp").unlink()
    report = run(images, tmp_path / "masks", tmp_path / "others")  # the others are completed
    assert list(report.skipped) == ["b.1"] and "it has no mask in" in report.skipped["b.1"]
    assert report.completed == len(NAMES) - 1
    (tmp_path / "text").mkdir()
    Image.fromarray(HOLE).save(tmp_path / "text" / "other.png")
    with pytest.raises(UserError, match=rf"{len(NAMES)} images, such as '.*', have no mask in .*text"):
        run(images, tmp_path / "text", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_mask_levels_from_128_are_missing(images, tmp_path):
    levels = np.zeros((SIZE, SIZE), np.uint8)
    levels[3:6], levels[7:9] = 127, 128
    Image.fromarray(levels).save(tmp_path / "levels.png")
    run(images, tmp_path / "levels.png", tmp_path / "out")
    for line in lines(tmp_path / "out"):
        assert line["missing"] == 2 * SIZE
        changed = (read(tmp_path / "out" / f"{line['name']}.png") != PIXELS[line["name"]]).any(axis=-1)
        assert changed[7:9].mean() > 0.9 and not changed[:7].any() and not changed[9:].any()


def test_an_image_with_a_mask_of_another_size_is_skipped_by_name(images, tmp_path):
    Image.fromarray(HOLE[:, :6]).save(tmp_path / "narrow.png")
    with pytest.raises(UserError, match="the mask of 'a' is 12x6, but the image is 12x12"):
        run(images, tmp_path / "narrow.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "masks").mkdir()
    for name in NAMES:
        Image.fromarray(HOLE[:, :6] if name == "c" else HOLE).save(tmp_path / "masks" / f"{name}.png")
    report = run(images, tmp_path / "masks", tmp_path / "out")
    assert report.completed == 2 and report.skipped.keys() == {"c"}
    assert "the mask of 'c' is 12x6, but the image is 12x12" in report.skipped["c"]


def test_transparent_parts_are_missing(tmp_path):
    (tmp_path / "images").mkdir()
    for name in NAMES[:2]:
        layers = np.dstack([PIXELS[name], np.where(HOLE, 0, 255).astype(np.uint8)])
        Image.fromarray(layers).save(tmp_path / "images" / f"{name}.png")
    Image.fromarray(PIXELS["c"]).save(tmp_path / "images" / "c.png")
    report = run(tmp_path / "images", "alpha", tmp_path / "out")
    assert report.completed == 2 and "'c' has no transparent part" in report.skipped["c"] and not report.notes
    for name in NAMES[:2]:
        result = read(tmp_path / "out" / f"{name}.png")
        assert (result[KNOWN] == PIXELS[name][KNOWN]).all() and (result[HOLE] != 255).any()
    run(tmp_path / "images", tmp_path / "images", tmp_path / "same")
    run(tmp_path / "images" / "a.png", tmp_path / "images" / "a.png", tmp_path / "one", batch_size=3)
    for other in ("same", "one"):
        assert (tmp_path / other / "a.png").read_bytes() == (tmp_path / "out" / "a.png").read_bytes()


def test_masks_are_inverted_on_request(images, mask, tmp_path):
    Image.fromarray(KNOWN).save(tmp_path / "inverted.png")
    run(images, mask, tmp_path / "out")
    run(images, tmp_path / "inverted.png", tmp_path / "again", invert_masks=True)
    for name in NAMES:
        assert (tmp_path / "out" / f"{name}.png").read_bytes() == (tmp_path / "again" / f"{name}.png").read_bytes()


def test_files_that_are_not_images_are_reported(images, mask, tmp_path):
    (images / ".hidden.txt").write_text("hidden")
    (images / "out").mkdir()
    (images / "out" / "results.jsonl").write_text("")
    assert run(images, mask, images / "out").others == ["notes.txt"]


def test_masks_and_images_are_paired_in_subfolders(tmp_path):
    for folder, pixels in (("images", PIXELS["a"]), ("masks", np.where(HOLE, 255, 0).astype(np.uint8))):
        (tmp_path / folder / "train").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / folder / "train" / "0.png")
        (tmp_path / folder / "._0.png").write_text("a file of macOS")
    assert run(tmp_path / "images", tmp_path / "masks", tmp_path / "out").completed == 1
    result = read(tmp_path / "out" / "train" / "0.png")
    assert (result[KNOWN] == PIXELS["a"][KNOWN]).all() and (result[HOLE] != PIXELS["a"][HOLE]).any()


def test_two_masks_of_one_name_are_refused(images, tmp_path):
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "a.bmp", "b.1.png", "c.png"):
        Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8)).save(tmp_path / "masks" / name)
    with pytest.raises(UserError, match="two images named 'a'"):
        run(images, tmp_path / "masks", tmp_path / "out")


def test_a_count_reads_only_the_first_files(images, mask, tmp_path):
    Image.new("RGB", (5, 5)).save(images / "z.png")
    run(images, mask, tmp_path / "out", count=2)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "b.1.png"]


def test_masks_and_results_inside_the_image_folder_are_not_images(images, tmp_path):
    (images / "masks").mkdir()
    for name in NAMES:
        Image.fromarray(HOLE).save(images / "masks" / f"{name}.png")
    for _ in range(2):
        report = run(images, images / "masks", images / "out")
        assert report.completed + report.before == 3
    assert [line["name"] for line in lines(images / "out")] == list(NAMES)
    shutil.rmtree(images / "out")
    shutil.rmtree(images / "masks")
    assert run(images, "half", images.parent).completed == 3  # now the images lie inside the result folder
