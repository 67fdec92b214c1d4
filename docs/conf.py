"""Settings of the documents: `sphinx-build -W --keep-going -b html docs docs/_build/html` (extra `docs`)."""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]

project = "dcgan_jax"
author = "the dcgan_jax developers"
copyright = author
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton", "floors", "options"]
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "sphinx_book_theme"
html_title = "dcgan_jax"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}

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
# Types of other libraries, and array types, have no page here.
nitpick_ignore_regex = [(r"py:.*", r"(?!dcgan_jax\.).*")]


def _plain(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Escapes |x| and [n, *shape], which reStructuredText would take for markup."""
    lines[:] = [line if line.lstrip().startswith((">>>", "...")) else re.sub(r"\||(?<=, )\*(?=\w+\])", r"\\\g<0>", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _plain)
