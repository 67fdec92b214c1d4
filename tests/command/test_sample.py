"""The command `sample`: generated images as a grid, as an array, or as one file each."""

import zipfile

import jax
import numpy as np
import pytest
import tiny
from command_line import main
from PIL import Image

import dcgan_jax as dj
from dcgan_jax.command import sample
from dcgan_jax.images.figures import tile
from dcgan_jax.images.pixels import to_uint8


def test_a_grid_holds_the_generated_images(digits_run, digits_prior, tmp_path):
    out = tmp_path / "new" / "a.png"
    assert main("sample", "--prior", digits_run.run, "--out", out, "--count", 3, "--seed", 5) == 0
    latents = dj.sample_latents(digits_prior, jax.random.key(5), 3)
    expected = tile(np.asarray(dj.generate(digits_prior, latents)), columns=3)
    with Image.open(out) as image:
        assert (np.asarray(image) == expected).all()


def test_grid_array_and_folder_hold_the_same_images(digits_run, digits_prior, tmp_path, monkeypatch):
    """All forms hold the same grey images, however they are batched; the array has three channels."""
    monkeypatch.setattr(sample, "_BATCH", 4)
    prior = ("--prior", digits_run.run, "--count", 10, "--seed", 5, "--quiet")
    (tmp_path / "empty").mkdir()
    for out in ("grid.png", "array.npz", "new/folder", "empty"):
        assert main("sample", *prior, "--out", tmp_path / out) == 0
    expected = to_uint8(np.asarray(dj.generate(digits_prior, dj.sample_latents(digits_prior, jax.random.key(5), 10))))
    with np.load(tmp_path / "array.npz") as file:
        assert file.files == ["arr_0"]
        array = file["arr_0"]
    assert array.dtype == np.uint8 and array.shape == (10, 32, 32, 3) and array.flags.c_contiguous
    # Other batch sizes round differently, so a value half way between two levels may become either.
    assert np.abs(array.astype(int) - expected).max() <= 1 and np.std(array) > 1
    for folder in ("new/folder", "empty"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == [f"{i:06}.png" for i in range(10)]
        for i in range(10):
            with Image.open(tmp_path / folder / f"{i:06}.png") as image:
                assert (np.asarray(image.convert("RGB")) == array[i]).all()
    with Image.open(tmp_path / "grid.png") as image:
        assert (np.asarray(image) == tile(array, columns=8)).all()
    before = sorted(tmp_path.rglob("*"))
    assert main("sample", *prior, "--out", tmp_path / "empty") == 2
    # Colour images, in the bytes that NumPy's own writer gives.
    sample.save_samples(tiny.tanh_prior((8, 8, 3)), tmp_path / "colour.npz", 6, progress=False)
    with np.load(tmp_path / "colour.npz") as file:
        colour = file["arr_0"]
    assert colour.shape == (6, 8, 8, 3) and (colour[..., 0] != colour[..., 1]).any()
    np.savez(tmp_path / "numpy.npz", colour)
    with zipfile.ZipFile(tmp_path / "colour.npz") as ours, zipfile.ZipFile(tmp_path / "numpy.npz") as numpys:
        assert ours.read("arr_0.npy") == numpys.read("arr_0.npy")
    # A failure half way leaves nothing.
    for name in ("colour.npz", "numpy.npz"):
        (tmp_path / name).unlink()
    monkeypatch.setattr(sample, "generate", lambda prior, z: dj.generate(prior, z) if len(z) == 4 else 1 / 0)
    for out in ("other.png", "other.npz", "other"):
        with pytest.raises(ZeroDivisionError):
            sample.save_samples(digits_prior, tmp_path / out, 10, progress=False)
    assert sorted(tmp_path.rglob("*")) == before
