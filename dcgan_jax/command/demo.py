"""The whole path in a few minutes: train on scikit-learn's handwritten digits, restore in a new process, inpaint."""

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
SEARCH = ("--num-steps", "200")


def demo(out: Path, progress: bool = True) -> int:
    """Prepares the digits, trains, and evaluates the restored prior on held-out digits under all four masks.

    Leaves `digits/` (the prepared set), `run/` (the training run) and `evaluation/` with `figure-digits.png` and
    `table.md` under `out`. Run again, it goes on where it stopped.

    Args:
        out: where to.
        progress: show progress bars on standard error.

    Returns:
        The exit status of the evaluation: 0 if all went well.

    Raises:
        UserError: the folder holds something else.
    """
    quiet = [] if progress else ["--quiet"]
    digits, run, evaluation = out / "digits", out / "run", out / "evaluation"
    if not digits.is_dir():
        print(f"1/3 preparing the digits in {digits}", flush=True)
        prepare("digits", digits, image_size=CONFIG.model.image_size, progress=progress)
    print(f"2/3 training {CONFIG.num_steps} steps in {run}", flush=True)
    train(gan.RECIPE, CONFIG, digits, run, progress=progress)
    print("3/3 restoring in a new process and completing held-out digits", flush=True)
    command = [
        "evaluate",
        "--prior",
        run,
        "--data",
        digits,
        "--split",
        "test",
        "--count",
        "64",
        "--out",
        evaluation,
    ]
    status = subprocess.run([sys.executable, "-m", "dcgan_jax", *map(str, command), *SEARCH, *quiet]).returncode
    if status == 0:
        figure = evaluation / f"figure-{digits.name}.png"
        print(f"pictures: {figure} and {run / 'samples'}; table: {evaluation / 'table.md'}")
    return status
