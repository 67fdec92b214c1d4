"""Makes the README's pictures: `python .github/pictures/make.py` (needs scikit-image, which brings the photograph).

The astronaut is NASA's photograph of Eileen Collins, in the public domain. Her face is cut out as CelebA's faces are,
eyes where theirs lie.
"""

from pathlib import Path

import jax
import numpy as np
from PIL import Image
from skimage.data import astronaut

import dcgan_jax as dj
from dcgan_jax import figures

FOLDER = Path(__file__).parent


def inpainting() -> None:
    """The astronaut's face under the four masks."""
    prior = dj.load_prior("faces-64")
    face = Image.fromarray(astronaut()).crop((168, 42, 284, 158)).resize((64, 64), Image.Resampling.LANCZOS)
    key = jax.random.key(0)
    holes = np.concatenate([dj.masks.by_name(name, key[None], 64) for name in dj.masks.NAMES])
    images = np.repeat(np.asarray(face)[None], len(holes), axis=0)
    result = dj.inpaint(prior, images, holes, key, dj.InpaintConfig(num_steps=300, restarts=4))
    strip = figures.strip(images, figures.masked_view(images, holes), result.completions, result.images)
    large = np.asarray(strip).repeat(2, axis=0).repeat(2, axis=1)
    columns = ["original", "masked", "completion", "blended"]
    figures.save_png(FOLDER / "astronaut.png", figures.labelled(large, dj.masks.NAMES, columns))


def samples() -> None:
    """Samples of every prior in the package, two rows each."""
    rows = []
    for name in ("faces-64", "digits-64", "cars-64"):
        prior = dj.load_prior(name)
        rows.append(np.asarray(dj.generate(prior, dj.sample_latents(prior, jax.random.key(1), 24))))
    figures.save_png(FOLDER / "samples.png", figures.tile(np.concatenate(rows), columns=12))


if __name__ == "__main__":
    inpainting()
    samples()
