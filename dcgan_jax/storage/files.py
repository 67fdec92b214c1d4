"""Files and folders that appear whole or not at all, even if the process is killed."""

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
    """Makes a folder and its parents if they do not exist. Raises `UserError` if this fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path} cannot be made ({error.strerror}): give another folder") from error


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a hidden path for a new file. The file is renamed to `path` if the block succeeds, else removed."""
    path = Path(path)
    # Not with `tempfile`, because only the owner could read the file, even after it is renamed.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Locks a file. Raises `UserError` if another process holds the lock. The file remains afterwards."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process uses {path.parent}: wait until it ends, or give another folder"
            ) from error
        except OSError:  # the file system has no locks
            pass
        yield


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a hidden folder. It is renamed to `out` if the block succeeds, else removed.

    SIGTERM removes it too, unless the program has its own handler for this signal.
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
    """Removes the folder if SIGTERM ends the process. Only the main thread can install the handler."""
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


def _terminate(*_: object) -> None:
    # An exception would not work: Python drops it if a callback of the garbage collector is running.
    for folder in _unfinished:
        shutil.rmtree(folder, ignore_errors=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
