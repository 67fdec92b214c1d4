"""The directives `floors` and `forbidden`: the contracts of import-linter in `pyproject.toml`, as tables."""

import ast
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from options import Table
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent


class Floors(Table):
    """The layers from top to bottom, with the first sentence of each module's docstring."""

    required_arguments = 0

    def run(self) -> list[nodes.Node]:
        layers = _contract("layers")["layers"]
        rows = []
        for number, layer in zip(range(len(layers), 0, -1), layers, strict=True):
            rows += [[f"{number}", f"`{name}`", _first_sentence(name)] for name in layer.split(" | ")]
        return self.table(["floor", "module", "what it holds"], [8, 30, 62], rows)


class Forbidden(Table):
    """The contract of what some modules must not import."""

    required_arguments = 0

    def run(self) -> list[nodes.Node]:
        contract = _contract("forbidden")
        rows = [
            [kind, ", ".join(f"`{name}`" for name in contract[f"{field}_modules"])]
            for kind, field in (("these modules", "source"), ("never import", "forbidden"))
        ]
        return self.table([contract["name"], ""], [20, 80], rows)


def _contract(kind: str) -> dict[str, Any]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == kind)
    return contract


def _first_sentence(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("floors", Floors)
    app.add_directive("forbidden", Forbidden)
    return {"parallel_read_safe": True}
