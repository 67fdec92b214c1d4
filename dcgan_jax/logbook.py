"""The folder of a training run while it grows: record, metrics, samples, checkpoints. One process keeps it."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from dcgan_jax import checkpoints, figures, mirror, reports
from dcgan_jax.config import RunConfig
from dcgan_jax.data import PreparedSet
from dcgan_jax.errors import UserError
from dcgan_jax.files import make_folder, whole_file


class Logbook:
    """What a run has left in its folder, and what is added to it."""

    def __init__(self, copy: mirror.RunCopy, config: RunConfig, data: dict[str, Any], init: checkpoints.Init):
        self._copy, self._run, self._config, self._data, self._init = copy, copy.folder, config, data, init
        shown = _shown(copy)
        self.rollbacks = _claim(self._run, shown, config, data)  # the steps at which the run went back
        self.restored = checkpoints.restore(self._run, config, init)  # the newest state, in NumPy's arrays
        start = self._start = 0 if self.restored is None else int(self.restored.step)
        if start > config.num_steps:
            raise UserError(f"{shown} has done {start} steps already and `num_steps` is {config.num_steps}: raise it")

    def begin(self) -> None:
        """Makes the record that of the run as it goes on, and forgets what came after the state it goes on from."""
        for unfinished in self._run.rglob(".*.partial"):  # of a process that was killed
            unfinished.unlink()
        checkpoints.write_record(self._run, self._config, self._data, self.rollbacks)
        _forget_after(self._run / reports.METRICS, self._start)
        self._copy.push()

    @contextlib.contextmanager
    def open(self, window: range | None, progress: bool) -> Iterator[None]:
        """Opens what the steps write to; the steps in `window` are traced."""
        from dcgan_jax.events import open_events  # tensorboardX is slow to import, and only wanted here

        start, total = self._start, self._config.num_steps
        with contextlib.ExitStack() as stack:
            self._writer = stack.enter_context(checkpoints.CheckpointWriter(self._run, self._config))
            self._events = stack.enter_context(open_events(self._run, self._config, start))
            self._profiler = stack.enter_context(reports.Profiler(self._run, window))
            self._bar = stack.enter_context(
                tqdm(total=total, initial=start, unit="step", disable=not progress, dynamic_ncols=True)
            )
            self._clock, self._seconds, self._reported = time.perf_counter(), 0.0, start
            yield

    def before(self, step: int, previous: Any) -> None:
        """Called before a step, with something that the step before it has computed."""
        self._profiler.before(step, previous)

    def after(self) -> None:
        """Called after a step."""
        self._bar.update()

    def stop_clock(self) -> None:
        """The time until `start_clock` is not spent on training."""
        self._seconds += time.perf_counter() - self._clock

    def start_clock(self) -> None:
        """Training goes on."""
        self._clock = time.perf_counter()

    def report(self, done: int, images: int, losses: dict[str, float], measures: dict[str, float]) -> None:
        """Shows the losses after a step, and writes them down where it is due, or where there are measures."""
        self._bar.set_postfix({name[0].upper(): f"{x:.2f}" for name, x in losses.items() if name.endswith("_loss")})
        if done % self._config.log_every and done != self._config.num_steps and not measures:
            return
        line = {**losses, "steps_per_second": round((done - self._reported) / self._seconds, 3), **measures}
        with (self._run / reports.METRICS).open("a", encoding="utf-8") as metrics:
            metrics.write(json.dumps({"step": done, "images": images, **line}) + "\n")
        self._events.scalars(line, done)
        self._seconds, self._reported = 0.0, done

    def save(self, state: Any) -> None:
        """Saves a state; in a bucket it is there when this returns, else while training goes on."""
        self._writer.save(state)
        if self._copy.url:
            self.wait()
            self._copy.push()

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._writer.wait()

    def sample(self, grid: UInt8[np.ndarray, "h w 3"], done: int) -> None:
        """Writes a picture of what the networks make after a step."""
        figures.save_png(self._run / "samples" / f"{done:07d}.png", grid)
        self._events.image("samples", grid, done)

    def go_back(self) -> Any:
        """Returns the newest saved state, after writing down that the run goes back to it."""
        self.wait()
        state = checkpoints.restore(self._run, self._config, self._init)
        assert state is not None
        start = int(state.step)
        self.rollbacks.append(start)
        checkpoints.write_record(self._run, self._config, self._data, self.rollbacks)
        _forget_after(self._run / reports.METRICS, start)
        self._events.restart(start + 1)
        self._bar.n = start
        self._clock, self._seconds, self._reported = time.perf_counter(), 0.0, start
        return state


@contextlib.contextmanager
def open_logbook(
    run: str | Path, config: RunConfig, source: str | Path, prepared: PreparedSet, split: str, init: checkpoints.Init
) -> Iterator[Logbook]:
    """Opens the folder of a new run, or of one to go on with, here or in a bucket.

    Raises:
        UserError: there is something else, or a run of another configuration or on other data.
    """
    with mirror.open_run(run) as copy:
        yield Logbook(copy, config, _describe(source, prepared, split), init)


def _shown(copy):
    return copy.url or str(copy.folder)  # what the person knows the run by


def _describe(source: str | Path, prepared: PreparedSet, split: str) -> dict[str, Any]:
    """What a run records of its data."""
    manifest = prepared.manifest
    data = {
        "path": str(source),
        "split": split,
        "kind": manifest["kind"],
        "source": manifest.get("source"),
        "crop": manifest.get("crop"),
        "count": len(prepared.split(split)),
        "sha256": manifest["sha256"],
    }
    return data | {name: manifest[name] for name in ("cut", "where") if name in manifest}


def _claim(run: Path, shown: str, config: RunConfig, data: dict[str, Any]) -> list[int]:
    """Makes the folder of a new run, or checks that it records this one; returns where that went back."""
    rollbacks = []
    if (run / checkpoints.RECORD).is_file():
        recorded, recorded_data, rollbacks = checkpoints.read_record(run, type(config))
        differing = checkpoints.differences(recorded, config)
        differing += [f"data {name}" for name in ("split", "sha256") if recorded_data.get(name) != data[name]]
        if differing:
            raise UserError(
                f"{shown} holds a run that differs in {', '.join(differing)}: go on with its own settings, "
                "or give another folder"
            )
    elif run.is_dir() and any(run.iterdir()):
        raise UserError(f"{shown} is not empty and not a run's folder: give another folder")
    else:
        make_folder(run)
        checkpoints.write_record(run, config, data)
    (run / "samples").mkdir(exist_ok=True)
    return rollbacks


def _forget_after(path: Path, step: int) -> None:
    """Drops the lines that an interrupted run wrote after the checkpoint it goes on from."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):  # cut off while it was written
            continue
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is damaged: remove the line to go on with the run") from error
    if len(kept) < len(lines):
        with whole_file(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")
