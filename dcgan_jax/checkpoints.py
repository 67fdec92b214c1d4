"""A training run on disk: its record, and its checkpoints, one safetensors file each, the newest few kept.

A checkpoint appears whole or not at all and carries the SHA-256 of its content; reading one runs no code.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict
from safetensors.numpy import save as serialize

from dcgan_jax.config import RunConfig, TrainConfig
from dcgan_jax.errors import UserError
from dcgan_jax.files import make_folder, whole_file
from dcgan_jax.training import init_state

RECORD, FOLDER = "config.json", "checkpoints"
KEPT = 3
FORMAT = "dcgan_jax checkpoint"
Init = Callable[[Any, Any], Any]  # of a state, from configuration and key; a state is a NamedTuple with `step`


class CheckpointWriter:
    """Saves a run's checkpoints while training goes on; as a context it waits at the end for what is being written."""

    def __init__(self, run: Path, config: RunConfig):
        self._run, self._config = run, config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def save(self, state: Any) -> None:
        """Starts to save a state; its arrays are copied before this returns, the disk is written after.

        Raises:
            UserError: the checkpoint before could not be written.
        """
        self.wait()
        # Copies: on a CPU NumPy would look at the very buffers that the next step may reuse.
        arrays = {name: np.array(x) for name, x in _named(state).items()}
        self._written = self._thread.submit(_write, self._run, int(state.step), arrays, self._config)

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk; `UserError` if it could not be written."""
        written, self._written = self._written, None
        if written is not None:
            written.result()


def checkpoint_step(name: str) -> int | None:
    """The step of a checkpoint by its name in the run's folder; None for any other file."""
    found = re.fullmatch(rf"{FOLDER}/(\d+)\.safetensors", name)
    return int(found[1]) if found else None


def checkpoint_files(run: Path) -> dict[int, Path]:
    """A run's checkpoints by step, oldest first, damaged ones among them."""
    found = {checkpoint_step(f"{FOLDER}/{path.name}"): path for path in (run / FOLDER).glob("*.safetensors")}
    return {step: found[step] for step in sorted(step for step in found if step is not None)}


def restore(run: Path, config: RunConfig, init: Init = init_state) -> Any:
    """Reads a run's newest whole state, in NumPy's arrays; None where none was saved.

    A damaged checkpoint is named in a warning, and the one before is used.

    Args:
        run: its folder.
        config: its configuration.
        init: how its state begins, for the shapes: init(config, key); by default that of a DCGAN.

    Raises:
        UserError: all are damaged, or the checkpoint is of another configuration.
    """
    damaged = []
    for path in reversed(checkpoint_files(run).values()):
        try:
            arrays, recorded = _read(path, type(config))
        except _Damaged as error:
            damaged.append(f"{path} is damaged ({error})")
            continue
        differing = differences(recorded, config)
        if differing:
            raise UserError(f"{path} is of another run, which differs in {', '.join(differing)}: remove it")
        for what in damaged:
            warnings.warn(f"{what}: going on from {path.name}", stacklevel=2)
        return _build(path, arrays, config, init)
    if damaged:
        before = ", and so are those before it" if len(damaged) > 1 else ""
        raise UserError(f"{damaged[0]}{before}: put one back from a copy, or remove {run / FOLDER} to begin anew")
    return None


def load_state(run: Path, kind: type[RunConfig] = TrainConfig, init: Init = init_state) -> tuple[Any, Any]:
    """Restores the newest whole state of a run onto this process's first device, and its configuration.

    Args:
        run: its folder.
        kind: the class of its configuration, by default a DCGAN's.
        init: how its state begins.

    Raises:
        UserError: the folder is not that of such a run, has no checkpoint, or none that can be restored.
    """
    config, _, _ = read_record(run, kind)
    state = restore(run, config, init)
    if state is None:
        raise UserError(f"{run} holds no checkpoint yet: let its training run until it has saved one")
    return jax.device_put(state, jax.local_devices()[0]), config


def differences(there: RunConfig, here: RunConfig) -> list[str]:
    """The fields, with both values, in which two configurations compute different runs."""
    old, new = (flatten_dict(config.to_json(), sep=".") for config in (there, here))
    return [
        f"{name} ({old[name]!r} there, {new[name]!r} here)"
        for name in new
        if name not in here.RESUMABLE and old[name] != new[name]
    ]


def write_record(run: Path, config: RunConfig, data: dict[str, Any], rollbacks: Sequence[int] = ()) -> None:
    """Writes what a run computes, from which data, and the steps at which it went back, to its folder."""
    record = {"kind": config.KIND, "config": config.to_json(), "data": data, "rollbacks": list(rollbacks)}
    with whole_file(run / RECORD) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(run: Path, kind: type[RunConfig] = TrainConfig) -> tuple[Any, dict[str, Any], list[int]]:
    """Reads a run's configuration, the record of its data, and the steps at which it went back to a checkpoint.

    Raises:
        UserError: the folder is not a run's, or that of one that trains something else, or its record is damaged.
    """
    recorded = read_kind(run)
    if recorded != kind.KIND:
        raise UserError(f"{run} holds the run of a {recorded}, not of a {kind.KIND}: give another folder")
    return _parse(
        run, lambda x: (kind.from_json(x["config"]), x["data"], [int(step) for step in x.get("rollbacks", [])])
    )


def read_kind(run: Path) -> str:
    """What a run trains, as `RunConfig.KIND` has it; `UserError` if the folder is not a run's, or damaged."""
    return _parse(run, lambda record: str(record.get("kind", TrainConfig.KIND)))  # older runs are all of DCGANs


def _parse(run: Path, what: Callable[[dict[str, Any]], Any]) -> Any:
    path = run / RECORD
    if not path.is_file():
        reason = f"it has no {RECORD}" if run.is_dir() else "there is no such folder"
        raise UserError(f"{run} is not a run's folder ({reason}): make one with `dcgan-jax train`")
    try:
        return what(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): put it back, or train the run anew") from error


class _Damaged(Exception):
    """A file that is not what was written."""


def _named(state: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _digest(arrays: dict[str, np.ndarray], config: str) -> str:
    digest = hashlib.sha256(config.encode())
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {x.dtype} {x.shape}".encode())
        digest.update(x.data)
    return digest.hexdigest()


def _write(run: Path, step: int, arrays: dict[str, np.ndarray], config: RunConfig) -> None:
    path, text = run / FOLDER / f"{step:07d}.safetensors", json.dumps(config.to_json())
    content = serialize(arrays, {"format": FORMAT, "config": text, "sha256": _digest(arrays, text)})
    try:
        make_folder(path.parent)
        with whole_file(path) as partial, partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a machine that vanishes must not leave a name without its content
    except OSError as error:
        kept = [other for other in checkpoint_files(run) if other < step]
        safe = f"the last one is of step {kept[-1]}" if kept else "there is none before it"
        raise UserError(f"{path} cannot be written ({error.strerror}); {safe}: make room and start again") from error
    before = [path for other, path in checkpoint_files(run).items() if other < step]
    for path in before[: 1 - KEPT]:
        path.unlink()


def _read(path: Path, kind: type[RunConfig]) -> tuple[dict[str, np.ndarray], RunConfig]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        if metadata.get("format") != FORMAT:
            raise _Damaged("it was not written by a training run")
        if metadata.get("sha256") != _digest(arrays, metadata["config"]):
            raise _Damaged("its content does not match its SHA-256")
        return arrays, kind.from_json(json.loads(metadata["config"]))
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _Damaged(str(error)) from error


def _build(path: Path, arrays: dict[str, np.ndarray], config: RunConfig, init: Init) -> Any:
    expected = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    names = _named(expected)
    for name in sorted({*names, *arrays}):
        here, there = ((x.shape, x.dtype) if (x := tree.get(name)) is not None else None for tree in (names, arrays))
        if here != there:
            raise UserError(f"{path} holds {there} as {name}, not {here} as here: use the version that wrote it")
    return jax.tree.unflatten(jax.tree.structure(expected), [arrays[name] for name in names])
