"""The checkpoints of a training run, saved by Orbax. The newest three are kept.

The folder `checkpoints/STEP` holds the items `state` and `config`. It appears whole or not at all. Orbax does not
notice every altered bit, so the file SHA256SUMS in the folder holds the SHA-256 of each file of the items. Orbax reads
a checkpoint only if they match. Reading runs no code from it.
"""

import contextlib
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PRNGKeyArray

from dcgan_jax.errors import UserError
from dcgan_jax.parallel import distributed, sharding
from dcgan_jax.storage import old_checkpoints, orbax
from dcgan_jax.storage.files import make_folder
from dcgan_jax.storage.runs import RunSettings, S, differences

FOLDER = "checkpoints"
KEPT = 3  # number of checkpoints to keep
SUMS = "SHA256SUMS"  # as `sha256sum` writes it; the last file of a checkpoint that is written and sent
Arrays = dict[str, np.ndarray]
T = TypeVar("T")


class CheckpointWriter:
    """Saves checkpoints while training continues. At the end of its context it waits for the last one.

    Every process of a job makes a writer, and calls its methods at the same steps.
    """

    def __init__(self, run: Path, config: RunSettings, *, shared: bool = True) -> None:
        """Makes a writer.

        Args:
            run: the folder of the run.
            config: the configuration of the run, which is saved beside each state.
            shared: all processes see the folder, and each writes its part. Otherwise only the first process writes.
        """
        self._run, self._config = run, config
        self._divided = shared and jax.process_count() > 1
        self._writes = shared or distributed.is_first()
        self._saved: int | None = None  # the step of the last save
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "CheckpointWriter":
        if self._writes:
            if distributed.is_first():
                make_folder(self._run / FOLDER)
            self._open.enter_context(orbax.quiet())
            self._manager = orbax.open_manager(self._run / FOLDER, KEPT, self._divided, self._seal)
            self._open.callback(self._manager.close)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # Ctrl+C may have come while Orbax writes. Then `wait` would do again what Orbax's thread is doing.
            if kind is None or not issubclass(kind, KeyboardInterrupt):
                self.wait()
        finally:
            self._open.close()

    def save(self, state: Any) -> None:
        """Starts to save a state. Copies the arrays before it returns, and writes to disk afterwards.

        Raises:
            UserError: this or the previous checkpoint could not be written.
        """
        self.wait()
        if not self._writes:
            return
        # Both are copies, because the next step may reuse the state's buffers: Orbax copies NumPy arrays at once.
        copy = sharding.in_shares(sharding.data_mesh(), state) if self._divided else jax.device_get(state)
        step = self._saved = int(state.step)
        self._attempt(lambda: orbax.start_save(self._manager, step, copy, self._config.to_json()))

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
            UserError: the checkpoint could not be written.
        """
        if self._saved is None:
            return
        self._attempt(self._manager.wait_until_finished)
        self._saved = None
        if distributed.is_first():
            for path in list(checkpoint_paths(self._run).values())[:-KEPT]:
                _delete(path)  # one of the older format, which Orbax does not know

    def _seal(self) -> None:
        """Completes a checkpoint just before Orbax renames its folder. Called on the first process, in a thread."""
        (folder,) = (self._run / FOLDER).glob(f"{self._saved}.*")
        sums = {path.relative_to(folder).as_posix(): _sha256(path) for path in _item_files(folder)}
        (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")
        for path in folder.rglob("*"):  # a crash of the machine must not leave a name without its content
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
            return
        except (OSError, ValueError, RuntimeError) as error:
            reason = orbax.reason(error)
        path, self._saved = self._run / FOLDER / str(self._saved), None
        with orbax.quiet():
            del self._manager
            self._open.close()
            orbax.discard_leftovers()
        discard_unfinished(self._run)
        kept = list(checkpoint_paths(self._run))
        safe = f"the last checkpoint is of step {kept[-1]}" if kept else "there is no earlier checkpoint"
        raise UserError(f"{path} cannot be written ({reason}); {safe}: free some space and start again")


def checkpoint_step(name: str) -> int | None:
    """Returns the step of a checkpoint from the path of one of its files inside the run's folder.

    Returns None for any other file.
    """
    found = re.fullmatch(rf"{FOLDER}/(\d+)(/.*|\.safetensors)", name)
    return int(found[1]) if found else None


def completes(name: str) -> bool:
    """Tells whether this file of a checkpoint is its last one, without which the checkpoint is not whole."""
    return name.endswith((f"/{SUMS}", ".safetensors"))


def checkpoint_paths(run: Path) -> dict[int, Path]:
    """Returns the checkpoints of a run: step -> folder, or file of the old format. Oldest first.

    Damaged checkpoints are included, and unfinished ones are not.
    """
    found = {
        checkpoint_step(f"{FOLDER}/{path.name}/" if path.is_dir() else f"{FOLDER}/{path.name}"): path
        for path in (run / FOLDER).glob("*")
    }
    return {step: found[step] for step in sorted(step for step in found if step is not None)}


def discard_after(run: Path, step: int) -> None:
    """Deletes the checkpoints of later steps."""
    for other, path in reversed(checkpoint_paths(run).items()):
        if other > step:
            _delete(path)


def discard_unfinished(run: Path) -> None:
    """Deletes checkpoints that a killed process did not finish. Orbax names them so."""
    for path in (run / FOLDER).glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)


def restore(run: Path, config: S, init: Callable[[S, PRNGKeyArray], Any]) -> Any:
    """Reads the state in the newest undamaged checkpoint of a run.

    A warning names each damaged checkpoint that is skipped.

    Args:
        run: the folder of the run.
        config: the configuration of the run.
        init: (config, key) -> the first state of such a run. Only its shapes are used.

    Returns:
        A state with NumPy arrays; None if the run has no checkpoint.

    Raises:
        UserError: all checkpoints are damaged, or the newest one has another configuration.
    """

    def parse(arrays: Arrays, recorded: dict[str, Any]) -> tuple[Arrays, S]:
        return arrays, type(config).from_json(recorded)

    newest = _newest(run, None, parse)
    if newest is None:
        return None
    path, (arrays, recorded) = newest
    differing = differences(recorded, config)
    if differing:
        raise UserError(f"{path} is of another run, which differs in {', '.join(differing)}: remove it")
    return _build(path, arrays, config, init)


def read_newest(run: Path, parts: Collection[str]) -> dict[str, Any]:
    """Reads some parts of the newest undamaged checkpoint of a run, as nested dictionaries of NumPy arrays.

    Other parts, such as the optimiser's moments, are only checked for damage.

    Args:
        run: the folder of the run.
        parts: names of fields of the state.

    Raises:
        UserError: there is no checkpoint, all checkpoints are damaged, or the newest one lacks a part.
    """
    newest = _newest(run, parts, lambda arrays, _: arrays)
    if newest is None:
        raise UserError(f"{run} holds no checkpoint yet: wait until its training has saved one")
    path, arrays = newest
    tree: dict[str, Any] = unflatten_dict(arrays, sep="/")
    for part in parts:
        if part not in tree:
            raise UserError(f"{path} has no {part}: read it with the version that wrote it")
    return tree


def _newest(
    run: Path, parts: Collection[str] | None, parse: Callable[[Arrays, dict[str, Any]], T]
) -> tuple[Path, T] | None:
    """Returns the newest undamaged checkpoint, parsed; None if the run has no checkpoint."""
    damaged = []
    for path in reversed(checkpoint_paths(run).values()):
        read = _read if path.is_dir() else old_checkpoints.read
        try:
            found = parse(*read(path, parts))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            damaged.append(f"{path} is damaged ({error})")
            continue
        for what in damaged:
            warnings.warn(f"{what}: using {FOLDER}/{path.name} instead", stacklevel=3)
        return path, found
    if damaged:
        others = ", and so are those before it" if len(damaged) > 1 else ""
        raise UserError(f"{damaged[0]}{others}: restore one from a copy, or remove {run / FOLDER} to start again")
    return None


def _read(path: Path, parts: Collection[str] | None) -> tuple[Arrays, dict[str, Any]]:
    """Reads the arrays of some parts (None for all) and the configuration. Checks all files of the checkpoint.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    state, config = orbax.read(path, parts, size=_check_files(path))
    return _named(state), config


def _check_files(path: Path) -> int:
    """Compares a checkpoint's files with their SHA-256. Returns their size in bytes.

    Raises:
        ValueError: a file is missing, added or altered.
    """
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        files = {file.relative_to(path).as_posix(): file for file in _item_files(path)}
        for name in sorted(expected.keys() | files.keys()):
            if name not in files or files[name].is_symlink() or not files[name].is_file():
                raise ValueError(f"{name} is missing")
            if _sha256(files[name]) != expected.get(name):
                raise ValueError(f"{name} does not match its SHA-256")
        return sum(file.stat().st_size for file in files.values())
    except OSError as error:
        raise ValueError(orbax.reason(error)) from error


def _item_files(folder: Path) -> list[Path]:
    """Returns the files of a checkpoint's items. The files beside the items only hold times."""
    files = [path for path in folder.glob("*/**/*") if path.is_symlink() or not path.is_dir()]
    return sorted(files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _build(path: Path, arrays: Arrays, config: S, init: Callable[[S, PRNGKeyArray], Any]) -> Any:
    expected = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    names = _named(expected)
    for name in sorted({*names, *arrays}):
        here, there = ((x.shape, x.dtype) if (x := tree.get(name)) is not None else None for tree in (names, arrays))
        if here != there:
            raise UserError(
                f"{path} holds {there} as {name}, but this version takes {here}: read it with the version that wrote it"
            )
    return jax.tree.unflatten(jax.tree.structure(expected), [arrays[name] for name in names])
