"""A plot of the metrics of a training run."""

from pathlib import Path

from dcgan_jax.errors import UserError
from dcgan_jax.storage import journal
from dcgan_jax.storage.files import whole_file
from dcgan_jax.training.logbook import METRICS

PLOT = "losses.png"


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Reads the metrics of a run, one dictionary for each line. A line that is still being written is left out.

    Raises:
        UserError: there is no such run, it has no metrics yet, or a line is damaged.
    """
    path = run / METRICS
    if not path.is_file():
        what = f"it has no {METRICS}" if run.is_dir() else "there is no such folder"
        raise UserError(f"{run} is not a run's folder ({what}): make one with `dcgan-jax train`")
    lines = [values for _, values in journal.read_whole(path, _numbers)]
    if not lines:
        raise UserError(f"{path} has no line yet: wait until the run has done `log_every` steps")
    return lines


def _numbers(line: journal.Line) -> dict[str, float]:
    return {"step": int(line.pop("step")), **{name: float(x) for name, x in line.items()}}


def plot(run: Path) -> Path:
    """Draws the metrics of a run over its steps into RUN/losses.png.

    Losses, probabilities, speed and each measure have a panel of their own. A measure of real images is in the panel of
    the same measure of generated images.

    Returns:
        The path of the picture.

    Raises:
        UserError: there are no metrics to draw, or Matplotlib is not installed.
    """
    lines = read_metrics(run)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("`plot` draws with Matplotlib: pip install 'dcgan-jax[plot]'") from error

    panels: dict[str, list[str]] = {}  # names by their last word, so losses share an axis
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
            few = {"marker": "."} if len(points) <= 30 else {}  # without a marker, a single point is invisible
            axis.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1, **few)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    axes[-1].set_xlabel("step")
    with whole_file(run / PLOT) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return run / PLOT
