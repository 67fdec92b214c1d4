"""The checkpoints of a training run. Each is one safetensors file, and the newest three are kept.

A checkpoint appears whole or not at all, and holds the SHA-256 of its content. Reading a checkpoint runs no code from
it.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import safetensors
from flax.traverse_util import unflatten_dict
from jaxtyping import PRNGKeyArray
from safetensors.numpy import save as serialize

from dcgan_jax.errors import UserError
from dcgan_jax.storage.files import make_folder, whole_file
from dcgan_jax.storage.runs import RunSettings, S, differences

FOLDER = "checkpoints"
KEPT = 3  # number of checkpoints to keep
FORMAT = "dcgan_jax checkpoint"
Arrays = dict[str, np.ndarray]
T = TypeVar("T")


class CheckpointWriter:
    """Saves checkpoints while training continues. At the end of its context it waits for the last one."""

    def __init__(self, run: Path, config: RunSettings) -> None:
        self._run, self._config = run, config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def save(self, state: Any) -> None:
        """Starts to save a state. Copies the arrays before it returns, and writes to disk afterwards.

        Raises:
            UserError: the previous checkpoint could not be written.
        """
        self.wait()
        # Copies, because on a CPU NumPy would share buffers that the next step may reuse.
        arrays = {name: np.array(x) for name, x in _named(state).items()}
        self._written = self._thread.submit(_write, self._run, int(state.step), arrays, self._config)

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
            UserError: the checkpoint could not be written.
        """
        written, self._written = self._written, None
        if written is not None:
            written.result()


def checkpoint_step(name: str) -> int | None:
    """Returns the step of a checkpoint from its path inside the run's folder; None for any other file."""
    found = re.fullmatch(rf"{FOLDER}/(\d+)\.safetensors", name)
    return int(found[1]) if found else None


def checkpoint_files(run: Path) -> dict[int, Path]:
    """Returns the checkpoints of a run: step -> file, oldest first. Damaged checkpoints are included."""
    found = {checkpoint_step(f"{FOLDER}/{path.name}"): path for path in (run / FOLDER).glob("*.safetensors")}
    return {step: found[step] for step in sorted(step for step in found if step is not None)}


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

    def parse(arrays: Arrays, text: str) -> tuple[Arrays, S]:
        return arrays, type(config).from_json(json.loads(text))

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


def _newest(run: Path, parts: Collection[str] | None, parse: Callable[[Arrays, str], T]) -> tuple[Path, T] | None:
    """Returns the newest undamaged checkpoint, parsed; None if the run has no checkpoint."""
    damaged = []
    for path in reversed(checkpoint_files(run).values()):
        try:
            found = parse(*_read(path, parts))
        except (_Damaged, KeyError, TypeError, ValueError, RecursionError) as error:
            damaged.append(f"{path} is damaged ({error})")
            continue
        for what in damaged:
            warnings.warn(f"{what}: using {path.name} instead", stacklevel=3)
        return path, found
    if damaged:
        others = ", and so are those before it" if len(damaged) > 1 else ""
        raise UserError(f"{damaged[0]}{others}: restore one from a copy, or remove {run / FOLDER} to start again")
    return None


class _Damaged(Exception):
    """A checkpoint is damaged."""


def _named(state: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _digest(read: Callable[[str], np.ndarray], names: Iterable[str], config: str) -> str:
    digest = hashlib.sha256(config.encode())
    for name in sorted(names):
        x = np.ascontiguousarray(read(name))
        digest.update(f"{name} {x.dtype} {x.shape}".encode())
        digest.update(x.data)
    return digest.hexdigest()


def _write(run: Path, step: int, arrays: Arrays, config: RunSettings) -> None:
    path, text = run / FOLDER / f"{step:07d}.safetensors", json.dumps(config.to_json())
    content = serialize(arrays, {"format": FORMAT, "config": text, "sha256": _digest(arrays.__getitem__, arrays, text)})
    try:
        make_folder(path.parent)
        with whole_file(path) as partial, partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a crash of the machine must not leave a name without its content
    except OSError as error:
        kept = [other for other in checkpoint_files(run) if other < step]
        safe = f"the last checkpoint is of step {kept[-1]}" if kept else "there is no earlier checkpoint"
        raise UserError(
            f"{path} cannot be written ({error.strerror}); {safe}: free some space and start again"
        ) from error
    before = [path for other, path in checkpoint_files(run).items() if other < step]
    for path in before[: 1 - KEPT]:
        path.unlink()


def _read(path: Path, parts: Collection[str] | None) -> tuple[Arrays, str]:
    """Reads the arrays of some parts (None for all) and the configuration's text. Checks the whole file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata, kept = file.metadata() or {}, {}

            def read(name: str) -> np.ndarray:
                array = file.get_tensor(name)
                if parts is None or name.partition("/")[0] in parts:
                    kept[name] = array
                return array

            if metadata.get("format") != FORMAT:
                raise _Damaged("it was not written by a training run")
            if metadata.get("sha256") != _digest(read, file.keys(), metadata["config"]):
                raise _Damaged("its content does not match its SHA-256")
        return kept, metadata["config"]
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise _Damaged(str(error)) from error


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
