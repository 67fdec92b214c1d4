"""Reads the checkpoints of runs by version 0.2.0 and before: one safetensors file each, with its SHA-256 inside."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

FORMAT = "dcgan_jax checkpoint"


def read(path: Path, parts: Collection[str] | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the arrays of some parts (None for all) and the configuration. Checks the whole file.

    Raises:
        ValueError: the file is damaged, or something else.
    """
    kept = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError("it was not written by a training run")
            digest = hashlib.sha256(metadata["config"].encode())
            for name in sorted(file.keys()):
                array = file.get_tensor(name)
                x = np.ascontiguousarray(array)  # of one dimension at least
                digest.update(f"{name} {x.dtype} {x.shape}".encode())
                digest.update(x.data)
                if parts is None or name.partition("/")[0] in parts:
                    kept[name] = array
            if metadata["sha256"] != digest.hexdigest():
                raise ValueError("its content does not match its SHA-256")
            return kept, json.loads(metadata["config"])
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise ValueError(str(error)) from error
