"""The record of a training run: its kind, its configuration and its data.

It is the file `config.json` of the run's folder.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

from flax.traverse_util import flatten_dict

from dcgan_jax.errors import UserError
from dcgan_jax.storage.files import whole_file

RECORD = "config.json"
OLDEST_KIND = "dcgan"  # the kind of a record that names none, as in the first versions


class RunSettings(Protocol):
    """The configuration of a run, such as `TrainConfig`."""

    KIND: ClassVar[str]  # the kind of network that the run trains
    RESUMABLE: ClassVar[tuple[str, ...]]  # fields that may change when a run is resumed

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self: ...


S = TypeVar("S", bound=RunSettings)


@dataclass(frozen=True)
class Run:
    """The record in the folder of a run.

    Attributes:
        folder: the folder of the run.
        kind: the kind of network that the run trains: "dcgan", "encoder" or "context-encoder".
        config: the configuration as JSON; `settings` parses it.
        data: a description of the training images.
        rollbacks: the steps to which the run went back, in order.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    data: dict[str, Any]
    rollbacks: tuple[int, ...] = ()

    def settings(self, parse: type[S]) -> S:
        """Returns the configuration.

        Args:
            parse: the class of the configuration.

        Raises:
            UserError: the run is of another kind, or a value is not allowed.
        """
        if self.kind != parse.KIND:
            raise UserError(f"{self.folder} holds a run of kind {self.kind}, not {parse.KIND}: give another folder")
        try:
            return parse.from_json(self.config)
        except (ValueError, TypeError, AttributeError) as error:
            raise _damaged(self.folder, error) from error

    def rolled_back(self, step: int) -> Self:
        """Returns the record after another rollback, to `step`."""
        return dataclasses.replace(self, rollbacks=(*self.rollbacks, step))


def read_run(folder: Path) -> Run:
    """Reads the record of a run.

    Raises:
        UserError: the folder is not the folder of a run, or its record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        reason = f"it has no {RECORD}" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder} is not a run's folder ({reason}): make one with `dcgan-jax train`")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kind, rollbacks = str(record.get("kind", OLDEST_KIND)), tuple(int(step) for step in record.get("rollbacks", []))
        config, data = record["config"], record["data"]
        if not isinstance(config, dict) or not isinstance(data, dict):
            raise TypeError("`config` and `data` must be objects")
        return Run(folder, kind, config, data, rollbacks)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error


def write_run(run: Run) -> None:
    """Writes the record of a run into its folder. An older record is replaced as a whole."""
    record = {"kind": run.kind, "config": run.config, "data": run.data, "rollbacks": list(run.rollbacks)}
    with whole_file(run.folder / RECORD) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def differences(there: RunSettings, here: RunSettings) -> list[str]:
    """Compares the configuration of an existing run, `there`, with a given one, `here`.

    Returns:
        The fields that differ, with both values. Fields that may change when a run is resumed are left out.
    """
    old, new = _flat(there), _flat(here)
    return [
        f"{name} ({old[name]!r} there, {new[name]!r} here)"
        for name in new
        if name not in here.RESUMABLE and old[name] != new[name]
    ]


def _flat(settings: RunSettings) -> Mapping[str, Any]:
    return flatten_dict(settings.to_json(), sep=".")


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder / RECORD} is damaged ({error}): restore it from a copy, or train the run again")
