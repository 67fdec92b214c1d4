"""A file system in memory that stands for a bucket, and processes that are killed while they use it."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem


class Killed(BaseException):
    """Stands for a kill: no `except Exception` catches it."""


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
    """Records the calls of file systems from now on; after `kill_after` calls each further one raises `Killed`."""
    calls, originals = [], {name: getattr(MemoryFileSystem, name) for name in names}
    for name in names:

        def watch(fs, *args, name=name, original=originals[name], **options):
            if kill_after is not None and len(calls) >= kill_after:
                raise Killed
            calls.append((name, args))
            return original(fs, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, name, watch)
    return calls
