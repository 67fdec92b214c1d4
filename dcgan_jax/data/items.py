"""A source of images as one sequence of items that are read when asked for, and the choice of a part of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from dcgan_jax.errors import UserError

LABEL = "label"  # the name that conditions give to the class


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One image of a source, not read yet."""

    name: str  # path inside the source, or file and number where one file holds many images
    read: Callable[[], bytes | np.ndarray]  # an image file's bytes, or pixels: uint8 [h, w] or [h, w, 3]
    split: str | None = None
    label: int | None = None  # index into the source's class names
    position: tuple[int, ...] = ()  # where the bytes lie: reading in this order goes forward only
    cut: Callable[[Image.Image], Image.Image] | None = None  # from what is read to the image: its annotated box


@dataclasses.dataclass(frozen=True)
class Source:
    """A sequence of items, in the order of their names; usable while the context that made it is open.

    `forward_only`: reads must come from one thread, in order of `Item.position` (a compressed tar file starts
    again from its beginning to go back). Otherwise `Item.read` may be called from any thread.
    """

    kind: str
    items: list[Item]
    class_names: list[str]
    forward_only: bool = False
    attributes: Callable[[], Mapping[str, np.ndarray]] | None = None  # names, each with one bool an item
    cut: str | None = None  # what `Item.cut` does, in words


def select(source: Source, where: Sequence[str]) -> Source:
    """The part of a source whose images meet all conditions.

    Args:
        source: any source; its attributes are only read if a condition names one.
        where: conditions `NAME=VALUE` or `NAME=VALUE,VALUE`, which any of the values meets. The name is `label`,
            with class names as values, or an attribute, with 1 and 0.

    Raises:
        UserError: there is no such label or attribute here, or no image meets the conditions.
    """
    labels = {LABEL} if source.class_names else set()
    attributes: Mapping[str, np.ndarray] = {}
    if source.attributes is not None and not {_name(condition) for condition in where} <= labels:
        attributes = source.attributes()
    chosen = np.ones(len(source.items), bool)
    for condition in where:
        name, values = _name(condition), condition.partition("=")[2].strip()
        if name in labels:
            wanted = _numbers(condition, values, source.class_names)
            chosen &= np.array([item.label in wanted for item in source.items], bool)
        elif name in attributes:
            chosen &= np.isin(attributes[name], list(_bits(condition, values)))
        else:
            raise UserError(
                f"`where` {condition!r}: there is no {name!r} here; there is {_listed([*labels, *attributes])}"
            )
    if not chosen.any():
        raise UserError(f"no image meets `where` {' and '.join(map(repr, where))}: ask for less")
    items = [item for item, keep in zip(source.items, chosen, strict=True) if keep]
    return dataclasses.replace(source, items=items, attributes=None)


def _name(condition: str) -> str:
    name, equals, values = condition.partition("=")
    if not (name.strip() and equals and values.strip()):
        raise UserError(f"`where` {condition!r} is no condition: write one such as label=1 or Smiling=1")
    return name.strip()


def _numbers(condition: str, values: str, class_names: list[str]) -> set[int]:
    """The classes a condition on the label names."""
    # A class name may hold a comma.
    names = [values] if values in class_names else [value.strip() for value in values.split(",")]
    unknown = [name for name in names if name not in class_names]
    if unknown:
        raise UserError(
            f"`where` {condition!r}: there is no label {unknown[0]!r} here; there is {_listed(class_names)}"
        )
    return {class_names.index(name) for name in names}


def _bits(condition: str, values: str) -> set[bool]:
    """The values a condition on an attribute names."""
    bits = [value.strip() for value in values.split(",")]
    if not set(bits) <= {"0", "1"}:
        raise UserError(f"`where` {condition!r}: an attribute is 1 or 0")
    return {bit == "1" for bit in bits}


def _listed(names: list[str], limit: int = 12) -> str:
    """Names on one line that stays readable."""
    if not names:
        return "neither a label nor an attribute"
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
