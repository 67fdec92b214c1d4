"""Files that are damaged, or made to do harm: read as they are, or refused in one line; nothing else happens.

`DCGAN_JAX_EXAMPLES=20000 pytest -n 0 tests/test_hostile.py` looks for longer.
"""

import functools
import io
import json
import os
import shutil
import tarfile
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import dcgan_jax as dj
from dcgan_jax import checkpoints, pairing, reports
from dcgan_jax.config import ModelConfig, TrainConfig
from dcgan_jax.data import open_prepared, prepare
from dcgan_jax.data.cars import _read_mat
from dcgan_jax.data.celeba import _read_attributes, _read_partition
from dcgan_jax.data.svhn import _cropped_items, _read_digits
from dcgan_jax.errors import UserError
from dcgan_jax.training import init_state

EXAMPLES = int(os.environ.get("DCGAN_JAX_EXAMPLES", "25"))
MODEL = ModelConfig(image_size=32, channels=1, base_width=1, latent_dim=2)
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


# ------------------------------------------------------------------------------------------ whole files to begin with


def picture(kind, **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def matlab(**arrays):
    file = io.BytesIO()
    scipy.io.savemat(file, arrays)
    return file.getvalue()


def annotation():
    file = io.BytesIO()
    with h5py.File(file, "w") as mat:
        group = mat.create_group("box")
        for field in ("height", "left", "top", "width", "label"):
            group[field] = np.array([[3.0]])
        mat["name"] = np.frombuffer(b"1.png", np.uint8).reshape(-1, 1)
        table = mat.create_group("digitStruct")
        for column, target in (("name", "name"), ("bbox", "box")):
            table.create_dataset(column, data=np.array([[mat[target].ref]], object), dtype=h5py.ref_dtype)
    return file.getvalue()


def archive(kind):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
            for name in "abc":
                members.writestr(f"{name}.png", picture("PNG"))
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as members:
            for name in "abc":
                member = tarfile.TarInfo(f"{name}.png")
                member.size = len(picture("PNG"))
                members.addfile(member, io.BytesIO(picture("PNG")))
    return file.getvalue()


@functools.cache
def weights(kind, folder):
    config = TrainConfig(model=MODEL)
    import jax

    state = jax.device_get(jax.jit(lambda key: init_state(config, key))(jax.random.key(0)))
    if kind == "prior":
        dj.save_prior(dj.prior_from_state(state, config), folder / "prior.safetensors")
        return (folder / "prior.safetensors").read_bytes()
    with checkpoints.CheckpointWriter(folder, config) as writer:
        writer.save(state)
    return (folder / "checkpoints" / "0000000.safetensors").read_bytes()


# ------------------------------------------------------------------------------------------ what reads them


def read_checkpoint(path):
    run = path.parent / "run"
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(path, run / "checkpoints" / "0000000.safetensors")
    checkpoints.restore(run, TrainConfig(model=MODEL))


def read_record(path):
    shutil.copy(path, path.parent / "config.json")
    checkpoints.read_record(path.parent)


def read_metrics(path):
    shutil.copy(path, path.parent / "metrics.jsonl")
    reports.read_metrics(path.parent)


def read_set(path, name):
    folder = path.parent / "set"
    shutil.copytree(path.parent.parent / "set", folder, dirs_exist_ok=True)
    shutil.copy(path, folder / name)
    prepared = open_prepared(folder)
    assert len(prepared.split("train")) >= 0 and len(prepared.names) == len(prepared.images)


def read_archive(path):
    shutil.rmtree(path.parent / "out", ignore_errors=True)
    prepare(path, path.parent / "out", image_size=32, progress=False)


READERS = {
    "image.png": lambda folder: (picture("PNG"), lambda path: pairing._read_image(path, 3)),
    "image.jpg": lambda folder: (
        picture("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        lambda path: pairing._read_image(path, 1),
    ),
    "image.gif": lambda folder: (picture("GIF"), lambda path: pairing._read_image(path, 3)),
    "image.webp": lambda folder: (picture("WEBP"), lambda path: pairing._read_image(path, 3)),
    "image.tiff": lambda folder: (picture("TIFF", compression="tiff_lzw"), lambda path: pairing._read_image(path, 3)),
    "image.bmp": lambda folder: (picture("BMP"), lambda path: pairing._read_image(path, 3)),
    "mask.png": lambda folder: (picture("PNG"), lambda path: pairing.find_holes(str(path), ["a"])("a")),
    "train_32x32.mat": lambda folder: (
        matlab(X=np.zeros((32, 32, 3, 2), np.uint8), y=np.array([1, 2])),
        lambda path: [item.read() for item in _cropped_items(path)],
    ),
    "cars.mat": lambda folder: (
        matlab(annotations=np.array([(1, "a")], [("class", int), ("fname", object)])),
        lambda path: _read_mat(path.read_bytes(), "cars.mat", "annotations"),
    ),
    "digitStruct.mat": lambda folder: (annotation(), lambda path: _read_digits(path.read_bytes(), "digitStruct.mat")),
    "list_eval_partition.txt": lambda folder: (b"a.jpg 0\nb.jpg 1\n", _read_partition),
    "list_attr_celeba.txt": lambda folder: (
        b"2\nSmiling Male\na.jpg 1 -1\nb.jpg -1 1\n",
        lambda path: _read_attributes(path, ["a.jpg", "b.jpg"]),
    ),
    "images.zip": lambda folder: (archive("zip"), read_archive),
    "images.tar.gz": lambda folder: (archive("tar"), read_archive),
    "prior.safetensors": lambda folder: (weights("prior", folder), dj.load_prior),
    "checkpoint.safetensors": lambda folder: (weights("checkpoint", folder), read_checkpoint),
    "record.json": lambda folder: (
        json.dumps({"config": TrainConfig().to_json(), "data": {}, "rollbacks": [3]}).encode(),
        read_record,
    ),
    "metrics.txt": lambda folder: (
        b'{"step": 2, "generator_loss": 1.5}\n{"step": 4, "generator_loss": 1}\n',
        read_metrics,
    ),
    "manifest.json": lambda folder: (
        (folder / "set" / "manifest.json").read_bytes(),
        lambda path: read_set(path, "manifest.json"),
    ),
    "images.npy": lambda folder: (
        (folder / "set" / "images.npy").read_bytes(),
        lambda path: read_set(path, "images.npy"),
    ),
    "names.txt": lambda folder: ((folder / "set" / "names.txt").read_bytes(), lambda path: read_set(path, "names.txt")),
}

# A part of a file that is replaced: where, as a fraction of its length; how much of it; and by what.
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 40),
        st.binary(max_size=12) | st.sampled_from([b"\xff" * 4, b"\0" * 8, b"-1", b"NaN"]),
    ),
    min_size=1,
    max_size=4,
)


def edited(data, edits, length):
    for place, count, new in edits:
        start = int(place * len(data))
        data = data[:start] + new + data[start + count :]
    return data[: int(length * len(data))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    source = folder / "source"
    source.mkdir()
    for name in "abc":
        (source / f"{name}.png").write_bytes(picture("PNG"))
    prepare(source, folder / "set", image_size=32, validation_fraction=0.34, progress=False)
    return folder


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name, folder):
    whole, read = READERS[name](folder)
    place = folder / name.replace(".", "_")
    place.mkdir()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=EXAMPLES < 100,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(EDITS, st.just(1.0) | st.floats(0, 1))
    @example([], 1.0)
    @example([], 0.0)
    def attempt(edits, length):
        path = place / name
        path.write_bytes(edited(whole, edits, length))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(path)
            except UserError as error:
                assert "\n" not in str(error)

    attempt()
