"""SVHN from its official files: cropped digits (format 2), and photographs (format 1)."""

import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from official_sets import opened, prepared_pixels, write_svhn
from pictures import encode, photo, quiet, write_tar, write_tree
from PIL import Image

from dcgan_jax.errors import UserError


def test_the_cropped_digits_keep_their_pixels_and_labels(tmp_path: Path) -> None:
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


def test_damaged_files_of_cropped_digits_are_refused(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 4)), "y": np.ones((4, 1))})
    with pytest.raises(UserError, match=r"`X` is float64"):
        quiet(tmp_path, tmp_path / "out")
    (tmp_path / "train_32x32.mat").write_bytes(b"not a MATLAB file at all")
    with pytest.raises(UserError, match="not a readable SVHN file"):
        quiet(tmp_path, tmp_path / "out")


@pytest.mark.skipif("DCGAN_JAX_DATA" not in os.environ, reason="DCGAN_JAX_DATA names no folder of real sets")
def test_the_real_cropped_digits_keep_their_pixels_and_labels(tmp_path: Path) -> None:
    file = Path(os.environ["DCGAN_JAX_DATA"]) / "svhn" / "test_32x32.mat"
    content = scipy.io.loadmat(file)
    prepared = quiet(file, tmp_path / "out", image_size=32)
    assert prepared.manifest["splits"] == {"test": [0, content["X"].shape[3]]}
    np.testing.assert_array_equal(prepared.images, np.moveaxis(content["X"], 3, 0))
    assert prepared.labels is not None
    np.testing.assert_array_equal(prepared.labels, np.where(content["y"] == 10, 0, content["y"]).ravel())


# SVHN's photographs (format 1)

# Each photograph: width, height, and the left, top, width, height and label of each digit.
PHOTOGRAPHS = {
    "1.png": (80, 50, [(20, 10, 12, 24, 1), (34, 11, 14, 23, 10), (60, 30, 8, 9, 5)]),
    "2.png": (60, 40, [(30, 8, 11, 20, 7)]),
    "3.png": (40, 30, [(-1, 5, 10, 20, 2), (34, 18, 6, 12, 3)]),
    "10.png": (16, 30, [(2, 2, 12, 25, 9)]),
}
# The squares around the digits, computed by hand: left, top, right, bottom. The test itself checks the narrow 10.png.
SQUARES = {
    "train/1-1": (14, 10, 38, 34),
    "train/1-2": (30, 11, 53, 34),
    "train/1-3": (60, 30, 69, 39),
    "train/2-1": (26, 8, 46, 28),
    "train/3-1": (0, 5, 20, 25),  # shifted into the photograph from -6 to 14
    "train/3-2": (28, 18, 40, 30),  # shifted into the photograph from 31 to 43
}
LABELS = {"1-1": 1, "1-2": 0, "1-3": 5, "2-1": 7, "3-1": 2, "3-2": 3, "10-1": 9}


def digit_struct(photographs: dict, userblock: int = 512) -> bytes:
    """MATLAB's HDF5 layout: references to names and groups. Only the numbers of a single digit are stored in place."""
    h5py = pytest.importorskip("h5py")
    stream = io.BytesIO()
    with h5py.File(stream, "w", userblock_size=userblock) as file:
        count = 0

        def add(value):
            nonlocal count
            count += 1
            return file.create_dataset(f"#refs#/{count}", data=value).ref

        names, boxes = [], []
        for name, (_, _, digits) in photographs.items():
            names.append([add(np.array([[ord(c)] for c in name], np.uint16))])
            group = file.create_group(f"#refs#/box{name}")
            for field, numbers in zip(
                ("left", "top", "width", "height", "label"), zip(*digits, strict=True), strict=True
            ):
                if len(numbers) == 1:
                    group[field] = np.array([[float(numbers[0])]])
                else:
                    group.create_dataset(field, data=[[add([[float(n)]])] for n in numbers], dtype=h5py.ref_dtype)
            boxes.append([group.ref])
        file.create_dataset("digitStruct/name", data=names, dtype=h5py.ref_dtype)
        file.create_dataset("digitStruct/bbox", data=boxes, dtype=h5py.ref_dtype)
    data = bytearray(stream.getvalue())
    data[: min(userblock, 19)] = b"MATLAB 7.3 MAT-file"[:userblock]
    return bytes(data)


def street_photos() -> dict[str, bytes]:
    sizes = {name: (width, height) for name, (width, height, _) in PHOTOGRAPHS.items()}
    return {name: encode(photo(i, *size)) for i, (name, size) in enumerate(sizes.items())}


@pytest.mark.parametrize("form", ["folder", "tar.gz"])
@pytest.mark.parametrize("userblock", [0, 512])
def test_digits_are_cut_out_of_photographs(tmp_path: Path, monkeypatch, form: str, userblock: int) -> None:
    reads: list[str] = []
    extract = tarfile.TarFile.extractfile
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda self, m: reads.append(m.name) or extract(self, m))
    photos = street_photos()
    files = {f"train/{name}": data for name, data in photos.items()}
    files |= {"train/digitStruct.mat": digit_struct(PHOTOGRAPHS, userblock), "train/see_bboxes.m": b"%"}
    root = tmp_path / "svhn"
    root.mkdir()
    if form == "folder":
        write_tree(root, files)
    else:
        write_tar(root / "train.tar.gz", files, "w:gz")
    prepared = quiet(root, tmp_path / "out", image_size=32, validation_fraction=0.2)
    assert prepared.manifest["kind"] == "svhn" and prepared.manifest["cut"] == "the digit's box, extended to a square"
    assert prepared.manifest["splits"] == {"train": [0, 6], "validation": [6, 7]}
    row = {name: i for i, name in enumerate(prepared.names)}
    assert prepared.labels is not None and len(row) == 7
    assert {name: prepared.labels[i] for name, i in row.items()} == {f"train/{k}": v for k, v in LABELS.items()}
    for name, square in SQUARES.items():
        image = opened(photos[name[6:].split("-")[0] + ".png"])
        np.testing.assert_array_equal(prepared.images[row[name]], prepared_pixels(image, square, 32))
    # The square is 25 wide and the photograph 16: its edge columns are repeated 4 times left and 5 times right.
    narrow = np.asarray(opened(photos["10.png"]))[2:27]
    narrow = np.concatenate([narrow[:, :1]] * 4 + [narrow] + [narrow[:, -1:]] * 5, axis=1)
    np.testing.assert_array_equal(prepared.images[row["train/10-1"]], prepared_pixels(Image.fromarray(narrow), size=32))
    if form == "tar.gz":  # each photograph is read once and in order, however many digits it has
        assert reads == ["train/digitStruct.mat", *(f"train/{name}" for name in PHOTOGRAPHS)]


def test_photographs_are_found_by_split(tmp_path: Path) -> None:
    data = digit_struct({"2.png": PHOTOGRAPHS["2.png"], "7.png": PHOTOGRAPHS["2.png"]})
    image = street_photos()["2.png"]
    write_tree(tmp_path / "svhn", {"test/2.png": image, "test/digitStruct.mat": data})
    write_tar(tmp_path / "svhn" / "train.tar.gz", {"train/2.png": image, "train/digitStruct.mat": data}, "w:gz")
    both = quiet(tmp_path / "svhn", tmp_path / "both")
    assert both.names == ["train/2-1", "test/2-1"] and list(both.manifest["splits"]) == ["train", "test"]
    assert quiet(tmp_path / "svhn" / "test", tmp_path / "one").names == ["test/2-1"]
    assert quiet(tmp_path / "svhn" / "train.tar.gz", tmp_path / "archive").names == ["train/2-1"]


def test_missing_or_wrong_annotations_are_refused_by_name(tmp_path: Path, monkeypatch) -> None:
    photos = street_photos()
    root = write_tree(tmp_path / "train", photos)
    with pytest.raises(UserError, match=r"train has no digitStruct\.mat in it"):
        quiet(root, tmp_path / "out", kind="svhn")
    for content, message in [
        (b"nothing", "not a readable SVHN annotation"),
        (digit_struct({"2.png": PHOTOGRAPHS["2.png"]}), r"1\.png of .* has no entry in its digitStruct\.mat"),
        (digit_struct({"2.png": (60, 40, [(0, 0, 5, 5, 11)])}), "has a label 11"),
    ]:
        (root / "digitStruct.mat").write_bytes(content)
        with pytest.raises(UserError, match=message):
            quiet(root, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py: pip install 'dcgan-jax\[svhn\]'"):
        quiet(root, tmp_path / "out")
