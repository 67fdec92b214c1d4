"""Several devices and several processes give the results of one, and processes stop together."""

import dataclasses
import functools
import json
import resource
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import saved
import trainings
from PIL import Image

from dcgan_jax.data import feeding
from dcgan_jax.errors import UserError
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.parallel import distributed, sharding
from dcgan_jax.storage import checkpoints, orbax
from dcgan_jax.training import gan, logbook, loop
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.gan import init_state, make_train_step

LONG = pytest.mark.long
CONFIG = TrainConfig(
    model=ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=8), batch_size=16, flip=True, noise=0.1
)


# ------------------------------------------------------------------------------------------ the step


class Watched:
    """Images that record which of them were read."""

    def __init__(self, images):
        self.images, self.shape, self.read = images, images.shape, []

    def __getitem__(self, indices):
        self.read += list(indices)
        return self.images[indices]


def steps(dtype, count):
    """The state (NumPy arrays) after some steps on all devices of all processes, from one initial state."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == jnp.float64):
        start = jax.device_get(jax.jit(lambda key: init_state(CONFIG, key))(jax.random.key(0)))
        start = jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x.astype(np.int32), start)
        mesh = sharding.data_mesh()
        everywhere, split = sharding.replicated(mesh), sharding.along_batch(mesh)
        state = sharding.put_everywhere(mesh, start)
        step = jax.jit(
            make_train_step(CONFIG, split),
            in_shardings=(everywhere, split, everywhere),
            out_shardings=(everywhere, everywhere),
        )
        assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))
        read = []

        def make(_):
            images, indices = rng.integers(0, 256, (20, 32, 32, 1), np.uint8), rng.permutation(20)[:16]
            read.append((indices, watched := Watched(images)))
            return sharding.put_batch(mesh, watched, indices)

        with feeding.Feed() as feed:
            feed.start(make, range(count))
            for batch in feed:
                assert {shard.data.shape[0] for shard in batch.addressable_shards} == {16 // jax.device_count()}
                state, _ = step(state, batch, jax.random.key(1))
        own = np.split(np.arange(16), jax.process_count())[jax.process_index()]
        assert len(read) == count and all(watched.read == list(indices[own]) for indices, watched in read)
        return jax.device_get(state)


def write_results(path):
    """Writes the gradients of one step in float32 (from Adam's first moments) and the state after five in float64."""
    distributed.join(training=True)
    state = steps(jnp.float32, 1)
    gradients = jax.tree.leaves((state.discriminator_optimizer[0].mu, state.generator_optimizer[0].mu))
    state = jax.tree.leaves(steps(jnp.float64, 5))
    if distributed.is_first():
        arrays = {f"gradients {i:03}": x for i, x in enumerate(gradients)}
        arrays |= {f"state {i:03}": x for i, x in enumerate(state)}
        shape = jax.process_count(), jax.device_count()
        np.savez(path, shape=shape, **arrays)
    if jax.device_count() > 1:
        with pytest.raises(UserError, match=f"a batch of 15 images .* multiple of {jax.device_count()}"):
            sharding.put_batch(sharding.data_mesh(), np.zeros((15, 2)), np.arange(15))


def results_of(count, devices, folder):
    statuses, _, errors = processes.finish(processes.start(count, [__file__, folder / "results.npz"], devices))
    assert statuses == [0] * count, errors
    with np.load(folder / "results.npz") as found:
        assert found["shape"].tolist() == [count, count * devices]
        return {name: found[name] for name in found.files if name != "shape"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return results_of(1, 1, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(("count", "devices"), [(1, 8), pytest.param(2, 1, marks=LONG), pytest.param(4, 1, marks=LONG)])
def test_processes_and_devices_agree_with_one(alone, tmp_path, count, devices):
    found = results_of(count, devices, tmp_path)
    assert found.keys() == alone.keys()
    for name, expected in alone.items():
        assert found[name].dtype == expected.dtype
        error = np.abs(found[name] - expected).max()
        assert error <= (1e-5 * np.abs(expected).max() if name.startswith("gradients") else 5e-8), name


# ------------------------------------------------------------------------------------------ the command


def train(data, run, *more):
    options = "--image-size 32 --channels 1 --base-width 2 --batch-size 8 --log-every 2 --sample-every 4 --quiet"
    options += " --measure-every 0"
    return ["-m", "dcgan_jax", "train", "--data", data, "--run", run, *options.split(), *more]


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = "discriminator_loss", "swd", "swd_floor", "ms_ssim", "inversion_psnr"
    return {line["step"]: {name: line[name] for name in names if name in line} for line in lines}


@LONG
def test_a_job_stopped_by_sigterm_resumes(digits, tmp_path):
    """SIGTERM reaches one of two processes, both stop, and the same command with two processes continues the run."""
    run = tmp_path / "run"
    job = processes.start(2, train(digits, run, "--num-steps", 1000))
    while all(process.poll() is None for process in job) and not (run / "samples" / "0000004.png").is_file():
        time.sleep(0.05)
    job[1].send_signal(signal.SIGTERM)
    statuses, _, errors = processes.finish(job, timeout=60)
    assert statuses == [75, 75], errors
    assert all("stopped by SIGTERM after step" in text for text in errors)
    (newest,) = (run / "checkpoints").iterdir()
    step = int(newest.name)
    assert errors[0].count(f"step {step}, which is saved") == 1
    end = step + 4 - step % 4
    last = "--num-steps", end, "--measure-every", end
    statuses, _, errors = processes.finish(processes.start(2, train(digits, run, *last)))
    assert statuses == [0, 0], errors
    (alone,) = processes.start(1, train(digits, tmp_path / "alone", *last), DCGAN_JAX_DISTRIBUTED="")
    assert processes.finish([alone])[0] == [0]
    one, two = metrics(tmp_path / "alone"), metrics(run)
    assert two.keys() >= one.keys() and max(one) == end
    assert two[end].keys() == one[end].keys() >= {"swd", "inversion_psnr"}
    for step, values in one.items():
        assert two[step]["discriminator_loss"] == pytest.approx(values.pop("discriminator_loss"), abs=2e-3)
        assert {name: two[step][name] for name in values} == pytest.approx(values, rel=0.01)
    # An error is reported by all processes, and no process waits for another.
    start = time.monotonic()
    statuses, _, errors = processes.finish(processes.start(2, train(digits, run, "--num-steps", end, "--seed", "5")))
    assert statuses == [2, 2] and all("differs in seed (0 there, 5 here)" in text for text in errors)
    assert time.monotonic() - start < 60


@LONG
@pytest.mark.parametrize(
    ("place", "jobs"), [("folder", ((2, 4), (1, 1), (4, 1))), ("bucket", ((2, 1), (1, 1), (2, 1)))]
)
def test_a_run_resumes_on_other_processes(place, jobs, digits, tmp_path):
    """Jobs of so many processes, with so many devices each, continue one run."""
    folder = tmp_path / "run"
    run = f"file://{folder}" if place == "bucket" else folder
    environment = {"FSSPEC_FILE_AUTO_MKDIR": "true", "DCGAN_JAX_CACHE": str(tmp_path / "cache")}
    for steps, (count, devices) in zip((2, 4, 6), jobs, strict=True):
        job = processes.start(count, train(digits, run, "--num-steps", steps), devices, **environment)
        statuses, _, errors = processes.finish(job)
        assert statuses == [0] * count, errors
        parts = sorted(path.name for path in (folder / "checkpoints" / str(steps) / "state").glob("ocdbt.process_*"))
        assert parts == [f"ocdbt.process_{i}" for i in range(count if place == "folder" else 1)]
        arrays, _ = saved.by_orbax(folder / "checkpoints" / str(steps))
        assert arrays["step"] == (np.int32, (), np.int32(steps).tobytes())
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["2", "4", "6"]
    (alone,) = processes.start(1, train(digits, tmp_path / "alone", "--num-steps", 6), DCGAN_JAX_DISTRIBUTED="")
    assert processes.finish([alone])[0] == [0]
    one, many = metrics(tmp_path / "alone"), metrics(folder)
    assert one.keys() == many.keys() == {2, 4, 6}
    for step, values in one.items():
        assert many[step]["discriminator_loss"] == pytest.approx(values["discriminator_loss"], abs=2e-3)


def fill_one_disk(run):
    """Saves twice. The second time one process finds its disk full."""
    distributed.join(training=True)
    orbax.WAIT = 5
    state = jax.device_get(jax.jit(lambda key: init_state(CONFIG, key))(jax.random.key(0)))
    state = sharding.put_everywhere(sharding.data_mesh(), state)
    with checkpoints.CheckpointWriter(run, CONFIG) as writer:
        writer.save(state)
        writer.wait()
        if not distributed.is_first():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            writer.save(state._replace(step=state.step + 1))
            writer.wait()
        except UserError as error:
            print(error)


@LONG
def test_a_full_disk_of_one_process_is_named_by_all(tmp_path):
    statuses, outputs, errors = processes.finish(processes.start(2, [__file__, tmp_path, "full"]))
    assert statuses == [0, 0], errors
    reasons = "another process has not written its share within 5 seconds", "File too large"
    for output, error, reason in zip(outputs, errors, reasons, strict=True):
        assert f"checkpoints/1 cannot be written ({reason}); the last checkpoint is of step 0: free some" in output
        assert "Traceback" not in error
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0"]


def resume_on_other_devices(folder):
    """Trains one run on eight, one and four devices in turn, by steps that compute exactly."""

    def make(config, batch_sharding):
        def step(state, batch, key):
            pixels = jnp.sum(batch.astype(jnp.int32)) + jax.random.randint(key, (), 0, 100)
            moved = jax.tree.map(lambda x: x + pixels % 1000, state.generator)
            return state._replace(step=state.step + 1, generator=moved), {"generator_loss": pixels.astype(float)}

        return step

    mesh, shape = sharding.data_mesh, jax.eval_shape(lambda key: init_state(trainings.CONFIG, key), jax.random.key(0))
    recipe = gan.RECIPE._replace(
        init=lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape),
        make_step=make,
        picture=lambda *_: np.zeros((4, 4, 1), np.uint8),
    )
    config = dataclasses.replace(trainings.CONFIG, log_every=1)
    for run, devices in (("changing", (8, 1, 4)), ("alone", (1, 1, 1))):
        for steps, count in zip((2, 4, 6), devices, strict=True):
            sharding.data_mesh = functools.partial(mesh, jax.devices()[:count])
            part = dataclasses.replace(config, num_steps=steps)
            state = loop.train(recipe, part, folder.parent / "digits", folder / run, progress=False)
            assert {len(x.sharding.device_set) for x in jax.tree.leaves(state)} == {count}
            arrays, _ = saved.by_orbax(folder / run / "checkpoints" / str(steps))
            assert arrays == {name: (x.dtype, x.shape, x.tobytes()) for name, x in saved.named(state).items()}


def test_a_run_resumes_on_other_devices(digits, tmp_path):
    (tmp_path / "digits").symlink_to(digits)
    (tmp_path / "runs").mkdir()
    (job,) = processes.start(1, [__file__, tmp_path / "runs", "devices"], 8, DCGAN_JAX_DISTRIBUTED="")
    statuses, _, errors = processes.finish([job])
    assert statuses == [0], errors
    one, changing = (saved.by_orbax(tmp_path / "runs" / run / "checkpoints" / "6") for run in ("alone", "changing"))
    assert one[0] == changing[0] and np.frombuffer(one[0]["generator/bias"][2], np.float32) > 0


def test_a_share_of_each_array_is_copied():
    statuses, outputs, errors = processes.finish(processes.start(1, [__file__, "", "shares"], 4))
    assert statuses == [0] and outputs == ["shared\n"], errors


def copy_shares():
    mesh = sharding.data_mesh()
    arrays = {"a": np.arange(24.0).reshape(3, 8), "b": np.arange(6.0), "c": np.float32(3), "d": np.zeros((0, 3))}
    whole = sharding.put_everywhere(mesh, jax.tree.map(np.asarray, arrays))
    shares = sharding.in_shares(mesh, whole)
    jax.tree.map(np.testing.assert_array_equal, shares, arrays)
    shapes = jax.tree.map(lambda x: {shard.data.shape for shard in x.addressable_shards}, shares)
    assert shapes == {"a": {(3, 2)}, "b": {(6,)}, "c": {()}, "d": {(0, 3)}}
    pointers = jax.tree.map(lambda x: {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}, whole)
    copies = jax.tree.map(lambda x: {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}, shares)
    assert not any(jax.tree.leaves({name: pointers[name] & copies[name] for name in "abc"}))
    print("shared")


def test_a_folder_that_a_process_does_not_see_is_an_error(tmp_path):
    book = logbook.Logbook(tmp_path / "run", True, trainings.CONFIG)
    with pytest.raises(UserError, match=r"process 0 does not see .*/run: put the run in a bucket, or in a folder that"):
        book.begin()


@LONG
def test_processes_share_the_images(digits_run, tmp_path):
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for name in "abcde":
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(images / f"{name}.png")
    words = [
        "-m",
        "dcgan_jax",
        "inpaint",
        "--prior",
        digits_run.run,
        "--images",
        images,
        "--masks",
        "center",
        "--quiet",
    ]
    words += ["--num-steps", "5", "--batch-size", "2", "--out"]
    (alone,) = processes.start(1, [*words, tmp_path / "alone"], DCGAN_JAX_DISTRIBUTED="")
    assert processes.finish([alone])[0] == [0]
    statuses, _, errors = processes.finish(processes.start(2, [*words, tmp_path / "out"]))
    assert statuses == [0, 0], errors
    names = []
    for number, expected in enumerate(("ace", "bd")):
        lines = (tmp_path / "out" / f"results-{number:05}-of-00002.jsonl").read_text().splitlines()
        names.append("".join(json.loads(line)["name"] for line in lines))
        assert names[-1] == expected
    for name in "abcde":
        assert (tmp_path / "out" / f"{name}.png").read_bytes() == (tmp_path / "alone" / f"{name}.png").read_bytes()


def test_a_job_that_cannot_be_joined_is_an_error():
    (process,) = processes.start(1, train("data", "run"), JAX_COORDINATOR_ADDRESS="")
    (status,), _, (errors,) = processes.finish([process])
    assert status == 2 and "the processes of this job cannot be joined" in errors


def exchange_texts(path):
    """Exchanges texts of different lengths; the second process comes long after a collective's timeout."""
    distributed.join(training=False)
    text = "ünï\n" * (1 + jax.process_index())
    if not distributed.is_first():
        time.sleep(10)
    texts = [distributed.from_each_text(text), distributed.from_each_text("")]
    path.with_suffix(f".{jax.process_index()}").write_text(json.dumps(texts))


def wait_alone():
    """Waits in a job of one process. `from_each_text` would return at once there."""
    with pytest.raises(RuntimeError, match="has not joined a job; call `join` first"):
        distributed.wait_for_all()
    distributed.join(training=False)
    for _ in range(2):
        distributed.wait_for_all()
    print("waited")


def test_the_private_name_of_jax_works():
    statuses, outputs, errors = processes.finish(processes.start(1, [__file__, "", "wait"]))
    assert statuses == [0] and outputs == ["waited\n"], errors


def test_one_private_name_of_jax_is_used_in_one_place():
    lines = [
        (path.name, line.strip())
        for path in Path(distributed.__file__).parents[1].rglob("*.py")
        for line in path.read_text().splitlines()
        if "jax._src" in line
    ]
    assert lines == [("distributed.py", "from jax._src.distributed import global_state")]


@LONG
def test_texts_reach_all_processes_however_late(tmp_path):
    options = {"XLA_FLAGS": "--xla_cpu_collective_timeout_seconds=4"}
    started = processes.start(2, [__file__, tmp_path / "texts", "exchange"], **options)
    statuses, _, errors = processes.finish(started)
    assert statuses == [0, 0], errors
    for i in range(2):
        assert json.loads((tmp_path / f"texts.{i}").read_text()) == [["ünï\n", "ünï\nünï\n"], ["", ""]]


if __name__ == "__main__":
    if sys.argv[2:] == ["exchange"]:
        exchange_texts(Path(sys.argv[1]))
    elif sys.argv[2:] == ["wait"]:
        wait_alone()
    elif sys.argv[2:] == ["devices"]:
        resume_on_other_devices(Path(sys.argv[1]))
    elif sys.argv[2:] == ["full"]:
        fill_one_disk(Path(sys.argv[1]))
    elif sys.argv[2:] == ["shares"]:
        copy_shares()
    else:
        write_results(sys.argv[1])
