"""The record of a training run: what it trains, with which settings, on which data.

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
OLDEST_KIND = "dcgan"  # records of the first versions do not name their kind


class Settings(Protocol):
    """The configuration of a run, such as `TrainConfig`."""

    KIND: ClassVar[str]  # what such a run trains
    RESUMABLE: ClassVar[tuple[str, ...]]  # fields that may change when a run is resumed

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self: ...


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Run:
    """What the folder of a run records of it.

    Attributes:
        folder: the folder.
        kind: what the run trains: "dcgan", "encoder" or "context-encoder".
        config: its configuration as JSON; `settings` parses it.
        data: which images it trains on.
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
            parse: its class.

        Raises:
            UserError: the run trains something else, or a value is refused.
        """
        if self.kind != parse.KIND:
            raise UserError(f"{self.folder} is the run of a {self.kind}, not of a {parse.KIND}: give another folder")
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
            raise TypeError("its parts are not what a run records")
        return Run(folder, kind, config, data, rollbacks)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error


def write_run(run: Run) -> None:
    """Writes the record of a run into its folder; an older record is replaced as a whole."""
    record = {"kind": run.kind, "config": run.config, "data": run.data, "rollbacks": list(run.rollbacks)}
    with whole_file(run.folder / RECORD) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def differences(there: Settings, here: Settings) -> list[str]:
    """Returns the fields, with both values, in which two configurations compute different runs."""
    old, new = _flat(there), _flat(here)
    return [
        f"{name} ({old[name]!r} there, {new[name]!r} here)"
        for name in new
        if name not in here.RESUMABLE and old[name] != new[name]
    ]


def _flat(settings: Settings) -> Mapping[str, Any]:
    return flatten_dict(settings.to_json(), sep=".")


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder / RECORD} is damaged ({error}): restore it from a copy, or train the run again")
