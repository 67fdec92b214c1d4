"""Options that several commands share."""

import argparse
import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

from dcgan_jax.config import COMPUTE_DTYPES, Config
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.storage import remote


def place(text: str) -> str | Path:
    """Parses a local path or the address of a bucket. An address stays text: a `Path` would drop one of its slashes."""
    return text if remote.is_url(text) else Path(text)


def local_path(text: str) -> Path:
    """Parses a local path, and refuses the address of a bucket."""
    if remote.is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is in a bucket: give a local path and copy it afterwards")
    return Path(text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a training run."""
    parser.add_argument("--data", type=place, required=True, help="A prepared set.")
    parser.add_argument("--run", type=place, required=True, help="Folder of the run. A run in it is resumed.")
    parser.add_argument("--split", default="train", help="Split of the set to train on (train).")


def add_prior(parser: argparse.ArgumentParser) -> None:
    """Adds `--prior`."""
    text = "Folder of a run, a .safetensors file, or a name in the package (faces-64)."
    parser.add_argument("--prior", default="faces-64", help=text)


def add_label(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--label`. `default` says in words which class it is if not given."""
    text = f"Class of all images, for a conditional prior, counted from 0 ({default})."
    parser.add_argument("--label", type=int, default=None, help=text)


def add_search(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a latent search, which `search_config` reads."""
    add = parser.add_argument
    add("--count", type=int, default=None, help="Only the first so many images (all).")
    add("--seed", type=int, default=0, help="Seed of holes and searches (0).")
    add("--batch-size", type=int, default=64, help="Searches at a time (64).")
    add("--compute-dtype", default="float32", choices=COMPUTE_DTYPES, help="Arithmetic of the networks (float32).")
    presets = (
        "fast, best or several, whose prior needs an encoder; yeh2017 or he2018. Other options override its fields."
    )
    add("--preset", default=None, help=presets)
    add_fields(parser, InpaintConfig)


def check_counts(options: argparse.Namespace) -> None:
    """Raises UserError where seed, count or batch size is out of range."""
    if not 0 <= options.seed < 2**63:
        raise UserError(f"`seed` is {options.seed}; it takes 0 to 2**63 - 1")
    for name in ("count", "batch_size"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise UserError(f"`{name}` is {value}; it takes 1 or more")


def search_config(options: argparse.Namespace, default: InpaintConfig | None = None) -> InpaintConfig:
    """The search that the options of `add_search` describe. `default` is used without a preset."""
    given = given_fields(InpaintConfig, options)
    base = default or InpaintConfig()
    if options.preset is not None:
        base = InpaintConfig.preset(options.preset)
    elif given.get("start") == "prior":
        base = InpaintConfig()
    return dataclasses.replace(base, **given)


def add_fields(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """Adds an option for each field. An option that is not given is absent, so that a preset shows through."""
    for field in dataclasses.fields(config):
        if "help" not in field.metadata:
            continue
        name, kind = "--" + field.name.replace("_", "-"), (typing.get_args(field.type) or (field.type,))[0]
        text = f"{field.metadata['help']} ({field.default})"
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, help=text, default=argparse.SUPPRESS)
        else:
            parser.add_argument(name, type=kind, choices=field.metadata["choices"], help=text)


def given_fields(config: type[Config], options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a configuration whose options were given."""
    names = {field.name for field in dataclasses.fields(config) if "help" in field.metadata}
    return {name: value for name, value in vars(options).items() if name in names}


def parse_window(text: str) -> range:
    """Parses a window of steps. "20:30" are the steps that take a run from step 20 to step 30.

    Raises:
        UserError: the text has another form.

    Example:
        >>> parse_window("20:30")
        range(20, 30)
    """
    match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text, re.ASCII)
    window = range(int(match[1]), int(match[2])) if match else range(0)
    if not window:
        raise UserError(f"`profile_steps` is {text!r}; it takes FIRST:END with FIRST below END, such as 20:30")
    return window
