"""A trace of some training steps, for TensorBoard's profiler."""

from pathlib import Path
from typing import Any

import jax

PROFILE = "profile"


class Profiler:
    """Traces a window of training steps into RUN/profile, once. Use it as a context around the loop."""

    def __init__(self, run: Path, window: range | None):
        self._folder, self._window, self._tracing = run / PROFILE, window or range(0), False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            jax.profiler.stop_trace()

    def before(self, step: int, done: Any) -> None:
        """Starts or stops the trace if it is time. It then waits for `done`, which belongs to the step before."""
        if step == self._window.start != self._window.stop:
            jax.block_until_ready(done)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif self._tracing and step == self._window.stop:
            jax.block_until_ready(done)
            jax.profiler.stop_trace()
            self._tracing = False
