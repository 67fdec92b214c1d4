"""A training run on disk: its record, and its checkpoints by Orbax, asynchronous, the newest few kept."""

import json
from pathlib import Path
from typing import Any, cast

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from dcgan_jax.config import TrainConfig
from dcgan_jax.errors import UserError
from dcgan_jax.files import whole_file
from dcgan_jax.training import GANState, init_state

RECORD, FOLDER = "config.json", "checkpoints"
KEPT = 3


def open_checkpoints(run: Path) -> ocp.CheckpointManager:
    """Opens a run's checkpoints, to be used as a context: leaving it waits for saves under way."""
    options = ocp.CheckpointManagerOptions(preservation_policy=LatestN(KEPT), create=True)
    return ocp.CheckpointManager((run / FOLDER).absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: GANState) -> None:
    """Starts to save a state under its step; the arrays are copied before this returns, the disk is written after."""
    manager.save(int(state.step), args=ocp.args.StandardSave(state))


def restore(manager: ocp.CheckpointManager, config: TrainConfig, sharding: jax.sharding.Sharding) -> GANState | None:
    """Restores the newest state onto devices, or returns None where none was saved.

    Raises:
        UserError: the checkpoint is damaged or of another configuration.
    """
    step = manager.latest_step()
    if step is None:
        return None
    abstract = jax.eval_shape(lambda key: init_state(config, key), jax.random.key(0))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
    try:
        return cast(GANState, manager.restore(step, args=ocp.args.StandardRestore(abstract)))
    except Exception as error:  # Orbax and its storage raise many kinds
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        first_line = first_line.split(". See full TensorStore")[0]
        raise UserError(
            f"checkpoint {step} in {manager.directory} cannot be restored ({first_line}): it is damaged or of another "
            "configuration; remove it to fall back on the one before, or restore with the package that wrote it"
        ) from error


def load_state(run: Path) -> tuple[GANState, TrainConfig]:
    """Restores the newest state of a run onto this process's first device, and its configuration.

    Raises:
        UserError: the folder is not a run's, has no checkpoint, or one that cannot be restored.
    """
    config, _ = read_record(run)
    state = None
    if (run / FOLDER).is_dir():
        with open_checkpoints(run) as manager:
            state = restore(manager, config, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    if state is None:
        raise UserError(f"{run} holds no checkpoint yet: let `dcgan-jax train` run until it has saved one")
    return state, config


def write_record(run: Path, config: TrainConfig, data: dict[str, Any]) -> None:
    """Writes what a run computes, and from which data, to its folder."""
    with whole_file(run / RECORD) as partial:
        partial.write_text(json.dumps({"config": config.to_json(), "data": data}, indent=1) + "\n", encoding="utf-8")


def read_record(run: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """Reads a run's configuration and the record of its data.

    Raises:
        UserError: the folder is not a run's, or its record is damaged.
    """
    path = run / RECORD
    if not path.is_file():
        what = f"it has no {RECORD}" if run.is_dir() else "there is no such folder"
        raise UserError(f"{run} is not a run's folder ({what}): make one with `dcgan-jax train`")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return TrainConfig.from_json(record["config"]), record["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): put it back, or train the run anew") from error
