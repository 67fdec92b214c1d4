"""A training run in a bucket: its local copy, sent back in an order that always leaves a usable run in the bucket."""

import contextlib
import functools
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from dcgan_jax.errors import UserError
from dcgan_jax.storage import remote
from dcgan_jax.storage.checkpoints import KEPT, checkpoint_step
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
        remote.send(self.url, self.folder, [name for name in changed if name == RECORD])  # marks the folder as a run
        remote.send(
            self.url, self.folder, [name for name in changed if name != RECORD and checkpoint_step(name) is None]
        )
        remote.send(self.url, self.folder, _checkpoints(changed))
        self._sent = states
        remote.remove(self.url, _checkpoints(remote.listing(self.url))[:-KEPT])

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
    return [RECORD, *_checkpoints(names)[-1:]]


def _checkpoints(names: Iterable[str]) -> list[str]:
    """Returns the checkpoints among a run's files, oldest first."""
    steps = {name: step for name in names if (step := checkpoint_step(name)) is not None}
    return sorted(steps, key=steps.__getitem__)
