"""Runs that are killed or stopped at any moment, and continued, end like an uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import saved

from dcgan_jax.storage.checkpoints import checkpoint_paths

pytestmark = pytest.mark.long
KILLS = int(os.environ.get("DCGAN_JAX_KILLS", "1"))
STEPS = 60 * (KILLS + 1)


def command(data, run):
    options = {
        "--image-size": 32,
        "--channels": 1,
        "--base-width": 2,
        "--batch-size": 8,
        "--num-steps": STEPS,
        "--log-every": 7,
        "--sample-every": 50,
        "--checkpoint-every": 10,
        "--measure-every": 55,
    }
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "dcgan_jax", "train", "--data", data, "--run", run, "--flip", "--quiet", *words]


def what_counts(run):
    """Everything that a run leaves, except times, TensorBoard's events, and the names of Orbax's files."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["steps_per_second"]
    states = {step: saved.by_orbax(path) for step, path in checkpoint_paths(run).items()}
    samples = {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
    return lines, states, samples, partial(run)


def partial(run):
    return [*run.rglob(".*"), *run.rglob("*orbax-checkpoint-tmp*")]


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
    run = tmp_path_factory.mktemp("survival") / "uninterrupted"
    subprocess.run(command(digits, run), check=True)
    return run


def test_a_run_killed_at_any_moment_resumes_exactly(uninterrupted, digits, tmp_path):
    chance, run, unfinished = random.Random(KILLS), tmp_path / "run", 0
    for _ in range(KILLS):
        newest = max(checkpoint_paths(run), default=0)
        process = subprocess.Popen(command(digits, run))
        while process.poll() is None and max(checkpoint_paths(run), default=0) == newest:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
        unfinished += bool(partial(run))
    print(f"{KILLS} kills, {unfinished} of them while a file was written")
    subprocess.run(command(digits, run), check=True)
    assert what_counts(run) == what_counts(uninterrupted)


def test_a_run_stopped_by_sigterm_resumes_exactly(uninterrupted, digits, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(command(digits, run), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (run / "checkpoints" / "10").is_dir():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and time.monotonic() - start < 30
    step = max(checkpoint_paths(run))
    assert (
        f"dcgan-jax: stopped by SIGTERM after step {step}, which is saved: run the same command to continue" in errors
    )
    subprocess.run(command(digits, run), check=True)
    assert what_counts(run) == what_counts(uninterrupted)
