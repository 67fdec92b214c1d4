"""Sets that tensorflow-datasets itself has written."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from official_sets import ATTRIBUTES, CARS, CLASSES, FACES, car_photos, opened, prepared_pixels, write_cars
from pictures import encode, photo, quiet
from PIL import Image

from dcgan_jax.command import main
from dcgan_jax.data import open_prepared, sources
from dcgan_jax.errors import UserError


def build(data_dir: Path, name: str, features: dict, splits: dict[str, list[dict]], file_format: str) -> None:
    """Writes a set of this name with tensorflow-datasets."""
    tfds = pytest.importorskip("tensorflow_datasets")
    if file_format == "tfrecord":
        pytest.importorskip("tensorflow")

    class Set(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.1.0")
        pkg_dir_path = None

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            for i, example in enumerate(examples):
                yield i, {**example, "image": io.BytesIO(example["image"])}

    Set.name = name
    Set(data_dir=data_dir, file_format=file_format).download_and_prepare()


def by_pixels(prepared) -> dict[bytes, tuple[str | None, int | None]]:
    """Split and label of each image, by its pixels, because tensorflow-datasets shuffles the images."""
    found = {}
    for split in prepared.manifest["splits"]:
        part = prepared.split_slice(split)
        labels = [None] * len(prepared.images[part]) if prepared.labels is None else prepared.labels[part].tolist()
        found |= {image.tobytes(): (split, label) for image, label in zip(prepared.images[part], labels, strict=True)}
    return found


FORMATS = ["array_record", "parquet", "tfrecord"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_celeb_a_is_read_with_its_attributes(tmp_path: Path, file_format: str) -> None:
    features = pytest.importorskip("tensorflow_datasets").features
    names = ["000001.jpg", "000002.jpg", "000003.jpg", "000004.jpg"]
    data = {name: encode(photo(i, 178, 218), "JPEG", quality=95) for i, name in enumerate(names)}
    examples = [
        {
            "image": data[n],
            "landmarks": {"nose_x": i},
            "attributes": dict(zip(ATTRIBUTES, map(bool, FACES[n]), strict=True)),
        }
        for i, n in enumerate(names)
    ]
    described = {
        "image": features.Image(shape=(218, 178, 3), encoding_format="jpeg"),
        "landmarks": {"nose_x": np.int64},
        "attributes": {name: np.bool_ for name in ATTRIBUTES},
    }
    splits = {"train": examples[:2], "validation": examples[2:3], "test": examples[3:]}
    build(tmp_path / "sets", "celeb_a", described, splits, file_format)
    expected = {n: prepared_pixels(opened(data[n]), (35, 55, 143, 163)).tobytes() for n in names}

    prepared = quiet("tfds:celeb_a", tmp_path / "out", data_dir=str(tmp_path / "sets"))
    assert prepared.manifest["kind"] == "celeba" and prepared.manifest["source"] == "tfds:celeb_a"
    wanted = zip(names, ["train", "train", "validation", "test"], strict=True)
    assert by_pixels(prepared) == {expected[name]: (split, None) for name, split in wanted}
    part = quiet(
        "tfds:celeb_a:2.1.0", tmp_path / "part", data_dir=str(tmp_path / "sets"), where=["Smiling=1", "Male=1"]
    )
    assert set(by_pixels(part)) == {expected["000001.jpg"], expected["000004.jpg"]}


@pytest.mark.parametrize("file_format", FORMATS)
def test_svhn_cropped_is_read_with_its_labels(tmp_path: Path, file_format: str) -> None:
    features = pytest.importorskip("tensorflow_datasets").features
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 256, (120, 32, 32, 3), np.uint8)
    examples = [{"image": encode(Image.fromarray(d)), "label": i % 10, "id": str(i)} for i, d in enumerate(digits)]
    described = {
        "image": features.Image(shape=(32, 32, 3)),
        "label": features.ClassLabel(num_classes=10),
        "id": features.Text(),
    }
    splits = {"train": examples[:90], "test": examples[90:110], "extra": examples[110:]}
    build(tmp_path / "sets", "svhn_cropped", described, splits, file_format)
    options = ["--data-dir", str(tmp_path / "sets"), "--image-size", "32", "--quiet"]
    assert main.main(["prepare", "tfds:svhn_cropped", "--out", str(tmp_path / "out"), *options]) == 0
    prepared = open_prepared(tmp_path / "out")
    assert prepared.manifest["kind"] == "svhn" and prepared.manifest["class_names"] == list("0123456789")
    found = by_pixels(prepared)
    held_out = {"test": 90, "extra": 110}
    for i, digit in enumerate(digits):
        split = "train" if i < held_out["test"] else "test" if i < held_out["extra"] else "extra"
        assert found[digit.tobytes()] == (split, i % 10)
    sevens = quiet("tfds:svhn_cropped", tmp_path / "7", data_dir=str(tmp_path / "sets"), image_size=32, where="label=7")
    assert set(by_pixels(sevens)) == {digit.tobytes() for digit in digits[7::10]}


@pytest.mark.parametrize("file_format", FORMATS)
def test_cars196_equals_the_official_files(tmp_path: Path, file_format: str) -> None:
    features = pytest.importorskip("tensorflow_datasets").features
    official = quiet(write_cars(tmp_path / "cars", "archives"), tmp_path / "official")
    splits = {}
    for split, entries in CARS.items():
        splits[split] = [
            {
                "image": image,
                "label": CLASSES[label - 1],
                # As in the set's own code: the official numbers divided by width and height.
                "bbox": features.BBox(y1 / 64, x1 / 96, min(y2, 64) / 64, min(x2, 96) / 96),
            }
            for image, ((x1, y1, x2, y2), label) in zip(car_photos(split).values(), entries.values(), strict=True)
        ]
    described = {"image": features.Image(), "label": features.ClassLabel(names=CLASSES), "bbox": features.BBoxFeature()}
    build(tmp_path / "sets", "cars196", described, splits, file_format)
    prepared = quiet("tfds:cars196", tmp_path / "out", data_dir=str(tmp_path / "sets"))
    assert by_pixels(prepared) == by_pixels(official)
    for key in ("kind", "crop", "cut", "class_names", "splits"):
        assert prepared.manifest[key] == official.manifest[key]


def test_other_sets_and_splits_are_read(tmp_path: Path) -> None:
    features = pytest.importorskip("tensorflow_datasets").features
    described = {"image": features.Image(), "label": features.ClassLabel(names=["b", "a"])}
    images = [encode(photo(i, 30, 20)) for i in range(3)]
    examples = [{"image": image, "label": i % 2} for i, image in enumerate(images)]
    build(tmp_path, "my_own", described, {"val": examples[:2], "unseen": examples[2:]}, "array_record")
    prepared = quiet("tfds:my_own", tmp_path / "out", data_dir=str(tmp_path))
    assert prepared.manifest["kind"] == "folder" and prepared.manifest["class_names"] == ["b", "a"]
    wanted = zip(images, [("validation", 0), ("validation", 1), ("unseen", 0)], strict=True)
    assert by_pixels(prepared) == {prepared_pixels(opened(d), (5, 0, 25, 20)).tobytes(): at for d, at in wanted}


def test_missing_parquet_records_are_refused(tmp_path: Path) -> None:
    features = pytest.importorskip("tensorflow_datasets").features
    described = {"image": features.Image()}
    build(tmp_path, "few", described, {"train": [{"image": encode(photo(i, 9, 9))} for i in range(3)]}, "parquet")
    info = tmp_path / "few" / "2.1.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"3"', '"4"'))
    with pytest.raises(UserError, match="hold 3 of the 4 records of split train: build the set again with"):
        quiet("tfds:few", tmp_path / "out", data_dir=str(tmp_path))


def test_sets_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch) -> None:
    features = pytest.importorskip("tensorflow_datasets").features
    where = str(tmp_path / "sets")
    command = f"`tfds build celeb_a --file_format array_record --data_dir {where}`"
    with pytest.raises(UserError) as nothing:
        quiet("tfds:celeb_a", tmp_path / "out", data_dir=where)
    assert str(nothing.value) == f"there is no celeb_a in {where}: build it with {command}, or give its `data_dir`"

    build(
        tmp_path / "sets",
        "celeb_a",
        {"image": features.Image()},
        {"train": [{"image": encode(photo(0, 9, 9))}]},
        "array_record",
    )
    info = tmp_path / "sets" / "celeb_a" / "2.1.0" / "dataset_info.json"
    stored = info.read_text()
    info.write_text(stored.replace('"array_record"', '"tfrecord"'))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match="is stored as TFRecord: install tensorflow, or build it again") as unreadable:
        quiet("tfds:celeb_a", tmp_path / "out", data_dir=where)
    assert command in str(unreadable.value) and "\n" not in str(unreadable.value)

    info.write_text(stored)
    (records,) = info.parent.glob("celeb_a-train.array_record*")
    records.write_bytes(b"")
    with pytest.raises(UserError, match="more than 1 % of the images cannot be read"):
        quiet("tfds:celeb_a", tmp_path / "out", data_dir=where)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"needs tensorflow-datasets: pip install 'dcgan-jax\[tfds\]'"):
        quiet("tfds:celeb_a", tmp_path / "out", data_dir=where)
    assert sources.detect_kind("tfds:celeb_a:2.1.0") == "celeba"
