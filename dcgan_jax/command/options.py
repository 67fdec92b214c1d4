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


def path_or_url(text: str) -> str | Path:
    """Parses a local path or a URL. A URL stays a str, because `Path` would drop one of its slashes."""
    return text if remote.is_url(text) else Path(text)


def local_path(text: str) -> Path:
    """Parses a local path. Raises an error for a URL."""
    if remote.is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is in a bucket: give a local path and copy it afterwards")
    return Path(text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a training run."""
    parser.add_argument("--data", type=path_or_url, required=True, help="A prepared set.")
    parser.add_argument("--run", type=path_or_url, required=True, help="Folder of the run. A run in it is resumed.")
    parser.add_argument("--split", default="train", help="Split of the set to train on (default: train).")


def add_prior(parser: argparse.ArgumentParser) -> None:
    """Adds `--prior`."""
    text = "Folder of a run, a .safetensors file, or the name of a packaged prior (default: faces-64)."
    parser.add_argument("--prior", default="faces-64", help=text)


def add_label(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--label`. `default` describes the class of an image if the option is not given."""
    text = f"Class of all images, for a conditional prior, counted from 0 (default: {default})."
    parser.add_argument("--label", type=int, default=None, help=text)


def add_search(parser: argparse.ArgumentParser, preset: str) -> None:
    """Adds the options of a latent search, which `search_config` reads. `preset` tells the default preset."""
    add = parser.add_argument
    add("--count", type=int, default=None, help="Number of images, from the first (default: all).")
    add("--seed", type=int, default=0, help="Seed of holes and searches (default: 0).")
    add("--batch-size", type=int, default=64, help="Number of searches at a time (default: 64).")
    dtype = "Number type of the networks' arithmetic (default: float32)."
    add("--compute-dtype", default="float32", choices=COMPUTE_DTYPES, help=dtype)
    presets = (
        "fast, best or several (the prior needs an encoder), yeh2017 or he2018. Options below override its values."
    )
    add("--preset", default=None, help=f"{presets} (default: {preset})")
    add_fields(parser, InpaintConfig, "without a preset")


def check_counts(options: argparse.Namespace) -> None:
    """Raises UserError if seed, count or batch size is out of range."""
    if not 0 <= options.seed < 2**63:
        raise UserError(f"`seed` is {options.seed}; it takes 0 to 2**63 - 1")
    for name in ("count", "batch_size"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise UserError(f"`{name}` is {value}; it takes 1 or more")


def search_config(options: argparse.Namespace, default: InpaintConfig | None = None) -> InpaintConfig:
    """Returns the configuration of the search from the options of `add_search`.

    Args:
        options: the parsed options.
        default: the configuration without a preset; `InpaintConfig()` if not given.
    """
    given = given_fields(InpaintConfig, options)
    base = default or InpaintConfig()
    if options.preset is not None:
        base = InpaintConfig.preset(options.preset)
    elif given.get("start") == "prior":
        base = InpaintConfig()
    return dataclasses.replace(base, **given)


def add_fields(parser: argparse.ArgumentParser, config: type[Config], default: str = "default") -> None:
    """Adds an option for each field. An option that is not given is not in the namespace, so a preset can set it.

    Args:
        parser: the parser of a command.
        config: the class with the fields.
        default: the word for the default values in the help.
    """
    for field in dataclasses.fields(config):
        if "help" not in field.metadata:
            continue
        name, kind = "--" + field.name.replace("_", "-"), (typing.get_args(field.type) or (field.type,))[0]
        text = f"{field.metadata['help']} ({default}: {field.default})"
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, help=text, default=argparse.SUPPRESS)
        else:
            parser.add_argument(name, type=kind, choices=field.metadata["choices"], help=text)


def given_fields(config: type[Config], options: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of a configuration that the user gave as options."""
    names = {field.name for field in dataclasses.fields(config) if "help" in field.metadata}
    return {name: value for name, value in vars(options).items() if name in names}


def parse_window(text: str) -> range:
    """Parses a window of steps. "20:30" means the ten steps from step 20 to step 30.

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
