"""Preparation of a set: crops, splits, unreadable files, interruptions and wrong arguments."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, listing, photo, pictures, quiet, write_tar, write_tree, write_zip
from PIL import Image

from dcgan_jax.data import open_prepared, preparation, prepare, verify
from dcgan_jax.errors import UserError


def test_portrait_images_are_cropped_to_their_middle(tmp_path: Path) -> None:
    files = pictures("a.png", width=10, height=31)
    pixels = np.asarray(Image.open(io.BytesIO(files["a.png"])))
    prepared = quiet(write_tree(tmp_path / "in", files), tmp_path / "out", image_size=10)
    np.testing.assert_array_equal(prepared.images[0], pixels[10:20])


def test_split_folders_become_splits(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "in", pictures("train/1.png", "val/2.png", "test/3.png"))
    prepared = quiet(source, tmp_path / "out")
    assert prepared.manifest["splits"] == {"train": [0, 1], "validation": [1, 2], "test": [2, 3]}
    assert prepared.names == ["train/1.png", "val/2.png", "test/3.png"]
    assert prepared.labels is None and not (tmp_path / "out" / "labels.npy").exists()


def test_held_out_images_are_the_same_every_time(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "in", pictures(*(f"{i:02d}.png" for i in range(40)), width=8, height=8))
    held_out = [quiet(source, tmp_path / f"out{i}", image_size=8) for i in range(2)]
    first, second = (p.names[p.split_slice("validation")] for p in held_out)
    assert first == second and len(first) == 2
    assert sorted(held_out[0].names) == [f"{i:02d}.png" for i in range(40)]


# Digits


def test_the_digits_are_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    prepared = quiet("digits", tmp_path / "out", image_size=32)
    assert prepared.images.shape == (1797, 32, 32, 1)
    assert prepared.manifest["splits"] == {"train": [0, 1438], "test": [1438, 1797]}
    source = load_digits()
    rows = [int(name.removeprefix("digits/")) for name in prepared.names]
    assert sorted(rows) == list(range(1797))
    assert prepared.labels is not None
    np.testing.assert_array_equal(prepared.labels, source.target[rows])
    grey = Image.fromarray(np.round(source.images[rows[5]] * 255 / 16).astype(np.uint8))
    np.testing.assert_array_equal(
        prepared.images[5, ..., 0], np.asarray(grey.resize((32, 32), Image.Resampling.BICUBIC))
    )
    assert prepared.manifest["filter"] == "bicubic"


# Unreadable files, errors, interruption


def test_an_unreadable_file_is_named_and_skipped(tmp_path: Path) -> None:
    files = pictures(*(f"{c}/{i:02d}.png" for c in "ab" for i in range(60)), width=8, height=8)
    broken = "a/30.png"
    files[broken] = files[broken][:60]
    source = write_zip(tmp_path / "in.zip", files)
    prepared = quiet(source, tmp_path / "out", image_size=8)
    assert [entry["name"] for entry in prepared.manifest["unreadable"]] == [broken]
    assert prepared.manifest["unreadable"][0]["reason"]
    assert sorted(prepared.names) == sorted(set(files) - {broken})
    assert prepared.manifest["splits"]["validation"][1] == prepared.manifest["count"] == 119
    assert prepared.labels is not None
    for row, name in enumerate(prepared.names):
        expected = np.asarray(Image.open(io.BytesIO(files[name])))
        np.testing.assert_array_equal(prepared.images[row], expected)
        assert prepared.labels[row] == "ab".index(name[0])
    verify(tmp_path / "out")
    assert listing(tmp_path / "out") == {"images.npy", "labels.npy", "manifest.json", "names.txt"}


@pytest.mark.parametrize("form", ["folder", "tar.gz"])
def test_too_many_unreadable_files_leave_nothing(tmp_path: Path, form: str) -> None:
    files = pictures(*(f"{i:02d}.png" for i in range(50)), width=8, height=8)
    files["07.png"] = b"these are no pixels"
    if form == "folder":
        source = write_tree(tmp_path / "in", files)
    else:
        source = write_tar(tmp_path / "in", files, "w:gz").rename(tmp_path / "in.tar.gz")
    with pytest.raises(UserError, match=r"1 so far of 50: 07\.png \(ValueError: its image format is unknown"):
        quiet(source, tmp_path / "out")
    assert listing(tmp_path) == {source.name}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch, interruption: type) -> None:
    source = write_tree(tmp_path / "in", pictures(*(f"{i:02d}.png" for i in range(40)), width=8, height=8))
    seen: list[str] = []

    def interrupted(image, crop):
        seen.extend(path.name for path in tmp_path.glob(".out.partial-*/images.npy"))
        raise interruption

    monkeypatch.setattr(preparation, "crop_image", interrupted)
    with pytest.raises(interruption):
        quiet(source, tmp_path / "out")
    assert seen, "the interruption must come while the array is being written"
    assert listing(tmp_path) == {"in"}


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "in", pictures(*(f"{i:02d}.png" for i in range(40)), width=8, height=8))
    program = (
        "import sys, time; from dcgan_jax.data import preparation as p; crop = p.crop_image\n"
        "p.crop_image = lambda *a: (time.sleep(0.2), crop(*a))[1]\n"
        "p.prepare(sys.argv[1], sys.argv[2], progress=False)\n"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".out.partial-*/images.npy")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
    assert listing(tmp_path) == {"in"}


def test_sigterm_during_garbage_collection_leaves_nothing(tmp_path: Path) -> None:
    """Python drops an exception raised in such a callback, so the clean-up must not depend on one."""
    program = (
        "import gc, os, signal; from pathlib import Path; from dcgan_jax.storage.files import whole_folder\n"
        "with whole_folder(Path('a')) as a, whole_folder(Path('b')) as b:\n"
        "    (a / 'file').touch(); (b / 'file').touch()\n"
        "    gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGTERM)); gc.collect()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment).returncode == -signal.SIGTERM
    assert listing(tmp_path) == set()


def test_wrong_arguments_and_missing_sources_are_refused(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "in", pictures("a.png", "b.png"))
    for options, named in [
        ({"kind": "imagenet"}, "`kind`"),
        ({"image_size": 0}, "`image_size`"),
        ({"channels": 4}, "`channels`"),
        ({"crop": "left"}, "`crop`"),
        ({"validation_fraction": 1.0}, "`validation_fraction`"),
    ]:
        with pytest.raises(UserError, match=named):
            quiet(source, tmp_path / "out", **options)
    with pytest.raises(UserError, match="does not exist"):
        quiet(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        quiet(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "broken.zip").write_bytes(b"PK but no archive")
    with pytest.raises(UserError, match="damaged"):
        quiet(tmp_path / "broken.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="exists already: remove it"):
        quiet(source, source)
    quiet(source, tmp_path / "empty")  # an empty folder is accepted as `out`
    assert open_prepared(tmp_path / "empty").manifest["count"] == 2


def test_too_little_disk_space_is_refused_before_the_work(tmp_path: Path, monkeypatch) -> None:
    source = write_tree(tmp_path / "in", pictures("a.png", "b.png"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 64 * 64 * 3 - 1))
    with pytest.raises(UserError, match=r"has 0\.0 GB free"):
        quiet(source, tmp_path / "out")
    assert listing(tmp_path) == {"in"}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 64 * 64 * 3))
    quiet(source, tmp_path / "out")


def test_names_with_line_ends_and_stray_bytes_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in (b"a\nb.png", b"c\xff.png", "d\u2028e.png".encode()):
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(encode(photo(0, 8, 8)))
    assert sorted(quiet(tmp_path / "in", tmp_path / "out").names) == [
        "a\\nb.png",
        "c\\udcff.png",
        "d\u2028e.png",
    ]


def test_progress_goes_to_stderr(tmp_path: Path, capsys) -> None:
    source = write_tree(tmp_path / "in", pictures("a.png", "b.png"))
    prepare(source, tmp_path / "loud", progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "2/2" in captured.err and "images/s" in captured.err
    prepare(source, tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""
