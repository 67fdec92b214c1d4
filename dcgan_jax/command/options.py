"""Options that several commands share."""

import argparse
import dataclasses
import re
import types
import typing
from pathlib import Path

from dcgan_jax.config import COMPUTE_DTYPES, Config
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.storage import remote


def _place(text: str) -> str | Path:
    """A local path, or the address of a bucket, which a `Path` would spoil."""
    return text if remote.is_url(text) else Path(text)


def _local(text: str) -> Path:
    if remote.is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is not here: give a local path and copy it from there")
    return Path(text)


def _add_run(parser):
    parser.add_argument("--data", type=_place, required=True, help="a prepared set")
    parser.add_argument("--run", type=_place, required=True, help="the run's folder; a run in it is resumed")
    parser.add_argument("--split", default="train", help="which images of the set (train)")


def _add_prior(parser):
    parser.add_argument(
        "--prior", default="faces-64", help="a run's folder, a .safetensors file, or a name in the package (faces-64)"
    )


def _add_label(parser, default):
    text = f"the class of all images, of a conditional prior, by its number from 0 on ({default})"
    parser.add_argument("--label", type=int, default=None, help=text)


def _add_search(parser):
    parser.add_argument("--count", type=int, default=None, help="the first so many images; all if not given")
    parser.add_argument("--seed", type=int, default=0, help="of holes and searches (0)")
    parser.add_argument("--batch-size", type=int, default=64, help="searches at a time (64)")
    parser.add_argument(
        "--compute-dtype", default="float32", choices=COMPUTE_DTYPES, help="the networks' arithmetic (float32)"
    )
    presets = "fast, best, several (the prior needs an encoder), yeh2017 or he2018; options override it field by field"
    parser.add_argument("--preset", default=None, help=presets)
    _add_fields(parser, InpaintConfig)


def _check_counts(options: argparse.Namespace) -> None:
    if not 0 <= options.seed < 2**63:
        raise UserError(f"`seed` is {options.seed}; it takes 0 to 2**63 - 1")
    for name in ("count", "batch_size"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise UserError(f"`{name}` is {value}; it takes 1 or more")


def _search(options):
    base = InpaintConfig() if options.preset is None else InpaintConfig.preset(options.preset)
    return dataclasses.replace(base, **_given(InpaintConfig, options))


def _add_fields(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """An option for each field; absent ones leave no trace, so that a preset shows through."""
    for field in dataclasses.fields(config):
        if "help" not in field.metadata:
            continue
        name, kind = "--" + field.name.replace("_", "-"), field.type
        if isinstance(kind, types.UnionType):
            kind = typing.get_args(kind)[0]
        text = f"{field.metadata['help']} ({field.default})"
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, help=text, default=argparse.SUPPRESS)
        else:
            parser.add_argument(name, type=kind, choices=field.metadata["choices"], help=text)


def _given(config: type[Config], options: argparse.Namespace) -> dict:
    names = {field.name for field in dataclasses.fields(config) if "help" in field.metadata}
    return {name: value for name, value in vars(options).items() if name in names}


def parse_window(text: str) -> range:
    """Reads "20:30", the steps that take a run from step 20 to step 30, as `range(20, 30)`; `UserError` if malformed.

    Example:
        >>> parse_window("20:30")
        range(20, 30)
    """
    match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text, re.ASCII)
    window = range(int(match[1]), int(match[2])) if match else range(0)
    if not window:
        raise UserError(f"`profile_steps` is {text!r}; it takes FIRST:END with FIRST below END, such as 20:30")
    return window
