"""Folders of images and masks, and `inpaint_folder` on them with a tiny prior."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import tanh_prior

import dcgan_jax as dj
from dcgan_jax.command.inpaint import Job, inpaint_folder

SIZE, BATCH = 12, 2
CONFIG = dj.InpaintConfig(num_steps=3, learning_rate=0.1)
NAMES = ("a", "b.1", "c")


PRIOR = tanh_prior((SIZE, SIZE, 3))
RNG = np.random.default_rng(1)
# Smooth, so that JPEG changes little.
PIXELS = {
    name: np.asarray(Image.fromarray(RNG.integers(0, 256, (3, 3, 3), np.uint8)).resize((SIZE, SIZE))) for name in NAMES
}
HOLE = np.zeros((SIZE, SIZE), bool)
HOLE[2:9, 5:] = True
KNOWN = ~HOLE


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, pixels in PIXELS.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def mask(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8)).save(path)
    return path


def run(images, mask, out, prior=PRIOR, config=CONFIG, **options):
    options = {"batch_size": BATCH, "progress": False} | options
    return inpaint_folder(prior, Job(images, None if mask is None else str(mask), out, config, **options))


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def lines(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
