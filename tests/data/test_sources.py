"""Sets in their official formats: Stanford Cars, SVHN's photographs, CelebA's attributes, tensorflow-datasets."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from pictures import encode, photo, quiet, write_tar, write_tree, write_zip
from PIL import Image

from dcgan_jax.command import main
from dcgan_jax.data import open_prepared, sources
from dcgan_jax.errors import UserError


def prepared_pixels(image: Image.Image, box: tuple[int, int, int, int] | None = None, size: int = 64) -> np.ndarray:
    """What a box of an image (left, top, right, bottom) looks like once prepared, by Pillow alone."""
    cropped = image if box is None else image.crop(box)
    return np.asarray(cropped.resize((size, size), Image.Resampling.LANCZOS))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


# Stanford Cars

CLASSES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi TTS Coupe 2012"]
# File name: box as annotated (x1, y1, x2, y2, counted from 1, the last pixel included) and class, counted from 1.
CARS = {
    "train": {"00001.jpg": ((11, 6, 70, 45), 3), "00002.jpg": ((1, 1, 96, 64), 1), "00003.jpg": ((30, 20, 99, 66), 3)},
    "test": {"00001.jpg": ((2, 3, 50, 60), 2)},
}


def annotations(entries: dict, labelled: bool = True) -> bytes:
    """A struct array in the layout of the development kit."""
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *(["class"] if labelled else []), "fname"]
    array = np.zeros((1, len(entries)), [(field, object) for field in fields])
    for i, (name, (box, label)) in enumerate(entries.items()):
        array[0, i] = (*map(float, box), *([float(label)] if labelled else []), name)
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"annotations": array})
    return stream.getvalue()


def class_names() -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"class_names": np.array([CLASSES], object)})
    return stream.getvalue()


def car_photos(split: str) -> dict[str, bytes]:
    names = [f"cars_{split}/{name}" for name in CARS[split]]
    return {name: encode(photo(i + len(split), 96, 64), "JPEG", quality=95) for i, name in enumerate(names)}


def write_cars(root: Path, form: str) -> Path:
    """The official files: unpacked with the kit in `devkit`, archives with the kit's, or .mat files beside them."""
    kit = {"cars_train_annos.mat": annotations(CARS["train"]), "cars_meta.mat": class_names()}
    kit["cars_test_annos.mat"] = annotations(CARS["test"], labelled=False)
    test = {"cars_test_annos_withlabels.mat": annotations(CARS["test"])}
    root.mkdir()
    if form == "folders":
        write_tree(root, {f"devkit/{name}": data for name, data in kit.items()} | test)
        write_tree(root, car_photos("train") | car_photos("test"))
    else:
        for split in CARS:
            write_tar(root / f"cars_{split}.tgz", car_photos(split), "w:gz")
        if form == "archives":
            write_tar(root / "car_devkit.tgz", {f"devkit/{name}": data for name, data in kit.items()}, "w:gz")
            write_tree(root, test)
        else:
            write_tree(root, kit | test)
    return root


@pytest.mark.parametrize("form", ["folders", "archives", "beside"])
def test_cars_are_cut_to_their_boxes(tmp_path: Path, form: str) -> None:
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


def test_cars_of_one_split_or_without_labels(tmp_path: Path) -> None:
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


def test_cars_with_something_missing(tmp_path: Path) -> None:
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


# SVHN's photographs (format 1)

# Photograph: its width and height, and left, top, width, height and label of each digit.
PHOTOGRAPHS = {
    "1.png": (80, 50, [(20, 10, 12, 24, 1), (34, 11, 14, 23, 10), (60, 30, 8, 9, 5)]),
    "2.png": (60, 40, [(30, 8, 11, 20, 7)]),
    "3.png": (40, 30, [(-1, 5, 10, 20, 2), (34, 18, 6, 12, 3)]),
    "10.png": (16, 30, [(2, 2, 12, 25, 9)]),
}
# Squares about the digits, by hand: left, top, right, bottom. The narrow photograph comes last, see below.
SQUARES = {
    "train/1-1": (14, 10, 38, 34),
    "train/1-2": (30, 11, 53, 34),
    "train/1-3": (60, 30, 69, 39),
    "train/2-1": (26, 8, 46, 28),
    "train/3-1": (0, 5, 20, 25),  # shifted: -6 to 14
    "train/3-2": (28, 18, 40, 30),  # shifted: 31 to 43
}
LABELS = {"1-1": 1, "1-2": 0, "1-3": 5, "2-1": 7, "3-1": 2, "3-2": 3, "10-1": 9}


def digit_struct(photographs: dict, userblock: int = 512) -> bytes:
    """MATLAB's HDF5 layout: references to names and groups; a lone digit's numbers in place, several by reference."""
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
def test_svhn_digits_are_cut_out_of_photographs(tmp_path: Path, monkeypatch, form: str, userblock: int) -> None:
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
    # A square of 25 about columns 2 to 14 of a photograph of 16: its outermost columns 4 and 5 times more.
    narrow = np.asarray(opened(photos["10.png"]))[2:27]
    narrow = np.concatenate([narrow[:, :1]] * 4 + [narrow] + [narrow[:, -1:]] * 5, axis=1)
    np.testing.assert_array_equal(prepared.images[row["train/10-1"]], prepared_pixels(Image.fromarray(narrow), size=32))
    if form == "tar.gz":  # each photograph once, forward only, whatever number of digits it has
        assert reads == ["train/digitStruct.mat", *(f"train/{name}" for name in PHOTOGRAPHS)]


def test_svhn_photographs_by_split(tmp_path: Path) -> None:
    data = digit_struct({"2.png": PHOTOGRAPHS["2.png"], "7.png": PHOTOGRAPHS["2.png"]})
    image = street_photos()["2.png"]
    write_tree(tmp_path / "svhn", {"test/2.png": image, "test/digitStruct.mat": data})
    write_tar(tmp_path / "svhn" / "train.tar.gz", {"train/2.png": image, "train/digitStruct.mat": data}, "w:gz")
    both = quiet(tmp_path / "svhn", tmp_path / "both")
    assert both.names == ["train/2-1", "test/2-1"] and list(both.manifest["splits"]) == ["train", "test"]
    assert quiet(tmp_path / "svhn" / "test", tmp_path / "one").names == ["test/2-1"]
    assert quiet(tmp_path / "svhn" / "train.tar.gz", tmp_path / "archive").names == ["train/2-1"]


def test_svhn_photographs_with_something_wrong(tmp_path: Path, monkeypatch) -> None:
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


# A part of a set


ATTRIBUTES = ["5_o_Clock_Shadow", "Male", "Smiling"]
FACES = {"000001.jpg": (0, 1, 1), "000002.jpg": (0, 0, 1), "000003.jpg": (1, 1, 0), "000004.jpg": (0, 1, 1)}


def attribute_list(faces: dict[str, tuple[int, ...]]) -> str:
    rows = [f"{name} {' '.join(f'{2 * bit - 1:2d}' for bit in bits)}\n" for name, bits in faces.items()]
    return f"{len(faces)}\n{' '.join(ATTRIBUTES)} \n" + "".join(rows)


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
def test_celeba_attributes(faces: Path, tmp_path: Path, where: list[str], left: list[int]) -> None:
    prepared = quiet(faces, tmp_path / "out", where=where)
    assert numbers(prepared) == left and prepared.manifest["where"] == where
    (faces / "list_attr_celeba.txt").rename(tmp_path / "elsewhere.txt")
    again = quiet(faces, tmp_path / "again", where=where, attributes=tmp_path / "elsewhere.txt")
    assert again.manifest["sha256"] == prepared.manifest["sha256"] and again.names == prepared.names
    assert "where" not in quiet(faces, tmp_path / "all").manifest  # which needs no attributes


def test_conditions_that_cannot_be_met(faces: Path, tmp_path: Path) -> None:
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


def test_labels_by_class_name(tmp_path: Path) -> None:
    root = write_cars(tmp_path / "cars", "folders")
    audi = quiet(root, tmp_path / "audi", where=["label=Audi TTS Coupe 2012"])
    assert audi.labels is not None and audi.labels.tolist() == [2, 2]
    assert audi.manifest["class_names"] == CLASSES  # the numbers keep their meaning
    either = quiet(root, tmp_path / "either", where=["label=Acura RL Sedan 2012, AM General Hummer SUV 2000"])
    assert either.names == ["cars_train/00002.jpg", "cars_test/00001.jpg"]
    with pytest.raises(UserError, match="the source has no label 'Audi'; it has AM General Hummer SUV 2000, Acura"):
        quiet(root, tmp_path / "out", where="label=Audi")
    named = write_tree(
        tmp_path / "named", {f"{c}/1.png": encode(photo(0, 8, 8)) for c in ["a,b", "a", *map(str, range(20))]}
    )
    assert quiet(named, tmp_path / "comma", where="label=a,b").names == ["a,b/1.png"]
    with pytest.raises(UserError, match=r"it has 0, 1, 10, .*, \.\.\. \(22 in all\)$"):
        quiet(named, tmp_path / "out", where="label=c")


def test_the_command_and_the_digits(tmp_path: Path, capsys) -> None:
    out = tmp_path / "ones"
    command = ["prepare", "digits", "--out", str(out), "--image-size", "8", "--quiet"]
    assert main.main([*command, "--where", "label=1,7", "--where", "label=1"]) == 0
    labels = np.load(out / "labels.npy")
    assert set(labels) == {1} and len(labels) == 182  # as many ones as scikit-learn counts
    assert json.loads((out / "manifest.json").read_text())["where"] == ["label=1,7", "label=1"]
    capsys.readouterr()
    assert main.main([*command[:3], str(tmp_path / "none"), *command[4:], "--where", "label=x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# tensorflow-datasets


def build(data_dir: Path, name: str, features: dict, splits: dict[str, list[dict]], file_format: str) -> None:
    """A set of a given name, written by tensorflow-datasets itself."""
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
    """Split and label of each image: tensorflow-datasets shuffles what it writes."""
    found = {}
    for split in prepared.manifest["splits"]:
        part = prepared.split_slice(split)
        labels = [None] * len(prepared.images[part]) if prepared.labels is None else prepared.labels[part].tolist()
        found |= {image.tobytes(): (split, label) for image, label in zip(prepared.images[part], labels, strict=True)}
    return found


FORMATS = ["array_record", "parquet", "tfrecord"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_tfds_celeb_a(tmp_path: Path, file_format: str) -> None:
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
def test_tfds_svhn_cropped(tmp_path: Path, file_format: str) -> None:
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
def test_tfds_cars196_is_as_the_official_files(tmp_path: Path, file_format: str) -> None:
    features = pytest.importorskip("tensorflow_datasets").features
    official = quiet(write_cars(tmp_path / "cars", "archives"), tmp_path / "official")
    splits = {}
    for split, entries in CARS.items():
        splits[split] = [
            {
                "image": image,
                "label": CLASSES[label - 1],
                # As the set's own code has it: the official numbers over width and height.
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


def test_tfds_other_sets_and_splits(tmp_path: Path) -> None:
    features = pytest.importorskip("tensorflow_datasets").features
    described = {"image": features.Image(), "label": features.ClassLabel(names=["b", "a"])}
    images = [encode(photo(i, 30, 20)) for i in range(3)]
    examples = [{"image": image, "label": i % 2} for i, image in enumerate(images)]
    build(tmp_path, "my_own", described, {"val": examples[:2], "unseen": examples[2:]}, "array_record")
    prepared = quiet("tfds:my_own", tmp_path / "out", data_dir=str(tmp_path))
    assert prepared.manifest["kind"] == "folder" and prepared.manifest["class_names"] == ["b", "a"]
    wanted = zip(images, [("validation", 0), ("validation", 1), ("unseen", 0)], strict=True)
    assert by_pixels(prepared) == {prepared_pixels(opened(d), (5, 0, 25, 20)).tobytes(): at for d, at in wanted}


def test_tfds_parquet_with_records_missing(tmp_path: Path) -> None:
    features = pytest.importorskip("tensorflow_datasets").features
    described = {"image": features.Image()}
    build(tmp_path, "few", described, {"train": [{"image": encode(photo(i, 9, 9))} for i in range(3)]}, "parquet")
    info = tmp_path / "few" / "2.1.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"3"', '"4"'))
    with pytest.raises(UserError, match="hold 3 of the 4 records of split train: build the set again with"):
        quiet("tfds:few", tmp_path / "out", data_dir=str(tmp_path))


def test_tfds_that_cannot_be_read(tmp_path: Path, monkeypatch) -> None:
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
