"""Training runs: their files, resuming, refused settings, divergence, interruptions, damaged checkpoints."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saved
from PIL import Image
from trainings import (  # noqa: F401
    CONFIG,
    assert_same,
    before_step,
    compiled_once,
    full_disk,
    load_state,
    metrics_of,
    one_step_for_all,
    replace_recipe,
    train,
)

import dcgan_jax as dj
from dcgan_jax.data import batch_indices, open_prepared
from dcgan_jax.errors import DivergedError, Interrupted, Preempted, UserError
from dcgan_jax.images import figures
from dcgan_jax.networks.dcgan import draw_latents
from dcgan_jax.parallel import distributed, sharding
from dcgan_jax.storage import checkpoints, runs
from dcgan_jax.training import batches, gan, logbook, loop
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.gan import init_state


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
    """A run of six steps and the state it returned. Read only."""
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return run, train(CONFIG, digits, run)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_writes_its_record_metrics_samples_and_checkpoints(uninterrupted, digits):
    run, state = uninterrupted
    names = ["checkpoints", "config.json", "metrics.jsonl", "samples", "tensorboard"]
    assert sorted(path.name for path in run.iterdir()) == names
    record = json.loads((run / "config.json").read_text())
    assert TrainConfig.from_json(record["config"]) == CONFIG
    manifest = open_prepared(digits).manifest
    assert record["data"] == {
        "path": str(digits),
        "split": "train",
        "kind": "digits",
        "source": "digits",
        "crop": "center",
        "count": 1438,
        "sha256": manifest["sha256"],
    }
    lines = metrics_of(run)
    assert [(line["step"], line["images"]) for line in lines] == [(2, 16), (4, 32), (6, 48)]
    names = {"discriminator_loss", "generator_loss", "real_probability", "generated_probability"}
    assert all(line.keys() == {"step", "images"} | names for line in lines)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "6"]
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["0000004.png", "0000006.png"]
    restored, config = load_state(run)
    assert config == CONFIG and restored.step == 6
    assert_same(restored, state)


def test_the_step_knows_the_sharding_of_its_batch(digits, tmp_path, monkeypatch):
    told = []

    def make(config, batch_sharding):
        told.append(batch_sharding)
        return one_step_for_all(config, batch_sharding)

    replace_recipe(monkeypatch, make_step=make)
    train(dataclasses.replace(CONFIG, num_steps=1), digits, tmp_path / "run")
    assert told == [sharding.along_batch(sharding.data_mesh())]


def test_samples_are_the_average_generator_at_fixed_latents(uninterrupted):
    run, state = uninterrupted
    latents = draw_latents(CONFIG.model, jax.random.split(jax.random.key(CONFIG.seed), 3)[2], 64)
    images = np.asarray(dj.generate(dj.prior_from_state(state, CONFIG), latents))
    with Image.open(run / "samples" / "0000006.png") as png:
        found = np.asarray(png)
    expected = np.asarray(figures.tile(images, columns=8)).squeeze()
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_a_run_equals_its_steps_in_a_loop(uninterrupted, digits):
    """The order of `batch_indices` and one key for the run alone decide its result."""
    run, state = uninterrupted
    images = open_prepared(digits).split("train")
    init_key, step_key, _ = jax.random.split(jax.random.key(CONFIG.seed), 3)
    expected = jax.jit(lambda key: init_state(CONFIG, key))(init_key)
    step = loop.jit_step(one_step_for_all, CONFIG, sharding.data_mesh())  # the run's own program, from JAX's cache
    lines = iter(metrics_of(run))
    for t in range(6):
        expected, metrics = step(expected, images[batch_indices(t, 8, len(images), CONFIG.seed)], step_key)
        if t % 2:
            line = next(lines)
            found = {name: line[name] for name in metrics}
            assert found == pytest.approx({name: float(value) for name, value in metrics.items()}, abs=1e-6)
    assert_same(state, expected)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(uninterrupted, digits, tmp_path):
    run, state = uninterrupted
    resumed = tmp_path / "resumed"
    train(dataclasses.replace(CONFIG, num_steps=3), digits, resumed)
    with (resumed / "metrics.jsonl").open("a") as log:  # as if the run had continued and been killed while writing
        log.write(json.dumps({**json.loads((run / "metrics.jsonl").read_text().splitlines()[1]), "step": 4}) + "\n")
        log.write('{"step": 6, "imag')
    assert_same(train(CONFIG, digits, resumed), state)
    assert_same(load_state(resumed)[0], state)
    # The first part also reported its last step, 3.
    assert [line for line in metrics_of(resumed) if line["step"] != 3] == metrics_of(run)
    assert [line["step"] for line in metrics_of(resumed)] == [2, 3, 4, 6]
    for name in ("0000004.png", "0000006.png"):
        assert (resumed / "samples" / name).read_bytes() == (run / "samples" / name).read_bytes()


def test_a_finished_run_stays_as_it_is(uninterrupted, digits):
    run, state = uninterrupted
    before = contents(run)
    assert_same(train(CONFIG, digits, run), state)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"learning_rate": 1e-3}, ["learning_rate (0.0002 there, 0.001 here)"]),
        (
            {"seed": 4, "batch_size": 16, "num_steps": 9},
            ["batch_size (8 there, 16 here)", "seed (3 there, 4 here)"],
        ),
        (
            {"model": dataclasses.replace(CONFIG.model, latent="normal")},
            ["model.latent ('uniform' there, 'normal' here)"],
        ),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused(uninterrupted, digits, changes, names):
    run, _ = uninterrupted
    before = contents(run)
    with pytest.raises(UserError, match=re.escape(f"differs in {', '.join(names)}:")):
        train(dataclasses.replace(CONFIG, **changes), digits, run)
    assert contents(run) == before


def test_another_split_in_the_same_folder_is_refused(uninterrupted, digits):
    run, _ = uninterrupted
    before = contents(run)
    with pytest.raises(UserError, match="differs in data split:"):
        loop.train(gan.RECIPE, CONFIG, digits, run, split="test", progress=False)
    assert contents(run) == before


def test_the_record_names_the_part_of_the_set(uninterrupted, digits, tmp_path):
    run, _ = uninterrupted
    prepared = open_prepared(digits)
    part = dataclasses.replace(prepared, manifest={**prepared.manifest, "where": ["label=1"]})
    for _ in range(2):  # a new run, and the resumed one
        with logbook.open_logbook(
            tmp_path / "run", gan.RECIPE, CONFIG, logbook.describe_data("data", part, "train")
        ) as book:
            book.begin()
        assert runs.read_run(tmp_path / "run").data["where"] == ["label=1"]
    # A run whose record has no conditions can be resumed.
    shutil.copytree(run, tmp_path / "old")
    with logbook.open_logbook(
        tmp_path / "old", gan.RECIPE, CONFIG, logbook.describe_data("data", prepared, "train")
    ) as book:
        book.begin()
    assert "where" not in runs.read_run(tmp_path / "old").data


def test_wrong_settings_are_refused_before_anything_is_written(digits, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="too small for a batch of 2048"):
        train(dataclasses.replace(CONFIG, batch_size=2048), digits, run)
    large = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, image_size=64))
    with pytest.raises(UserError, match="images of 32x32x1, but the model makes 64x64x1: train with image_size 32"):
        train(large, digits, run)
    colour = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, channels=3))
    with pytest.raises(UserError, match=r"the model makes 32x32x3.*channels 1"):
        train(colour, digits, run)
    with pytest.raises(UserError, match="has no split 'extra'"):
        loop.train(gan.RECIPE, CONFIG, digits, run, split="extra", progress=False)
    with pytest.raises(UserError, match="is not a prepared set"):
        train(CONFIG, tmp_path / "nowhere", run)
    assert not run.exists()


def test_a_folder_with_other_files_is_refused(digits, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not empty and not a run's folder"):
        train(CONFIG, digits, tmp_path)
    assert contents(tmp_path) == {(tmp_path / "letter.txt").relative_to(tmp_path): b"dear"}


@pytest.mark.parametrize("what", ["generator_loss", "generator", "discriminator_statistics"])
def test_values_that_are_not_finite_stop_the_run_and_are_not_saved(what, digits, tmp_path, monkeypatch):
    """Losses that are NaN, and weights or statistics that are NaN while the losses are finite."""
    shape = jax.eval_shape(lambda key: init_state(CONFIG, key), jax.random.key(0))

    def make(config, batch_sharding):
        def step(state, batch, key):
            poison = jnp.where(state.step == 4, jnp.nan, 0.0)
            if what in state._fields:
                state = state._replace(**{what: jax.tree.map(lambda x: x + poison, getattr(state, what))})
            metrics = {"discriminator_loss": jnp.float32(1), "generator_loss": jnp.float32(1)}
            if what in metrics:
                metrics[what] += poison
            return state._replace(step=state.step + 1), metrics

        return step

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    replace_recipe(monkeypatch, make_step=make, init=lambda *_: zeros)
    config = dataclasses.replace(CONFIG, log_every=1, checkpoint_every=1, sample_every=100)
    with pytest.raises(DivergedError, match=f"{what} is not finite at step 5; the last checkpoint is of step 4"):
        train(config, digits, tmp_path / "run")
    restored, _ = load_state(tmp_path / "run")
    assert restored.step == 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(restored))


@pytest.fixture
def ctrl_c():
    """Ctrl+C raises KeyboardInterrupt, even if the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted)])
def test_sigterm_and_ctrl_c_save_and_stop(number, error, uninterrupted, digits, tmp_path, monkeypatch, ctrl_c, capsys):
    config = dataclasses.replace(CONFIG, checkpoint_every=100)
    before_step(monkeypatch, 4, lambda: signal.raise_signal(number))
    match = f"stopped by {re.escape(error.signal)} after step 5, which is saved: run the same command to continue"
    with pytest.raises(error, match=match) as raised:
        train(config, digits, tmp_path / "run")
    assert ("Ctrl+C once more" in capsys.readouterr().err) == (error is Interrupted)
    assert raised.value.exit_status == {signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    assert load_state(tmp_path / "run")[0].step == 5
    replace_recipe(monkeypatch, make_step=one_step_for_all)
    assert_same(train(config, digits, tmp_path / "run"), uninterrupted[1])
    assert metrics_of(tmp_path / "run") == metrics_of(uninterrupted[0])


def test_a_second_ctrl_c_stops_at_once(ctrl_c):
    with distributed.stop_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop(1) is Interrupted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # even if the first of these was lost
            stop(2)


def test_ctrl_c_during_a_save_waits_for_it_once(digits, tmp_path, monkeypatch):
    """Orbax's thread still writes. A second wait would do again what it does."""
    waits = []

    def interrupted(writer):
        if writer._saved is not None:
            waits.append(writer)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.CheckpointWriter, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(CONFIG, checkpoint_every=2), digits, tmp_path / "run")
    assert len(waits) == 1
    monkeypatch.undo()
    assert load_state(tmp_path / "run")[0].step == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_s_own_signal_handler_stays(number):
    came = []
    before = signal.signal(number, lambda *_: came.append(1))
    try:
        with distributed.stop_signal() as stop:
            signal.raise_signal(number)
            assert not stop(1)
        assert came == [1]
    finally:
        signal.signal(number, before)


@pytest.fixture
def bad_batches(monkeypatch, digits):
    """The loss is NaN on the batches that the steps in this set have in the original order."""
    images, bad = open_prepared(digits).split("train"), set()

    def make(config, batch_sharding):
        def step(state, batch, key):
            sums = [int(images[batch_indices(t, 8, len(images), CONFIG.seed)].sum()) for t in bad]
            poison = jnp.where(jnp.isin(jnp.sum(batch.astype(jnp.int32)), jnp.array(sums)), jnp.nan, 0.0)
            state = state._replace(step=state.step + 1, generator=jax.tree.map(lambda x: x + 1, state.generator))
            return state, {"discriminator_loss": jnp.float32(1), "generator_loss": 1 + poison}

        return step

    shape = jax.eval_shape(lambda key: init_state(CONFIG, key), jax.random.key(0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    replace_recipe(monkeypatch, make_step=make, init=lambda *_: zeros)
    return bad


def test_a_diverged_run_goes_back_and_takes_another_order(bad_batches, digits, tmp_path):
    config = dataclasses.replace(CONFIG, num_steps=9, log_every=1, checkpoint_every=2, sample_every=100, rollbacks=2)
    bad_batches |= {1, 5}
    with pytest.raises(DivergedError, match="not finite at step 2; there is no earlier checkpoint"):
        train(config, digits, tmp_path / "early")
    bad_batches -= {1}
    run = tmp_path / "run"
    with pytest.warns(UserWarning, match=r"at step 6; the last .* of step 4; going back to it, rollback 1 of 2"):
        state = train(config, digits, run)
    assert state.step == 9 and runs.read_run(run).rollbacks == (4,)
    assert [line["step"] for line in metrics_of(run)] == [*range(1, 10)]
    # A resumed run continues with the recorded order.
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    for path in list(checkpoints.checkpoint_paths(resumed).values())[1:]:
        shutil.rmtree(path)
    seen, put = [], batches.sharding.put_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches.sharding, "put_batch", lambda *args: seen.append(args[2]) or put(*args))
        train(config, digits, resumed)
    count = len(open_prepared(digits).split("train"))
    start = min(checkpoints.checkpoint_paths(run))
    expected = [batch_indices(t, 8, count, CONFIG.seed, 1) for t in range(start, 9)]
    np.testing.assert_array_equal(seen, expected)
    assert not np.array_equal(seen[0], batch_indices(start, 8, count, CONFIG.seed))


def test_a_run_goes_back_a_limited_number_of_times(bad_batches, digits, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, log_every=1, checkpoint_every=2, rollbacks=2)
    bad_batches |= {4}
    orders = batches.batch_indices
    monkeypatch.setattr(
        batches, "batch_indices", lambda *args: orders(*args[:4])
    )  # the order never changes, so the run cannot avoid the bad batch
    with pytest.warns(UserWarning, match="of 2"), pytest.raises(DivergedError, match=r"at step 5; .* of step 4"):
        train(config, digits, tmp_path / "run")
    assert runs.read_run(tmp_path / "run").rollbacks == (4, 4)
    assert load_state(tmp_path / "run")[0].step == 4


RESTORE = """
import sys

import jax
import numpy as np

import dcgan_jax as dj
out, *sources = sys.argv[1:]
for i, source in enumerate(sources):
    prior = dj.load_prior(source)
    z = dj.sample_latents(prior, jax.random.key(7), 5)
    x = dj.generate(prior, z)
    np.savez(f"{out}/{i}.npz", z=z, x=x, logits=dj.discriminate(prior, x))
"""


@pytest.fixture(scope="module")
def new_process(uninterrupted, tmp_path_factory):
    """Images that a new process generates from the run and from its saved prior."""
    run, state = uninterrupted
    out = tmp_path_factory.mktemp("out")
    dj.save_prior(dj.prior_from_state(state, CONFIG), out / "prior.safetensors")
    command = [sys.executable, "-c", RESTORE, out, run, out / "prior.safetensors"]
    subprocess.run(list(map(str, command)), check=True)
    return [dict(np.load(out / f"{i}.npz")) for i in range(2)]


def test_a_new_process_generates_the_same_bits(uninterrupted, new_process):
    prior = dj.prior_from_state(uninterrupted[1], CONFIG)
    z = dj.sample_latents(prior, jax.random.key(7), 5)
    x = dj.generate(prior, z)
    logits = dj.discriminate(prior, x)
    assert np.std(x) > 0
    for found in new_process:
        np.testing.assert_array_equal(found["z"], z)
        np.testing.assert_array_equal(found["x"], x)
        np.testing.assert_array_equal(found["logits"], logits)


def alter(name, change):
    """Returns a function that changes the content of one file of a checkpoint; by default of the largest."""

    def damage(path):
        file = path / name if name else saved.largest(path)
        content = file.read_bytes()
        file.write_bytes(change(content))
        assert file.read_bytes() != content

    return damage


DAMAGES = {
    "truncated": alter(None, lambda content: content[: len(content) // 2]),
    "emptied": alter(None, lambda content: b""),
    "a bit of the arrays flipped": alter(
        None, lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    ),
    "its configuration altered": alter(
        "config/metadata", lambda content: content.replace(b'"learning_rate": 0.0002', b'"learning_rate": 0.0003')
    ),
    "a file missing": lambda path: saved.largest(path).unlink(),
    "a file added": lambda path: (path / "state" / "d" / "0123").write_bytes(b"0"),
    "without digests": lambda path: (path / "SHA256SUMS").unlink(),
    "another folder": lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_earlier_one_is_used(damage, uninterrupted, digits, tmp_path):
    run, state = uninterrupted
    shutil.copytree(run, tmp_path / "run")
    before, newest = (tmp_path / "run" / "checkpoints" / name for name in "36")
    damage(newest)
    with pytest.warns(UserWarning, match=r"checkpoints/6 is damaged \(.*\): using checkpoints/3 instead"):
        assert load_state(tmp_path / "run")[0].step == 3
    with pytest.warns(UserWarning, match=r"checkpoints/6 is damaged"):
        assert_same(train(CONFIG, digits, tmp_path / "run"), state)
    assert load_state(tmp_path / "run")[0].step == 6
    for path in (before, newest):
        damage(path)
    with pytest.raises(UserError, match=r"checkpoints/6 is damaged .* so are those before it: restore one"):
        load_state(tmp_path / "run")


def test_a_checkpoint_of_another_run_is_refused(uninterrupted, digits, tmp_path):
    run, _ = uninterrupted
    shutil.copytree(run, tmp_path / "run")
    data = runs.read_run(run).data
    other = dataclasses.replace(CONFIG, learning_rate=1e-3, model=dataclasses.replace(CONFIG.model, base_width=8))
    runs.write_run(runs.Run(tmp_path / "run", other.KIND, other.to_json(), data))
    differing = r"differs in learning_rate \(0\.0002 there, 0\.001 here\), model\.base_width \(4 there, 8 here\)"
    for attempt in (lambda: load_state(tmp_path / "run"), lambda: train(other, digits, tmp_path / "run")):
        with pytest.raises(UserError, match=differing):
            attempt()


def test_a_full_disk_leaves_the_earlier_checkpoint(uninterrupted, tmp_path, monkeypatch):
    """The file that could not be written does not exist, not even in part."""
    _, state = uninterrupted
    with checkpoints.CheckpointWriter(tmp_path, CONFIG) as writer:
        writer.save(state._replace(step=jnp.int32(3)))
    before = contents(tmp_path)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(
        UserError,
        match=r"checkpoints/6 .* \(No space left on device\); the last checkpoint is of step 3: free some space",
    ):
        with checkpoints.CheckpointWriter(tmp_path, CONFIG) as writer:
            writer.save(state)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"config": {"batch": 3}, "data": {}}', '{"config": 3, "data": {}}'])
def test_a_damaged_record_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        runs.read_run(tmp_path).settings(TrainConfig)


def test_fewer_steps_than_already_done_are_refused(uninterrupted, digits):
    run, _ = uninterrupted
    record = (run / runs.RECORD).read_bytes()
    with pytest.raises(UserError, match=r"has done \d+ steps already"):
        train(dataclasses.replace(CONFIG, num_steps=1), digits, run)
    assert (run / runs.RECORD).read_bytes() == record
