"""Journals: files with a line of JSON for each finished piece of work.

A killed process may leave half a line at the end. Readers skip it.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from dcgan_jax.errors import UserError
from dcgan_jax.storage.files import whole_file

T = TypeVar("T")
Line = dict[str, Any]


class ParsedLine(NamedTuple, Generic[T]):
    """A line of a journal after parsing."""

    number: int  # counted from 1
    text: str  # without the line end
    value: T | None  # None if the line is damaged


def append(path: Path, *lines: Line) -> None:
    """Adds lines to a journal. They are in the file when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def read(path: Path, parse: Callable[[Line], T]) -> list[ParsedLine[T]]:
    """Reads a journal. A journal that does not exist has no lines.

    Args:
        path: the file.
        parse: line -> value. A line counts as damaged if `parse` raises KeyError, TypeError, ValueError, AttributeError
            or OSError.
    """
    found: list[ParsedLine[T]] = []
    if not path.is_file():
        return found
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        if not text.endswith("\n"):  # cut off while it was written
            continue
        try:
            value = parse(json.loads(text))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OSError):
            value = None
        found.append(ParsedLine(number, text.rstrip("\n"), value))
    return found


def read_whole(path: Path, parse: Callable[[Line], T]) -> list[tuple[str, T]]:
    """Reads a journal that must not be damaged. Returns pairs of text and value.

    Raises:
        UserError: a line is damaged.
    """
    found = []
    for number, text, value in read(path, parse):
        if value is None:
            raise UserError(f"{path}, line {number} is damaged: remove the line")
        found.append((text, value))
    return found


def replace(path: Path, texts: Iterable[str]) -> None:
    """Replaces the whole journal by these lines."""
    with whole_file(path) as partial:
        partial.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
