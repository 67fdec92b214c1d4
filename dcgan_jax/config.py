"""Configuration: what a model, a training run and a search are made of, and the published presets.

Every class is a frozen dataclass whose fields carry one line of meaning, is checked when it is made, travels as JSON
(`to_json`, `from_json`) and gives the command line its options.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

from dcgan_jax.errors import UserError


def option(default: Any, help: str, choices: tuple | None = None) -> Any:
    """A dataclass field with its line of meaning and, where they are few, its values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """What the configurations share: checks of single fields, JSON, and presets."""

    def _check(self, name: str, good: bool, takes: str) -> None:
        if not good:
            raise UserError(f"`{name}` of {type(self).__name__} is {getattr(self, name)!r}; it takes {takes}")

    def _check_fields(self) -> None:
        """Refuses values of another type and values outside a field's choices."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif isinstance(field.type, type) and type(value) is not field.type:
                self._check(field.name, False, f"a value of type {field.type.__name__}")
            if field.type is float:
                self._check(field.name, math.isfinite(getattr(self, field.name)), "a finite number")
            choices = field.metadata.get("choices")
            if choices:
                self._check(field.name, value in choices, "one of " + ", ".join(map(repr, choices)))

    def to_json(self) -> dict[str, Any]:
        """The configuration as nested dictionaries of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            UserError: a field is unknown or its value is refused.
        """
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - set(fields))
        if unknown:
            raise UserError(f"{cls.__name__} has no field {unknown[0]!r}; its fields are {', '.join(fields)}")
        values = dict(data)
        for name, kind in fields.items():
            if name in values and isinstance(kind, type) and issubclass(kind, Config):
                values[name] = kind.from_json(values[name])
        return cls(**values)


def _preset(cls: type, presets: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if name not in presets:
        raise UserError(f"unknown preset {name!r} of {cls.__name__}; the presets are {', '.join(presets)}")
    return presets[name]
