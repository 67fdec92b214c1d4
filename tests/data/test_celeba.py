"""CelebA from its official files: crop, partition, attributes."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from official_sets import FACES, attribute_list
from pictures import encode, listing, photo, pictures, quiet, write_tree, write_zip
from PIL import Image

from dcgan_jax.errors import UserError

CELEBA_PARTITION = {"000003.jpg": 0, "000001.jpg": 2, "000002.jpg": 1, "000004.jpg": 0, "000009.jpg": 0}


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """CelebA's archive and partition. The partition also lists 000009.jpg, which the archive lacks."""
    folder = tmp_path / "celeba"
    folder.mkdir()
    names = [f"00000{i}.jpg" for i in (4, 2, 1, 3)]
    files = {f"img_align_celeba/{n}": encode(photo(int(n[:6]), 178, 218), "JPEG", quality=95) for n in names}
    write_zip(folder / "img_align_celeba.zip", files)
    lines = [f"{name} {part}\n" for name, part in CELEBA_PARTITION.items()]
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("size", [64, 32])
def test_the_crop_and_the_splits_are_the_official_ones(celeba: Path, tmp_path: Path, size: int) -> None:
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


def test_celeba_is_found_in_an_archive_or_unpacked(celeba: Path, tmp_path: Path) -> None:
    expected = quiet(celeba, tmp_path / "a").images
    with zipfile.ZipFile(celeba / "img_align_celeba.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    (celeba / "img_align_celeba.zip").rename(celeba / "renamed.zip")
    partition = celeba / "list_eval_partition.txt"
    np.testing.assert_array_equal(quiet(celeba / "renamed.zip", tmp_path / "b").images, expected)
    np.testing.assert_array_equal(quiet(tmp_path / "unpacked", tmp_path / "c", partition=partition).images, expected)


def test_images_without_a_line_in_the_partition_are_refused(celeba: Path, tmp_path: Path) -> None:
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


def test_a_partition_is_refused_for_other_images_and_found_by_option(celeba: Path, tmp_path: Path) -> None:
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


def test_the_crop_refuses_other_sizes(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", pictures("a.png", "b.png", width=218, height=178))
    with pytest.raises(UserError, match="218x178 pixels"):
        quiet(tmp_path / "in", tmp_path / "out", crop="celeba")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "celeba"
    folder.mkdir()
    write_zip(folder / "img_align_celeba.zip", {f"img_align_celeba/{n}": encode(photo(7, 178, 218)) for n in FACES})
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} {i % 3}\n" for i, name in enumerate(FACES)))
    (folder / "list_attr_celeba.txt").write_text(attribute_list({**FACES, "000009.jpg": (0, 0, 0)}))
    return folder


def numbers(prepared) -> list[int]:
    return sorted(int(Path(name).stem) for name in prepared.names)


@pytest.mark.parametrize(
    ("where", "left"),
    [
        (["Smiling=1"], [1, 2, 4]),
        (["Smiling=1", "Male=0"], [2]),
        (["Male=0,1", "5_o_Clock_Shadow=0"], [1, 2, 4]),
    ],
)
def test_attributes_select_images(faces: Path, tmp_path: Path, where: list[str], left: list[int]) -> None:
    prepared = quiet(faces, tmp_path / "out", where=where)
    assert numbers(prepared) == left and prepared.manifest["where"] == where
    (faces / "list_attr_celeba.txt").rename(tmp_path / "elsewhere.txt")
    again = quiet(faces, tmp_path / "again", where=where, attributes=tmp_path / "elsewhere.txt")
    assert again.manifest["sha256"] == prepared.manifest["sha256"] and again.names == prepared.names
    assert "where" not in quiet(faces, tmp_path / "all").manifest  # without conditions no attributes are needed


def test_conditions_that_cannot_be_met_are_refused(faces: Path, tmp_path: Path) -> None:
    for where, message in [
        ("Smilling=1", r"`where` 'Smilling=1': the source has no 'Smilling'; it has 5_o_Clock_Shadow, Male, Smiling$"),
        ("label=1", "the source has no 'label'"),
        ("Smiling=yes", "the value of an attribute is 1 or 0"),
        ("Smiling", "is not a condition"),
        (("Smiling=0", "Male=0"), "no image meets `where` 'Smiling=0' and 'Male=0'"),
    ]:
        with pytest.raises(UserError, match=message):
            quiet(faces, tmp_path / "out", where=where)
    path = faces / "list_attr_celeba.txt"
    for text, message in [
        (attribute_list(dict(list(FACES.items())[:3])), r"000004\.jpg has no line"),
        (attribute_list(FACES).replace("000002.jpg", "000002.jpg 1"), "line 4: expected a file name and 3 values"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            quiet(faces, tmp_path / "out", where="Male=1")
    path.unlink()
    with pytest.raises(UserError, match=r"put CelebA's list_attr_celeba\.txt beside the images"):
        quiet(faces, tmp_path / "out", where="Male=1")
    assert not (tmp_path / "out").exists()
