"""Files and folders that appear whole or not at all, whatever ends the work on them."""

import contextlib
import fcntl
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from dcgan_jax.errors import UserError


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, where they are not there yet; `UserError` if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path} cannot be made ({error.strerror}): give another place") from error


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden name beside `path` whose file becomes `path` if the block succeeds, and vanishes if it does not."""
    path = Path(path)
    # Not `tempfile`: its files are readable by their owner alone, and stay so when renamed.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes from work that asks for the same file, which stays; `UserError` if one is at it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is at work in {path.parent}: wait for it, or give another folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` if the block succeeds, and vanishes if it does not.

    It vanishes on SIGTERM too, unless the program has a handler of its own for that signal.
    """
    out = out.resolve()
    make_folder(out.parent)
    partial = out.with_name(f".{out.name}.partial-{uuid.uuid4().hex[:8]}")
    with _removed_on_termination(partial):
        try:
            partial.mkdir()
            yield partial
            partial.replace(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


_unfinished: set[Path] = set()


@contextlib.contextmanager
def _removed_on_termination(folder: Path) -> Iterator[None]:
    """Removes the folder if SIGTERM ends the process; Python lets only the main thread set that up."""
    main = threading.current_thread() is threading.main_thread()
    installs = main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    _unfinished.add(folder)
    if installs:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if installs:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _unfinished.discard(folder)


def _terminate(*_) -> None:
    # Not by an exception: Python drops one that is raised while a callback of the garbage collector runs.
    for folder in _unfinished:
        shutil.rmtree(folder, ignore_errors=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
