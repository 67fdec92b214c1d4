"""Image sources, preparation and prepared sets, on small files in the official formats."""

import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from pictures import encode, listing, photo, pictures, quiet, write_tar, write_tree, write_zip
from PIL import Image

from dcgan_jax.data import batch_indices, decode_image, open_prepared, preparation, prepare, verify
from dcgan_jax.errors import UserError

CELEBA_PARTITION = {"000003.jpg": 0, "000001.jpg": 2, "000002.jpg": 1, "000004.jpg": 0, "000009.jpg": 0}


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """CelebA's archive and partition; the partition also names 000009.jpg, which the archive lacks."""
    folder = tmp_path / "celeba"
    folder.mkdir()
    names = [f"00000{i}.jpg" for i in (4, 2, 1, 3)]
    files = {f"img_align_celeba/{n}": encode(photo(int(n[:6]), 178, 218), "JPEG", quality=95) for n in names}
    write_zip(folder / "img_align_celeba.zip", files)
    lines = [f"{name} {part}\n" for name, part in CELEBA_PARTITION.items()]
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    return folder


# CelebA


@pytest.mark.parametrize("size", [64, 32])
def test_celeba_crop_and_splits(celeba: Path, tmp_path: Path, size: int) -> None:
    prepared = quiet(celeba, tmp_path / "out", image_size=size)
    names = [f"img_align_celeba/00000{i}.jpg" for i in (3, 4, 2, 1)]
    assert prepared.names == names
    assert prepared.manifest["kind"] == "celeba"
    assert prepared.manifest["splits"] == {"train": [0, 2], "validation": [2, 3], "test": [3, 4]}
    with zipfile.ZipFile(celeba / "img_align_celeba.zip") as archive:
        for row, name in enumerate(names):
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(name))))[55:163, 35:143]
            expected = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
            np.testing.assert_array_equal(prepared.images[row], np.asarray(expected))
    np.testing.assert_array_equal(prepared.split("test"), prepared.images[3:4])
    assert prepared.labels is None
    with pytest.raises(UserError, match="no split 'extra'; it has train, validation, test"):
        prepared.split("extra")


def test_celeba_found_by_archive_or_unpacked(celeba: Path, tmp_path: Path) -> None:
    expected = quiet(celeba, tmp_path / "a").images
    with zipfile.ZipFile(celeba / "img_align_celeba.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    (celeba / "img_align_celeba.zip").rename(celeba / "renamed.zip")
    partition = celeba / "list_eval_partition.txt"
    np.testing.assert_array_equal(quiet(celeba / "renamed.zip", tmp_path / "b").images, expected)
    np.testing.assert_array_equal(quiet(tmp_path / "unpacked", tmp_path / "c", partition=partition).images, expected)


def test_celeba_image_without_partition_line(celeba: Path, tmp_path: Path) -> None:
    (celeba / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 0\n000003.jpg 0\n")
    with pytest.raises(UserError, match=r"000004\.jpg"):
        quiet(celeba, tmp_path / "out")
    (celeba / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg train\n")
    with pytest.raises(UserError, match="line 2"):
        quiet(celeba, tmp_path / "out")
    (celeba / "list_eval_partition.txt").unlink()
    with pytest.raises(UserError, match=r"list_eval_partition\.txt beside"):
        quiet(celeba, tmp_path / "out")
    assert listing(tmp_path) == {"celeba"}


def test_celeba_s_files_without_its_images_or_partition(celeba: Path, tmp_path: Path) -> None:
    partition = celeba / "list_eval_partition.txt"
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(encode(photo(0, 20, 20)))
    with pytest.raises(UserError, match=r"files of CelebA, but .* is of kind folder"):
        quiet(tmp_path / "pictures", tmp_path / "out", partition=partition)
    with zipfile.ZipFile(celeba / "img_align_celeba.zip") as archive:
        archive.extractall(tmp_path / "alone")
    assert quiet(tmp_path / "alone" / "img_align_celeba", tmp_path / "found", partition=partition).manifest["kind"] == (
        "celeba"
    )


def test_celeba_crop_refuses_other_sizes(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", pictures("a.png", "b.png", width=218, height=178))
    with pytest.raises(UserError, match="218x178 pixels"):
        quiet(tmp_path / "in", tmp_path / "out", crop="celeba")


# SVHN


def write_svhn(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (32, 32, 3, count), np.uint8)
    labels = np.arange(1, count + 1).reshape(count, 1) % 10
    labels[labels == 0] = 10  # as the official files have it
    path.parent.mkdir(exist_ok=True)
    scipy.io.savemat(path, {"X": pixels, "y": labels.astype(np.uint8)}, do_compression=True)
    return pixels, labels


def test_svhn(tmp_path: Path) -> None:
    pixels, labels = write_svhn(tmp_path / "svhn" / "train_32x32.mat", 12, seed=1)
    test_pixels, _ = write_svhn(tmp_path / "svhn" / "test_32x32.mat", 3, seed=2)
    prepared = quiet(tmp_path / "svhn", tmp_path / "out")
    assert prepared.manifest["splits"] == {"train": [0, 12], "test": [12, 15]}
    assert prepared.labels is not None and prepared.labels.dtype == np.int32
    assert 10 in labels
    np.testing.assert_array_equal(prepared.labels, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 1, 2, 3])
    for row, image in [(0, pixels[..., 0]), (9, pixels[..., 9]), (14, test_pixels[..., 2])]:
        expected = Image.fromarray(image.copy()).resize((64, 64), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(prepared.images[row], np.asarray(expected))
    same_size = quiet(tmp_path / "svhn" / "test_32x32.mat", tmp_path / "out32", image_size=32)
    np.testing.assert_array_equal(same_size.split("test"), np.moveaxis(test_pixels, 3, 0))


def test_svhn_of_another_format(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 4)), "y": np.ones((4, 1))})
    with pytest.raises(UserError, match=r"`X` is float64"):
        quiet(tmp_path, tmp_path / "out")
    (tmp_path / "train_32x32.mat").write_bytes(b"not a MATLAB file at all")
    with pytest.raises(UserError, match="not a readable SVHN file"):
        quiet(tmp_path, tmp_path / "out")


# Folders and archives

TREE = ("b/1.png", "b/2.png", "a/x.PNG", "c/deep/er/3.jpg", "loose.png")


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "tar.gz"])
def test_class_folders_in_every_form(tmp_path: Path, form: str) -> None:
    files = pictures(*TREE, width=40, height=30)
    extra = {"a/.hidden.png": b"x", ".git/y.png": b"x", "__MACOSX/a/z.png": b"x", "a/notes.txt": b"x"}
    everything = {**files, **extra}
    match form:
        case "folder":
            source = write_tree(tmp_path / "in", everything)
        case "zip":
            source = write_zip(tmp_path / "in.zip", everything)
        case "tar":
            source = write_tar(tmp_path / "in.tar", everything, "w")
        case _:
            source = write_tar(tmp_path / "in.tar.gz", everything, "w:gz")
    prepared = quiet(source, tmp_path / "out", image_size=16, validation_fraction=0.4)
    assert sorted(prepared.names) == sorted(TREE)
    assert prepared.manifest["class_names"] == ["a", "b", "c"]
    assert prepared.manifest["splits"] == {"train": [0, 3], "validation": [3, 5]}
    for split in ("train", "validation"):
        names = prepared.names[prepared.split_slice(split)]
        assert names == sorted(names)
    assert prepared.labels is not None
    labels = dict(zip(prepared.names, prepared.labels.tolist(), strict=True))
    assert labels == {"b/1.png": 1, "b/2.png": 1, "a/x.PNG": 0, "c/deep/er/3.jpg": 2, "loose.png": -1}
    for row, name in enumerate(prepared.names):
        square = Image.open(io.BytesIO(files[name])).crop((5, 0, 35, 30))
        expected = np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(prepared.images[row], expected)


def test_tar_is_read_forward_only(tmp_path: Path, monkeypatch) -> None:
    offsets: list[int] = []
    extract = tarfile.TarFile.extractfile
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda self, m: offsets.append(m.offset) or extract(self, m))
    files = pictures(*(f"{(7 * i) % 101:03d}.png" for i in range(101)))
    prepared = quiet(write_tar(tmp_path / "in.tgz", files, "w:gz"), tmp_path / "out", image_size=20)
    assert len(offsets) == 101 and offsets == sorted(offsets)
    assert sorted(prepared.names) == sorted(files)
    for row, name in enumerate(prepared.names):
        np.testing.assert_array_equal(prepared.images[row], np.asarray(Image.open(io.BytesIO(files[name]))))


def test_portrait_images_keep_their_middle(tmp_path: Path) -> None:
    files = pictures("a.png", width=10, height=31)
    pixels = np.asarray(Image.open(io.BytesIO(files["a.png"])))
    prepared = quiet(write_tree(tmp_path / "in", files), tmp_path / "out", image_size=10)
    np.testing.assert_array_equal(prepared.images[0], pixels[10:20])


def test_cars_splits_inside_a_wrapping_folder(tmp_path: Path) -> None:
    names = ("train/014/1.png", "train/002/2.png", "test/014/3.png", "test/196/4.png")
    files = pictures(*(f"cars_cropped/{name}" for name in names), width=48, height=24)
    source = write_zip(tmp_path / "cars_cropped.zip", files)
    prepared = quiet(source, tmp_path / "out", kind="cars")
    assert prepared.names == [f"cars_cropped/{names[i]}" for i in (1, 0, 2, 3)]
    assert prepared.manifest["splits"] == {"train": [0, 2], "test": [2, 4]}
    assert prepared.manifest["class_names"] == ["002", "014", "196"]
    assert prepared.labels is not None
    np.testing.assert_array_equal(prepared.labels, [0, 1, 1, 2])
    stretched = Image.open(io.BytesIO(files[prepared.names[3]])).resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(prepared.images[3], np.asarray(stretched))


def test_validation_folder_names(tmp_path: Path) -> None:
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


# Decoding


def test_orientation_transparency_and_channels() -> None:
    image = photo(0, 24, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    upright = np.asarray(decode_image(encode(image, exif=exif), 3))
    np.testing.assert_array_equal(upright, np.rot90(np.asarray(image), -1))

    red = np.zeros((2, 2, 4), np.uint8)
    red[..., 0], red[0, :, 3] = 255, 255
    flat = np.asarray(decode_image(encode(Image.fromarray(red)), 3))
    np.testing.assert_array_equal(flat, [[[255, 0, 0]] * 2, [[255, 255, 255]] * 2])

    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    flat = np.asarray(decode_image(encode(palette, transparency=1), 3))
    np.testing.assert_array_equal(flat, [[[0, 0, 255], [255, 255, 255]]])

    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    data = encode(Image.fromarray(grey))
    np.testing.assert_array_equal(np.asarray(decode_image(data, 3)), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(np.asarray(decode_image(data, 1)), grey)
    luma = np.asarray(decode_image(encode(image), 1)).astype(float)
    np.testing.assert_allclose(luma, np.asarray(image) @ [0.299, 0.587, 0.114], atol=1)


def png_16_bit_colour() -> bytes:
    """A 1x1 PNG of 16 bits a sample, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", 1, 2, 3))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_more_than_8_bits_is_refused() -> None:
    deep_grey = encode(Image.fromarray(np.full((4, 4), 40000, np.uint16)))
    for data in (deep_grey, png_16_bit_colour()):
        with pytest.raises(ValueError, match="more than 8 bits"):
            decode_image(data, 3)


# Digits


def test_digits(tmp_path: Path) -> None:
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


def test_unreadable_file_is_named_and_skipped(tmp_path: Path) -> None:
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
def test_interruption_leaves_nothing(tmp_path: Path, monkeypatch, interruption: type) -> None:
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


def test_sigterm_within_the_garbage_collector(tmp_path: Path) -> None:
    """Python drops an exception raised in one of its callbacks, so the clean-up must not be owed to one."""
    program = (
        "import gc, os, signal; from pathlib import Path; from dcgan_jax.storage.files import whole_folder\n"
        "with whole_folder(Path('a')) as a, whole_folder(Path('b')) as b:\n"
        "    (a / 'file').touch(); (b / 'file').touch()\n"
        "    gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGTERM)); gc.collect()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment).returncode == -signal.SIGTERM
    assert listing(tmp_path) == set()


def test_arguments_and_missing_things(tmp_path: Path) -> None:
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
    quiet(source, tmp_path / "empty")  # an empty folder may become the set
    assert open_prepared(tmp_path / "empty").manifest["count"] == 2


def test_full_disk_is_found_out_beforehand(tmp_path: Path, monkeypatch) -> None:
    source = write_tree(tmp_path / "in", pictures("a.png", "b.png"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 64 * 64 * 3 - 1))
    with pytest.raises(UserError, match=r"has 0\.0 GB free"):
        quiet(source, tmp_path / "out")
    assert listing(tmp_path) == {"in"}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 64 * 64 * 3))
    quiet(source, tmp_path / "out")


def test_names_with_line_ends_and_stray_bytes(tmp_path: Path) -> None:
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


# Prepared sets


@pytest.fixture
def prepared_path(tmp_path: Path) -> Path:
    source = write_tree(tmp_path / "in", pictures("a/1.png", "b/2.png", "b/3.png"))
    quiet(source, tmp_path / "set", image_size=16)
    return tmp_path / "set"


def test_open_is_lazy_and_read_only(prepared_path: Path) -> None:
    prepared = open_prepared(str(prepared_path))
    assert isinstance(prepared.images, np.memmap) and isinstance(prepared.split("train"), np.memmap)
    assert not prepared.images.flags.writeable
    assert prepared.images.dtype == np.uint8 and prepared.images.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(np.load(prepared_path / "images.npy"), prepared.images)
    digest = hashlib.sha256((prepared_path / "images.npy").read_bytes()).hexdigest()
    assert prepared.manifest["sha256"] == digest
    assert prepared.manifest["crop"] == "center" and prepared.manifest["filter"] == "lanczos"


def test_verify_catches_a_flipped_byte(prepared_path: Path) -> None:
    verify(prepared_path)
    with (prepared_path / "images.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    open_prepared(prepared_path)
    with pytest.raises(UserError, match="has changed since"):
        verify(prepared_path)


def test_damaged_sets_are_refused(prepared_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder.*dcgan-jax prepare"):
        open_prepared(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no manifest\.json, images\.npy, names\.txt.*dcgan-jax prepare"):
        open_prepared(tmp_path / "in")

    manifest_path, images_path = prepared_path / "manifest.json", prepared_path / "images.npy"
    manifest, images = json.loads(manifest_path.read_text()), images_path.read_bytes()

    images_path.write_bytes(images[:-1])
    with pytest.raises(UserError, match="truncated"):
        open_prepared(prepared_path)
    images_path.write_bytes(images)

    for change, named in [
        ({"count": 4}, r"\(3, 16, 16, 3\), but its manifest says uint8 \(4, 16, 16, 3\)"),
        ({"splits": {"train": [0, 9]}}, "splits outside"),
        ({"format": "another"}, "does not describe"),
        ({"format_version": 99}, "format version 99"),
    ]:
        manifest_path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(UserError, match=named):
            open_prepared(prepared_path)
    manifest_path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_prepared(prepared_path)
    manifest_path.write_text(json.dumps(manifest))

    (prepared_path / "names.txt").write_text("one\n")
    with pytest.raises(UserError, match="1 names for 3 images"):
        _ = open_prepared(prepared_path).names
    (prepared_path / "labels.npy").unlink()
    with pytest.raises(UserError, match=r"labels\.npy"):
        open_prepared(prepared_path)


# Batches


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (7, 7), (5, 1), (101, 32)])
def test_every_image_exactly_once_an_epoch(count: int, batch_size: int) -> None:
    steps = 3 * count  # that many batches are `batch_size` epochs, three times over
    batches = [batch_indices(step, batch_size, count, seed=3) for step in range(steps)]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    epochs = np.concatenate(batches).reshape(-1, count)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(count), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_batches_are_reproducible_and_writable() -> None:
    first = batch_indices(17, 64, 1000, seed=5)
    kept = first.copy()
    first[:] = 0  # the caller's copy: later calls must not see this
    for step in (40, 3, 90):  # other epochs, in any order
        batch_indices(step, 64, 1000, seed=5)
    np.testing.assert_array_equal(batch_indices(17, 64, 1000, seed=5), kept)
    assert not np.array_equal(batch_indices(17, 64, 1000, seed=6), kept)
    # Written down once: a resumed run must meet the same images with another NumPy or on another machine.
    assert batch_indices(0, 8, 8, seed=0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_batch_arguments() -> None:
    with pytest.raises(UserError, match="too small for a batch of 8: lower `batch_size`"):
        batch_indices(0, 8, 7, seed=0)
    for step, batch_size, seed in [(-1, 4, 0), (0, 0, 0), (0, 4, -1)]:
        with pytest.raises(UserError, match="0 or more"):
            batch_indices(step, batch_size, 7, seed=seed)


# Real data, where there is some: the folder of DCGAN_JAX_DATA holds svhn/test_32x32.mat


@pytest.mark.skipif("DCGAN_JAX_DATA" not in os.environ, reason="DCGAN_JAX_DATA names no folder of real sets")
def test_real_svhn(tmp_path: Path) -> None:
    file = Path(os.environ["DCGAN_JAX_DATA"]) / "svhn" / "test_32x32.mat"
    content = scipy.io.loadmat(file)
    prepared = quiet(file, tmp_path / "out", image_size=32)
    assert prepared.manifest["splits"] == {"test": [0, content["X"].shape[3]]}
    np.testing.assert_array_equal(prepared.images, np.moveaxis(content["X"], 3, 0))
    assert prepared.labels is not None
    np.testing.assert_array_equal(prepared.labels, np.where(content["y"] == 10, 0, content["y"]).ravel())
