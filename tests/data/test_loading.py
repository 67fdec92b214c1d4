"""Prepared sets are checked when they are opened; each epoch of batches visits every image once."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pictures import pictures, quiet, write_tree

from dcgan_jax.data import batch_indices, open_prepared, verify
from dcgan_jax.errors import UserError

# Prepared sets


@pytest.fixture
def prepared_path(tmp_path: Path) -> Path:
    source = write_tree(tmp_path / "in", pictures("a/1.png", "b/2.png", "b/3.png"))
    quiet(source, tmp_path / "set", image_size=16)
    return tmp_path / "set"


def test_opening_is_lazy_and_read_only(prepared_path: Path) -> None:
    prepared = open_prepared(str(prepared_path))
    assert isinstance(prepared.images, np.memmap) and isinstance(prepared.split("train"), np.memmap)
    assert not prepared.images.flags.writeable
    assert prepared.images.dtype == np.uint8 and prepared.images.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(np.load(prepared_path / "images.npy"), prepared.images)
    digest = hashlib.sha256((prepared_path / "images.npy").read_bytes()).hexdigest()
    assert prepared.manifest["sha256"] == digest
    assert prepared.manifest["crop"] == "center" and prepared.manifest["filter"] == "lanczos"


def test_verify_catches_a_flipped_byte(prepared_path: Path) -> None:
    verify(prepared_path)
    with (prepared_path / "images.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    open_prepared(prepared_path)
    with pytest.raises(UserError, match="has changed since"):
        verify(prepared_path)


def test_damaged_sets_are_refused(prepared_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder.*dcgan-jax prepare"):
        open_prepared(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no manifest\.json, images\.npy, names\.txt.*dcgan-jax prepare"):
        open_prepared(tmp_path / "in")

    manifest_path, images_path = prepared_path / "manifest.json", prepared_path / "images.npy"
    manifest, images = json.loads(manifest_path.read_text()), images_path.read_bytes()

    images_path.write_bytes(images[:-1])
    with pytest.raises(UserError, match="truncated"):
        open_prepared(prepared_path)
    images_path.write_bytes(images)

    for change, named in [
        ({"count": 4}, r"\(3, 16, 16, 3\), but its manifest says uint8 \(4, 16, 16, 3\)"),
        ({"splits": {"train": [0, 9]}}, "splits outside"),
        ({"format": "another"}, "does not describe"),
        ({"format_version": 99}, "format version 99"),
    ]:
        manifest_path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(UserError, match=named):
            open_prepared(prepared_path)
    manifest_path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_prepared(prepared_path)
    manifest_path.write_text(json.dumps(manifest))

    (prepared_path / "names.txt").write_text("one\n")
    with pytest.raises(UserError, match="1 names for 3 images"):
        _ = open_prepared(prepared_path).names
    (prepared_path / "labels.npy").unlink()
    with pytest.raises(UserError, match=r"labels\.npy"):
        open_prepared(prepared_path)


# Batches


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (7, 7), (5, 1), (101, 32)])
def test_every_epoch_visits_every_image_exactly_once(count: int, batch_size: int) -> None:
    steps = 3 * count  # these batches hold `3 * batch_size` epochs
    batches = [batch_indices(step, batch_size, count, seed=3) for step in range(steps)]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    epochs = np.concatenate(batches).reshape(-1, count)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(count), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_batches_are_reproducible_and_writable() -> None:
    first = batch_indices(17, 64, 1000, seed=5)
    kept = first.copy()
    first[:] = 0  # the array is the caller's: later calls must not see this change
    for step in (40, 3, 90):  # other epochs, in any order
        batch_indices(step, 64, 1000, seed=5)
    np.testing.assert_array_equal(batch_indices(17, 64, 1000, seed=5), kept)
    assert not np.array_equal(batch_indices(17, 64, 1000, seed=6), kept)
    # Recorded values: a resumed run must see the same images with another NumPy or on another machine.
    assert batch_indices(0, 8, 8, seed=0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_wrong_batch_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="too small for a batch of 8: lower `batch_size`"):
        batch_indices(0, 8, 7, seed=0)
    for step, batch_size, seed in [(-1, 4, 0), (0, 0, 0), (0, 4, -1)]:
        with pytest.raises(UserError, match="0 or more"):
            batch_indices(step, batch_size, 7, seed=seed)
