"""The batches of a run: their order, reading ahead, errors, and the end of the reading thread."""

import contextlib
import dataclasses
import errno
import itertools
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainings import (
    CONFIG,
    before_step,
    full_disk,
    metrics_of,
    replace_recipe,
    train,
)

from dcgan_jax.data import batch_indices, open_prepared
from dcgan_jax.errors import DivergedError, Preempted, UserError
from dcgan_jax.storage import checkpoints
from dcgan_jax.training import batches
from dcgan_jax.training.gan import init_state


@pytest.fixture
def sums_of_batches(monkeypatch):
    """Steps report the sum of their batch as the loss, or NaN if the sum is in this set."""
    bad = set()

    def make(config, batch_sharding):
        def step(state, batch, key):
            total = jnp.sum(batch.astype(jnp.float32))
            loss = jnp.where(jnp.isin(total, jnp.array([*bad, -1.0])), jnp.nan, total)
            return state._replace(step=state.step + 1), {"discriminator_loss": loss}

        return step

    shape = jax.eval_shape(lambda key: init_state(CONFIG, key), jax.random.key(0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    replace_recipe(monkeypatch, make_step=make, init=lambda *_: zeros)
    return bad


LOGGED = dataclasses.replace(CONFIG, num_steps=9, log_every=1, checkpoint_every=4, sample_every=100)


def sum_of_batch(digits, step, order=0):
    images = open_prepared(digits).split("train")
    return int(images[batch_indices(step, 8, len(images), CONFIG.seed, order)].sum())


def sums_of_run(run):
    return [line["discriminator_loss"] for line in metrics_of(run)]


def test_each_step_gets_its_own_batch(sums_of_batches, digits, tmp_path):
    """In a whole run, in a resumed run, and in a run that goes back, which uses the new order at once."""
    expected = [sum_of_batch(digits, t) for t in range(9)]
    train(LOGGED, digits, tmp_path / "whole")
    assert sums_of_run(tmp_path / "whole") == expected
    train(dataclasses.replace(LOGGED, num_steps=5), digits, tmp_path / "resumed")
    train(LOGGED, digits, tmp_path / "resumed")
    assert sums_of_run(tmp_path / "resumed") == expected
    sums_of_batches |= {expected[6]}
    with pytest.warns(UserWarning, match="going back to it, rollback 1 of 1"):
        train(dataclasses.replace(LOGGED, rollbacks=1), digits, tmp_path / "back")
    assert sums_of_run(tmp_path / "back") == expected[:4] + [sum_of_batch(digits, t, 1) for t in range(4, 9)]


def test_the_next_batch_is_read_while_a_step_runs(sums_of_batches, digits, tmp_path, monkeypatch):
    """Each step ends only after the next batch has begun to be read."""
    begun, put, late = [threading.Event() for _ in range(9)], batches.sharding.put_batch, []
    reading = iter(begun)

    def wait(step):
        if step + 1 < 9 and not begun[step + 1].wait(60):
            late.append(step)
        return np.float32(0)

    def make(config, batch_sharding):
        def step(state, batch, key):
            result = jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), state.step)
            return state._replace(step=state.step + 1), {"discriminator_loss": result + jnp.sum(batch)}

        return step

    replace_recipe(monkeypatch, make_step=make)
    monkeypatch.setattr(batches.sharding, "put_batch", lambda *args: (next(reading).set(), put(*args))[1])
    train(LOGGED, digits, tmp_path / "run")
    assert not late and all(event.is_set() for event in begun) and next(reading, None) is None


def fail_to_read(patch, number, error):
    """Makes the reading of this step's batch fail."""
    put, calls = batches.sharding.put_batch, itertools.count()

    def read(*args):
        if next(calls) == number:
            raise error
        return put(*args)

    patch.setattr(batches.sharding, "put_batch", read)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), UserError("bad file"), KeyError("x")])
def test_a_batch_that_cannot_be_read_stops_the_run_at_its_step(error, sums_of_batches, digits, tmp_path, monkeypatch):
    fail_to_read(monkeypatch, 5, error)
    with pytest.raises(type(error)) as caught:
        train(LOGGED, digits, tmp_path / "run")
    assert caught.value is error
    assert {"train", "read"} <= {
        entry.name for entry in caught.traceback
    }  # the traceback shows where the batch was needed and where the error arose
    assert sums_of_run(tmp_path / "run") == [sum_of_batch(digits, t) for t in range(5)]
    monkeypatch.undo()


def interrupt():
    """Ctrl-C, even if the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("end", ["the last step", "SIGTERM", "divergence", "Ctrl-C", "a bad file", "a full disk"])
def test_no_thread_outlives_its_run(end, sums_of_batches, digits, tmp_path, monkeypatch):
    threads, expected = set(threading.enumerate()), contextlib.nullcontext()
    if end == "SIGTERM":
        before_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        expected = pytest.raises(Preempted)
    if end == "divergence":
        sums_of_batches.add(sum_of_batch(digits, 3))
        expected = pytest.raises(DivergedError)
    if end == "Ctrl-C":
        before_step(monkeypatch, 3, interrupt)
        expected = pytest.raises(KeyboardInterrupt)
    if end == "a bad file":
        fail_to_read(monkeypatch, 3, UserError("bad file"))
        expected = pytest.raises(UserError)
    if end == "a full disk":
        monkeypatch.setattr(checkpoints.CheckpointWriter, "save", full_disk)
        expected = pytest.raises(OSError, match="No space left")
    with expected:
        train(LOGGED, digits, tmp_path / "run")
    assert set(threading.enumerate()) == threads
