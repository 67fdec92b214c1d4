"""The training run: data in order, steps, metrics, samples, checkpoints, resume.

A run's folder holds `config.json`, `metrics.jsonl` (a line every `log_every` steps), the same for TensorBoard in
`tensorboard/`, `samples/STEP.png` and `checkpoints/`. The same command on the same folder goes on where the last
checkpoint stands.
"""

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, UInt8

from dcgan_jax import distributed, encoder, feeding, figures, logbook, masks, quality, sharding
from dcgan_jax.baselines import context_encoder
from dcgan_jax.config import InpaintConfig, RunConfig, TrainConfig
from dcgan_jax.data import PreparedSet, batch_indices, open_prepared
from dcgan_jax.encoder import EncoderConfig
from dcgan_jax.errors import DivergedError, Preempted, UserError
from dcgan_jax.inpainting import inpaint
from dcgan_jax.prior import encoder_prior, generate, load_prior, prior_from_state
from dcgan_jax.samples import COLUMNS, row_labels
from dcgan_jax.training import GANState, Metrics, draw_latents, init_state, make_train_step

SAMPLES = 64  # images in a grid of samples
SHOWN = 16  # images that a context encoder completes for its picture


class Recipe(NamedTuple):
    """How something is trained; a state is a NamedTuple of arrays whose `step` counts the steps done."""

    init: Callable[[Any, PRNGKeyArray], Any]  # from configuration and key to state
    make_step: Callable[..., Callable]  # (configuration, batch_sharding) -> step(state, batch, key) -> (state, metrics)
    picture: Callable[[Any, Any, np.ndarray, PRNGKeyArray], UInt8[np.ndarray, "h w 3"]]  # configuration, state, images
    # From configuration, set, split and key to measure(state) -> numbers by name; None where nothing is measured.
    make_measures: Callable[[Any, PreparedSet, str, PRNGKeyArray], Callable[[Any], dict[str, float]]] | None = None
    adopt: Callable[[Any, Any], Any] = lambda _, state: state  # what a new state takes over from elsewhere


def _samples(config: TrainConfig, state: GANState, _, key: PRNGKeyArray) -> UInt8[np.ndarray, "h w 3"]:
    """What the average generator makes of fixed latents, a row a class where there are classes."""
    prior = prior_from_state(state, config)
    images = generate(prior, draw_latents(config.model, key, SAMPLES, row_labels(prior, SAMPLES)))
    return figures.tile(np.asarray(images), columns=COLUMNS)


def _completed(config: context_encoder.ContextEncoderConfig, state, images, key) -> UInt8[np.ndarray, "h w 3"]:
    """The first images of the set, masked, completed."""
    images = np.asarray(images[:SHOWN])
    holes = np.asarray(masks.mixed(key, len(images), config.image_size))
    network = context_encoder.from_state(state, config)
    return _rows(images, holes, np.asarray(context_encoder.context_encoder(network, images, holes)))


def _previews(config: EncoderConfig, state, images, key) -> UInt8[np.ndarray, "h w 3"]:
    """The first images of the set, masked, completed from where a search would start."""
    images = np.asarray(images[:SHOWN])
    holes = np.asarray(masks.mixed(key, len(images), config.model.image_size))
    search = InpaintConfig(num_steps=0, start="encoder", start_shifts=1.0)
    return _rows(images, holes, np.asarray(inpaint(encoder_prior(state, config), images, holes, key, search).images))


def _rows(images, holes, completed) -> UInt8[np.ndarray, "h w 3"]:
    rows = np.stack([images, figures.masked_view(images, holes), completed], axis=1)
    return figures.tile(rows.reshape(-1, *images.shape[1:]), columns=12)


RECIPES: dict[type[RunConfig], Recipe] = {
    TrainConfig: Recipe(init_state, make_train_step, _samples, quality.make_measures),
    context_encoder.ContextEncoderConfig: Recipe(
        context_encoder.init_state, context_encoder.make_train_step, _completed
    ),
    EncoderConfig: Recipe(
        encoder.init_state,
        encoder.make_train_step,
        _previews,
        adopt=lambda config, state: encoder.adopt(state, load_prior(config.prior).params),
    ),
}


def train(
    config: RunConfig,
    data: str | Path,
    run: str | Path,
    *,
    split: str = "train",
    profile_steps: range | None = None,
    progress: bool = True,
) -> Any:
    """Trains a DCGAN, an encoder or a context encoder on a prepared set, or goes on with the run that the folder holds.

    In a job of several processes all call it alike; the first keeps the folder, which the others need not see.

    Args:
        config: what is trained, and how; a `TrainConfig`, an `EncoderConfig` or a `ContextEncoderConfig`.
        data: a prepared set (`dcgan-jax prepare`), here or in a bucket; every host needs one.
        run: the run's folder, here or in a bucket.
        split: which images of the set.
        profile_steps: range(20, 30) traces the steps from step 20 to step 30 into RUN/profile.
        progress: show a progress bar on standard error.

    Returns:
        The state after `num_steps` steps; it is also the last checkpoint.

    Raises:
        UserError: set, configuration and folder do not fit together.
        DivergedError: a loss, or a state about to be saved, is not finite, and the `rollbacks` of the configuration
            are used up; the last checkpoint is from before.
        Preempted: SIGTERM came; the state is saved.
    """
    # ---------------------------------------------------------------- what goes in
    prepared = open_prepared(data)
    images, labels = _check_images(config, prepared, split), _check_labels(config, prepared, split)
    mesh = sharding.data_mesh()
    recipe, per_step = RECIPES[type(config)], config.images_per_step
    if config.batch_size % mesh.size:
        raise UserError(f"`batch_size` {config.batch_size} does not divide over {mesh.size} devices: take a multiple")
    batch_indices(0, per_step, len(images), config.seed)  # refuses a set too small for the batch
    _check_window(profile_steps, 0, config.num_steps)

    # ---------------------------------------------------------------- state, new or restored
    init_key, step_key, sample_key = jax.random.split(jax.random.key(config.seed), 3)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(distributed.stop_signal())
        opened = logbook.open_logbook(run, config, data, prepared, split, recipe.init)
        book = distributed.on_first(lambda: stack.enter_context(opened))
        rollbacks = json.loads(distributed.from_first_text(json.dumps(book.rollbacks if book else [])))
        state = book.restored if book else None
        if state is None:
            state = jax.jit(lambda key: recipe.init(config, key))(init_key)
            state = jax.device_get(recipe.adopt(config, state))
        state = distributed.from_first(state)
        start = int(state.step)
        _check_window(profile_steps, start, config.num_steps)
        distributed.on_first(lambda: book.begin() if book else None)
        state = sharding.put_everywhere(mesh, state)
        if start == config.num_steps:
            return state
        if book:
            stack.enter_context(book.open(profile_steps, progress))
        step = jit_step(recipe.make_step, config, mesh)

        # ------------------------------------------------------------ the loop
        measure = None
        if book and recipe.make_measures and config.is_measured(config.num_steps):  # the last step is, if any is
            measure = recipe.make_measures(config, prepared, split, sample_key)
        previous, saved, t = None, start or None, start
        feed = stack.enter_context(feeding.Feed())
        feed.start(_batches(config, mesh, images, labels, rollbacks), range(t, config.num_steps))
        while t < config.num_steps:
            if book:
                book.before(t, previous)
            order = _order(t, rollbacks)
            key = jax.random.fold_in(step_key, order) if order else step_key
            state, metrics = step(state, next(feed), key)
            # Waiting for the step before keeps the device busy and the queue short.
            jax.block_until_ready(previous)
            previous = metrics
            t += 1
            last, stopping = t == config.num_steps, stop(t)
            sampling = last or t % config.sample_every == 0
            measuring = config.is_measured(t)
            saving = last or stopping or t % config.checkpoint_every == 0
            if book:
                book.after()
            try:
                if t % config.log_every == 0 or sampling or measuring or saving:
                    losses = _read_metrics(metrics, t, saved)
                    if saving:
                        # The last update comes after the losses, and statistics may overflow behind finite ones.
                        _refuse_non_finite(_finite(state._asdict()), t, saved)
                    if book:
                        book.stop_clock()
                        measures = measure(jax.device_get(state)) if measure and measuring else {}
                        book.report(t, t * per_step, losses, measures)
                        if sampling:
                            book.sample(recipe.picture(config, jax.device_get(state), images, sample_key), t)
                        if saving:
                            book.save(state)
                        book.start_clock()
                    saved = t if saving else saved
            except DivergedError as error:
                if saved is None or len(rollbacks) >= config.rollbacks:
                    half = " or train in float32" if config.compute_dtype != "float32" else ""
                    raise DivergedError(f"{error}: lower `learning_rate`{half}") from None
                state = distributed.from_first(book.go_back() if book else jax.device_get(state))
                t = saved = int(state.step)
                rollbacks = [*rollbacks, t]
                state, previous = sharding.put_everywhere(mesh, state), None
                feed.start(_batches(config, mesh, images, labels, rollbacks), range(t, config.num_steps))
                warnings.warn(
                    f"{error}; going back to it, rollback {len(rollbacks)} of {config.rollbacks}", stacklevel=2
                )
            if stopping and t < config.num_steps:
                if book:
                    book.wait()
                raise Preempted(f"stopped by SIGTERM after step {t}, which is saved: the same command goes on")
    return state


def jit_step(make_step: Callable[..., Callable], config: RunConfig, mesh: jax.sharding.Mesh) -> Callable:
    """The jitted training step of a configuration, with its batch split over the devices; it takes over its state."""
    everywhere, along_batch = sharding.replicated(mesh), sharding.along_batch(mesh)
    return jax.jit(
        make_step(config, along_batch),
        in_shardings=(everywhere, along_batch, everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def _order(step: int, rollbacks: Sequence[int]) -> int:
    """Which order of the images a step takes: how often the run went back to it or to a step before it."""
    return sum(step >= back for back in rollbacks)


def _batches(
    config: RunConfig, mesh: jax.sharding.Mesh, images: np.ndarray, labels: np.ndarray | None, rollbacks: Sequence[int]
) -> Callable[[int], Any]:
    """A function that reads and places the batch of a step."""

    def make(step: int) -> Any:
        order = _order(step, rollbacks)
        indices = batch_indices(step, config.images_per_step, len(images), config.seed, order)
        batch = sharding.put_batch(mesh, images, indices)
        return batch if labels is None else (batch, sharding.put_batch(mesh, labels, indices))

    return make


def _check_images(config: RunConfig, prepared: PreparedSet, split: str) -> np.ndarray:
    images = prepared.split(split)
    expected = config.image_shape
    if images.shape[1:] != expected:
        h, w, c = images.shape[1:]
        raise UserError(
            f"{prepared.path} holds images of {h}x{w}x{c} and the model makes {'x'.join(map(str, expected))}: "
            f"train with image_size {h} and channels {c} if these are among the model's, or prepare the set anew"
        )
    return images


def _check_labels(config: RunConfig, prepared: PreparedSet, split: str) -> np.ndarray | None:
    """The labels of the images, if a training step is given any."""
    if not config.num_classes:
        return None
    model = f"and the model has {config.num_classes} classes"
    if prepared.labels is None:
        raise UserError(
            f"{prepared.path} has no labels {model}: train without classes, or prepare the set with a folder a class"
        )
    labels = np.asarray(prepared.labels[prepared.split_slice(split)])
    counts = np.bincount(labels[labels >= 0], minlength=config.num_classes)
    if len(counts) > config.num_classes:
        raise UserError(
            f"{prepared.path} has labels up to {len(counts) - 1} {model}: make num_classes "
            f"{len(prepared.manifest['class_names'])}"
        )
    if (labels < 0).any():
        raise UserError(
            f"{prepared.path} has {int((labels < 0).sum())} images without a label {model}: prepare it without them"
        )
    if not counts.all():
        absent = np.flatnonzero(counts == 0)
        warnings.warn(
            f"{prepared.path} has no image of {len(absent)} of {config.num_classes} classes ({absent[0]} first): what "
            "the model makes of them means nothing",
            stacklevel=3,
        )
    return labels


def _check_window(window: range | None, start: int, end: int) -> None:
    if window is not None and not start <= window.start < window.stop <= end:
        raise UserError(
            f"`profile_steps` is {window.start}:{window.stop}; the steps to be run are {start}:{end}, choose among them"
        )


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
        raise DivergedError(f"{bad[0]} is not finite at step {step}; {checkpoint}")
