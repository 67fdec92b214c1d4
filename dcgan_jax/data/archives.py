"""Files in folders and archives, listed by name and read when asked for, never unpacked to disk."""

import contextlib
import functools
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from dcgan_jax.data.items import Item
from dcgan_jax.errors import UserError

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .bmp .webp .gif .tif .tiff .ppm .pgm".split())
_LARGEST = 2**30  # bytes of a member of an archive
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


def is_image(name: str) -> bool:
    """Whether a path is that of an image file, and neither it nor a folder on the way is hidden."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


@contextlib.contextmanager
def files_in(path: Path, wanted: Callable[[str], bool] = is_image) -> Iterator[tuple[list[Item], bool]]:
    """The wanted files of a folder or archive, sorted by name; True if they must be read in their order."""
    if path.is_dir():
        yield _folder_items(path, wanted), False
    elif path.name.lower().endswith(".zip"):
        with open_zip(path) as archive:
            lock = threading.Lock()  # ZipFile's own bookkeeping of open members is not safe between threads

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
                assert file is not None  # regular files only, see below
                with file:
                    return file.read()

            with damage_named(path):
                members = [(m.name, m, m.offset) for m in archive if m.isfile()]
            yield _member_items(members, extract, wanted), True
    else:
        raise UserError(f"{path} is neither a folder of images nor one of {', '.join(ARCHIVE_SUFFIXES)}")


def split_places(path: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Where each split's folder or archive is: the first of its names that is in `path`, or `path` itself."""
    found = {}
    for split, choices in names.items():
        places = [path / name for name in choices] + [path] * (path.name in choices)
        found.update((split, place) for place in places[::-1] if place.exists())
    return found


def open_zip(path: Path) -> zipfile.ZipFile:
    with damage_named(path):
        return zipfile.ZipFile(path)


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns what goes wrong in reading a file or archive of a source into `UserError`."""
    try:
        yield
    except Exception as error:  # every compression has errors of its own
        raise UserError(f"{path} is damaged or cannot be read ({error}): get it again") from error


def refuse_link_out(file: Path, folder: Path) -> None:
    """Raises `UserError` if a file of a folder is a symbolic link to somewhere outside: what is there was not given."""
    if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{file} is a symbolic link out of {folder}: put the file itself there")


def _check_size(size: int) -> None:
    """Neither zipfile nor tarfile gives more bytes than a member says it has."""
    if size > _LARGEST:
        raise ValueError(f"{size:,} bytes, more than a file here can need")


def _folder_items(path: Path, wanted: Callable[[str], bool]) -> list[Item]:
    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    items = []
    # Without `onerror`, folders that cannot be listed would be left out silently.
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
            raise UserError(f"the archive holds {name!r}, which leads out of it: it was made to do harm")
    items = [
        Item(name.removeprefix("./"), functools.partial(read, member), position=(position,))
        for name, member, position in members
        if wanted(name.removeprefix("./"))
    ]
    return sorted(items, key=lambda item: item.name)
