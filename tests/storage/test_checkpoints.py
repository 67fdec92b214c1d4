"""Checkpoints: Orbax alone opens them, each of their files is checked, and the older format is still read."""

import dataclasses
import json
import os
import resource
import shutil
import threading
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import plain
import pytest
import saved
from trainings import CONFIG, assert_same, compiled_once, load_state, metrics_of, train  # noqa: F401

import dcgan_jax as dj
from dcgan_jax.errors import UserError
from dcgan_jax.storage import checkpoints
from dcgan_jax.training.gan import init_state


@pytest.fixture(scope="module")
def state():
    """A state in NumPy arrays."""
    state = jax.device_get(plain.some_state(CONFIG))
    return jax.tree.map(lambda x: x.astype(x.dtype.str.replace("f8", "f4")), state)


@pytest.fixture
def write(state, tmp_path):
    """Writes checkpoints of these steps into tmp_path / "checkpoints"."""

    def write(*steps):
        with checkpoints.CheckpointWriter(tmp_path, CONFIG) as writer:
            for step in steps:
                writer.save(state._replace(step=np.int32(step)))

    return write


def restore(run):
    return checkpoints.restore(run, CONFIG, init_state)


def test_orbax_alone_opens_a_checkpoint(write, state, tmp_path):
    write(3, 6)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        assert manager.all_steps() == [3, 6]
        found = manager.restore(6)
        assert found["config"] == CONFIG.to_json()
        assert_same(saved.named(found["state"]), saved.named(state._replace(step=np.int32(6))))
    with ocp.StandardCheckpointer() as reader:
        target = jax.eval_shape(lambda key: init_state(CONFIG, key), jax.random.key(0))
        assert_same(reader.restore(tmp_path / "checkpoints" / "3" / "state", target), state._replace(step=np.int32(3)))


def test_a_saved_state_does_not_change_with_its_arrays(state, tmp_path):
    """A step of training may reuse the buffers of the state while it is written."""
    arrays = jax.tree.map(np.array, state)
    with checkpoints.CheckpointWriter(tmp_path, CONFIG) as writer:
        writer.save(arrays)
        for x in jax.tree.leaves(arrays):
            x[...] = 7
    assert_same(restore(tmp_path), state)


def test_nothing_stays_behind(write, tmp_path, capfd):
    before = threading.enumerate()
    write(1, 2, 3, 4)
    restore(tmp_path)
    assert threading.enumerate() == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3", "4"]
    assert capfd.readouterr() == ("", "")


def test_each_file_is_checked(write, tmp_path):
    write(3)
    path = tmp_path / "checkpoints" / "3"
    files = [file for file in path.rglob("*") if file.is_file()]
    named = []
    for file in files:
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        try:
            restore(tmp_path)
        except UserError as error:
            assert "checkpoints/3 is damaged" in str(error)
            named.append(file)
        file.write_bytes(content)
    # The other two only hold times, and a run goes on without them.
    assert sorted(file.name for file in set(files) - set(named)) == ["_CHECKPOINT_METADATA", "commit_success.txt"]
    assert len(named) > 10
    restore(tmp_path)
    for file in set(files) - set(named):
        file.write_bytes(b"\xff")
    write(4)
    assert restore(tmp_path).step == 4


def test_links_are_refused(write, tmp_path):
    write(3)
    path = tmp_path / "checkpoints" / "3"
    largest = saved.largest(path)
    shutil.move(largest, tmp_path / "elsewhere")
    largest.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{largest.name} is missing"):
        restore(tmp_path)
    largest.unlink()
    os.mkfifo(largest)  # reading it would wait for ever
    with pytest.raises(UserError, match=f"{largest.name} is missing"):
        restore(tmp_path)


@pytest.mark.parametrize("kind", ["shape", "chunks", "content"])
def test_arrays_that_unpack_to_gigabytes_are_refused(kind, write, state, tmp_path):
    write(0)
    path = tmp_path / "checkpoints" / "0"
    shutil.rmtree(path / "state")
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as other:  # writes zarr's metadata as plain JSON
        other.save(path / "state", state)
    array = path / "state" / "generator.bias"
    metadata = json.loads((array / ".zarray").read_text())
    if kind == "content":
        metadata["compressor"] = {"id": "zlib", "level": 1}
        packer = zlib.compressobj(1)
        (array / "0").write_bytes(b"".join([*(packer.compress(bytes(10**7)) for _ in range(30)), packer.flush()]))
    else:
        metadata[kind] = [10**12]
    (array / ".zarray").write_text(json.dumps(metadata))
    saved.reseal(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        UserError, match=r"checkpoints/0 is damaged \((its arrays are larger|.*generator\.bias)"
    ) as error:
        restore(tmp_path)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_full_disk_during_orbax_s_writes_is_named(write, tmp_path, capfd):
    """A limit on the size of a file stands for the full disk. TensorStore meets it in its own threads."""
    write(3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError) as error:
            write(6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == (
        f"{tmp_path}/checkpoints/6 cannot be written (File too large); the last checkpoint is of step 3: "
        "free some space and start again"
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert capfd.readouterr() == ("", "")
    write(6)
    assert restore(tmp_path).step == 6


def test_a_run_of_the_older_format_resumes_exactly(digits, tmp_path):
    run, new = tmp_path / "old", tmp_path / "new"
    state = train(CONFIG, digits, new)
    config = dataclasses.replace(CONFIG, num_steps=3)
    half = train(config, digits, run)
    shutil.rmtree(run / "checkpoints")
    saved.write_old(run, half._replace(step=np.int32(1)), config)
    path = saved.write_old(run, half, config)
    prior = dj.load_prior(run)
    assert_same(prior.params, dj.prior_from_state(half, config).params)
    newest = saved.write_old(run, half._replace(step=np.int32(5)), config)
    content = newest.read_bytes()
    newest.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    with pytest.warns(
        UserWarning, match=r"0000005.safetensors is damaged \(.*\): using checkpoints/0000003.safetensors"
    ):
        assert load_state(run)[0].step == 3
    with pytest.warns(UserWarning, match="0000005.safetensors is damaged"):
        assert_same(train(dataclasses.replace(CONFIG, checkpoint_every=1), digits, run), state)
    assert metrics_of(run)[-1] == metrics_of(new)[-1]
    assert not path.exists()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "5", "6"]


def test_what_a_kill_leaves_is_removed(digits, tmp_path):
    run = tmp_path / "run"
    train(dataclasses.replace(CONFIG, num_steps=3), digits, run)
    shutil.copytree(run / "checkpoints" / "3", run / "checkpoints" / "6.orbax-checkpoint-tmp")
    for step in (1, 2):  # half deleted
        (run / "checkpoints" / str(step) / "state").mkdir(parents=True)
    assert load_state(run)[0].step == 3
    train(dataclasses.replace(CONFIG, checkpoint_every=2), digits, run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "4", "6"]
