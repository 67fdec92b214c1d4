"""Training runs in buckets, including uploads that are killed."""

import dataclasses
import json
import shutil

import buckets
import jax
import numpy as np
import pytest
import trainings
from buckets import Killed, content, counted, local_content

import dcgan_jax as dj
from dcgan_jax.command import main
from dcgan_jax.errors import UserError
from dcgan_jax.storage import mirror, remote
from dcgan_jax.training import gan, loop

compiled_once = trainings.compiled_once
bucket = buckets.bucket


def run_folder(folder, steps):
    """Writes the files of a run that has reached this step; each file contains its step."""
    for name in ("config.json", "metrics.jsonl", f"samples/{steps}.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} {'x' * steps}")
    for name in CHECKPOINT:
        path = folder / "checkpoints" / str(steps) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"checkpoint {steps}")
    shutil.rmtree(folder / "checkpoints" / str(steps - 3), ignore_errors=True)
    (folder / ".config.json.123.partial").write_text("being written")


def push_checkpoints(*steps):
    with mirror.open_run("memory://b/run") as copy:
        for step in steps:
            run_folder(copy.folder, step)
            copy.push()


CHECKPOINT = ("SHA256SUMS", "config/metadata", "state/array")
OPERATIONS = ("put_file", "pipe_file", "rm_file")


def test_a_run_is_uploaded_and_downloaded(bucket, monkeypatch, tmp_path):
    push_checkpoints(1, 2)
    monkeypatch.setenv("DCGAN_JAX_CACHE", str(tmp_path / "other cache"))
    with mirror.open_run("memory://b/run") as copy:
        assert sorted(local_content(copy.folder)) == [
            "checkpoints/1/SHA256SUMS",
            "checkpoints/1/config/metadata",
            "checkpoints/1/state/array",
            "checkpoints/2/SHA256SUMS",
            "checkpoints/2/config/metadata",
            "checkpoints/2/state/array",
            "config.json",
            "metrics.jsonl",
            "samples/1.png",
            "samples/2.png",
        ]
        calls = counted(monkeypatch, *OPERATIONS)
        copy.push()
        assert calls == []  # nothing has changed
        run_folder(copy.folder, 3)
        copy.push()
    assert local_content(mirror.fetch_prior("memory://b/run")) == {
        "config.json": b"config.json xxx",
        "checkpoints/3/SHA256SUMS": b"checkpoint 3",
        "checkpoints/3/config/metadata": b"checkpoint 3",
        "checkpoints/3/state/array": b"checkpoint 3",
    }


def test_a_bucket_stays_usable_when_an_upload_is_killed(bucket, monkeypatch):
    """After any number of operations a whole checkpoint can be fetched, and the reports reach at least as far."""
    push_checkpoints(1, 2, 3)
    before, calls = content(bucket), []
    with monkeypatch.context() as patch:
        calls = counted(patch, *OPERATIONS)
        push_checkpoints(4)
    assert [name for name, _ in calls] == ["put_file"] * 6 + ["rm_file"] * 3
    newest_seen = []
    for kill_after in range(len(calls)):
        bucket.store.clear()
        bucket.pipe(before)
        with monkeypatch.context() as patch:
            counted(patch, *OPERATIONS, kill_after=kill_after)
            with pytest.raises(Killed):
                push_checkpoints(4)
        prior = local_content(mirror.fetch_prior("memory://b/run"))
        with mirror.open_run("memory://b/run") as copy:
            found = local_content(copy.folder)
        (newest,) = {int(name.split("/")[1]) for name in prior if name.startswith("checkpoints/")}
        steps = {int(name.split("/")[1]) for name in found if name.startswith("checkpoints/")}
        assert newest == max(steps)
        for files, there in ((found, steps), (prior, {newest})):
            whole = {name: content for name, content in files.items() if name.startswith("checkpoints/")}
            assert whole == {
                f"checkpoints/{step}/{name}": f"checkpoint {step}".encode() for step in there for name in CHECKPOINT
            }
        assert len(found["metrics.jsonl"].split()[1]) >= newest and "config.json" in found
        newest_seen.append(newest)
        push_checkpoints(4)  # the run continues
        kept = [name for name in content(bucket) if "/checkpoints/" in name]
        assert kept == [f"/b/run/checkpoints/{step}/{name}" for step in (2, 3, 4) for name in CHECKPOINT]
    assert newest_seen == [3] * 6 + [4] * 3


def test_a_killed_first_upload_leaves_no_checkpoint(bucket, monkeypatch):
    for kill_after in range(6):
        bucket.store.clear()
        with monkeypatch.context() as patch:
            counted(patch, *OPERATIONS, kill_after=kill_after)
            with pytest.raises(Killed):
                push_checkpoints(1)
        with mirror.open_run("memory://b/run") as copy:
            found = local_content(copy.folder)
        assert not any(name.startswith("checkpoints/") for name in found)
        assert ("config.json" in found) == (kill_after > 0)


def test_a_run_of_the_older_format_is_fetched_and_replaced(bucket):
    old = {f"/b/run/checkpoints/000000{step}.safetensors": b"old" for step in (1, 2)}
    bucket.pipe({"/b/run/config.json": b"{}", "/b/run/checkpoints/3/state/array": b"unfinished", **old})
    assert sorted(local_content(mirror.fetch_prior("memory://b/run"))) == [
        "checkpoints/0000002.safetensors",
        "config.json",
    ]
    with mirror.open_run("memory://b/run") as copy:
        names = {"checkpoints/0000001.safetensors", "checkpoints/0000002.safetensors", "config.json"}
        assert set(local_content(copy.folder)) == names
        assert set(content(bucket)) == {f"/b/run/{name}" for name in names}
        run_folder(copy.folder, 4)
        (copy.folder / "checkpoints" / "0000001.safetensors").unlink()
    kept = [name for name in content(bucket) if "/checkpoints/" in name]
    assert kept == [
        "/b/run/checkpoints/0000002.safetensors",
        *(f"/b/run/checkpoints/4/{name}" for name in CHECKPOINT),
    ]


def test_other_files_are_refused_as_a_run(bucket):
    bucket.pipe("/b/run/letter.txt", b"dear")
    with pytest.raises(UserError, match="memory://b/run is not empty and not a run's folder"):
        with mirror.open_run("memory://b/run"):
            pass
    with pytest.raises(UserError, match="there is no prior at memory://b/run"):
        dj.load_prior("memory://b/run")
    assert content(bucket) == {"/b/run/letter.txt": b"dear"}


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    config = dataclasses.replace(trainings.CONFIG, checkpoint_every=2)
    return run, loop.train(gan.RECIPE, config, digits, run, progress=False), config


def test_a_run_resumed_elsewhere_equals_an_uninterrupted_one(bucket, digits, uninterrupted, monkeypatch, tmp_path):
    """Killed before the second of three checkpoints is uploaded, then continued on another machine."""
    run, state, config = uninterrupted
    there = "memory://b/runs/digits"
    send = remote.send

    def kill(url, folder, names):
        if "checkpoints/4/SHA256SUMS" in names:
            raise Killed
        send(url, folder, names)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "send", kill)
        with pytest.raises(Killed):
            loop.train(gan.RECIPE, config, digits, there, progress=False)
    monkeypatch.setenv("DCGAN_JAX_CACHE", str(tmp_path / "another machine"))
    restored, _ = trainings.load_state(mirror.fetch_prior(there))
    assert restored.step == 2
    trainings.assert_same(loop.train(gan.RECIPE, config, digits, there, progress=False), state)
    files = content(bucket)
    for name, expected in local_content(run).items():
        if name.startswith("samples/"):
            assert files[f"/b/runs/digits/{name}"] == expected
    lines = [json.loads(line) for line in files["/b/runs/digits/metrics.jsonl"].decode().splitlines()]
    assert all(line.pop("steps_per_second") > 0 for line in lines)
    assert lines == trainings.metrics_of(run)
    z = jax.random.uniform(jax.random.key(0), (2, config.model.latent_dim))
    images = [dj.generate(dj.load_prior(place), z) for place in (there, run)]
    np.testing.assert_array_equal(*images)


def test_a_finished_run_stays_and_its_prior_loads(bucket, uninterrupted, digits, tmp_path, capsys):
    run, state, config = uninterrupted
    bucket.put(str(run), "/b/run", recursive=True)
    before = content(bucket)
    trainings.assert_same(loop.train(gan.RECIPE, config, digits, "memory://b/run", progress=False), state)
    assert content(bucket) == before
    assert trainings.config_of(mirror.fetch_prior("memory://b/run")) == config
    dj.save_prior(dj.load_prior(run), tmp_path / "a.safetensors")
    bucket.put_file(str(tmp_path / "a.safetensors"), "/b/a.safetensors")
    for i, prior in enumerate(["memory://b/a.safetensors", "memory://b/run", str(run)]):
        assert main.main(["sample", "--prior", prior, "--count", "2", "--out", str(tmp_path / f"{i}.png")]) == 0
    assert len({(tmp_path / f"{i}.png").read_bytes() for i in range(3)}) == 1
    assert main.main(["sample", "--prior", "memory://b/nothing", "--out", str(tmp_path / "no.png")]) == 2
    assert "there is no prior at memory://b/nothing" in capsys.readouterr().err
