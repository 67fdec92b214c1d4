"""A tiny training configuration, and helpers that tests of training runs share."""

import dataclasses
import errno
import functools
import json
import os

import jax
import numpy as np
import pytest

from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.storage import checkpoints
from dcgan_jax.storage.runs import read_run
from dcgan_jax.training import gan, logbook, loop
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.gan import make_train_step

CONFIG = TrainConfig(
    model=ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=7),
    batch_size=8,
    num_steps=6,
    flip=True,
    noise=0.05,
    seed=3,
    log_every=2,
    sample_every=4,
    checkpoint_every=3,
    measure_every=0,
)


def replace_recipe(patch, **parts):
    patch.setattr(gan, "RECIPE", gan.RECIPE._replace(**parts))


_step = functools.cache(make_train_step)


def one_step_for_all(config, batch_sharding):
    """Returns the same step for runs that differ only in length and reports, so that JAX compiles it once."""
    return _step(
        dataclasses.replace(config, num_steps=1, log_every=1, sample_every=1, checkpoint_every=1, measure_every=0),
        batch_sharding,
    )


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Lets all runs of a module share one compiled step."""
    with pytest.MonkeyPatch.context() as patch:
        replace_recipe(patch, make_step=one_step_for_all)
        yield


def train(config, data, run):
    return loop.train(gan.RECIPE, config, data, run, progress=False)


def metrics_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("steps_per_second") > 0 for line in lines)
    return lines


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def config_of(run, recipe=gan.RECIPE):
    """The configuration of a run."""
    return read_run(run).settings(recipe.config)


def load_state(run, recipe=gan.RECIPE):
    """The newest undamaged state of a run, on this process's first device, and its configuration."""
    config = config_of(run, recipe)
    return jax.device_put(checkpoints.restore(run, config, recipe.init), jax.local_devices()[0]), config


def before_step(patch, number, action):
    """Calls `action` before this step of the loop."""
    before = logbook.FolderLogbook.before_step

    def act(book, step, previous):
        if step == number:
            action()
        before(book, step, previous)

    patch.setattr(logbook.FolderLogbook, "before_step", act)


def full_disk(*_):
    """Fails as a write to a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
