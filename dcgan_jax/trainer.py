"""The training run: data in order, steps, metrics, samples, checkpoints, resume.

A run's folder holds `config.json`, `metrics.jsonl` (a line every `log_every` steps), the same for TensorBoard in
`tensorboard/`, `samples/STEP.png` and `checkpoints/`. The same command on the same folder goes on where the last
checkpoint stands.
"""

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dcgan_jax import checkpoints, figures, mirror, reports, sharding
from dcgan_jax.config import TrainConfig
from dcgan_jax.data import PreparedSet, batch_indices, open_prepared
from dcgan_jax.errors import DivergedError, UserError
from dcgan_jax.files import make_folder, whole_file
from dcgan_jax.prior import generate, prior_from_state
from dcgan_jax.training import GANState, Metrics, draw_latents, init_state, make_train_step

SAMPLES = 64  # images in a grid of samples


def train(
    config: TrainConfig,
    data: str | Path,
    run: str | Path,
    *,
    split: str = "train",
    profile_steps: range | None = None,
    progress: bool = True,
) -> GANState:
    """Trains a model on a split of a prepared set, or goes on with the run that the folder holds.

    Args:
        config: model, algorithm and reports.
        data: a prepared set (`dcgan-jax prepare`), here or in a bucket.
        run: the run's folder, here or in a bucket.
        split: which images of the set.
        profile_steps: range(20, 30) traces the steps from step 20 to step 30 into RUN/profile.
        progress: show a progress bar on standard error.

    Returns:
        The state after `num_steps` steps; it is also the last checkpoint.

    Raises:
        UserError: set, configuration and folder do not fit together.
        DivergedError: a loss, or a state about to be saved, is not finite; the last checkpoint is from before.
    """
    from dcgan_jax.events import open_events  # tensorboardX is slow to import, and only wanted here

    # ---------------------------------------------------------------- what goes in
    prepared = open_prepared(data)
    images = _check_images(config, prepared, split)
    mesh = sharding.data_mesh()
    per_step = config.batch_size * config.discriminator_steps
    if config.batch_size % mesh.size:
        raise UserError(f"`batch_size` {config.batch_size} does not divide over {mesh.size} devices: take a multiple")
    batch_indices(0, per_step, len(images), config.seed)  # refuses a set too small for the batch
    _check_window(profile_steps, 0, config.num_steps)

    # ---------------------------------------------------------------- state, new or restored
    everywhere, split_batch = sharding.replicated(mesh), sharding.along_batch(mesh)
    init_key, step_key, sample_key = jax.random.split(jax.random.key(config.seed), 3)
    latents = draw_latents(config.model, sample_key, SAMPLES)
    step = jax.jit(
        make_train_step(config),
        in_shardings=(everywhere, split_batch, everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
    with contextlib.ExitStack() as stack:
        copy = stack.enter_context(mirror.open_run(run))
        run = copy.folder
        shown = copy.url or str(run)  # what the person knows the run by
        record = _claim_run(run, shown, config, data, prepared, split)
        state = checkpoints.restore(run, config, everywhere)
        if state is None:
            state = jax.jit(lambda key: init_state(config, key), out_shardings=everywhere)(init_key)
        start = int(state.step)
        if start > config.num_steps:
            raise UserError(f"{shown} has done {start} steps already and `num_steps` is {config.num_steps}: raise it")
        _check_window(profile_steps, start, config.num_steps)
        checkpoints.write_record(run, config, record)
        _forget_after(run / reports.METRICS, start)
        copy.push()
        if start == config.num_steps:
            return state
        writer = stack.enter_context(checkpoints.CheckpointWriter(run, config))
        log = stack.enter_context((run / reports.METRICS).open("a", encoding="utf-8"))
        events = stack.enter_context(open_events(run, config.model, start))
        profiler = stack.enter_context(reports.Profiler(run, profile_steps))
        bar = stack.enter_context(
            tqdm(total=config.num_steps, initial=start, unit="step", disable=not progress, dynamic_ncols=True)
        )

        # ------------------------------------------------------------ the loop
        previous, saved = None, start or None
        clock, seconds, reported = time.perf_counter(), 0.0, start
        for t in range(start, config.num_steps):
            profiler.before(t, previous)
            batch = images[batch_indices(t, per_step, len(images), config.seed)]
            state, metrics = step(state, sharding.put_batch(mesh, batch), step_key)
            # Waiting for the step before keeps the device busy and the queue short.
            jax.block_until_ready(previous)
            previous = metrics
            done = t + 1
            bar.update()
            last = done == config.num_steps
            sampling = last or done % config.sample_every == 0
            saving = last or done % config.checkpoint_every == 0
            if done % config.log_every == 0 or sampling or saving:
                line = _read_metrics(metrics, done, saved)
                now = time.perf_counter()
                seconds += now - clock
                if done % config.log_every == 0 or last:
                    line["steps_per_second"] = round((done - reported) / seconds, 3)
                    log.write(json.dumps({"step": done, "images": done * per_step, **line}) + "\n")
                    log.flush()
                    events.scalars(line, done)
                    seconds, reported = 0.0, done
                bar.set_postfix(D=f"{line['discriminator_loss']:.2f}", G=f"{line['generator_loss']:.2f}")
                if saving:
                    # The last update comes after the losses, and running statistics may overflow behind finite ones.
                    _refuse_non_finite(_finite(state._asdict()), done, saved)
                    writer.save(state)
                    saved = done
                if sampling:
                    grid = figures.tile(np.asarray(generate(prior_from_state(state, config), latents)), columns=8)
                    figures.save_png(run / "samples" / f"{done:07d}.png", grid)
                    events.image("samples", grid, done)
                if saving and copy.url:
                    writer.wait()
                    copy.push()
                clock = time.perf_counter()  # samples and saves are not training time
    return state


def _check_images(config: TrainConfig, prepared: PreparedSet, split: str) -> np.ndarray:
    images = prepared.split(split)
    model = config.model
    expected = (model.image_size, model.image_size, model.channels)
    if images.shape[1:] != expected:
        h, w, c = images.shape[1:]
        raise UserError(
            f"{prepared.path} holds images of {h}x{w}x{c} and the model makes {'x'.join(map(str, expected))}: "
            f"train with image_size {h} and channels {c} if these are among the model's, or prepare the set anew"
        )
    return images


def _check_window(window: range | None, start: int, end: int) -> None:
    if window is not None and not start <= window.start < window.stop <= end:
        raise UserError(
            f"`profile_steps` is {window.start}:{window.stop}; the steps to be run are {start}:{end}, choose among them"
        )


def _claim_run(
    run: Path, shown: str, config: TrainConfig, source: str | Path, prepared: PreparedSet, split: str
) -> dict[str, Any]:
    """Records what a new run computes, or checks that it is what the folder records; returns the data's part."""
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
    data |= {name: manifest[name] for name in ("cut", "where") if name in manifest}
    if (run / checkpoints.RECORD).is_file():
        recorded, recorded_data = checkpoints.read_record(run)
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
    return data


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
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is damaged: remove the line to go on with the run") from error
    if len(kept) < len(lines):
        with whole_file(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")


def _read_metrics(metrics: Metrics, step: int, saved: int | None) -> dict[str, float]:
    """Brings a step's metrics to the host, which waits for it, and stops the run if one is not finite."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    _refuse_non_finite({name: math.isfinite(value) for name, value in values.items()}, step, saved)
    return {name: round(value, 6) for name, value in values.items()}


@jax.jit
def _finite(parts: dict[str, Any]) -> dict[str, jax.Array]:
    """Whether all arrays of each part are finite."""
    return {
        name: jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(part)]))
        for name, part in parts.items()
    }


def _refuse_non_finite(finite: Mapping[str, bool | jax.Array], step: int, saved: int | None) -> None:
    bad = [name for name, good in finite.items() if not good]
    if bad:
        checkpoint = "there is no checkpoint before it" if saved is None else f"the last checkpoint is of step {saved}"
        raise DivergedError(
            f"{bad[0]} is not finite at step {step}; {checkpoint}: lower `learning_rate` or train in float32"
        )
