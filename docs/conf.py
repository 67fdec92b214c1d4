"""Settings of the documents: `sphinx-build -W --keep-going -b html docs docs/_build/html` (extra `docs`)."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # for the notebooks

project = "dcgan_jax"
author = "the dcgan_jax developers"
copyright = author
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton", "floors", "options"]
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "sphinx_book_theme"
html_title = "dcgan_jax"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "navbar_persistent": []}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Every build runs the notebooks whose text has changed; `-E` runs all.
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

default_role = "code"  # `name` in docstrings
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
maximum_signature_line_length = 90
# Types of other libraries, and array types, have no page here.
nitpick_ignore_regex = [(r"py:.*", r"(?!dcgan_jax\.).*")]


def _plain(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Escapes |x|, [n, *shape] and '*b h w', which reStructuredText would take for markup."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[i] = re.sub(r"\||(?<=, )\*(?=\w+\])|(?<=')\*(?=\w)", r"\\\g<0>", line)


def _short(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, result: str | None
) -> Any:
    """Shortens the types of a signature to those that the source has."""
    keys = "Key[Array, ''] | UInt32[Array, '2'] | UInt32[Array, '4']"  # how jaxtyping writes PRNGKeyArray

    def short(text: str | None) -> str | None:
        return text and re.sub(r"~?(jaxtyping\.|jaxlib\._jax\.)", "", text).replace(keys, "PRNGKeyArray")

    return short(signature), short(result)


def _link(app: Sphinx, path: Path, page: str, content: list[str]) -> None:
    """Leads a link to a file outside this folder to the page that holds the file's text."""
    content[0] = content[0].replace("(../benchmarks/README.md)", "(programs.md)")


def _mark_numbers(app: Sphinx, doctree: nodes.document) -> None:
    """Gives table cells of numbers a class, so that they stay on one line."""
    for entry in doctree.findall(nodes.entry):
        if re.fullmatch(r"[\d.,/±()\s−—%]+", entry.astext()):
            entry["classes"].append("number")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _plain)
    app.connect("autodoc-process-signature", _short)
    app.connect("include-read", _link)
    app.connect("doctree-read", _mark_numbers)
