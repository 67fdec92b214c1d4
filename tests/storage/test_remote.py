"""Files, image sets and commands with buckets; fsspec's file system in memory stands for a bucket."""

import io
import json
import sys
import zipfile
from pathlib import Path

import buckets
import numpy as np
import pytest
from buckets import Killed, content, counted, local_content
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from dcgan_jax.command import inpaint, main
from dcgan_jax.command.inpaint import Report
from dcgan_jax.data import open_prepared, prepare
from dcgan_jax.errors import UserError
from dcgan_jax.storage import remote

bucket = buckets.bucket


# ------------------------------------------------------------------------------------------ fetching


@pytest.mark.parametrize("place", ["gs://a/b", "s3://a", "memory://a/b.png", "https://a.b/c.zip", "S3+x.y-z://a"])
def test_urls_are_recognised(place):
    assert remote.is_url(place)


@pytest.mark.parametrize("place", ["gs:/a/b", "a/b", "/a://b", "digits", "tfds:cars196", "C:/a", "://a", ""])
def test_local_places_are_returned_unchanged(place, tmp_path):
    assert not remote.is_url(place) and remote.fetch(place) is place
    assert remote.fetch(tmp_path) is tmp_path


def test_a_file_is_fetched_again_only_when_it_changed(bucket, monkeypatch):
    bucket.pipe("/b/x/photo.png", b"one")
    calls = counted(monkeypatch, "get_file")
    first = remote.fetch("memory://b/x/photo.png")
    assert first.name == "photo.png" and first.read_bytes() == b"one" and len(calls) == 1
    assert remote.fetch("memory://b/x/photo.png") == first and len(calls) == 1
    bucket.pipe("/b/x/photo.png", b"two")  # new content of the same size
    assert remote.fetch("memory://b/x/photo.png").read_bytes() == b"two" and len(calls) == 2
    assert first.read_bytes() == b"one"


def test_a_folder_is_fetched_again_only_when_a_file_changed(bucket, monkeypatch):
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


def test_places_that_cannot_be_fetched_are_refused(bucket, monkeypatch):
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


def test_images_in_a_bucket_are_prepared(bucket, tmp_path):
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


def test_a_set_is_prepared_into_a_bucket_and_opened_from_it(bucket, digits, monkeypatch, capsys):
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


def test_a_half_uploaded_set_is_refused_and_can_be_prepared_again(bucket, digits, monkeypatch, tmp_path):
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
    monkeypatch.setattr(inpaint, "inpaint_folder", lambda *args: seen.append(args) or Report(0, 0, 0, {}, {}, []))
    given = ["inpaint", "--prior", "memory://b/run", "--images", "memory://b/set", "--masks"]
    assert main.main([*given, "memory://b/mask.png", "--out", "out"]) == 0
    assert main.main([*given, "center", "--out", "out"]) == 0
    (prior, job), (_, drawn) = seen
    assert prior.model.latent_dim == 7 and local_content(job.images) == local_content(digits)
    assert Path(job.mask).read_bytes() == picture(255) and drawn.mask == "center"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main.main([*given, "center", "--out", "memory://b/out"])
    assert not list(tmp_path.glob("memory:*"))
