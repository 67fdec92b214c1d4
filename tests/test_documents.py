"""The documents: links, pictures, and completeness of the API page."""

import re
import tomllib
from pathlib import Path

import pytest

import dcgan_jax

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "benchmarks/README.md", "launch/README.md")),
    *(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
]
# Markdown links and pictures, and MyST's directives `image` and `include`.
LINK = re.compile(r"\]\(([^()\s]+)\)|^```\{(?:image|include|figure)\} (\S+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_and_picture_exists(page: Path):
    text = page.read_text()
    code = re.compile(r"^```(?:bash|python|\{code-cell\}.*)\n.*?^```", re.MULTILINE | re.DOTALL)
    links = [a or b for a, b in LINK.findall(code.sub("", text))]
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    missing = [link for link in local if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_into_a_page_name_one_of_its_headings(page: Path):
    def anchors(text: str) -> set[str]:
        """The anchors that GitHub and MyST give to headings."""
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    for link in re.findall(r"\]\(([\w./-]*#[^()\s]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        included = re.findall(r"^```\{include\} (\S+)", target.read_text(), re.MULTILINE)
        texts = [target.read_text(), *((target.parent / name).read_text() for name in included)]
        assert anchor in set.union(*map(anchors, texts)), link


def test_the_api_page_has_every_public_name():
    page = (DOCS / "api.md").read_text()
    documented = set(re.findall(r"\.\. auto\w+:: (?:dcgan_jax\.)?(\w+)", page))
    documented |= set(re.search(r":members: (.*importance_weights.*)", page)[1].split(", "))
    assert set(dcgan_jax.__all__) - documented == set()


def test_every_page_is_in_the_table_of_contents():
    text = "\n".join((DOCS / name).read_text() for name in ("index.md", "performance.md"))
    entries = {entry for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL) for entry in tree.split()}
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if DOCS in page.parents}
    assert pages - entries == {"index"}


def test_the_index_names_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (DOCS / "index.md").read_text()
    assert [extra for extra in extras if f"`{extra}`" not in table] == []
