"""Files, prepared sets, priors and runs in buckets; fsspec's file system in memory stands for one."""

import dataclasses
import io
import json
import sys
import zipfile
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
import trainings
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import dcgan_jax as dj
from dcgan_jax.command import inpaint, main
from dcgan_jax.command.inpaint import Report
from dcgan_jax.data import open_prepared, prepare
from dcgan_jax.errors import UserError
from dcgan_jax.storage import mirror, remote
from dcgan_jax.training import gan, loop

compiled_once = trainings.compiled_once


class Killed(BaseException):
    """What ends a process at any place."""


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    """An empty file system in memory and an empty cache."""
    monkeypatch.setenv("DCGAN_JAX_CACHE", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


def content(fs):
    return {name: fs.cat_file(name) for name in fs.find("/")}


def local_content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def counted(monkeypatch, *names, kill_after=None):
    """The calls that file systems get from now on, each of which ends the process after so many."""
    calls, originals = [], {name: getattr(MemoryFileSystem, name) for name in names}
    for name in names:

        def watch(fs, *args, name=name, original=originals[name], **options):
            if kill_after is not None and len(calls) >= kill_after:
                raise Killed
            calls.append((name, args))
            return original(fs, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, name, watch)
    return calls


# ------------------------------------------------------------------------------------------ fetching


@pytest.mark.parametrize("place", ["gs://a/b", "s3://a", "memory://a/b.png", "https://a.b/c.zip", "S3+x.y-z://a"])
def test_addresses(place):
    assert remote.is_url(place)


@pytest.mark.parametrize("place", ["gs:/a/b", "a/b", "/a://b", "digits", "tfds:cars196", "C:/a", "://a", ""])
def test_local_places(place, tmp_path):
    assert not remote.is_url(place) and remote.fetch(place) is place
    assert remote.fetch(tmp_path) is tmp_path


def test_a_file_is_fetched_once_and_again_when_it_has_changed(bucket, monkeypatch):
    bucket.pipe("/b/x/photo.png", b"one")
    calls = counted(monkeypatch, "get_file")
    first = remote.fetch("memory://b/x/photo.png")
    assert first.name == "photo.png" and first.read_bytes() == b"one" and len(calls) == 1
    assert remote.fetch("memory://b/x/photo.png") == first and len(calls) == 1
    bucket.pipe("/b/x/photo.png", b"two")  # of the same size
    assert remote.fetch("memory://b/x/photo.png").read_bytes() == b"two" and len(calls) == 2
    assert first.read_bytes() == b"one"


def test_a_folder_is_fetched_once_and_again_when_a_file_of_it_has_changed(bucket, monkeypatch):
    bucket.pipe({"/b/x/a.txt": b"a", "/b/x/deep/er/c.txt": b"c", "/b/xy/other.txt": b"not this"})
    calls = counted(monkeypatch, "get_file")
    first = remote.fetch("memory://b/x")
    assert first.name == "x" and local_content(first) == {"a.txt": b"a", "deep/er/c.txt": b"c"}
    assert remote.fetch("memory://b/x/") == first and len(calls) == 2
    bucket.pipe("/b/x/new.txt", b"n")
    assert local_content(remote.fetch("memory://b/x")) == {"a.txt": b"a", "deep/er/c.txt": b"c", "new.txt": b"n"}
    chosen = remote.fetch("memory://b/x", lambda names: [name for name in names if name > "b"])
    assert local_content(chosen) == {"deep/er/c.txt": b"c", "new.txt": b"n"}


def test_an_interrupted_fetch_leaves_nothing(bucket, monkeypatch, tmp_path):
    bucket.pipe({f"/b/x/{i}.txt": b"content" for i in range(4)})
    with monkeypatch.context() as patch:
        counted(patch, "get_file", kill_after=2)
        with pytest.raises(Killed):
            remote.fetch("memory://b/x")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(local_content(remote.fetch("memory://b/x"))) == 4


def test_what_cannot_be_fetched(bucket, monkeypatch):
    with pytest.raises(UserError, match="memory://b/x does not exist"):
        remote.fetch("memory://b/x")
    with pytest.raises(UserError, match=r"foo://b cannot be opened \(Protocol not known: foo"):
        remote.fetch("foo://b")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://b/x cannot be opened.*pip install 'dcgan-jax\[buckets\]'"):
        remote.fetch("gs://b/x")
    bucket.pipe("/b/x", b"content")

    def refuse(*_, **__):
        raise RuntimeError("403: not allowed\nat length")

    monkeypatch.setattr(MemoryFileSystem, "get_file", refuse)
    with pytest.raises(UserError, match=r"^memory://b/x cannot be read or written \(RuntimeError: 403: not allowed\)$"):
        remote.fetch("memory://b/x")
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: {"/b/../../evil": {"size": 1}})
    with pytest.raises(UserError, match="leads out of the folder"):
        remote.fetch("memory://b")


# ------------------------------------------------------------------------------------------ sources and prepared sets


def picture(level):
    file = io.BytesIO()
    Image.new("RGB", (178, 218), (level, level, 0)).save(file, format="PNG")
    return file.getvalue()


def test_a_folder_of_images(bucket, tmp_path):
    bucket.pipe({f"/b/photos/{split}/{i}.png": picture(40 * i) for split in ("train", "test") for i in range(3)})
    prepared = prepare("memory://b/photos", tmp_path / "set", image_size=8, progress=False)
    assert prepared.manifest["splits"] == {"train": [0, 3], "test": [3, 6]}
    assert prepared.images[:3, 0, 0, 0].tolist() == [0, 40, 80]
    assert prepared.manifest["source"] == "memory://b/photos"


@pytest.mark.parametrize("beside", [True, False])
def test_celeba_finds_its_partition_beside_the_archive(bucket, tmp_path, beside):
    with bucket.open("/b/faces/faces.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for i in range(3):
            archive.writestr(f"img_align_celeba/{i}.png", picture(i))
    place = "/b/faces/list_eval_partition.txt" if beside else "/b/elsewhere.txt"
    bucket.pipe(place, b"0.png 0\n1.png 2\n2.png 1\n")
    partition = None if beside else f"memory:/{place}"
    prepared = prepare("memory://b/faces/faces.zip", tmp_path / "set", partition=partition, progress=False)
    assert prepared.manifest["kind"] == "celeba"
    assert prepared.manifest["splits"] == {"train": [0, 1], "validation": [1, 2], "test": [2, 3]}


def test_a_prepared_set_in_a_bucket(bucket, digits, monkeypatch, capsys):
    calls = counted(monkeypatch, "put_file", "get_file")
    assert main.main(["prepare", "digits", "--out", "memory://b/sets/digits", "--image-size", "32", "--quiet"]) == 0
    assert "memory://b/sets/digits: " in capsys.readouterr().out
    assert calls[-1][1][1] == "/b/sets/digits/manifest.json" and {name for name, _ in calls} == {"put_file"}
    files = local_content(digits)
    assert content(bucket) == {f"/b/sets/digits/{name}": files[name] for name in files}
    monkeypatch.setenv("DCGAN_JAX_CACHE", str(digits.parent / "other cache"))
    there, here = open_prepared("memory://b/sets/digits"), open_prepared(digits)
    np.testing.assert_array_equal(there.images, here.images)
    assert there.manifest == here.manifest and there.names == here.names
    assert main.main(["prepare", "digits", "--out", "memory://b/sets/digits", "--quiet"]) == 2
    assert "memory://b/sets/digits exists already" in capsys.readouterr().err


def test_a_half_uploaded_set_is_not_one_and_can_be_prepared_again(bucket, digits, monkeypatch, tmp_path):
    for kill_after in range(4):
        with monkeypatch.context() as patch:
            counted(patch, "put_file", kill_after=kill_after)
            with pytest.raises(Killed):
                prepare("digits", "memory://b/set", image_size=32, progress=False)
        assert len(content(bucket)) == kill_after and list((tmp_path / "cache").iterdir()) == []
        with pytest.raises(UserError, match=r"memory://b/set is not a prepared set \(it has no manifest.json\)"):
            open_prepared("memory://b/set")
    prepare("digits", "memory://b/set", image_size=32, progress=False)
    np.testing.assert_array_equal(open_prepared("memory://b/set").images, open_prepared(digits).images)


# ------------------------------------------------------------------------------------------ runs


def run_folder(folder, steps):
    """Writes what a run leaves that has saved its checkpoints up to a step; every file says of which step it is."""
    for name in ("config.json", "metrics.jsonl", f"samples/{steps}.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} {'x' * steps}")
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / f"{steps:07d}.safetensors").write_text(f"checkpoint {steps}")
    (folder / ".config.json.123.partial").write_text("being written")


def push_checkpoints(*steps):
    with mirror.open_run("memory://b/run") as copy:
        for step in steps:
            run_folder(copy.folder, step)
            copy.push()


OPERATIONS = ("put_file", "pipe_file", "rm_file")


def test_a_run_goes_up_and_comes_down(bucket, monkeypatch, tmp_path):
    push_checkpoints(1, 2)
    monkeypatch.setenv("DCGAN_JAX_CACHE", str(tmp_path / "other cache"))
    with mirror.open_run("memory://b/run") as copy:
        assert sorted(local_content(copy.folder)) == [
            "checkpoints/0000001.safetensors",
            "checkpoints/0000002.safetensors",
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
        "checkpoints/0000003.safetensors": b"checkpoint 3",
    }


def test_a_run_killed_anywhere_stays_usable(bucket, monkeypatch):
    """After any number of operations a whole checkpoint comes down, with reports that reach as far at least."""
    push_checkpoints(1, 2, 3)
    before, calls = content(bucket), []
    with monkeypatch.context() as patch:
        calls = counted(patch, *OPERATIONS)
        push_checkpoints(4)
    assert [name for name, _ in calls] == ["put_file"] * 4 + ["rm_file"]
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
        (newest,) = {int(name[-19:-12]) for name in prior if name.startswith("checkpoints/")}
        assert newest == max(int(name[-19:-12]) for name in found if name.startswith("checkpoints/"))
        for files in (found, prior):
            assert files[f"checkpoints/{newest:07d}.safetensors"] == f"checkpoint {newest}".encode()
        assert len(found["metrics.jsonl"].split()[1]) >= newest and "config.json" in found
        newest_seen.append(newest)
        push_checkpoints(4)  # goes on
        assert {int(name[-19:-12]) for name in content(bucket) if "/checkpoints/" in name} == {2, 3, 4}
    assert newest_seen == [3] * 4 + [4]


def test_the_first_push_killed_anywhere_leaves_a_run_to_begin(bucket, monkeypatch):
    for kill_after in range(4):
        bucket.store.clear()
        with monkeypatch.context() as patch:
            counted(patch, *OPERATIONS, kill_after=kill_after)
            with pytest.raises(Killed):
                push_checkpoints(1)
        with mirror.open_run("memory://b/run") as copy:
            found = local_content(copy.folder)
        assert not any(name.startswith("checkpoints/") for name in found)
        assert ("config.json" in found) == (kill_after > 0)


def test_other_files_are_not_taken_for_a_run(bucket, tmp_path):
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


def test_a_run_resumed_elsewhere_is_the_uninterrupted_one(bucket, digits, uninterrupted, monkeypatch, tmp_path):
    """Killed before the second of three checkpoints goes up; then another machine goes on."""
    run, state, config = uninterrupted
    there = "memory://b/runs/digits"
    send = remote.send

    def kill(url, folder, names):
        if "checkpoints/0000004.safetensors" in names:
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


def test_a_finished_run_and_its_prior(bucket, uninterrupted, digits, tmp_path, capsys):
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


# ------------------------------------------------------------------------------------------ the command


def test_the_command_works_on_buckets(bucket, digits, tmp_path, monkeypatch):
    bucket.put(str(digits), "/b/set", recursive=True)
    bucket.pipe("/b/mask.png", picture(255))
    same = "--image-size 32 --channels 1 --base-width 4 --latent-dim 7 --batch-size 8 --flip --noise 0.05 --seed 3"
    train = ["train", "--data", "memory://b/set", "--run", "memory://b/run", "--num-steps", "1", *same.split()]
    train += ["--measure-every", "0"]
    assert main.main([*train, "--verify", "--quiet"]) == 0
    record = json.loads(content(bucket)["/b/run/config.json"])
    assert record["data"]["path"] == "memory://b/set"

    seen = []
    monkeypatch.setattr(inpaint, "inpaint_folder", lambda *args, **_: seen.append(args) or Report(0, 0, 0, {}, {}))
    given = ["inpaint", "--prior", "memory://b/run", "--images", "memory://b/set", "--masks"]
    assert main.main([*given, "memory://b/mask.png", "--out", "out"]) == 0
    assert main.main([*given, "center", "--out", "out"]) == 0
    (prior, images, mask, *_), (_, _, name, *_) = seen
    assert prior.model.latent_dim == 7 and local_content(images) == local_content(digits)
    assert Path(mask).read_bytes() == picture(255) and name == "center"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main.main([*given, "center", "--out", "memory://b/out"])
    assert not list(tmp_path.glob("memory:*"))
