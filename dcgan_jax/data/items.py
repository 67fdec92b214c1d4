"""A source of images: a sequence of items that are read on demand. `select` keeps the items that meet conditions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from dcgan_jax.errors import UserError

LABEL = "label"  # the name that stands for the class in conditions


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One image of a source, not read yet."""

    name: str  # path in the source; file and number if one file holds many images
    read: Callable[[], bytes | np.ndarray]  # returns an image file's bytes, or pixels: uint8 [h, w] or [h, w, 3]
    split: str | None = None
    label: int | None = None  # index into the source's class names
    position: tuple[int, ...] = ()  # place of the bytes in the source; reading in this order never goes back
    cut: Callable[[Image.Image], Image.Image] | None = None  # crops the decoded image to its annotated box


@dataclasses.dataclass(frozen=True)
class Source:
    """A sequence of items, sorted by name. It can be used only while its context is open.

    With `forward_only`, one thread must read the items in order of `Item.position`, because going back in a compressed
    tar file means reading it again from the start. Otherwise any thread may call `Item.read`.
    """

    kind: str
    items: list[Item]
    class_names: list[str]
    forward_only: bool = False
    attributes: Callable[[], Mapping[str, np.ndarray]] | None = None  # returns name -> bool array over the items
    cut: str | None = None  # description of `Item.cut`


def select(source: Source, where: Sequence[str]) -> Source:
    """Returns a source with only the images that meet all conditions.

    Args:
        source: any source. Its attributes are read only if a condition names one.
        where: conditions `NAME=VALUE` or `NAME=VALUE,VALUE`; one of the values must match. NAME is `label`, with class
            names as values, or the name of an attribute, with the values 1 and 0.

    Raises:
        UserError: the source has no such label or attribute, or no image meets the conditions.
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
                f"`where` {condition!r}: the source has no {name!r}; it has {_listed([*labels, *attributes])}"
            )
    if not chosen.any():
        raise UserError(f"no image meets `where` {' and '.join(map(repr, where))}: remove a condition")
    items = [item for item, keep in zip(source.items, chosen, strict=True) if keep]
    return dataclasses.replace(source, items=items, attributes=None)


def _name(condition: str) -> str:
    name, equals, values = condition.partition("=")
    if not (name.strip() and equals and values.strip()):
        raise UserError(f"`where` {condition!r} is not a condition: write one such as label=1 or Smiling=1")
    return name.strip()


def _numbers(condition: str, values: str, class_names: list[str]) -> set[int]:
    """Returns the numbers of the classes that a condition names."""
    # A class name may contain a comma.
    names = [values] if values in class_names else [value.strip() for value in values.split(",")]
    unknown = [name for name in names if name not in class_names]
    if unknown:
        raise UserError(f"`where` {condition!r}: the source has no label {unknown[0]!r}; it has {_listed(class_names)}")
    return {class_names.index(name) for name in names}


def _bits(condition: str, values: str) -> set[bool]:
    """Returns the values that a condition allows for an attribute."""
    bits = [value.strip() for value in values.split(",")]
    if not set(bits) <= {"0", "1"}:
        raise UserError(f"`where` {condition!r}: the value of an attribute is 1 or 0")
    return {bit == "1" for bit in bits}


def _listed(names: list[str], limit: int = 12) -> str:
    """Joins the first `limit` names on one line."""
    if not names:
        return "neither a label nor an attribute"
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
