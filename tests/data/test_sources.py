"""Images chosen by label, and the official sets from preparation to inpainting."""

import json
from pathlib import Path

import numpy as np
import pytest
from official_sets import CLASSES, attribute_list, write_cars, write_svhn
from pictures import encode, photo, quiet, write_tree, write_zip
from PIL import Image

import dcgan_jax as dj
from dcgan_jax.command import main
from dcgan_jax.errors import UserError
from dcgan_jax.storage.runs import read_run


def test_labels_are_selected_by_class_name(tmp_path: Path) -> None:
    root = write_cars(tmp_path / "cars", "folders")
    audi = quiet(root, tmp_path / "audi", where=["label=Audi TTS Coupe 2012"])
    assert audi.labels is not None and audi.labels.tolist() == [2, 2]
    assert audi.manifest["class_names"] == CLASSES  # class numbers do not change
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


def test_the_command_selects_digits_by_label(tmp_path: Path, capsys) -> None:
    out = tmp_path / "ones"
    command = ["prepare", "digits", "--out", str(out), "--image-size", "8", "--quiet"]
    assert main.main([*command, "--where", "label=1,7", "--where", "label=1"]) == 0
    labels = np.load(out / "labels.npy")
    assert set(labels) == {1} and len(labels) == 182  # scikit-learn has 182 images of a 1
    assert json.loads((out / "manifest.json").read_text())["where"] == ["label=1,7", "label=1"]
    capsys.readouterr()
    assert main.main([*command[:3], str(tmp_path / "none"), *command[4:], "--where", "label=x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def write_faces(folder):
    faces = {f"{i:06d}.jpg": (0, int(i != 5), 1) for i in range(1, 10)}
    folder.mkdir()
    files = {f"img_align_celeba/{name}": encode(photo(i, 178, 218), "JPEG") for i, name in enumerate(faces)}
    write_zip(folder / "img_align_celeba.zip", files)
    partition = "".join(f"{name} {0 if i < 5 else 1 if i < 7 else 2}\n" for i, name in enumerate(faces))
    (folder / "list_eval_partition.txt").write_text(partition)
    (folder / "list_attr_celeba.txt").write_text(attribute_list(faces))


def write_digits(folder):
    write_svhn(folder / "train_32x32.mat", 10, 0)
    write_svhn(folder / "test_32x32.mat", 10, 1)


SETS = {
    # Function that writes the files, options of `prepare`, expected splits, split to complete, expected crop.
    "celeba": (write_faces, ["--where", "Male=1"], {"train": 4, "validation": 2, "test": 2}, "test", "celeba"),
    "svhn": (write_digits, ["--where", "label=1,2,0"], {"train": 3, "test": 3}, "test", "center"),
    "cars": (lambda folder: write_cars(folder, "archives"), [], {"train": 3, "test": 1}, "test", "stretch"),
}


@pytest.mark.parametrize("name", SETS)
def test_official_files_are_prepared_trained_on_and_inpainted(tmp_path, name):
    write, options, counts, split, crop = SETS[name]
    write(tmp_path / name)
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"

    def command(*words):
        assert main.main([*map(str, words), "--quiet"]) == 0

    command("prepare", tmp_path / name, "--out", data, "--image-size", 32, *options)
    manifest = json.loads((data / "manifest.json").read_text())
    found = {split: stop - start for split, (start, stop) in manifest["splits"].items()}
    assert manifest["kind"] == name and manifest.get("where", []) == options[1:]
    assert found == counts
    tiny = (
        "--image-size",
        32,
        "--base-width",
        1,
        "--latent-dim",
        4,
        "--batch-size",
        2,
        "--num-steps",
        1,
        "--measure-every",
        0,
    )
    command("train", "--data", data, "--run", run, *tiny)
    record = read_run(run).data
    assert (record["kind"], record["crop"], record.get("where", [])) == (name, crop, options[1:])
    assert dj.load_prior(run).crop == crop
    images = ("--images", data, "--split", split, "--masks", "center")
    command("inpaint", "--prior", run, *images, "--out", out, "--num-steps", 1)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(lines) == found[split] and all(line["status"] == "ok" and line["psnr_hole"] > 0 for line in lines)
    prepared, hole = dj.data.open_prepared(data), np.asarray(dj.masks.center(32))
    for line, original in zip(lines, prepared.split(split), strict=True):
        with Image.open(out / f"{line['name']}.png") as image:
            completed = np.asarray(image)
        assert (completed[~hole] == original[~hole]).all() and (completed[hole] != original[hole]).any()
