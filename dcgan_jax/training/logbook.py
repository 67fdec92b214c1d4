"""Writes the folder of a training run: record, metrics, samples, checkpoints, the best prior.

Only the first process writes, but for the checkpoints of a local run, of which each process writes a part.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, UInt8
from tqdm import tqdm

from dcgan_jax.data import PreparedSet
from dcgan_jax.errors import UserError
from dcgan_jax.images import figures
from dcgan_jax.parallel import distributed
from dcgan_jax.priors.files import save_prior
from dcgan_jax.storage import checkpoints, journal, remote
from dcgan_jax.storage.checkpoints import CheckpointWriter
from dcgan_jax.storage.files import make_folder
from dcgan_jax.storage.mirror import RunCopy, open_run
from dcgan_jax.storage.runs import RECORD, Run, differences, read_run, write_run
from dcgan_jax.training.config import RunConfig
from dcgan_jax.training.profiler import Profiler
from dcgan_jax.training.recipe import Recipe

METRICS = "metrics.jsonl"
SAMPLES = "samples"
BEST = "best.safetensors"  # the prior that measured best


class Logbook:
    """What the training loop tells about a run: its losses, pictures and states.

    The methods of this class write only this process's part of the checkpoints. All processes but the first use it.

    Attributes:
        rollbacks: the steps to which the run went back so far; the same on every process.
        restored: the newest saved state, in NumPy arrays; None for a new run, and on all processes but the first.
    """

    rollbacks: tuple[int, ...] = ()
    restored: Any = None

    def __init__(self, folder: Path, shared: bool, config: RunConfig) -> None:
        """Makes a logbook.

        Args:
            folder: the folder of the run; in a bucket, its local copy.
            shared: every process sees the folder.
            config: the run's configuration.
        """
        self._folder, self._shared, self._config = folder, shared, config

    def begin(self) -> None:
        """Writes the run's record, and drops metrics and checkpoints of steps after the restored state.

        Every process calls this.

        Raises:
            UserError: the first process had an error, or a process does not see the run's folder.
        """
        distributed.on_first(self._write_record)
        seen = not self._shared or (self._folder / RECORD).is_file()
        blind = [number for number, text in enumerate(distributed.from_each_text(str(seen))) if text == "False"]
        if blind:
            raise UserError(
                f"process {blind[0]} does not see {self._folder}: put the run in a bucket, or in a folder that all "
                "hosts share"
            )

    def _write_record(self) -> None:
        """Does the work of `begin`."""

    @contextlib.contextmanager
    def open(self, window: range | None, progress: bool) -> Iterator[None]:
        """Opens the files that the steps write. The steps in `window` are profiled."""
        with CheckpointWriter(self._folder, self._config, shared=self._shared) as self._writer:
            yield

    def prepare_measures(self, prepared: PreparedSet, split: str, key: PRNGKeyArray) -> None:
        """Makes the function that measures states, if the recipe has measures."""

    def before_step(self, step: int, previous: Any) -> None:
        """The loop calls this before each step. `previous` is an output of the step before, for the profiler."""

    def after_step(self) -> None:
        """The loop calls this after each step."""

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time in this block from the training speed."""
        yield

    def report(self, step: int, losses: dict[str, float], measured: Any) -> None:
        """Shows the losses of a step. Writes them if they are due.

        Args:
            step: the number of steps done.
            losses: the metrics of the step.
            measured: the state to measure; None if no measurement is due. Its measures are written too.
        """

    def sample(self, step: int, state: Any, images: UInt8[np.ndarray, "n h w c"], key: PRNGKeyArray) -> None:
        """Writes a picture of the networks' output.

        Args:
            step: the number of steps done.
            state: the state after this step.
            images: the training images.
            key: random key of the picture. The same key for all steps shows the same latents.
        """

    def save(self, state: Any) -> None:
        """Saves a state. A bucket has it when this returns. A local checkpoint is written while training continues."""
        self._writer.save(state)

    def wait(self) -> None:
        """Waits until all saved states are on disk."""
        self._writer.wait()

    def go_back(self) -> Any:
        """Records a rollback to the newest saved state, and returns that state. This class returns None."""
        self.wait()


class FolderLogbook(Logbook):
    """The logbook of the first process."""

    def __init__(self, copy: RunCopy, recipe: Recipe, config: RunConfig, data: dict[str, Any]) -> None:
        super().__init__(copy.folder, copy.url is None, config)
        self._copy, self._recipe = copy, recipe
        name = copy.url or str(copy.folder)  # the name that the user gave
        self._record = _claim(Run(copy.folder, config.KIND, config.to_json(), data), config, name)
        self.rollbacks = self._record.rollbacks
        self.restored = checkpoints.restore(self._folder, config, recipe.init)
        start = self._start = 0 if self.restored is None else int(self.restored.step)
        if start > config.num_steps:
            raise UserError(
                f"{name} has done {start} steps already, but `num_steps` is {config.num_steps}: raise `num_steps`"
            )

    def _write_record(self) -> None:
        for unfinished in self._folder.rglob(".*.partial"):  # left behind by a killed process
            unfinished.unlink()
        checkpoints.discard_unfinished(self._folder)
        write_run(self._record)
        self._forget_after(self._start)
        self._copy.push()

    @contextlib.contextmanager
    def open(self, window: range | None, progress: bool) -> Iterator[None]:
        from dcgan_jax.training.events import open_events  # tensorboardX is slow to import

        start, total = self._start, self._config.num_steps
        with contextlib.ExitStack() as stack:
            stack.enter_context(super().open(window, progress))
            self._events = stack.enter_context(open_events(self._folder, self._config, start))
            self._profiler = stack.enter_context(Profiler(self._folder, window))
            self._bar = stack.enter_context(
                tqdm(total=total, initial=start, unit="step", disable=not progress, dynamic_ncols=True)
            )
            self._clock, self._seconds, self._reported = time.perf_counter(), 0.0, start
            yield

    def prepare_measures(self, prepared: PreparedSet, split: str, key: PRNGKeyArray) -> None:
        measures = self._recipe.measures
        if measures is None:
            return
        measure = measures.make(prepared, split, key)

        def measure_and_keep_best(state: Any) -> dict[str, float]:
            prior = measures.prior(state, self._config)
            values = measure(prior)
            if values.get(measures.quality, -np.inf) > self._best:
                save_prior(dataclasses.replace(prior, crop=self._record.data.get("crop")), self._folder / BEST)
                self._best = values[measures.quality]
            return values

        self._measure = measure_and_keep_best

    def before_step(self, step: int, previous: Any) -> None:
        self._profiler.before_step(step, previous)

    def after_step(self) -> None:
        self._bar.update()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._seconds += time.perf_counter() - self._clock
        yield
        self._clock = time.perf_counter()

    def report(self, step: int, losses: dict[str, float], measured: Any) -> None:
        self._bar.set_postfix({name[0].upper(): f"{x:.2f}" for name, x in losses.items() if name.endswith("_loss")})
        measures = {} if measured is None else self._measure(jax.device_get(measured))
        if step % self._config.log_every and step != self._config.num_steps and not measures:
            return
        speed = round((step - self._reported) / self._seconds, 3)
        values = {**losses, "steps_per_second": speed, **measures}
        images = step * self._config.images_per_step
        journal.append(self._folder / METRICS, {"step": step, "images": images, **values})
        self._events.scalars(values, step)
        self._seconds, self._reported = 0.0, step

    def sample(self, step: int, state: Any, images: UInt8[np.ndarray, "n h w c"], key: PRNGKeyArray) -> None:
        grid = self._recipe.picture(self._config, jax.device_get(state), images, key)
        figures.save_png(self._folder / SAMPLES / f"{step:07d}.png", grid)
        self._events.image("samples", grid, step)

    def save(self, state: Any) -> None:
        super().save(state)
        if self._copy.url:
            self.wait()
            self._copy.push()

    def go_back(self) -> Any:
        super().go_back()
        state = checkpoints.restore(self._folder, self._config, self._recipe.init)
        start = int(state.step)
        self._record = self._record.rolled_back(start)
        write_run(self._record)
        self._forget_after(start)
        self._events.restart(start + 1)
        self._bar.n = start
        self._clock, self._seconds, self._reported = time.perf_counter(), 0.0, start
        return state

    def _forget_after(self, step: int) -> None:
        """Drops the lines of metrics after `step`, and damaged checkpoints."""
        checkpoints.discard_after(self._folder, step)
        path, self._best = self._folder / METRICS, -np.inf
        if path.is_file():
            name = self._recipe.measures.quality if self._recipe.measures else ""
            lines = journal.read_whole(path, lambda line: (int(line["step"]), float(line.get(name, -np.inf))))
            kept = [(text, quality) for text, (done, quality) in lines if done <= step]
            journal.replace(path, [text for text, _ in kept])
            self._best = np.fmax.reduce([quality for _, quality in kept], initial=-np.inf)


@contextlib.contextmanager
def open_logbook(run: str | Path, recipe: Recipe, config: RunConfig, data: dict[str, Any]) -> Iterator[Logbook]:
    """Opens the folder of a new or an existing run. All processes but the first get a logbook that only saves.

    Args:
        run: the folder, local or in a bucket.
        recipe: the recipe of the network.
        config: the run's configuration.
        data: the result of `describe_data`.

    Raises:
        UserError: the folder holds other files, or a run with another configuration or other data. The error is raised
            on every process.
    """
    with contextlib.ExitStack() as stack:

        def open_folder() -> Logbook:
            return FolderLogbook(stack.enter_context(open_run(run)), recipe, config, data)

        book = distributed.on_first(open_folder) or Logbook(Path(run), not remote.is_url(run), config)
        book.rollbacks = tuple(json.loads(distributed.from_first_text(json.dumps(book.rollbacks))))
        yield book


def describe_data(source: str | Path, prepared: PreparedSet, split: str) -> dict[str, Any]:
    """Returns the description of the images that a run's record holds.

    Args:
        source: the prepared set as the user gave it, a path or a URL.
        prepared: the set.
        split: the split that is trained on.
    """
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


def _claim(run: Run, config: RunConfig, name: str) -> Run:
    """Makes the folder of a new run, or checks that the folder holds this run. Returns the run's record."""
    folder = run.folder
    if (folder / RECORD).is_file():
        there = read_run(folder)
        differing = differences(there.settings(type(config)), config)
        differing += [f"data {name}" for name in ("split", "sha256") if there.data.get(name) != run.data[name]]
        if differing:
            raise UserError(
                f"{name} holds a run that differs in {', '.join(differing)}: continue it with its own settings, "
                "or give another folder"
            )
        run = dataclasses.replace(run, rollbacks=there.rollbacks)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{name} is not empty and not a run's folder: give another folder")
    else:
        make_folder(folder)
        write_run(run)
    (folder / SAMPLES).mkdir(exist_ok=True)
    return run
