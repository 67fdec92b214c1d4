"""A run in a bucket: a local copy to work on, sent back so that whatever ends the run leaves a usable one there.

In the bucket a checkpoint counts if `uploaded.txt` lies in it, which is written after all its other files and removed
before them. (Orbax has a file for this too, but writes it before we copy.)
"""

import contextlib
import functools
import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from dcgan_jax import remote
from dcgan_jax.checkpoints import FOLDER, KEPT, RECORD
from dcgan_jax.errors import UserError
from dcgan_jax.files import whole_folder

_UPLOADED = "uploaded.txt"


class RunCopy:
    """The local folder of a run, and the address it belongs to: None for a run that is local."""

    def __init__(self, folder: Path, url: str | None):
        self.folder, self.url = folder, url
        self._sent = self._states()
        self._whole = _steps(self._sent)

    def push(self) -> None:
        """Sends what has changed since the last time: reports, then new checkpoints; old ones are removed last.

        No checkpoint may be half written. Reports go first, because those beyond the newest checkpoint are dropped
        when the run is resumed, and missing ones could not be made up for.
        """
        if self.url is None:
            return
        states = self._states()
        changed = [name for name in states if states[name] != self._sent.get(name)]
        remote.send(self.url, self.folder, [name for name in changed if name == RECORD])  # makes the folder a run's
        remote.send(self.url, self.folder, [name for name in changed if name != RECORD and _step(name) is None])
        for step in sorted(_steps(states) - self._whole):
            left_over = [name for name in remote.listing(self.url) if _step(name) == step]
            remote.remove(self.url, left_over)  # of an upload that was interrupted
            remote.send(self.url, self.folder, [name for name in states if _step(name) == step])
            remote.write(self.url, f"{FOLDER}/{step}/{_UPLOADED}", "The checkpoint is whole.\n")
            self._whole.add(step)
        self._sent = states
        names = list(remote.listing(self.url))
        newest = sorted(_whole(names))[-KEPT:]
        for step in sorted(step for step in _steps(names).difference(newest) if newest and step < newest[-1]):
            files = [name for name in names if _step(name) == step]
            remote.remove(self.url, [name for name in files if name.endswith(_UPLOADED)])
            remote.remove(self.url, [name for name in files if not name.endswith(_UPLOADED)])

    def _states(self) -> dict[str, tuple[int, int]]:
        """Size and time of each file, by its name; hidden reports are being written."""
        states = {}
        for path in sorted(self.folder.rglob("*")) if self.url else []:
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and (_step(name) is not None or not path.name.startswith(".")):
                status = path.stat()
                states[name] = status.st_size, status.st_mtime_ns
        return states


@contextlib.contextmanager
def open_run(run: str | Path) -> Iterator[RunCopy]:
    """Opens a run to work on: its folder, or for an address a local copy, sent back at the end if the block succeeds.

    The copy is made anew, of the newest whole checkpoint and all reports: what is in the bucket is what counts.

    Raises:
        UserError: there is something else at the address, or it cannot be reached.
    """
    if not remote.is_url(run):
        yield RunCopy(Path(run), None)
        return
    names = list(remote.listing(run))
    if names and RECORD not in names:
        raise UserError(f"{run} is not empty and not a run's folder: give another folder")
    if not _whole(names) and len(_steps(names)) > 1:  # one alone is what an interrupted first upload leaves
        raise UserError(
            f"{run} has checkpoints without {_UPLOADED}, so they were copied there by other means: put such a file "
            "into the folder of the newest one to go on from it, or give another folder"
        )
    folder = remote.cache_folder() / "runs" / hashlib.sha256(run.encode()).hexdigest()[:20]
    shutil.rmtree(folder, ignore_errors=True)
    if names:
        with whole_folder(folder) as partial:
            newest = _newest(names)
            remote.download(run, [name for name in names if _step(name) is None or name in newest], partial)
    copy = RunCopy(folder, run)
    yield copy
    copy.push()


def fetch_prior(url: str) -> Path:
    """Fetches what a prior is made of: a run's record and its newest whole checkpoint, or a file.

    Raises:
        UserError: there is neither, or it cannot be reached.
    """
    return Path(remote.fetch(url, functools.partial(_prior_files, url)))


def _prior_files(url: str, names: list[str]) -> list[str]:
    if names == [""]:
        return names
    if RECORD not in names:
        raise UserError(f"there is no prior at {url}: give a run's folder or a .safetensors file")
    return [RECORD, *_newest(names)]


def _step(name: str) -> int | None:
    """The checkpoint that a file belongs to; None for the run's other files."""
    found = re.match(rf"{FOLDER}/(\d+)/", name)
    return int(found[1]) if found else None


def _steps(names: Iterable[str]) -> set[int]:
    return {step for name in names if (step := _step(name)) is not None}


def _whole(names: Iterable[str]) -> set[int]:
    """The checkpoints in a bucket that are whole."""
    return _steps(name for name in names if name.endswith(f"/{_UPLOADED}"))


def _newest(names: Iterable[str]) -> list[str]:
    """The files of the newest whole checkpoint, without the one that says so."""
    newest = max(_whole(names), default=-1)
    return [name for name in names if _step(name) == newest and not name.endswith(_UPLOADED)]
