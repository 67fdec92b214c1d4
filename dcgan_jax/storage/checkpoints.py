"""The checkpoints of a training run, saved by Orbax. The newest three are kept.

The folder `checkpoints/STEP` holds the items `state` and `config`. It appears whole or not at all. Orbax does not
notice every altered bit, so the file SHA256SUMS in the folder holds the SHA-256 of each file of the items. Orbax reads
a checkpoint only if they match. Reading runs no code from it.
"""

import contextlib
import functools
import gc
import hashlib
import logging
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PRNGKeyArray

from dcgan_jax.errors import UserError
from dcgan_jax.parallel import distributed, sharding
from dcgan_jax.storage import old_checkpoints
from dcgan_jax.storage.files import make_folder
from dcgan_jax.storage.runs import RunSettings, S, differences

if TYPE_CHECKING:
    import orbax.checkpoint as ocp  # slow to import; most commands do not need it

FOLDER = "checkpoints"
KEPT = 3  # number of checkpoints to keep
SUMS = "SHA256SUMS"  # as `sha256sum` writes it; the last file of a checkpoint that is written and sent
_WAIT = 300  # seconds that a process waits for the shares of the others; a full disk may stop one of them
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
            self._open.enter_context(_hidden())
            self._manager = _manager((self._run / FOLDER).resolve(), self._divided, self._seal)
            self._open.callback(self._manager.close)
        return self

    def __exit__(self, *_: object) -> None:
        try:
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
        import orbax.checkpoint as ocp

        # Both are copies, because the next step may reuse the state's buffers: Orbax copies NumPy arrays at once.
        copy = sharding.in_shares(sharding.data_mesh(), state) if self._divided else jax.device_get(state)
        items = {"state": ocp.args.PyTreeSave(copy), "config": ocp.args.JsonSave(self._config.to_json())}
        step = self._saved = int(state.step)
        self._attempt(self._manager.reload)  # a rollback may have discarded checkpoints
        self._attempt(lambda: self._manager.save(step, args=ocp.args.Composite(**items), force=True))

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
            reason = _reason(error)
        path, self._saved = self._run / FOLDER / str(self._saved), None
        with _hidden():
            del self._manager
            self._open.close()
            _discard_leftovers()
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
    import orbax.checkpoint as ocp
    from etils import epath

    size, folder = _check_files(path), epath.Path(path.resolve())
    with _hidden():
        try:
            handler = ocp.PyTreeCheckpointHandler()
            tree = handler.metadata(folder / "state").tree
            sizes = ((math.prod(x.shape), math.prod(x.storage.chunk_shape), x.dtype) for x in jax.tree.leaves(tree))
            if sum(max(whole, chunk) * dtype.itemsize for whole, chunk, dtype in sizes) > size:
                raise ValueError("its arrays are larger than its files")
            wanted = {name: part for name, part in tree.items() if parts is None or name in parts}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            options = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
            arrays = _named(handler.restore(folder / "state", args=options))
            return arrays, dict(ocp.JsonCheckpointHandler().restore(folder / "config"))
        except Exception as error:  # Orbax and TensorStore have many
            problem = _reason(error)
        _discard_leftovers()
    raise ValueError(problem)


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
        raise ValueError(_reason(error)) from error


def _item_files(folder: Path) -> list[Path]:
    """Returns the files of a checkpoint's items. The files beside the items only hold times."""
    files = [path for path in folder.glob("*/**/*") if path.is_symlink() or not path.is_dir()]
    return sorted(files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manager(folder: Path, divided: bool, seal: Callable[[], None]) -> "ocp.CheckpointManager":
    """Opens Orbax's manager of a folder.

    Args:
        folder: the folder of the checkpoints.
        divided: all processes write; otherwise only this one does.
        seal: called when a checkpoint is written, before its folder is renamed.
    """
    import orbax.checkpoint as ocp

    class Manager(ocp.CheckpointManager):
        def reached_preemption(self, step: int) -> bool:
            return False  # JAX takes one question a step, and the training loop asks it

    class Shares(ocp.type_handlers.ArrayHandler):
        def typestr(self) -> str:
            return ocp.type_handlers.NumpyHandler().typestr()  # the devices that hold the shares do not matter

    types = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, Shares(enable_write_sharding_file=False)), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    # Without compression, which saves 7% on weights, an array cannot be larger than its file.
    state = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=types)
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add("state", ocp.args.PyTreeSave, state)
    options = ocp.CheckpointManagerOptions(
        create=False,
        preservation_policy=ocp.checkpoint_managers.LatestN(KEPT),
        async_options=ocp.AsyncOptions(timeout_secs=_WAIT, post_finalization_callback=seal),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes=None if divided else {jax.process_index()}
        ),
    )
    return Manager(folder, options=options, handler_registry=handlers)


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    """Hides what Orbax logs. All that the user must know of an error is in its exception."""

    def is_shown(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname and not record.getMessage().startswith("Task exception was never")

    _hide_late_reports()
    loggers = logging.getLogger("absl"), logging.getLogger("asyncio")
    for logger in loggers:
        logger.addFilter(is_shown)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_shown)


def _discard_leftovers() -> None:
    """Discards the coroutines and tasks that Orbax leaves behind after an error, when nothing refers to the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@functools.cache
def _hide_late_reports() -> None:
    """Hides that a read or write of TensorStore ended after Orbax closed its event loop. That may be at any time."""
    before = sys.unraisablehook

    def show(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = show


def _reason(error: BaseException) -> str:
    """Returns what went wrong first, in one line."""
    while error.__context__ is not None:
        error = error.__context__
    number = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's form
    if number:
        return os.strerror(int(number[1]))
    if "DEADLINE_EXCEEDED" in str(error):
        return f"another process has not written its share within {_WAIT} seconds"
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(error.filename).name}: {error.strerror}" if error.filename else error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


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
