"""Files in folders and archives. They are listed by name and read on demand. Nothing is unpacked to disk."""

import contextlib
import functools
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from dcgan_jax import pictures
from dcgan_jax.data.items import Item
from dcgan_jax.errors import UserError

LARGEST_MEMBER = 2**30  # largest file in an archive, in bytes
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


def is_image(name: str) -> bool:
    """Tells whether a path names an image file, and no part of the path is hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in pictures.suffixes() and not pictures.is_hidden(path)


@contextlib.contextmanager
def files_in(path: Path, wanted: Callable[[str], bool] = is_image) -> Iterator[tuple[list[Item], bool]]:
    """Yields the wanted files of a folder or archive, sorted by name, and whether they must be read in order.

    Args:
        path: a folder, or an archive with a suffix in `ARCHIVE_SUFFIXES`.
        wanted: name of a file -> whether it is wanted.

    Raises:
        UserError: `path` is neither a folder nor such an archive, or it is damaged.
    """
    if path.is_dir():
        yield _folder_items(path, wanted), False
    elif path.name.lower().endswith(".zip"):
        with open_zip(path) as archive:
            lock = threading.Lock()  # ZipFile's list of open members is not thread-safe

            def read_member(member: zipfile.ZipInfo) -> bytes:
                _check_size(member.file_size)
                with lock:
                    return archive.read(member)

            members = [(m.filename, m, m.header_offset) for m in archive.infolist() if not m.is_dir()]
            yield _member_items(members, read_member, wanted), False
    elif path.name.lower().endswith(ARCHIVE_SUFFIXES):
        with damage_named(path):
            archive = tarfile.open(path)
        with archive:

            def extract(member: tarfile.TarInfo) -> bytes:
                _check_size(member.size)
                file = archive.extractfile(member)
                if file is None:
                    raise ValueError(f"{member.name} is not a regular file")
                with file:
                    return file.read()

            with damage_named(path):
                members = [(m.name, m, m.offset) for m in archive if m.isfile()]
            yield _member_items(members, extract, wanted), True
    else:
        raise UserError(f"{path} is neither a folder of images nor an archive ({', '.join(ARCHIVE_SUFFIXES)})")


def split_places(path: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Returns the folder or archive of each split.

    Args:
        path: the folder that holds the splits, or the folder or archive of one split.
        names: split -> possible names of its folder or archive. The first one that exists is taken.
    """
    found = {}
    for split, choices in names.items():
        places = [path / name for name in choices] + [path] * (path.name in choices)
        found.update((split, place) for place in places[::-1] if place.exists())
    return found


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip archive. Raises `UserError` if it is damaged."""
    with damage_named(path):
        return zipfile.ZipFile(path)


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns any error in reading a file or archive into a `UserError` that names it."""
    try:
        yield
    except Exception as error:  # each compression format has its own errors
        raise UserError(f"{path} is damaged or cannot be read ({error}): get it again") from error


def refuse_link_out(file: Path, folder: Path) -> None:
    """Raises `UserError` if a file is a symbolic link to a place outside its folder."""
    if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{file} is a symbolic link out of {folder}: replace it by the file itself")


def _check_size(size: int) -> None:
    """Raises ValueError for a huge file. zipfile and tarfile never return more bytes than the declared size."""
    if size > LARGEST_MEMBER:
        raise ValueError(f"{size:,} bytes is too large for an image or annotation")


def _folder_items(path: Path, wanted: Callable[[str], bool]) -> list[Item]:
    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    items = []
    # Without `onerror`, `os.walk` would silently skip folders that cannot be listed.
    for folder, _, files in os.walk(path, onerror=fail):
        for file in files:
            full = Path(folder, file)
            name = full.relative_to(path).as_posix()
            if wanted(name):
                refuse_link_out(full, path)
                items.append(Item(name, full.read_bytes))
    return sorted(items, key=lambda item: item.name)


def _member_items(members: list, read: Callable, wanted: Callable[[str], bool]) -> list[Item]:
    for name, _, _ in members:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"the archive contains {name!r}, a path outside of it: do not use this archive")
    items = [
        Item(name.removeprefix("./"), functools.partial(read, member), position=(position,))
        for name, member, position in members
        if wanted(name.removeprefix("./"))
    ]
    return sorted(items, key=lambda item: item.name)
