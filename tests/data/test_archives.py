"""Images in folders, ZIP files and tar files."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures import pictures, quiet, write_tar, write_tree, write_zip
from PIL import Image

TREE = ("b/1.png", "b/2.png", "a/x.PNG", "c/deep/er/3.jpg", "loose.png")


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "tar.gz"])
def test_class_folders_are_read_from_folders_and_archives(tmp_path: Path, form: str) -> None:
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


def test_a_tar_file_is_read_forward_only(tmp_path: Path, monkeypatch) -> None:
    offsets: list[int] = []
    extract = tarfile.TarFile.extractfile
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda self, m: offsets.append(m.offset) or extract(self, m))
    files = pictures(*(f"{(7 * i) % 101:03d}.png" for i in range(101)))
    prepared = quiet(write_tar(tmp_path / "in.tgz", files, "w:gz"), tmp_path / "out", image_size=20)
    assert len(offsets) == 101 and offsets == sorted(offsets)
    assert sorted(prepared.names) == sorted(files)
    for row, name in enumerate(prepared.names):
        np.testing.assert_array_equal(prepared.images[row], np.asarray(Image.open(io.BytesIO(files[name]))))
