"""TensorBoard events of a training run: curves, samples, and a table and a diagram of the networks."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

# Protobuf makes its classes at import, so pyright does not see them.
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from dcgan_jax.networks import diagram
from dcgan_jax.training.config import RunConfig, TrainConfig

FOLDER = "tensorboard"


class EventLog:
    """Writes events. Each event is in the file when the call returns."""

    # tensorboardX's SummaryWriter would lose its queue if the process is killed.

    def __init__(self, writer: EventsWriter) -> None:
        self._writer = writer

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to the curve of each name."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=points))

    def image(self, name: str, pixels: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Adds an image to the series of a name."""
        self._write(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def text(self, name: str, markdown: str, step: int) -> None:
        """Adds a text to the series of a name."""
        self._write(step, summary=summary.text(name, markdown))

    def restart(self, step: int) -> None:
        """Makes TensorBoard drop the points that were written earlier for this step and later steps."""
        self._write(step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()


@contextlib.contextmanager
def open_events(run: Path, config: RunConfig, start: int) -> Iterator[EventLog]:
    """Opens the log of a run that continues after `start` steps.

    A new log of a DCGAN begins with a table and a diagram of its networks. In an existing log, the points after `start`
    are dropped.
    """
    folder = run / FOLDER
    new = not folder.is_dir()
    folder.mkdir(exist_ok=True)
    with contextlib.closing(EventsWriter(str(folder / "events"), f".{start:07d}")) as writer:
        log = EventLog(writer)
        if not new:
            log.restart(start + 1)
        elif isinstance(config, TrainConfig):
            log.text("networks", diagram.table(config.model), start)
            log.image("networks", diagram.draw(config.model), start)
        yield log
