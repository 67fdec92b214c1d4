"""Checkpoints as others see them: read by Orbax alone, written by version 0.2.0, altered with matching digests."""

import hashlib
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}


def by_orbax(path):
    """What Orbax alone reads from a checkpoint: the bytes of each array, and the configuration."""
    with ocp.StandardCheckpointer() as reader:
        arrays = named(reader.restore(path / "state"))
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return {name: (x.dtype, x.shape, x.tobytes()) for name, x in arrays.items()}, reader.restore(path / "config")


def write_old(run, state, config):
    """Writes a checkpoint as version 0.2.0 did, and returns its path."""
    arrays, text = named(state), json.dumps(config.to_json())
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape or (1,)}".encode())
        digest.update(arrays[name].tobytes())
    path = run / "checkpoints" / f"{int(state.step):07d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path, {"format": "dcgan_jax checkpoint", "config": text, "sha256": digest.hexdigest()})
    return path


def largest(path):
    return max(path.rglob("*"), key=lambda file: file.stat().st_size * file.is_file())


def reseal(path):
    """Makes the digests of a checkpoint match its files, as someone would who means harm."""
    files = [file for file in sorted(path.glob("*/**/*")) if file.is_file()]
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(path).as_posix()}\n" for file in files
    ]
    (path / "SHA256SUMS").write_text("".join(lines))
