"""The command `demo`: trains on scikit-learn's digits, restores the prior and inpaints, in a few minutes."""

import argparse
import subprocess
import sys
from pathlib import Path

from dcgan_jax.data import prepare
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.training import gan
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.loop import train

CONFIG = TrainConfig(
    model=ModelConfig(image_size=32, channels=1, latent_dim=32, base_width=16),
    num_steps=2500,
    average_decay=0.99,
    sample_every=500,
    checkpoint_every=500,
    measure_every=0,
)


def run(options: argparse.Namespace) -> int:
    """Runs the demo."""
    return demo(options.out, progress=not options.quiet)


def demo(out: Path, progress: bool = True) -> int:
    """Prepares the digits, trains, and evaluates the restored prior on held-out digits under all four masks.

    Writes `digits/` (the prepared set), `run/` (the training run) and `evaluation/` with `figure-digits.png` and
    `table.md` under `out`. A second call resumes the first.

    Args:
        out: the folder for all files of the demo.
        progress: show progress bars on standard error.

    Returns:
        The exit status of the evaluation: 0 on success.

    Raises:
        UserError: the folder holds files that are not from a demo.
    """
    quiet = [] if progress else ["--quiet"]
    digits, training, evaluation = out / "digits", out / "run", out / "evaluation"
    if not digits.is_dir():
        print(f"1/3 preparing the digits in {digits}", flush=True)
        prepare("digits", digits, image_size=CONFIG.model.image_size, progress=progress)
    print(f"2/3 training {CONFIG.num_steps} steps in {training}", flush=True)
    train(gan.RECIPE, CONFIG, digits, training, progress=progress)
    print("3/3 restoring in a new process and completing held-out digits", flush=True)
    command = ["evaluate", "--prior", training, "--data", digits, "--out", evaluation]
    options = ["--split", "test", "--count", "64", "--num-steps", "200", *quiet]
    status = subprocess.run([sys.executable, "-m", "dcgan_jax", *map(str, command), *options]).returncode
    if status == 0:
        figure = evaluation / f"figure-{digits.name}.png"
        print(f"pictures: {figure} and {training / 'samples'}; table: {evaluation / 'table.md'}")
    return status
