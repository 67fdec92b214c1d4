"""Stanford Cars from its official files, and from folders of cropped cars."""

import io
from pathlib import Path

import numpy as np
import pytest
from official_sets import CARS, CLASSES, annotations, car_photos, class_names, opened, prepared_pixels, write_cars
from pictures import encode, photo, pictures, quiet, write_tree, write_zip
from PIL import Image

from dcgan_jax.errors import UserError


def test_splits_inside_one_outer_folder_are_found(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("form", ["folders", "archives", "beside"])
def test_cars_are_cropped_to_their_boxes(tmp_path: Path, form: str) -> None:
    prepared = quiet(write_cars(tmp_path / "cars", form), tmp_path / "out")
    manifest = prepared.manifest
    assert manifest["kind"] == "cars" and manifest["crop"] == "stretch" and manifest["cut"] == "the annotated box"
    assert manifest["splits"] == {"train": [0, 3], "test": [3, 4]} and manifest["class_names"] == CLASSES
    assert prepared.names == [f"cars_train/0000{i}.jpg" for i in (1, 2, 3)] + ["cars_test/00001.jpg"]
    assert prepared.labels is not None and prepared.labels.tolist() == [2, 0, 2, 1]
    boxes = [(10, 5, 70, 45), (0, 0, 96, 64), (29, 19, 96, 64), (1, 2, 50, 60)]
    data = [*car_photos("train").values(), *car_photos("test").values()]
    for row, (image, box) in enumerate(zip(data, boxes, strict=True)):
        np.testing.assert_array_equal(prepared.images[row], prepared_pixels(opened(image), box))


def test_one_split_and_missing_labels_are_accepted(tmp_path: Path) -> None:
    root = write_cars(tmp_path / "cars", "folders")
    alone = quiet(root / "cars_test", tmp_path / "alone")
    assert alone.manifest["splits"] == {"test": [0, 1]}
    assert alone.labels is not None and alone.labels.tolist() == [1]
    (root / "cars_test_annos_withlabels.mat").unlink()
    unlabelled = quiet(root / "cars_test", tmp_path / "unlabelled")
    assert unlabelled.labels is not None and unlabelled.labels.tolist() == [-1]
    np.testing.assert_array_equal(unlabelled.images, alone.images)


def test_a_folder_of_cropped_cars_needs_no_annotations(tmp_path: Path) -> None:
    files = {"train/Audi/1.png": encode(photo(0, 40, 20)), "train/BMW/2.png": encode(photo(1, 40, 20))}
    prepared = quiet(write_tree(tmp_path / "cars", files), tmp_path / "out", kind="cars", validation_fraction=0.5)
    assert prepared.manifest["class_names"] == ["Audi", "BMW"] and "cut" not in prepared.manifest
    for name, row in zip(prepared.names, prepared.images, strict=True):
        np.testing.assert_array_equal(row, prepared_pixels(opened(files[name])))


def test_missing_or_damaged_annotations_are_refused_by_name(tmp_path: Path) -> None:
    root = write_cars(tmp_path / "cars", "folders")
    for file, content, message in [
        ("devkit/cars_meta.mat", None, r"has no cars_meta\.mat"),
        ("devkit/cars_meta.mat", b"nothing", "not a readable MATLAB file with `class_names`"),
        ("devkit/cars_train_annos.mat", None, r"cars_train has no cars_train_annos\.mat beside it"),
        ("devkit/cars_train_annos.mat", annotations(CARS["test"]), r"00002\.jpg of .*cars_train has no annotation"),
        ("devkit/cars_train_annos.mat", class_names(), "not a readable MATLAB file with `annotations`"),
    ]:
        kept = (root / file).read_bytes()
        (root / file).unlink() if content is None else (root / file).write_bytes(content)
        with pytest.raises(UserError, match=message):
            quiet(root, tmp_path / "out")
        (root / file).write_bytes(kept)
