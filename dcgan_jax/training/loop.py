"""The training loop: batches, steps, reports, checkpoints and resuming.

The folder of a run holds `config.json`, `metrics.jsonl` (a line every `log_every` steps), the same metrics for
TensorBoard in `tensorboard/`, `samples/STEP.png`, `checkpoints/`, and the prior that measured best in
`best.safetensors`. The same command with the same folder continues after the last checkpoint.
"""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dcgan_jax.data import batch_indices, feeding, open_prepared
from dcgan_jax.errors import DivergedError, UserError
from dcgan_jax.parallel import distributed, sharding
from dcgan_jax.training import divergence, logbook
from dcgan_jax.training.batches import batch_reader, order_of, training_images, training_labels
from dcgan_jax.training.config import RunConfig
from dcgan_jax.training.recipe import Recipe
from dcgan_jax.training.schedule import due


def train(
    recipe: Recipe,
    config: RunConfig,
    data: str | Path,
    run: str | Path,
    *,
    split: str = "train",
    profile_steps: range | None = None,
    progress: bool = True,
) -> Any:
    """Trains on a prepared set, or continues the run in the folder.

    In a job of several processes, all processes call this with the same arguments, and all see the run's folder. A run
    in a bucket is written by the first process alone.

    Args:
        recipe: the `RECIPE` of `gan`, `encoder` or `context_encoder_training`. It selects the network to train.
        config: the run's configuration, an instance of `recipe.config`.
        data: a prepared set (`dcgan-jax prepare`), local or in a bucket. Every host needs a copy.
        run: the run's folder, local or in a bucket.
        split: the split of the set to train on.
        profile_steps: steps to profile into RUN/profile. range(20, 30) means those from step 20 to step 30.
        progress: show a progress bar on standard error.

    Returns:
        The state after `num_steps` steps. It is also the last checkpoint.

    Raises:
        UserError: set, configuration and folder do not fit together.
        DivergedError: a loss or a state to be saved is not finite, and all `rollbacks` of the configuration are used.
            The last checkpoint is finite.
        Preempted: the process received SIGTERM. The state is saved.
        Interrupted: the same after Ctrl+C, in a process that has not joined a job. It is a KeyboardInterrupt. A second
            Ctrl+C raises a plain one, without saving.
    """
    # ---------------------------------------------------------------- inputs
    prepared = open_prepared(data)
    images, labels = training_images(config, prepared, split), training_labels(config, prepared, split)
    batch_indices(0, config.images_per_step, len(images), config.seed)  # refuses a set that is too small
    mesh = sharding.data_mesh()
    if config.batch_size % mesh.size:
        raise UserError(
            f"`batch_size` is {config.batch_size}, but there are {mesh.size} devices: use a multiple of {mesh.size}"
        )
    _check_window(profile_steps, 0, config.num_steps)
    init_key, step_key, sample_key = jax.random.split(jax.random.key(config.seed), 3)

    with contextlib.ExitStack() as stack:
        # ------------------------------------------------------------ state, new or restored
        stop = stack.enter_context(distributed.stop_signal())
        images_record = logbook.describe_data(data, prepared, split)
        book = stack.enter_context(logbook.open_logbook(run, recipe, config, images_record))
        state = book.restored
        if state is None:
            state = _first_state(recipe, config, init_key)
        state = distributed.from_first(state)
        t = int(state.step)
        _check_window(profile_steps, t, config.num_steps)
        book.begin()
        state = sharding.put_everywhere(mesh, state)
        if t == config.num_steps:
            return state
        stack.enter_context(book.open(profile_steps, progress))
        if config.is_measured(config.num_steps):
            book.prepare_measures(prepared, split, sample_key)
        step = jit_step(recipe.make_step, config, mesh)
        rollbacks, saved, previous = book.rollbacks, t or None, None
        feed = stack.enter_context(feeding.Feed())
        feed.start(batch_reader(config, mesh, images, labels, rollbacks), range(t, config.num_steps))

        # ------------------------------------------------------------ the loop
        while t < config.num_steps:
            book.before_step(t, previous)
            order = order_of(t, rollbacks)
            key = jax.random.fold_in(step_key, order) if order else step_key
            state, metrics = step(state, next(feed), key)
            # Waiting for the previous step keeps the device busy and the queue short.
            jax.block_until_ready(previous)
            previous = metrics
            t += 1
            stopping = stop(t)
            now = due(config, t, stopping is not None)
            book.after_step()
            try:
                if any(now):
                    losses = divergence.fetch_metrics(metrics, t, saved)
                    if now.save:
                        divergence.check_state(state, t, saved)
                    with book.paused():
                        book.report(t, losses, state if now.measure else None)
                        if now.sample:
                            book.sample(t, state, images, sample_key)
                        if now.save:
                            book.save(state)
                    saved = t if now.save else saved
            except DivergedError as error:
                if saved is None or len(rollbacks) >= config.rollbacks:
                    float32 = " or train in float32" if config.compute_dtype != "float32" else ""
                    raise DivergedError(f"{error}: lower `learning_rate`{float32}") from None
                state = distributed.from_first(book.go_back() or jax.device_get(state))
                t = saved = int(state.step)
                rollbacks = [*rollbacks, t]
                state, previous = sharding.put_everywhere(mesh, state), None
                feed.start(batch_reader(config, mesh, images, labels, rollbacks), range(t, config.num_steps))
                warnings.warn(
                    f"{error}; going back to it, rollback {len(rollbacks)} of {config.rollbacks}", stacklevel=2
                )
            if stopping is not None and t < config.num_steps:
                book.wait()
                message = (
                    f"stopped by {stopping.signal} after step {t}, which is saved: run the same command to continue"
                )
                raise stopping(message)
    return state


def jit_step(make_step: Callable[..., Callable], config: RunConfig, mesh: jax.sharding.Mesh) -> Callable:
    """Jits the training step of a configuration. Splits its batch over the devices, and donates its state."""
    everywhere, along_batch = sharding.replicated(mesh), sharding.along_batch(mesh)
    return jax.jit(
        make_step(config, along_batch),
        in_shardings=(everywhere, along_batch, everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def _first_state(recipe: Recipe, config: RunConfig, key: jax.Array) -> Any:
    """Returns a new state on the host, with pretrained weights if the recipe loads any."""
    state = jax.jit(lambda key: recipe.init(config, key))(key)
    return jax.device_get(recipe.warm_start(config, state) if recipe.warm_start else state)


def _check_window(window: range | None, start: int, end: int) -> None:
    if window is not None and not start <= window.start < window.stop <= end:
        raise UserError(
            f"`profile_steps` is {window.start}:{window.stop}; choose steps among {start}:{end}, the steps of this call"
        )
