"""The folder in which the command keeps compiled programs between its calls."""

import contextlib
import os
import platform
import re
import zlib
from pathlib import Path


def keep_programs() -> None:
    """Lets JAX keep compiled programs between calls of the command, unless the environment says otherwise.

    JAX and XLA read these variables when they are imported.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError, RuntimeError):  # without a home or such a folder, nothing is kept
            _folder().mkdir(parents=True, exist_ok=True)
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_folder())
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # On CPUs, XLA mistakes its own settings, such as +prefer-no-gather, for features that this machine lacks. It logs
    # that for each program that it reads.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def programs_folder() -> Path | None:
    """Returns the folder of `keep_programs`; None if the environment names another one, or there is none."""
    with contextlib.suppress(RuntimeError):
        if os.environ.get("JAX_COMPILATION_CACHE_DIR") == str(_folder()):
            return _folder()
    return None


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcgan_jax" / _processor()


def _processor() -> str:
    """Returns a name for the kind of CPU: a program that was compiled for another kind may crash."""
    features = platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        features += found[0] if found else ""
    return f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"
