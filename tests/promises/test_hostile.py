"""Damaged and malicious files are either read or refused in one line; nothing else happens.

`DCGAN_JAX_EXAMPLES=20000 pytest -n 0 tests/promises/test_hostile.py` tries more kinds of damage.
"""

import functools
import io
import json
import os
import shutil
import struct
import tarfile
import warnings
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import saved
import scipy.io
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tanh_prior

import dcgan_jax as dj
from dcgan_jax.command import pairing
from dcgan_jax.command.inpaint import Job, inpaint_folder
from dcgan_jax.data import archives, open_prepared, prepare
from dcgan_jax.data.cars import devkit_file, read_variable
from dcgan_jax.data.celeba import read_attributes, read_partition
from dcgan_jax.data.svhn import cropped_items, read_digits
from dcgan_jax.errors import UserError
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.storage import checkpoints, runs
from dcgan_jax.training import plot
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.gan import init_state

EXAMPLES = int(os.environ.get("DCGAN_JAX_EXAMPLES", "10"))
MODEL = ModelConfig(image_size=32, channels=1, base_width=1, latent_dim=2)
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


# ------------------------------------------------------------------------------------------ undamaged files


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
    if kind == "old checkpoint":
        return saved.write_old(folder, state, config).read_bytes()
    with checkpoints.CheckpointWriter(folder / "run", config) as writer:
        writer.save(state)
    return folder / "run" / "checkpoints" / "0"


# ------------------------------------------------------------------------------------------ readers


def read_old_checkpoint(path):
    run = path.parent / "run"
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(path, run / "checkpoints" / "0000000.safetensors")
    checkpoints.restore(run, TrainConfig(model=MODEL), init_state)


def checkpoint_reader(name, folder):
    """Returns the content of a file of a checkpoint, and a function that reads a checkpoint with another such file.

    The digests match what is read.
    """
    whole = weights("checkpoint", folder)
    file = whole / name if name else saved.largest(whole)

    def read(path):
        checkpoint = path.parent / "run" / "checkpoints" / "0"
        shutil.copytree(whole, checkpoint, dirs_exist_ok=True)
        shutil.copy(path, checkpoint / file.relative_to(whole))
        if name != "SHA256SUMS":
            saved.reseal(checkpoint)
        checkpoints.restore(path.parent / "run", TrainConfig(model=MODEL), init_state)

    return file.read_bytes(), read


def read_record(path):
    shutil.copy(path, path.parent / "config.json")
    runs.read_run(path.parent).settings(TrainConfig)


def read_metrics(path):
    shutil.copy(path, path.parent / "metrics.jsonl")
    plot.read_metrics(path.parent)


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
    "image.png": lambda folder: (picture("PNG"), lambda path: pairing.read_image(path, 3)),
    "image.jpg": lambda folder: (
        picture("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        lambda path: pairing.read_image(path, 1),
    ),
    "image.gif": lambda folder: (picture("GIF"), lambda path: pairing.read_image(path, 3)),
    "image.webp": lambda folder: (picture("WEBP"), lambda path: pairing.read_image(path, 3)),
    "image.tiff": lambda folder: (picture("TIFF", compression="tiff_lzw"), lambda path: pairing.read_image(path, 3)),
    "image.bmp": lambda folder: (picture("BMP"), lambda path: pairing.read_image(path, 3)),
    "mask.png": lambda folder: (picture("PNG"), lambda path: pairing.find_masks(str(path), ["a"])("a", None)),
    "train_32x32.mat": lambda folder: (
        matlab(X=np.zeros((32, 32, 3, 2), np.uint8), y=np.array([1, 2])),
        lambda path: [item.read() for item in cropped_items(path)],
    ),
    "cars.mat": lambda folder: (
        matlab(annotations=np.array([(1, "a")], [("class", int), ("fname", object)])),
        lambda path: read_variable(path.read_bytes(), "cars.mat", "annotations"),
    ),
    "digitStruct.mat": lambda folder: (annotation(), lambda path: read_digits(path.read_bytes(), "digitStruct.mat")),
    "list_eval_partition.txt": lambda folder: (b"a.jpg 0\nb.jpg 1\n", read_partition),
    "list_attr_celeba.txt": lambda folder: (
        b"2\nSmiling Male\na.jpg 1 -1\nb.jpg -1 1\n",
        lambda path: read_attributes(path, ["a.jpg", "b.jpg"]),
    ),
    "images.zip": lambda folder: (archive("zip"), read_archive),
    "images.tar.gz": lambda folder: (archive("tar"), read_archive),
    "prior.safetensors": lambda folder: (weights("prior", folder), dj.load_prior),
    "checkpoint.safetensors": lambda folder: (weights("old checkpoint", folder), read_old_checkpoint),
    "checkpoint.sums": functools.partial(checkpoint_reader, "SHA256SUMS"),
    "checkpoint.config": functools.partial(checkpoint_reader, "config/metadata"),
    "checkpoint.tree": functools.partial(checkpoint_reader, "state/_METADATA"),
    "checkpoint.manifest": functools.partial(checkpoint_reader, "state/manifest.ocdbt"),
    "checkpoint.arrays": functools.partial(checkpoint_reader, None),
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

# Found by longer searches, such as a ZIP file of a future version and a NumPy header that lacks a bracket.
FOUND = [
    ("images.zip", [(0.9375, 3, b"\x00\x00@")]),
    ("images.npy", [(0.0078125, 1, b"")]),
    ("images.tar.gz", [(0.0, 10**6, b"")]),
    ("names.txt", [(0.0, 0, b"\x80")]),
    ("train_32x32.mat", [(0.0288, 0, bytes(8))]),  # kills the process that reads it
]

# Replacements in a file: the place as a fraction of its length, the number of bytes removed, and the new bytes.
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
    slow = name in ("train_32x32.mat", "cars.mat")  # each example starts a process

    @settings(
        max_examples=max(EXAMPLES // 10, 1) if slow else EXAMPLES,
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


@pytest.mark.parametrize(("name", "edits"), FOUND)
def test_damage_found_by_longer_searches_is_handled(name, edits, folder):
    whole, read = READERS[name](folder)
    place = folder / f"found_{name}"
    place.mkdir()
    (place / name).write_bytes(edited(whole, edits, 1.0))
    with pytest.raises(UserError) as refused:
        read(place / name)
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------ malicious files


def test_deeply_nested_json_is_refused(folder, tmp_path):
    deep = b'{"config": ' + b"[" * 100_000
    for name in ("record.json", "metrics.txt", "manifest.json"):
        _, read = READERS[name](folder)
        (tmp_path / name).mkdir()
        path = tmp_path / name / name
        path.write_bytes(deep + b"\n")
        shutil.copytree(folder / "set", tmp_path / "set", dirs_exist_ok=True)
        with pytest.raises(UserError, match="damaged"):
            read(path)


def png(width, height):
    """A PNG file that declares this size and contains almost no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (0, 5)])
def test_images_of_absurd_sizes_are_refused(tmp_path, size):
    images, mask = tmp_path / "images", tmp_path / "mask.png"
    images.mkdir()
    (images / "bomb.png").write_bytes(png(*size))
    (images / "good.png").write_bytes(picture("PNG"))
    Image.fromarray(np.full((9, 7), 255, np.uint8)).save(mask)
    out = tmp_path / "set"
    with pytest.raises(UserError, match=r"bomb\.png"):  # one unreadable image of two is too many to skip
        prepare(images, out, image_size=32, progress=False)
    assert not out.exists()
    with pytest.raises(UserError, match=r"bomb\.png.* cannot be read as an image"):
        pairing.find_images(images, None, (32, 32, 3))[0]["bomb"]()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_unpack_to_gigabytes_are_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 100_000)
    path, large = tmp_path / f"images.{kind}", picture("PNG") + bytes(200_000)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as members:
            members.writestr("a.png", large)
    else:
        with tarfile.open(path, "w") as members:
            member = tarfile.TarInfo("a.png")
            member.size = len(large)
            members.addfile(member, io.BytesIO(large))
    with pytest.raises(UserError, match="too large for an image"):
        prepare(path, tmp_path / "set", image_size=32, progress=False)


def damaged_archive(kind):
    """A compressed tar archive that is damaged in the middle, after the header of its first member."""
    file, text = io.BytesIO(), " ".join(map(str, range(200_000))).encode()
    with tarfile.open(fileobj=file, mode=f"w:{kind}") as members:
        for name in ("digitStruct.mat", "cars_train_annos.mat", "a.png"):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            members.addfile(member, io.BytesIO(text))
    data = file.getvalue()
    middle = len(data) // 2
    return data[:middle] + bytes(range(256)) + data[middle + 256 :]


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_damage_in_the_middle_of_an_archive_is_refused(tmp_path, kind):
    path, devkit = tmp_path / "train.tar.gz", tmp_path / "cars" / "car_devkit.tgz"
    path.write_bytes(damaged_archive(kind))
    with pytest.raises(UserError, match="damaged or cannot be read"):
        prepare(path, tmp_path / "set", image_size=32, progress=False)
    with pytest.raises(UserError, match="damaged or cannot be read"):
        prepare(path, tmp_path / "set", kind="svhn", image_size=32, progress=False)
    devkit.parent.mkdir()
    devkit.write_bytes(damaged_archive(kind))
    with pytest.raises(UserError, match=r"car_devkit\.tgz is damaged or cannot be read"):
        devkit_file(devkit.parent, "cars_train_annos.mat")


def test_an_annotation_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 1000)
    devkit = tmp_path / "car_devkit.tgz"
    with tarfile.open(devkit, "w:gz") as members:
        member = tarfile.TarInfo("devkit/cars_train_annos.mat")
        member.size = 5000
        members.addfile(member, io.BytesIO(bytes(5000)))
    with pytest.raises(UserError, match=r"car_devkit\.tgz .*\(5,000 bytes is too large"):
        devkit_file(tmp_path, "cars_train_annos.mat")


@pytest.mark.parametrize("name", ["../a.png", "/tmp/a.png", "x/../../a.png"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    """Archives are never unpacked, but the files of results have the names of their images."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as members:
        for each in (name, "good.png"):
            members.writestr(each, picture("PNG"))
    with pytest.raises(UserError, match="a path outside of it"):
        prepare(path, tmp_path / "set", image_size=32, progress=False)
    # A set that somebody else prepared may contain such names.
    out = tmp_path / "out"
    (tmp_path / "images").mkdir()
    for each in "ab":
        (tmp_path / "images" / f"{each}.png").write_bytes(picture("PNG"))
    prepare(tmp_path / "images", tmp_path / "set", image_size=32, progress=False)
    (tmp_path / "set" / "names.txt").write_text(f"b.png\n{name}\n")
    with pytest.raises(UserError, match="leads out of its folder"):
        inpaint_folder(
            tanh_prior((32, 32, 3)), Job(tmp_path / "set", "center", out, dj.InpaintConfig(), progress=False)
        )
    assert not out.exists()


def test_links_that_lead_out_of_the_folder_are_refused(tmp_path):
    images, secret, out = tmp_path / "images", tmp_path / "secret.png", tmp_path / "out"
    images.mkdir()
    secret.write_bytes(picture("PNG"))
    (images / "a.png").symlink_to(secret)
    for use in (
        lambda: prepare(images, tmp_path / "set", image_size=32, progress=False),
        lambda: inpaint_folder(tanh_prior((32, 32, 3)), Job(images, "center", out, dj.InpaintConfig(), progress=False)),
    ):
        with pytest.raises(
            UserError, match=r"a\.png is a symbolic link out of .*images: replace it by the file itself"
        ):
            use()
    assert not out.exists() and not (tmp_path / "set").exists()
    # A link to a file inside the folder is accepted.
    (images / "a.png").unlink()
    (images / "b.png").write_bytes(picture("PNG"))
    (images / "a.png").symlink_to(images / "b.png")
    assert len(prepare(images, tmp_path / "set", image_size=32, progress=False).images) == 2
