"""Everything that this package asks of Orbax. What Orbax logs and leaves behind is dealt with here."""

import contextlib
import functools
import gc
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    import orbax.checkpoint as ocp  # slow to import; most commands do not need it

WAIT = 300  # seconds that a process waits for the shares of the others; a full disk may stop one of them


def open_manager(folder: Path, kept: int, divided: bool, seal: Callable[[], None]) -> "ocp.CheckpointManager":
    """Opens Orbax's manager of a folder.

    Args:
        folder: the folder of the checkpoints.
        kept: number of checkpoints to keep.
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
        preservation_policy=ocp.checkpoint_managers.LatestN(kept),
        async_options=ocp.AsyncOptions(timeout_secs=WAIT, post_finalization_callback=seal),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes=None if divided else {jax.process_index()}
        ),
    )
    return Manager(folder.resolve(), options=options, handler_registry=handlers)


def start_save(manager: "ocp.CheckpointManager", step: int, state: Any, config: dict[str, Any]) -> None:
    """Starts to save a state and its configuration. NumPy arrays are copied before this returns.

    Args:
        manager: the result of `open_manager`.
        step: the name of the checkpoint.
        state: a tree of NumPy arrays, or of JAX arrays of which each process writes its shares.
        config: the configuration as JSON.
    """
    import orbax.checkpoint as ocp

    items = {"state": ocp.args.PyTreeSave(state), "config": ocp.args.JsonSave(config)}
    manager.reload()  # checkpoints may have been deleted
    manager.save(step, args=ocp.args.Composite(**items), force=True)


def read(path: Path, parts: Collection[str] | None, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads some parts of a state (None for all) as a tree of NumPy arrays, and the configuration.

    Args:
        path: the folder of the checkpoint.
        parts: names of fields of the state.
        size: the most bytes that its arrays may declare.

    Raises:
        ValueError: Orbax cannot read the checkpoint.
    """
    import orbax.checkpoint as ocp
    from etils import epath

    folder = epath.Path(path.resolve())
    with quiet():
        try:
            handler = ocp.PyTreeCheckpointHandler()
            tree = handler.metadata(folder / "state").tree
            sizes = ((math.prod(x.shape), math.prod(x.storage.chunk_shape), x.dtype) for x in jax.tree.leaves(tree))
            if sum(max(whole, chunk) * dtype.itemsize for whole, chunk, dtype in sizes) > size:
                raise ValueError("its arrays are larger than its files")
            wanted = {name: part for name, part in tree.items() if parts is None or name in parts}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            options = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
            state = handler.restore(folder / "state", args=options)
            return state, dict(ocp.JsonCheckpointHandler().restore(folder / "config"))
        except Exception as error:  # Orbax and TensorStore have many
            problem = reason(error)
        discard_leftovers()
    raise ValueError(problem)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what Orbax logs. All that the user must know of an error is in its exception."""

    def is_shown(record: logging.LogRecord) -> bool:
        of_orbax = os.path.join("orbax", "checkpoint") in record.pathname
        return not of_orbax and not record.getMessage().startswith("Task exception was never retrieved")

    _hide_late_reports()
    loggers = logging.getLogger("absl"), logging.getLogger("asyncio")
    for logger in loggers:
        logger.addFilter(is_shown)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_shown)


def discard_leftovers() -> None:
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


def reason(error: BaseException) -> str:
    """Returns what went wrong first, in one line."""
    while error.__context__ is not None:
        error = error.__context__
    number = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's form
    if number:
        return os.strerror(int(number[1]))
    if "DEADLINE_EXCEEDED" in str(error):
        return f"another process has not written its share within {WAIT} seconds"
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(error.filename).name}: {error.strerror}" if error.filename else error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
