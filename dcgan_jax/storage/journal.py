"""Journals: files with a line of JSON for each thing that is done. A killed process leaves them readable.

A process that is killed may leave half a line at the end. Readers skip it.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from dcgan_jax.errors import UserError
from dcgan_jax.storage.files import whole_file

T = TypeVar("T")
Line = dict[str, Any]


class Entry(NamedTuple, Generic[T]):
    """A line of a journal."""

    number: int  # from 1
    text: str  # without its end
    value: T | None  # None where the line is damaged


def append(path: Path, *lines: Line) -> None:
    """Adds lines. They are in the file when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def read(path: Path, parse: Callable[[Line], T]) -> list[Entry[T]]:
    """Reads a journal; one that does not exist has no lines.

    Args:
        path: the file.
        parse: makes a value of a line. The line is damaged if it raises KeyError, TypeError, ValueError,
            AttributeError or OSError.
    """
    found: list[Entry[T]] = []
    if not path.is_file():
        return found
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        if not text.endswith("\n"):  # cut off while it was written
            continue
        try:
            value = parse(json.loads(text))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OSError):
            value = None
        found.append(Entry(number, text.rstrip("\n"), value))
    return found


def read_whole(path: Path, parse: Callable[[Line], T]) -> list[tuple[str, T]]:
    """Reads a journal that must not be damaged, as pairs of text and value.

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
    """Replaces a journal as a whole by these lines."""
    with whole_file(path) as partial:
        partial.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
