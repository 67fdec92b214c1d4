"""Makes the README's pictures: `python .github/pictures/make.py` (needs the extra `test`).

scikit-image brings the photograph: NASA's of Eileen Collins, in the public domain. For the four masks her face is cut
out as CelebA's faces are, eyes where theirs lie.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw
from skimage.data import astronaut

import dcgan_jax as dj
from dcgan_jax.command import main
from dcgan_jax.images import figures

FOLDER = Path(__file__).parent


def inpainting() -> None:
    """The astronaut's face under the four masks."""
    prior = dj.load_prior("faces-64")
    face = Image.fromarray(astronaut()).crop((168, 42, 284, 158)).resize((64, 64), Image.Resampling.LANCZOS)
    key = jax.random.key(0)
    holes = np.concatenate([dj.masks.by_name(name, key[None], 64) for name in dj.masks.NAMES])
    images = np.repeat(np.asarray(face)[None], len(holes), axis=0)
    result = dj.inpaint(prior, images, holes, key, dj.InpaintConfig.preset("best"))
    strip = figures.strip(images, figures.masked_view(images, holes), result.completions, result.images)
    large = np.asarray(strip).repeat(2, axis=0).repeat(2, axis=1)
    columns = ["original", "masked", "completion", "blended"]
    figures.save_png(FOLDER / "astronaut.png", figures.labelled(large, dj.masks.NAMES, columns))


def photograph() -> None:
    """The photograph and the mask of the README's command, and what the command makes of them."""
    photo, mask = FOLDER / "photograph.jpg", FOLDER / "mask.png"
    Image.fromarray(astronaut()).save(photo, quality=90)
    drawing = Image.new("L", (512, 512))
    draw = ImageDraw.Draw(drawing)
    draw.ellipse((208, 92, 248, 132), fill=255)
    draw.line((178, 62, 205, 100, 196, 140), fill=255, width=7, joint="curve")
    draw.line((262, 64, 250, 88, 266, 128), fill=255, width=6, joint="curve")
    drawing.save(mask)
    with tempfile.TemporaryDirectory() as out:
        given = ["--images", str(photo), "--masks", str(mask), "--preset", "best", "--out", out]
        assert main.main(["inpaint", *given]) == 0
        completed = np.asarray(Image.open(Path(out) / "photograph.png"))
    given = figures.masked_view(np.asarray(Image.open(photo)), np.asarray(drawing) >= 128)
    face = (slice(0, 200), slice(120, 320))
    pair = np.stack([given[face], completed[face]]).repeat(2, axis=1).repeat(2, axis=2)
    figures.save_png(FOLDER / "completed.png", figures.tile(pair, columns=2))


def restored() -> None:
    """What `inpaint --measure` makes of the photograph's face."""
    measures = ["low-resolution:8", "grey", "noise:25", "grid:4"]
    strips = []
    for measure in measures:
        with tempfile.TemporaryDirectory() as out:
            given = ["--images", str(FOLDER / "photograph.jpg"), "--measure", measure, "--score", "--out", out]
            assert main.main(["inpaint", *given]) == 0
            strips.append(np.asarray(Image.open(Path(out) / "strips" / "photograph.png")))
    width = strips[0].shape[1]
    gap = np.full((2, width, 3), 255, np.uint8)
    large = np.concatenate([x for strip in strips for x in (strip, gap)][:-1]).repeat(2, axis=0).repeat(2, axis=1)
    columns = ["original", "measured", "generated", "restored"]
    figures.save_png(FOLDER / "restored.png", figures.labelled(large, measures, columns))


def samples() -> None:
    """Samples of every prior in the package, two rows each."""
    rows = []
    for name in ("faces-64", "digits-64", "cars-64"):
        prior = dj.load_prior(name)
        rows.append(np.asarray(dj.generate(prior, dj.sample_latents(prior, jax.random.key(1), 24))))
    figures.save_png(FOLDER / "samples.png", figures.tile(np.concatenate(rows), columns=12))


if __name__ == "__main__":
    inpainting()
    photograph()
    restored()
    samples()
