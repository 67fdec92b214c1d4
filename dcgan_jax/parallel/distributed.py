"""Jobs of several processes: how they join, exchange data and stop together.

Without the launch scripts there is one process. The functions here then work without any exchange.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dcgan_jax.errors import Interrupted, Preempted, UserError

T = TypeVar("T")
_barriers = itertools.count()
_HEARTBEAT = 30  # seconds without a heartbeat until a process counts as dead, and the others end
_START = 1800  # seconds to wait for the last process to start
_END = 7 * 24 * 3600  # seconds to wait for the last process to end; in `inpaint` their work may be very unequal


def join(training: bool) -> None:
    """Joins the other processes of the job if `$DCGAN_JAX_DISTRIBUTED` is set. Call it before anything uses a device.

    JAX finds the processes through SLURM, a TPU pod or Open MPI. Otherwise `JAX_COORDINATOR_ADDRESS` (host:port of
    process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` must be set. If one process does not start, JAX ends the
    others.

    Args:
        training: True lets SIGTERM stop all processes after the same step. With False, SIGTERM ends a process at once.

    Raises:
        UserError: the processes cannot be found or joined.
    """
    if not os.environ.get("DCGAN_JAX_DISTRIBUTED"):
        return
    jax.config.update("jax_enable_preemption_service", training)
    try:
        count, number = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        given = None not in (count, number, os.environ.get("JAX_COORDINATOR_ADDRESS"))
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if number is None else int(number),
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=_START,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_END,
        )
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the processes of this job cannot be joined ({reason}); set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID, or unset DCGAN_JAX_DISTRIBUTED"
        ) from error


def is_first() -> bool:
    """Tells whether this is process 0, which writes the files that exist once per job."""
    return jax.process_index() == 0


def on_first(action: Callable[[], T]) -> T | None:
    """Runs `action` on process 0. Its error is raised on every process.

    Returns:
        The result of `action` on process 0; None on the other processes.

    Raises:
        UserError: `action` raised a UserError or an OSError.
        OSError: `action` raised it, in a job of one process.
    """
    result, wrong = None, ""
    if is_first():
        try:
            result = action()
        except (UserError, OSError) as error:
            if jax.process_count() == 1:
                raise
            wrong = str(error)
    if wrong := from_first_text(wrong):
        raise UserError(wrong)
    return result


def from_first(tree: Any) -> Any:
    """Sends a tree of NumPy arrays from process 0 to all processes, bit for bit.

    Args:
        tree: the arrays to send. The other processes pass arrays of the same shapes and types.
    """
    if jax.process_count() == 1:
        return tree
    # Sent as bytes, because the broadcast adds zeros from the other processes, and -0.0 + 0.0 is 0.0.
    data = jax.tree.map(lambda x: np.frombuffer(np.ascontiguousarray(x), np.uint8), tree)
    sent = multihost_utils.broadcast_one_to_all(data)
    return jax.tree.map(lambda x, y: np.asarray(y).view(x.dtype).reshape(x.shape), tree, sent)


def from_first_text(text: str) -> str:
    """Sends the text of process 0 to all processes."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
    size = int(from_first(np.asarray(data.size, np.int32)))
    if not is_first():
        data = np.zeros(size, np.uint8)
    return bytes(from_first(data)).decode(errors="surrogateescape") if size else ""


def from_each_text(text: str) -> list[str]:
    """Sends the texts of all processes to all processes. Waits for the last process, up to a week.

    Returns:
        The texts in the order of the processes.
    """
    if jax.process_count() == 1:
        return [text]
    wait_for_all()  # a collective operation would time out after half an hour
    data = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode(errors="surrogateescape") for row, size in zip(rows, sizes, strict=True)]


def wait_for_all() -> None:
    """Waits until every process of the job has called this function, up to a week.

    Raises:
        RuntimeError: the program has not joined a job.
    """
    # The only private name of JAX in this package. JAX has no public barrier with a chosen timeout; Orbax uses this
    # name too.
    from jax._src.distributed import global_state

    if global_state.client is None:
        raise RuntimeError("this program has not joined a job; call `join` first")
    global_state.client.wait_at_barrier(f"dcgan_jax {next(_barriers)}", timeout_in_ms=_END * 1000)


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], type[Preempted | Interrupted] | None]]:
    """Within the block SIGTERM does not end the program. All processes stop after the same step.

    In a process that has not joined a job, the first Ctrl+C does not end the program either; the second one does. The
    program's own handler of a signal is not replaced, nor is an ignored signal.

    Yields:
        A function: number of steps done -> the error to stop with now, or None. Call it after every step. It raises
        KeyboardInterrupt after a second Ctrl+C.
    """
    if jax.distributed.is_initialized():
        yield lambda step: Preempted if multihost_utils.reached_preemption_sync_point(step) else None
        return
    received: list[type[Preempted | Interrupted]] = []

    def terminate(*_: Any) -> None:
        received.append(Preempted)

    def interrupt(*_: Any) -> None:
        received.append(Interrupted)
        if received.count(Interrupted) > 1:
            raise KeyboardInterrupt
        # Not a warning, which may be an error, or be shown only once.
        with contextlib.suppress(OSError, RuntimeError):
            print("dcgan-jax: stopping after this step; Ctrl+C once more stops without saving", file=sys.stderr)

    def stop(step: int) -> type[Preempted | Interrupted] | None:
        if received.count(Interrupted) > 1:  # the handler's error may have been lost in a callback of JAX
            raise KeyboardInterrupt
        return received[0] if received else None

    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():  # only the main thread may install a handler
            for number, default, handler in (
                (signal.SIGTERM, signal.SIG_DFL, terminate),
                (signal.SIGINT, signal.default_int_handler, interrupt),
            ):
                if signal.getsignal(number) is default:
                    signal.signal(number, handler)
                    stack.callback(signal.signal, number, default)
        yield stop


def leave(status: int) -> int:
    """Returns an exit status. A failed process of a job ends here at once, so that the others do not wait for it."""
    if jax.distributed.is_initialized() and jax.process_count() > 1 and status not in (0, 1, Preempted.exit_status):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
