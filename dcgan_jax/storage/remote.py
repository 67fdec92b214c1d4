"""Files at URLs that fsspec can open, such as buckets at `gs://`. They are fetched into a cache.

The cache is the folder `$DCGAN_JAX_CACHE`, by default `~/.cache/dcgan_jax`. You may empty it when no program uses it.
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

# Fields of fsspec's file information that change when a file changes. Each service has its own fields.
_IDENTITY = ("size", "ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "updated", "mtime")


def is_url(place: str | Path) -> TypeGuard[str]:
    """Tells whether a place is a URL such as `gs://bucket/folder`. URLs must be str: `Path` would drop a slash."""
    return isinstance(place, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is not None


def cache_folder() -> Path:
    """Returns the folder of the cache."""
    return Path(os.environ.get("DCGAN_JAX_CACHE") or "~/.cache/dcgan_jax").expanduser()


def fetch(place: str | Path, choose: Callable[[list[str]], Sequence[str]] | None = None) -> str | Path:
    """Copies a remote file or folder into the cache, unless the cache has the current version.

    The copy appears whole or not at all.

    Args:
        place: a URL; a local path is returned unchanged.
        choose: names of the files in the folder -> names to fetch; None fetches all files. The names are relative to
            the folder. They are [""] if `place` is a single file, and [] if nothing is there.

    Returns:
        The path of the copy. Its last part is the name of the remote file or folder.

    Raises:
        UserError: `place` does not exist or cannot be reached.

    Example:
        >>> fetch("photos/a.png")
        'photos/a.png'
    """
    if not is_url(place):
        return place
    found = listing(place)
    names = sorted(found) if choose is None else choose(sorted(found))
    if not names:
        raise UserError(f"{place} does not exist: check the URL")
    home = cache_folder() / _cache_name(place, {name: found[name] for name in names})
    copy = home / _base_name(place)
    if not home.is_dir():
        try:
            with whole_folder(home) as partial:
                download(place, names, partial / copy.name)
        except OSError:
            if not home.is_dir():  # otherwise another process was faster
                raise
    return copy


@contextlib.contextmanager
def new_folder(out: str | Path, last: str) -> Iterator[Path]:
    """Yields an empty folder to fill. It becomes `out` if the block succeeds.

    At a URL the files appear one by one, and `last` appears after all others, so a folder without `last` is incomplete.
    The local copy stays in the cache, as if it had been fetched.

    Args:
        out: a path or a URL.
        last: the name of the file that appears last.
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
    new.replace(cache_folder() / _cache_name(out, {name: found[name] for name in names}))


def listing(url: str) -> dict[str, dict[str, Any]]:
    """Lists the files of a remote folder.

    Returns:
        Name of a file, relative to the folder -> fields that identify the file's content. If `url` is a file, its name
        is "".

    Raises:
        UserError: `url` cannot be reached, or a name leads out of the folder.
    """
    with _reached(url) as (fs, root):
        fs.invalidate_cache()
        if fs.isfile(root):
            return {"": _identity(fs.info(root))}
        files = {}
        for path, info in dict(fs.find(root, detail=True)).items():
            name = path.removeprefix(f"{root}/")
            if name == path or name.endswith("/") or not name:  # some services list folders as objects
                continue
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise UserError(f"{url} contains {name!r}, which leads out of the folder: rename it")
            files[name] = _identity(info)
        return files


def download(url: str, names: Sequence[str], to: Path) -> None:
    """Copies files of a remote folder into the local folder `to`. The name "" copies the file `url` to `to`."""
    local = [to / name if name else to for name in names]
    for path in local:
        path.parent.mkdir(parents=True, exist_ok=True)
    with _reached(url) as (fs, root):
        fs.get([f"{root}/{name}" if name else root for name in names], list(map(str, local)))


def send(url: str, folder: Path, names: Sequence[str]) -> None:
    """Copies files of a local folder to a remote folder, in any order."""
    with _reached(url) as (fs, root):
        fs.put([str(folder / name) for name in names], [f"{root}/{name}" for name in names])


def remove(url: str, names: Sequence[str]) -> None:
    """Deletes files of a remote folder."""
    with _reached(url) as (fs, root):
        if names:
            fs.rm([f"{root}/{name}" for name in names])


@contextlib.contextmanager
def _reached(url: str) -> Iterator[tuple["AbstractFileSystem", str]]:
    """Yields the file system of a URL and the path in it. Turns any error into a `UserError` of one line."""
    from fsspec.core import url_to_fs  # slow to import; local paths do not need it

    try:
        fs, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url} cannot be opened ({error}); for gs:// and s3:// run: pip install 'dcgan-jax[buckets]'"
        ) from error
    try:
        yield fs, root.rstrip("/")
    except UserError:
        raise
    except Exception as error:  # each service has its own errors
        lines = str(error).strip().splitlines() or [""]
        raise UserError(f"{url} cannot be read or written ({type(error).__name__}: {lines[0]})") from error


def _identity(info: dict[str, Any]) -> dict[str, str]:
    # fsspec's file system in memory has only "created", which is the time of writing.
    return {field: str(info[field]) for field in (*_IDENTITY, "created") if info.get(field) is not None}


def _cache_name(url: str, files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([url.rstrip("/"), files], sort_keys=True).encode()).hexdigest()[:20]


def _base_name(url: str) -> str:
    return PurePosixPath(url.partition("://")[2]).name or "root"
