"""The command `dcgan-jax`: parses the arguments, runs one subcommand and reports errors in one line."""

import contextlib
import os
import pkgutil
import platform
import re
import sys
import traceback
import warnings
import zlib
from pathlib import Path

from dcgan_jax.command.parser import make_parser
from dcgan_jax.errors import DivergedError, Preempted, UserError


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status.

    | status | meaning |
    |---|---|
    | 0 | success |
    | 1 | an image was skipped, or its search failed |
    | 2 | wrong input |
    | 3 | the training diverged |
    | 70 | a bug, in a job of several processes |
    | 75 | SIGTERM stopped a training run; the same command resumes it |
    | 130 | interrupted |
    """
    options = make_parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"dcgan-jax: {message}\n"
    _keep_programs()
    try:
        # The subcommand's module imports JAX, which is slow, so it is imported only here.
        status = pkgutil.resolve_name(f"dcgan_jax.command.{options.command}")(options)
    except (UserError, DivergedError, Preempted) as error:
        print(f"dcgan-jax: {error}", file=sys.stderr)
        status = error.exit_status
    except OSError as error:
        print(f"dcgan-jax: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("dcgan-jax: interrupted", file=sys.stderr)
        status = 130
    except Exception:
        if not _in_a_job():
            raise
        traceback.print_exc()
        status = 70  # EX_SOFTWARE of sysexits.h
    if _in_a_job():
        from dcgan_jax.parallel import distributed

        return distributed.leave(status)
    return status


def _keep_programs() -> None:
    """Lets JAX keep compiled programs between calls of the command, unless the environment says otherwise.

    JAX and XLA read these variables when they are imported.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError, RuntimeError):  # without a home or such a folder, nothing is kept
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcgan_jax" / _processor()
            cache.mkdir(parents=True, exist_ok=True)
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # On CPUs, XLA mistakes its own settings, such as +prefer-no-gather, for features that this machine lacks. It logs
    # that for each program that it reads.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _processor() -> str:
    """Returns a name for the kind of CPU: a program that was compiled for another kind may crash."""
    features = platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        features += found[0] if found else ""
    return f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"


def _in_a_job() -> bool:
    """Tells whether this process has joined a job of several processes."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
