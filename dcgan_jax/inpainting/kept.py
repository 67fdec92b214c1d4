"""Compiled programs of completions that are kept on disk. A later process neither traces nor compiles them again.

JAX's own cache of compiled programs does not save the tracing, because its keys are made from traced programs. Tracing
takes longer than completing one image.
"""

import contextlib
import functools
import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
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
_loaded: dict[Path, Callable[..., InpaintResult]] = {}


def call(
    folder: Path, prior: Prior, images: Any, hole: Any, keys: Any, config: InpaintConfig, labels: Any
) -> InpaintResult:
    """Does what `inpaint_batch` does, bit for bit, by a program that is kept in `folder`.

    Only programs for one device and priors made of a DCGAN are kept, because no name tells other decoders apart.

    Args:
        folder: where programs are kept. It must be for this kind of processor alone. Whoever can write to it can run
            code in this process, as with JAX's own cache.
        prior: see `inpaint_batch`, and so on.
    """
    arguments = prior, images, hole, keys, labels
    if len(jax.local_devices()) > 1 or not is_dcgan(prior):
        return inpaint_batch(prior, images, hole, keys, config, None, labels)
    path = folder / (_name(arguments, config) + SUFFIX)
    if path in _loaded:
        return _loaded[path](*arguments)
    if program := _read(path, arguments):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # a program that this XLA cannot run
            result = jax.block_until_ready(program(*arguments))
            _loaded[path] = program
            return result
    _loaded[path] = _compile(path, arguments, config)
    return _loaded[path](*arguments)


def _compile(path: Path, arguments: tuple, config: InpaintConfig) -> Callable[..., InpaintResult]:
    *first, labels = arguments
    with _without_cache():
        program = inpaint_batch.lower(*first, config, None, labels).compile()
    with contextlib.suppress(OSError, ValueError, NotImplementedError):  # a full disk, or a platform that cannot
        data, _, result = serialize_executable.serialize(program)
        content = pickle.dumps((data, result))
        with whole_file(path) as partial:
            partial.write_bytes(hashlib.sha256(content).digest() + content)
        kept = sorted(path.parent.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-_KEPT]:
            old.unlink(missing_ok=True)
    return program


def _read(path: Path, arguments: tuple) -> Callable[..., InpaintResult] | None:
    """Returns a kept program; None if there is none, or it is damaged."""
    try:
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
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
    """Returns a hash of all that a program depends on: code, settings, and the types of its arguments."""
    leaves, structure = jax.tree.flatten(arguments)
    shapes = [(x.shape, str(x.dtype)) for x in leaves]
    return hashlib.sha256(f"{_surroundings()} {config} {structure} {shapes}".encode()).hexdigest()[:32]


@functools.cache
def _surroundings() -> str:
    """Returns what programs depend on beside their arguments."""
    device = jax.local_devices()[0]
    settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    code = hashlib.sha256()
    for path in sorted(Path(str(resources.files("dcgan_jax"))).rglob("*.py")):
        code.update(path.read_bytes())
    versions = f"{jax.__version__} {device.client.platform_version} {device.device_kind}"
    return f"{versions} {settings} {os.environ.get('XLA_FLAGS')} {code.hexdigest()}"
