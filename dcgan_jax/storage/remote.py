"""Buckets, and whatever else fsspec reaches by an address such as `gs://`: fetched into a cache, and sent back.

The cache is the folder `$DCGAN_JAX_CACHE`, by default `~/.cache/dcgan_jax`; it may be emptied whenever nothing runs.
"""

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeGuard

from dcgan_jax.errors import UserError
from dcgan_jax.storage.files import whole_folder

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# What file systems call the things that change when a file does.
_IDENTITY = ("size", "ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "updated", "mtime")


def is_url(place: str | Path) -> TypeGuard[str]:
    """Whether a place is an address such as `gs://bucket/folder`. As a `Path` it would lose a slash: keep it a str."""
    return isinstance(place, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is not None


def cache_folder() -> Path:
    """Where copies of remote files are kept."""
    return Path(os.environ.get("DCGAN_JAX_CACHE") or "~/.cache/dcgan_jax").expanduser()


def fetch(place: str | Path, choose: Callable[[list[str]], Sequence[str]] | None = None) -> str | Path:
    """Makes a local copy of a remote file or folder, whole or not at all, and keeps it until the remote one changes.

    Args:
        place: an address; a local path comes back as it is.
        choose: from the names of a folder's files, relative to it, those to fetch; None fetches all. Those of a file
            are [""], those of nothing [].

    Returns:
        The copy, under its own name.

    Raises:
        UserError: nothing is there, or it cannot be reached.

    Example:
        >>> fetch("photos/a.png")
        'photos/a.png'
    """
    if not is_url(place):
        return place
    found = listing(place)
    names = sorted(found) if choose is None else choose(sorted(found))
    if not names:
        raise UserError(f"{place} does not exist")
    home = cache_folder() / _key(place, {name: found[name] for name in names})
    copy = home / _base_name(place)
    if not home.is_dir():
        try:
            with whole_folder(home) as partial:
                download(place, names, partial / copy.name)
        except OSError:
            if not home.is_dir():  # else another process was faster
                raise
    return copy


@contextlib.contextmanager
def new_folder(out: str | Path, last: str) -> Iterator[Path]:
    """A folder to be filled that becomes `out` if the block succeeds.

    At an address, its files appear one by one, `last` after all others: where it is missing, the folder is not whole.
    The local copy stays in the cache, as if it had been fetched.
    """
    if not is_url(out):
        with whole_folder(Path(out)) as partial:
            yield partial
        return
    new = cache_folder() / f"new-{uuid.uuid4().hex}"
    with whole_folder(new) as partial:
        folder = partial / _base_name(out)
        folder.mkdir()
        yield folder
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        send(out, folder, [name for name in names if name != last])
        send(out, folder, [last])
        found = listing(out)
    new.replace(cache_folder() / _key(out, {name: found[name] for name in names}))


def listing(url: str) -> dict[str, dict[str, Any]]:
    """The files of a remote folder: names relative to it, and what identifies their content. A file's name is ""."""
    with _reached(url) as (fs, root):
        fs.invalidate_cache()
        if fs.isfile(root):
            return {"": _identity(fs.info(root))}
        files = {}
        for path, info in dict(fs.find(root, detail=True)).items():
            name = path.removeprefix(f"{root}/")
            if name == path or name.endswith("/") or not name:  # some services have objects that stand for folders
                continue
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise UserError(f"{url} holds {name!r}, which leads out of the folder: rename it")
            files[name] = _identity(info)
        return files


def download(url: str, names: Sequence[str], to: Path) -> None:
    """Copies files of a remote folder into a local one, or a remote file, whose name is "", to a local path."""
    local = [to / name if name else to for name in names]
    for path in local:
        path.parent.mkdir(parents=True, exist_ok=True)
    with _reached(url) as (fs, root):
        fs.get([f"{root}/{name}" if name else root for name in names], list(map(str, local)))


def send(url: str, folder: Path, names: Sequence[str]) -> None:
    """Copies files of a local folder into a remote one, in any order."""
    with _reached(url) as (fs, root):
        fs.put([str(folder / name) for name in names], [f"{root}/{name}" for name in names])


def write(url: str, name: str, text: str) -> None:
    """Writes a small file of a remote folder."""
    with _reached(url) as (fs, root):
        fs.pipe_file(f"{root}/{name}", text.encode())


def remove(url: str, names: Sequence[str]) -> None:
    """Removes files of a remote folder."""
    with _reached(url) as (fs, root):
        if names:
            fs.rm([f"{root}/{name}" for name in names])


@contextlib.contextmanager
def _reached(url: str) -> Iterator[tuple["AbstractFileSystem", str]]:
    """The file system of an address and the path in it; whatever it raises becomes one line."""
    from fsspec.core import url_to_fs  # slow to import; local paths need none of it

    try:
        fs, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url} cannot be opened ({error}); gs:// and s3:// need: pip install 'dcgan-jax[buckets]'"
        ) from error
    try:
        yield fs, root.rstrip("/")
    except UserError:
        raise
    except Exception as error:  # every service has errors of its own
        lines = str(error).strip().splitlines() or [""]
        raise UserError(f"{url} cannot be read or written ({type(error).__name__}: {lines[0]})") from error


def _identity(info: dict[str, Any]) -> dict[str, str]:
    # "created" is how the file system in memory tells one file from the next of that name.
    return {key: str(info[key]) for key in (*_IDENTITY, "created") if info.get(key) is not None}


def _key(url: str, files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([url.rstrip("/"), files], sort_keys=True).encode()).hexdigest()[:20]


def _base_name(url: str) -> str:
    return PurePosixPath(url.partition("://")[2]).name or "root"
