"""Files and folders that appear whole or not at all, whatever ends the work on them."""

import contextlib
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
def whole_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` if the block succeeds, and vanishes if it does not."""
    out = out.resolve()
    make_folder(out.parent)
    with _termination_raises():
        partial = out.with_name(f".{out.name}.partial-{uuid.uuid4().hex[:8]}")
        try:
            partial.mkdir()
            yield partial
            partial.replace(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    """Makes SIGTERM an exception, so that the clean-up runs; Python lets only the main thread do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, stop) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
