"""The official files of the three sets, made small, all the way: prepare, train, inpaint, by the command."""

import json

import numpy as np
import pytest
import test_data
import test_sources
from pictures import encode, photo, write_zip
from PIL import Image
from test_sources import attribute_list

import dcgan_jax as dj
from dcgan_jax.command import main
from dcgan_jax.storage.runs import read_run


def write_celeba(folder):
    faces = {f"{i:06d}.jpg": (0, int(i != 5), 1) for i in range(1, 10)}
    folder.mkdir()
    files = {f"img_align_celeba/{name}": encode(photo(i, 178, 218), "JPEG") for i, name in enumerate(faces)}
    write_zip(folder / "img_align_celeba.zip", files)
    partition = "".join(f"{name} {0 if i < 5 else 1 if i < 7 else 2}\n" for i, name in enumerate(faces))
    (folder / "list_eval_partition.txt").write_text(partition)
    (folder / "list_attr_celeba.txt").write_text(attribute_list(faces))


def write_svhn(folder):
    test_data.write_svhn(folder / "train_32x32.mat", 10, 0)
    test_data.write_svhn(folder / "test_32x32.mat", 10, 1)


def write_cars(folder):
    test_sources.write_cars(folder, "archives")


SETS = {
    # Writes the files; options of `prepare`; count, split to complete, and crop of what comes out.
    "celeba": (write_celeba, ["--where", "Male=1"], {"train": 4, "validation": 2, "test": 2}, "test", "celeba"),
    "svhn": (write_svhn, ["--where", "label=1,2,0"], {"train": 3, "test": 3}, "test", "center"),
    "cars": (write_cars, [], {"train": 3, "test": 1}, "test", "stretch"),
}


@pytest.mark.parametrize("name", SETS)
def test_the_whole_path(tmp_path, name):
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
