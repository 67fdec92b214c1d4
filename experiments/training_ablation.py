"""`python -m experiments.training_ablation --data SET --out FOLDER`: the gain of each change to the training alone.

The first run has Yeh et al.'s settings. Each other run changes one thing and sees the same number of images. The
changes are those that He et al. made together (normal latents, noise in place of flips, rate, batch), and newer losses.
An interrupted run resumes.

It prints for each run, on the last --count held-out images: inversion (PSNR of complete images, dB), and the hole's
PSNR of a search of 150 steps under every mask. Then come the sliced Wasserstein distance and the diversity. The last
line has both for real images.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dcgan_jax as dj
from dcgan_jax import masks
from dcgan_jax.data import open_prepared
from dcgan_jax.evaluation.holes import draw_holes
from dcgan_jax.images import distances
from dcgan_jax.images.metrics import composite_scores
from dcgan_jax.images.pixels import to_uint8
from dcgan_jax.training import gan, measures
from dcgan_jax.training.config import TrainConfig
from dcgan_jax.training.loop import train

SEED = 3
BATCH = 64
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "base, seed 1": {"seed": 1},
    "normal": {"latent": "normal"},
    "noflip": {"flip": False},
    "noise": {"flip": False, "noise": 0.02},
    "rate1e-4": {"learning_rate": 1e-4},
    "batch128": {"batch_size": 2 * BATCH},
    "hinge": {"loss": "hinge"},
    "r1": {"r1": 1.0},
    "modern": {"loss": "hinge", "r1": 1.0},
}


def configuration(changes: dict[str, Any], image_size: int, base_width: int, num_steps: int) -> TrainConfig:
    """Applies changes to the first run's configuration and keeps the number of images."""
    base = dataclasses.replace(TrainConfig.preset("yeh2017"), batch_size=BATCH, measure_every=0)
    of_model = {name: value for name, value in changes.items() if name == "latent"}
    model = dataclasses.replace(base.model, image_size=image_size, base_width=base_width, **of_model)
    rest = {name: value for name, value in changes.items() if name not in of_model}
    steps = num_steps * BATCH // rest.get("batch_size", BATCH)
    return dataclasses.replace(base, model=model, num_steps=steps, sample_every=500, checkpoint_every=500, **rest)


def main() -> None:
    """Trains each variant and prints a row for it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.training_ablation", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a prepared set with held-out images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--num-steps", type=int, default=1500, help="training steps at batch 64 (1500)")
    parser.add_argument("--base-width", type=int, default=32, help="base width of the networks (32)")
    parser.add_argument("--count", type=int, default=48, help="number of held-out images (48)")
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="runs to train (all)"
    )
    options = parser.parse_args()
    prepared = open_prepared(options.data)
    training = prepared.split("train")
    held_out = np.asarray(measures.held_out(prepared, "train")[-options.count :])
    real = np.asarray(training[: measures.COUNT])
    print(f"| run | inversion | {' | '.join(masks.NAMES)} | swd | ms-ssim |\n" + "|---" * 8 + "|", flush=True)
    for name in options.variants:
        config = configuration(VARIANTS[name], training.shape[1], options.base_width, options.num_steps)
        train(gan.RECIPE, config, options.data, options.out / name)
        prior = dj.load_prior(options.out / name)
        latents = dj.sample_latents(prior, jax.random.key(SEED), len(real))
        parts = [dj.generate(prior, latents[i : i + 128]) for i in range(0, len(real), 128)]
        generated = to_uint8(np.concatenate([np.asarray(part) for part in parts]))
        inversion = measures.inversion_psnr(prior, held_out, jax.random.key(SEED), measures.INVERSION)
        cells = [f"{float(np.mean(inversion)):.2f}", *(_hole(prior, held_out, mask) for mask in masks.NAMES)]
        distance = distances.sliced_wasserstein(generated, real, jax.random.key(SEED)).mean
        print(f"| {name} | {' | '.join(cells)} | {distance:.1f} | {distances.diversity(generated):.3f} |", flush=True)
    others = np.asarray(training[measures.COUNT : 2 * measures.COUNT])
    floor = distances.sliced_wasserstein(others, real, jax.random.key(SEED)).mean
    print(f"| real images | — | — | — | — | — | {floor:.1f} | {distances.diversity(real):.3f} |")


def _hole(prior: dj.Prior, images: np.ndarray, mask: str) -> str:
    """Mean PSNR of the hole after a search of 150 steps."""
    holes = draw_holes(mask, [str(i) for i in range(len(images))], images.shape[1], SEED)
    result = dj.inpaint(prior, images, holes, jax.random.key(SEED), dj.InpaintConfig(num_steps=150))
    return f"{composite_scores(np.asarray(result.images), images, holes)['psnr_hole'].mean():.2f}"


if __name__ == "__main__":
    main()
