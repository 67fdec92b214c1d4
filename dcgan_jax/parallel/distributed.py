"""The processes of a job on several hosts: how they find one another, what one does for all, and how all stop at once.

One process, which is what runs without the launch scripts, is the simplest case of each.
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
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from dcgan_jax.errors import Preempted, UserError

T = TypeVar("T")
_waits = itertools.count()
_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as gone, and the others end
_START = 1800  # seconds to wait for the last process to start
_END = 7 * 24 * 3600  # and for the last to end: those of `inpaint` may have very different amounts of work


def join(training: bool) -> None:
    """Joins the other processes of the job, where `$DCGAN_JAX_DISTRIBUTED` is set; before anything asks for devices.

    JAX finds them by what SLURM, a TPU pod or Open MPI tell it, or by `JAX_COORDINATOR_ADDRESS` (host:port of the first
    process), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    Args:
        training: SIGTERM stops all processes after the same step; else it ends each at once.

    Raises:
        UserError: the environment does not say where they are. (One that does not come up ends this one, by JAX.)
    """
    if not os.environ.get("DCGAN_JAX_DISTRIBUTED"):
        return
    jax.config.update("jax_enable_preemption_service", training)
    try:
        count, number = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        told = None not in (count, number, os.environ.get("JAX_COORDINATOR_ADDRESS"))
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if number is None else int(number),
            cluster_detection_method="deactivate" if told else None,
            initialization_timeout=_START,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_END,
        )
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the processes of this job cannot be joined ({reason}): set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID, or unset DCGAN_JAX_DISTRIBUTED"
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes what there is one of."""
    return jax.process_index() == 0


def on_first(action: Callable[[], T]) -> T | None:
    """Does something on the first process alone; what is wrong there is raised on all, as `UserError`.

    Returns:
        What `action` returned; None on the other processes.
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
    """NumPy's arrays of the first process, on all, bit for bit; the others give arrays of the same shapes and types."""
    if jax.process_count() == 1:
        return tree
    # As bytes: what is sent are sums with the zeros of the others, and -0.0 + 0.0 is 0.0.
    data = jax.tree.map(lambda x: np.frombuffer(np.ascontiguousarray(x), np.uint8), tree)
    sent = multihost_utils.broadcast_one_to_all(data)
    return jax.tree.map(lambda x, y: np.asarray(y).view(x.dtype).reshape(x.shape), tree, sent)


def from_first_text(text: str) -> str:
    """The text of the first process, on all."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
    size = int(from_first(np.asarray(data.size, np.int32)))
    if not is_first():
        data = np.zeros(size, np.uint8)
    return bytes(from_first(data)).decode(errors="surrogateescape") if size else ""


def from_each_text(text: str) -> list[str]:
    """The texts of all processes, on all, in their order; waits for the last one, for days if need be."""
    if jax.process_count() == 1:
        return [text]
    # A collective gives up on those it waits for after half an hour; this is how Orbax waits.
    client = global_state.client
    assert client is not None
    client.wait_at_barrier(f"dcgan_jax {next(_waits)}", timeout_in_ms=_END * 1000)
    data = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode(errors="surrogateescape") for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Within the block SIGTERM ends nothing; it is asked for after every step, and all processes hear the same.

    Yields:
        Whether to stop after step t. In one process a handler of the program's own stays in place, and so does the
        ignoring of the signal.
    """
    if jax.distributed.is_initialized():
        yield multihost_utils.reached_preemption_sync_point
        return
    came = threading.Event()
    main = threading.current_thread() is threading.main_thread()  # Python lets no other install a handler
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield lambda step: False
        return
    signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield lambda step: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave(status: int) -> int:
    """Passes on an exit status. A process that fails ends at once, or those that wait for it would wait for minutes."""
    if jax.distributed.is_initialized() and jax.process_count() > 1 and status not in (0, 1, Preempted.exit_status):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
