"""Compiled programs of completions that are kept on disk. A later process neither traces nor compiles them again.

JAX's own cache of compiled programs does not save the tracing, because its keys are made from traced programs. Tracing
takes longer than completing one image.
"""

import contextlib
import functools
import hashlib
import os
import pickle
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.inpaint import inpaint_batch
from dcgan_jax.inpainting.result import InpaintResult
from dcgan_jax.priors.dcgan import is_dcgan
from dcgan_jax.priors.prior import Prior
from dcgan_jax.storage.files import whole_file

SUFFIX = ".completion"
_KEPT = 20  # programs in a folder; those that were used last stay
_loaded: dict[Path, jax.stages.Compiled] = {}


def call(
    folder: Path, prior: Prior, images: Any, hole: Any, keys: Any, config: InpaintConfig, labels: Any
) -> InpaintResult:
    """Does what `inpaint_batch` does, bit for bit, by a program that is kept in `folder`.

    A program is kept if there is one device and the prior is a DCGAN. No name tells other decoders apart, and a program
    for several devices fits only its own process.

    Args:
        folder: where programs are kept. It must be for this kind of processor alone. Whoever can write to it can run
            code in this process, as with JAX's own cache.
        prior: see `inpaint_batch`; so are the other arguments.
    """
    arguments = prior, images, hole, keys, labels
    if jax.device_count() > 1 or not is_dcgan(prior):
        return inpaint_batch(prior, images, hole, keys, config, None, labels)
    path = folder / (_name(arguments, config) + SUFFIX)
    if path in _loaded:
        return _loaded[path](*arguments)
    with contextlib.suppress(OSError, jax.errors.JaxRuntimeError):  # no such file, or XLA cannot load or run it
        if program := _read(path, arguments):
            result = jax.block_until_ready(program(*arguments))
            _loaded[path] = program
            return result
    _loaded[path] = program = _compile(arguments, config)
    with contextlib.suppress(OSError):  # a full disk
        _write(path, program)
    return program(*arguments)


def _compile(arguments: tuple, config: InpaintConfig) -> jax.stages.Compiled:
    *first, labels = arguments
    with _without_cache():
        return inpaint_batch.lower(*first, config, None, labels).compile()


def _write(path: Path, program: jax.stages.Compiled) -> None:
    """Writes a program, and removes the programs that were not used for the longest time."""
    try:
        data, _, result = serialize_executable.serialize(program)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError):  # programs of this platform cannot be saved
        return
    content = pickle.dumps((data, result))
    with whole_file(path) as partial:
        partial.write_bytes(hashlib.sha256(content).digest() + content)
    for old in sorted(path.parent.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        old.unlink(missing_ok=True)


def _read(path: Path, arguments: tuple) -> jax.stages.Compiled | None:
    """Reads a program; None if it is damaged."""
    file = path.read_bytes()
    digest, content = file[:32], file[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    os.utime(path)
    data, result = pickle.loads(content)
    return serialize_executable.deserialize_and_load(data, jax.tree.structure((arguments, {})), result)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Keeps JAX's cache out of a compilation. On CPUs, a program that was read from a cache cannot be saved again.

    JAX also hands out again what this process has run before. If that was read from a cache, the new file is useless,
    and the next process compiles anew.
    """
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the setting only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _name(arguments: tuple, config: InpaintConfig) -> str:
    """Returns a hash of all that a program depends on: code, versions, settings, and the types of its arguments."""
    device = jax.local_devices()[0]
    versions = f"{jax.__version__} {device.client.platform_version} {device.device_kind} {_code()}"
    settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    leaves, structure = jax.tree.flatten(arguments)
    types = [(x.shape, str(x.dtype)) for x in leaves]
    text = f"{versions} {settings} {os.environ.get('XLA_FLAGS')} {config} {structure} {types}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _code() -> str:
    """Returns a hash of this package's source files."""
    code = hashlib.sha256()
    for path in sorted(Path(str(resources.files("dcgan_jax"))).rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()
