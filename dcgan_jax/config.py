"""The base class of all configurations.

Every configuration is a frozen dataclass. Its fields carry their help text and their range. It checks itself when it
is made, converts to and from JSON, and the command line makes an option of each field.

No configuration imports JAX or NumPy, so that the command's help appears at once.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from dcgan_jax.errors import UserError

T = TypeVar("T")
Number = int | float

# The choices of some options. They are defined here because the modules that use them import JAX.
MASK_NAMES = ("center", "half", "random", "pattern")
COMPUTE_DTYPES = ("float32", "bfloat16")
SOURCE_KINDS = ("folder", "celeba", "svhn", "cars", "digits")  # `--kind` of `prepare`
SET_CROPS = ("celeba", "center", "stretch")  # `--crop` of `prepare`
PHOTO_CROPS = ("center", "face", "stretch")  # `--crop` of `inpaint`


def option(
    default: T,
    help: str,
    *,
    choices: Sequence[T] | None = None,
    min: Number | None = None,
    max: Number | None = None,
    above: Number | None = None,
    below: Number | None = None,
) -> T:
    """Makes a dataclass field with a help text and the values that it allows.

    Args:
        default: the field's default.
        help: one or two sentences, shown by `--help`.
        choices: the only allowed values.
        min: the smallest allowed value.
        max: the largest allowed value.
        above: a lower bound that is not allowed itself.
        below: an upper bound that is not allowed itself.
    """
    metadata = {"help": help, "choices": choices, "min": min, "max": max, "above": above, "below": below}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Base class: checks each field by its type and its `option`, and converts to and from JSON."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check_type(field)
            value = getattr(self, field.name)
            if isinstance(value, float):
                self._check(field.name, math.isfinite(value), "a finite number")
            choices = field.metadata.get("choices")
            if choices:
                self._check(field.name, value in choices, "one of " + ", ".join(map(repr, choices)))
            if value is not None:
                self._check_range(field)

    def _check(self, name: str, good: bool, takes: str) -> None:
        """Raises a UserError unless `good`. Its message names the field, its value and the allowed values."""
        if not good:
            raise UserError(f"`{name}` of {type(self).__name__} is {getattr(self, name)!r}; it takes {takes}")

    def _check_type(self, field: dataclasses.Field) -> None:
        """Checks a value's type. Converts an integer to a float if the field takes only floats."""
        kinds: tuple[Any, ...] = typing.get_args(field.type) or (field.type,)
        value = getattr(self, field.name)
        if type(value) is int and int not in kinds and float in kinds:
            object.__setattr__(self, field.name, float(value))
        elif type(value) not in kinds:
            names = " or ".join("none" if kind is types.NoneType else kind.__name__ for kind in kinds)
            self._check(field.name, False, f"a value of type {names}")

    def _check_range(self, field: dataclasses.Field) -> None:
        value = getattr(self, field.name)
        least, most, above, below = (field.metadata.get(name) for name in ("min", "max", "above", "below"))
        good = (
            (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        )
        if not good:
            self._check(field.name, False, _range_text(least, most, above, below))

    def to_json(self) -> dict[str, Any]:
        """Returns the configuration as nested dictionaries of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Makes a configuration from the result of `to_json`. Missing fields get their defaults.

        Raises:
            UserError: a field is unknown or its value is not allowed.
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

    @classmethod
    def preset_values(cls, presets: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
        """Returns the fields of a preset.

        Args:
            presets: the presets of this class: name -> fields.
            name: the preset to return.

        Raises:
            UserError: no preset has this name.
        """
        if name not in presets:
            raise UserError(f"unknown preset {name!r} of {cls.__name__}; the presets are {', '.join(presets)}")
        return presets[name]


def _range_text(least: Number | None, most: Number | None, above: Number | None, below: Number | None) -> str:
    """Describes a range in words, such as "0 or more" or "a number from 0 to below 1"."""
    if least is None and above is None:
        return f"{most} or less" if below is None else f"a number below {below}"
    if most is None and below is None:
        return f"{least} or more" if above is None else f"a number above {above}"
    start = f"{least}" if above is None else f"above {above}"
    end = f"{most}" if below is None else f"below {below}"
    return f"a number from {start} to {end}"
