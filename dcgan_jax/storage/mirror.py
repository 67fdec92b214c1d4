"""A training run in a bucket: its local copy, sent back in an order that always leaves a usable run in the bucket."""

import contextlib
import functools
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from dcgan_jax.errors import UserError
from dcgan_jax.storage import remote
from dcgan_jax.storage.checkpoints import checkpoint_step, completes
from dcgan_jax.storage.files import whole_folder
from dcgan_jax.storage.runs import RECORD


class RunCopy:
    """The local folder of a run, and the URL of the run in a bucket; None for a local run."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder, self.url = folder, url
        self._sent = self._states()

    def push(self) -> None:
        """Sends the files that changed since the last call: first reports, then checkpoints. Deletes old checkpoints.

        Reports come first, because resuming can drop reports after the newest checkpoint, but not restore missing ones.
        """
        if self.url is None:
            return
        states = self._states()
        changed = [name for name in states if states[name] != self._sent.get(name)]
        saved = [name for name in changed if checkpoint_step(name) is not None]
        remote.send(self.url, self.folder, [name for name in changed if name == RECORD])  # marks the folder as a run
        remote.send(self.url, self.folder, [name for name in changed if name != RECORD and name not in saved])
        remote.send(self.url, self.folder, [name for name in saved if not completes(name)])
        remote.send(self.url, self.folder, [name for name in saved if completes(name)])
        self._sent = states
        there = remote.listing(self.url)
        _remove(self.url, [name for name in there if checkpoint_step(name) is not None and name not in states])

    def _states(self) -> dict[str, tuple[int, int]]:
        """Returns size and time of each file, by name. Leaves out hidden files, which are still being written."""
        states = {}
        for path in sorted(self.folder.rglob("*")) if self.url else []:
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not path.name.startswith("."):
                status = path.stat()
                states[name] = status.st_size, status.st_mtime_ns
        return states


@contextlib.contextmanager
def open_run(run: str | Path) -> Iterator[RunCopy]:
    """Opens a run for training. At a URL it opens a local copy, which is sent back if the block succeeds.

    Each call makes a new copy from the bucket, and discards an earlier local copy.

    Raises:
        UserError: the URL holds other files than a run, or it cannot be reached.
    """
    if not remote.is_url(run):
        yield RunCopy(Path(run), None)
        return
    names = list(remote.listing(run))
    if names and RECORD not in names:
        raise UserError(f"{run} is not empty and not a run's folder: give another folder")
    whole = {name for files in _checkpoints(names) for name in files}
    unfinished = [name for name in names if checkpoint_step(name) is not None and name not in whole]
    _remove(run, unfinished)  # left behind by a killed process
    names = [name for name in names if name not in unfinished]
    folder = remote.cache_folder() / "runs" / hashlib.sha256(run.encode()).hexdigest()[:20]
    shutil.rmtree(folder, ignore_errors=True)
    if names:
        with whole_folder(folder) as partial:
            remote.download(run, names, partial)
    copy = RunCopy(folder, run)
    yield copy
    copy.push()


def fetch_prior(url: str) -> Path:
    """Fetches a prior: a .safetensors file, or the record and the newest checkpoint of a run.

    Raises:
        UserError: there is no prior at `url`, or it cannot be reached.
    """
    return Path(remote.fetch(url, functools.partial(_prior_files, url)))


def _prior_files(url: str, names: list[str]) -> list[str]:
    if names == [""]:
        return names
    if RECORD not in names:
        raise UserError(f"there is no prior at {url}: give a run's folder or a .safetensors file")
    return [RECORD, *(_checkpoints(names) or [[]])[-1]]


def _checkpoints(names: Iterable[str]) -> list[list[str]]:
    """Returns the files of each whole checkpoint among a run's files, oldest first."""
    steps: dict[int, list[str]] = {}
    for name in names:
        if (step := checkpoint_step(name)) is not None:
            steps.setdefault(step, []).append(name)
    return [steps[step] for step in sorted(steps) if any(map(completes, steps[step]))]


def _remove(url: str, names: list[str]) -> None:
    """Deletes checkpoints, first the files that make them whole."""
    remote.remove(url, [name for name in names if completes(name)])
    remote.remove(url, [name for name in names if not completes(name)])
