"""Trained weights and their configuration in one safetensors file. Reading a file runs no code from it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from dcgan_jax.config import Config
from dcgan_jax.errors import UserError
from dcgan_jax.storage.files import make_folder, whole_file


def save_weights(path: str | Path, params: Any, metadata: dict[str, str], *, half_precision: bool) -> None:
    """Writes nested dictionaries of arrays to a file. An existing file is replaced.

    Args:
        path: the file to write. Its suffix is .safetensors.
        params: nested dictionaries of arrays.
        metadata: `format`, `model` (the configuration as JSON) and further entries, which `read_weights` returns.
        half_precision: store arrays with two or more axes in float16.

    Raises:
        UserError: the suffix of `path` is not .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"`path` is {path}; give a name that ends in .safetensors")
    tensors = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    if half_precision:
        tensors = {name: x.astype(np.float16) if x.ndim > 1 else x for name, x in tensors.items()}
    make_folder(path.parent)
    with whole_file(path) as partial:
        # Not with `save_file`, because only the owner could read the file.
        partial.write_bytes(save(tensors, metadata))


def read_weights(
    path: Path,
    file_format: str,
    what: str,
    parse: type[Config],
    init: Callable[[Any, dict[str, str]], Any],
    upgrade: Callable[[Any, Any], Any] = lambda params, config: params,
) -> tuple[Any, Any, dict[str, str]]:
    """Reads a file that `save_weights` wrote.

    Args:
        path: the file.
        file_format: the required `format` of the file.
        what: this kind of file in words, for messages, such as "a prior".
        parse: the class of the configuration, which the metadata hold as `model`.
        init: (configuration, metadata) -> weights of the right shapes. Only the shapes are computed.
        upgrade: (weights, configuration) -> the weights; those of an earlier version become those of today.

    Returns:
        The arrays in float32, the configuration, and the metadata.

    Raises:
        UserError: the file has another format, or its weights do not fit its configuration.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if metadata.get("format") != file_format:
            raise UserError(f"its format is {metadata.get('format')!r}, not {file_format!r}")
        config = parse.from_json(json.loads(metadata["model"]))
        params = unflatten_dict({name: jnp.asarray(x.astype(np.float32)) for name, x in tensors.items()}, sep="/")
        params = upgrade(params, config)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {what} ({error}): give another file, or a run's folder") from error

    check_shapes(path, params, lambda: init(config, metadata))
    return params, config, metadata


def check_shapes(path: Path, params: Any, init: Callable[[], Any]) -> None:
    """Checks the shapes of weights that were read. Wrong shapes would otherwise cause errors during compilation.

    Args:
        path: the source of the weights, for the message.
        params: nested dictionaries of arrays.
        init: makes weights of the right shapes. Only the shapes are computed.

    Raises:
        UserError: an array is missing, unexpected, or has another shape.
    """

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        flat: dict[str, Any] = flatten_dict(tree, sep="/")
        return {name: tuple(x.shape) for name, x in flat.items()}

    expected, found = shapes(jax.eval_shape(init)), shapes(params)
    for name in sorted({*expected, *found}):
        here, there = expected.get(name), found.get(name)
        if here != there:
            raise UserError(f"{path} is damaged ({name} is {there}, but the model has {here}): give another file")
