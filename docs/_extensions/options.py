"""The directives `options` and `presets`: tables of a configuration, made from its fields when the documents are built.

`{options} dcgan_jax.InpaintConfig` shows each field's name, type, default, allowed values and meaning. `{presets}` with
the same argument and the names of presets shows the fields in which each preset differs from the defaults.
"""

import dataclasses
import pkgutil
import typing
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx

from dcgan_jax.config import Config


class Table(Directive):
    """A table of Markdown or reStructuredText cells."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def table(self, head: list[str], widths: list[int], rows: list[list[str]]) -> list[nodes.Node]:
        table = nodes.table(classes=["table"])
        group = nodes.tgroup(cols=len(head))
        table += group
        group.extend(nodes.colspec(colwidth=width) for width in widths)
        group += nodes.thead("", self.row(head))
        group += nodes.tbody("", *map(self.row, rows))
        return [table]

    def row(self, cells: list[str]) -> nodes.row:
        row = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            self.state.nested_parse(StringList([cell]), self.content_offset, entry)
            row += entry
        return row


class Options(Table):
    """Every field of a configuration."""

    def run(self) -> list[nodes.Node]:
        config = _config(self.arguments[0])
        head = ["option", "type", "default", "values", "meaning"]
        rows = [
            [f"`{field.name}`", _type(field), f"`{field.default}`", _values(field), field.metadata["help"]]
            for field in dataclasses.fields(config)
            if "help" in field.metadata
        ]
        return self.table(head, [18, 10, 14, 18, 40], rows)


class Presets(Table):
    """The fields in which presets differ from the defaults."""

    def run(self) -> list[nodes.Node]:
        name, *presets = self.arguments[0].split()
        config: Any = _config(name)
        default = _flat(config())
        values = {preset: _flat(config.preset(preset)) for preset in presets}
        fields = [field for field in default if any(preset[field] != default[field] for preset in values.values())]
        rows = [
            [
                f"`{field}`",
                f"`{default[field]}`",
                *(_value(preset[field], default[field]) for preset in values.values()),
            ]
            for field in fields
        ]
        head = ["option", "default", *(f"`{preset}`" for preset in presets)]
        return self.table(head, [20] + [10] * (len(head) - 1), rows)


def _config(name: str) -> type[Config]:
    config = pkgutil.resolve_name(name)
    if not issubclass(config, Config):
        raise TypeError(f"{name} is no configuration")
    return config


def _flat(config: Config) -> dict[str, Any]:
    """The fields of a configuration, those of nested ones included."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        found |= _flat(value) if isinstance(value, Config) else {field.name: value}
    return found


def _value(value: Any, default: Any) -> str:
    return "" if value == default else f"`{value}`"


def _type(field: dataclasses.Field) -> str:
    kinds = typing.get_args(field.type) or (field.type,)
    return " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)


def _values(field: dataclasses.Field) -> str:
    """The allowed values, such as "0 to 1" or "above 0"."""
    if field.metadata["choices"]:
        return ", ".join(f"`{choice}`" for choice in field.metadata["choices"])
    least, most, above, below = (field.metadata[name] for name in ("min", "max", "above", "below"))
    if most == 2**63 - 1:
        most = "2⁶³ − 1"
    low = f"{least}" if least is not None else f"above {above}" if above is not None else ""
    high = f"{most}" if most is not None else f"below {below}" if below is not None else ""
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if least is not None else low or high


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("options", Options)
    app.add_directive("presets", Presets)
    return {"parallel_read_safe": True}
