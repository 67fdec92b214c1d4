"""Programs that are kept on disk give the same bits as `inpaint`, and are used only where they fit."""

import os

import jax
import numpy as np
import pytest
from tiny import arrays, tanh_prior

import dcgan_jax as dj
from dcgan_jax.inpainting import kept

SIZE = 32
KEY = jax.random.key(3)
CONFIG = dj.InpaintConfig(num_steps=2, learning_rate=0.0123)  # no other test compiles this program
IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 1), np.uint8)
HOLES = np.stack([np.asarray(dj.masks.center(SIZE)), np.asarray(dj.masks.center(SIZE)).T & (np.arange(SIZE) < 16)])


def complete(prior, folder, config=CONFIG):
    return list(dj.inpaint_stream(prior, zip(IMAGES, HOLES, strict=True), KEY, config, programs=folder))


def forbidden(*_):
    raise AssertionError("a program was compiled, although one is kept")


@pytest.fixture
def one_device(monkeypatch):
    """Pretends that the machine has one device, and that the process is new."""
    monkeypatch.setattr(kept, "_loaded", {})
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    return monkeypatch


def test_a_kept_program_gives_the_bits_of_inpaint(digits_prior, tmp_path, one_device):
    first = complete(digits_prior, tmp_path)
    (path,) = tmp_path.iterdir()

    one_device.setattr(kept, "_loaded", {})
    with one_device.context() as patch:
        patch.setattr(kept, "_compile", forbidden)
        second = complete(digits_prior, tmp_path)
    expected = dj.inpaint(digits_prior, IMAGES, HOLES, KEY, CONFIG)
    for i, items in enumerate(zip(first, second, strict=True)):
        for name, value in arrays(expected).items():
            for item in items:
                assert (getattr(item, name) == np.asarray(value[i])).all(), name

    # A file that was damaged, or a program that this XLA cannot run, is made anew.
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    one_device.setattr(kept, "_loaded", {})
    assert (complete(digits_prior, tmp_path)[0].images == first[0].images).all()
    assert path.read_bytes() != content[:-1] + bytes([content[-1] ^ 1])

    def fails(*_):
        raise jax.errors.JaxRuntimeError("NOT_FOUND")

    one_device.setattr(kept.serialize_executable, "serialize", fails)
    for read in (fails, lambda *_: fails):  # XLA cannot load it, or not run it; and it cannot save another
        one_device.setattr(kept, "_loaded", {})
        one_device.setattr(kept, "_read", read)
        assert (complete(digits_prior, tmp_path)[0].images == first[0].images).all()


def test_settings_and_searches_are_told_apart_and_the_oldest_goes(digits_prior, tmp_path, one_device):
    one_device.setattr(kept, "_KEPT", 2)
    names, other = set(), dj.InpaintConfig(num_steps=1)
    for number, (config, precision) in enumerate([(CONFIG, "float32"), (other, "float32"), (CONFIG, "highest")]):
        with jax.default_matmul_precision(precision):
            complete(digits_prior, tmp_path, config)
        (new,) = {path.name for path in tmp_path.iterdir()} - names
        names.add(new)
        os.utime(tmp_path / new, (number, number))
    assert len(names) == 3 and len(list(tmp_path.iterdir())) == 2


def test_programs_of_other_decoders_and_of_several_devices_are_not_kept(tmp_path, one_device, digits_prior):
    complete(tanh_prior((SIZE, SIZE, 1)), tmp_path)
    one_device.setattr(jax, "device_count", lambda: 2)  # as in a job of two processes
    kept.call(tmp_path, digits_prior, IMAGES, HOLES, jax.random.split(KEY, 2), CONFIG, None)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_stops_no_completion(digits_prior, tmp_path, one_device):
    items = complete(digits_prior, tmp_path / "missing")
    assert len(items) == 2 and not (tmp_path / "missing").exists()
