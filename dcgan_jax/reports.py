"""What a training run shows of itself on demand: a plot of its metrics, a profile of some of its steps."""

import json
import re
from pathlib import Path
from typing import Any

import jax

from dcgan_jax.errors import UserError
from dcgan_jax.files import whole_file

METRICS, PROFILE, PLOT = "metrics.jsonl", "profile", "losses.png"


def parse_window(text: str) -> range:
    """Reads "20:30", the steps that take a run from step 20 to step 30, as `range(20, 30)`; `UserError` if malformed.

    Example:
        >>> parse_window("20:30")
        range(20, 30)
    """
    match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text, re.ASCII)
    window = range(int(match[1]), int(match[2])) if match else range(0)
    if not window:
        raise UserError(f"`profile_steps` is {text!r}; it takes FIRST:END with FIRST below END, such as 20:30")
    return window


class Profiler:
    """Traces a window of training steps into RUN/profile, once; to be used as a context around the loop."""

    def __init__(self, run: Path, window: range | None):
        self._folder, self._window, self._tracing = run / PROFILE, window or range(0), False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_) -> None:
        if self._tracing:
            jax.profiler.stop_trace()

    def before(self, step: int, done: Any) -> None:
        """Starts or stops the trace if it is time; `done` is of the step before, which is then waited for."""
        if step == self._window.start != self._window.stop:
            jax.block_until_ready(done)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif self._tracing and step == self._window.stop:
            jax.block_until_ready(done)
            jax.profiler.stop_trace()
            self._tracing = False


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Reads the lines of a run's metrics.jsonl; one that is still being written is left out.

    Raises:
        UserError: there is no such run, or no line yet, or a line is damaged.
    """
    path = run / METRICS
    if not path.is_file():
        what = f"it has no {METRICS}" if run.is_dir() else "there is no such folder"
        raise UserError(f"{run} is not a run's folder ({what}): make one with `dcgan-jax train`")
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        try:
            values = json.loads(line)
            lines.append({"step": int(values.pop("step")), **{name: float(x) for name, x in values.items()}})
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number} is damaged: remove the line") from error
    if not lines:
        raise UserError(f"{path} has no line yet: let the run reach its first `log_every` steps")
    return lines


def plot(run: Path) -> Path:
    """Draws the metrics of a run over its steps into RUN/losses.png: a panel each for losses, probabilities, speed,
    and the measures of the generator, each beside that of real images.

    Returns:
        The path of the picture.

    Raises:
        UserError: there is nothing to draw, or Matplotlib is not installed.
    """
    lines = read_metrics(run)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display is asked for
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("`plot` draws with Matplotlib: pip install 'dcgan-jax[plot]'") from error

    panels: dict[str, list[str]] = {}  # names by their last word: losses share an axis, as do probabilities
    for name in dict.fromkeys(name for line in lines for name in line):
        if name not in ("step", "images"):
            measured = name.removesuffix("_floor").removesuffix("_real")
            panels.setdefault(measured.rsplit("_", 1)[-1], []).append(name)
    figure = Figure(figsize=(8, 2.6 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, names in zip(axes, panels.values(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            few = {"marker": "."} if len(points) <= 30 else {}  # a lone point has no line
            axis.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1, **few)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    axes[-1].set_xlabel("step")
    with whole_file(run / PLOT) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return run / PLOT
