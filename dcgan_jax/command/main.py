"""The command `dcgan-jax`: parses the arguments, runs one subcommand and reports errors in one line."""

import os
import pkgutil
import sys
import traceback
import warnings

from dcgan_jax.command.parser import make_parser
from dcgan_jax.command.programs import keep_programs
from dcgan_jax.errors import DivergedError, Interrupted, Preempted, UserError


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
    | 130 | Ctrl+C. The first one saves a training run that is not part of a job; the same command resumes it |
    """
    options = make_parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"dcgan-jax: {message}\n"
    keep_programs()
    try:
        # The subcommand's module imports JAX, which is slow, so it is imported only here.
        status = pkgutil.resolve_name(f"dcgan_jax.command.{options.command}")(options)
    except (UserError, DivergedError, Preempted, Interrupted) as error:
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


def run() -> None:
    """Runs the command as a program of its own."""
    status = main()
    if status == 130:
        # XLA may still compile on threads of its own. It crashes if the interpreter is taken down meanwhile.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _in_a_job() -> bool:
    """Tells whether this process has joined a job of several processes."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
