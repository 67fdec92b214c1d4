"""Profiles some training steps for TensorBoard."""

from pathlib import Path
from typing import Any

import jax

PROFILE = "profile"


class Profiler:
    """Profiles a window of training steps into RUN/profile. Use it as a context manager around the loop."""

    def __init__(self, run: Path, window: range | None) -> None:
        self._folder, self._window, self._tracing = run / PROFILE, window or range(0), False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            jax.profiler.stop_trace()

    def before_step(self, step: int, done: Any) -> None:
        """Starts or stops the profile at the ends of the window. First waits for `done`, an output of the last step."""
        if step == self._window.start != self._window.stop:
            jax.block_until_ready(done)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif self._tracing and step == self._window.stop:
            jax.block_until_ready(done)
            jax.profiler.stop_trace()
            self._tracing = False
