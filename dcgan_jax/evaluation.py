"""How well a prior completes held-out images: every mask, PSNR and SSIM, a table and a figure."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from dcgan_jax import figures, masks
from dcgan_jax.config import InpaintConfig
from dcgan_jax.errors import UserError
from dcgan_jax.files import make_folder, whole_file
from dcgan_jax.inpainting import NOT_FINITE
from dcgan_jax.metrics import composite_scores, finite_or_none
from dcgan_jax.prior import Prior, image_shape
from dcgan_jax.streaming import inpaint_stream

FIGURE_ROWS = 4  # images a mask in the figure


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of n images under one mask, one entry an image, and the first few of them as strips."""

    mask: str
    psnr: Float[np.ndarray, " n"]  # of the whole composite, dB
    psnr_hole: Float[np.ndarray, " n"]  # of the missing pixels alone, dB
    ssim: Float[np.ndarray, " n"]
    ssim_hole: Float[np.ndarray, " n"]
    num_steps: Int[np.ndarray, " n"]  # updates of the latent
    not_finite: int  # searches that met a loss that is not finite
    seconds: float  # wall time, compilation included
    strips: UInt8[np.ndarray, "h w 3"]  # original, masked, completion, blended


def evaluate(
    prior: Prior,
    images: UInt8[np.ndarray, "n h w c"],
    config: InpaintConfig,
    mask_names: tuple[str, ...] = masks.NAMES,
    *,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Evaluation]:
    """Masks images, completes them and compares with the originals.

    Args:
        prior: of the images' size.
        images: originals that the prior was not trained on.
        config: the search.
        mask_names: of `masks.NAMES`.
        seed: of masks and searches; image i under a mask has the same hole for every prior and configuration.
        batch_size: searches at a time.
        progress: show a progress bar on standard error.

    Raises:
        UserError: a mask is unknown, or the images are not of the prior's size, or there are none.
    """
    for name in mask_names:
        if name not in masks.NAMES:
            raise UserError(f"`masks` has {name!r}; it takes any of {', '.join(masks.NAMES)}")
    shape = image_shape(prior)
    if images.shape[1:] != shape or not len(images):
        raise UserError(
            f"`images` is {list(images.shape)}; this prior completes one or more of {'x'.join(map(str, shape))}"
        )
    mask_key, search_key = jax.random.split(jax.random.key(seed))
    evaluations = []
    with tqdm(total=len(images) * len(mask_names), unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for name in mask_names:
            bar.set_description(name)
            mask_keys = jax.random.split(jax.random.fold_in(mask_key, masks.NAMES.index(name)), len(images))
            holes = np.asarray(masks.by_name(name, mask_keys, images.shape[1]))
            start = time.perf_counter()
            items = []
            for item in inpaint_stream(prior, zip(images, holes, strict=True), search_key, config, batch_size):
                items.append(item)
                bar.update()
            seconds = time.perf_counter() - start
            results = np.stack([item.images for item in items])
            shown = slice(0, FIGURE_ROWS)
            strips = figures.strip(
                images[shown],
                figures.masked_view(images[shown], holes[shown]),
                np.stack([item.completions for item in items[shown]]),
                results[shown],
            )
            evaluations.append(
                Evaluation(
                    mask=name,
                    **composite_scores(results, images, holes),
                    num_steps=np.stack([item.num_steps for item in items]),
                    not_finite=sum(int(item.status) == NOT_FINITE for item in items),
                    seconds=seconds,
                    strips=strips,
                )
            )
    return evaluations


def table(evaluations: list[Evaluation]) -> str:
    """Means over the images as a Markdown table."""
    lines = [
        "| mask | PSNR, whole (dB) | PSNR, hole (dB) | SSIM, whole | SSIM, hole | steps | seconds an image |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in evaluations:
        scores = f"{e.psnr.mean():.2f} | {e.psnr_hole.mean():.2f} | {e.ssim.mean():.3f} | {e.ssim_hole.mean():.3f}"
        lines.append(f"| {e.mask} | {scores} | {e.num_steps.mean():.0f} | {e.seconds / len(e.psnr):.3f} |")
    return "\n".join(lines) + "\n"


def save(evaluations: list[Evaluation], config: InpaintConfig, out: Path) -> None:
    """Writes `table.md`, `scores.json` (every image's scores) and `figure.png` to a folder."""
    make_folder(out)
    of_masks = {
        e.mask: {
            **{
                name: list(map(finite_or_none, getattr(e, name))) for name in ("psnr", "psnr_hole", "ssim", "ssim_hole")
            },
            "num_steps": e.num_steps.tolist(),
            "not_finite": e.not_finite,
            "seconds": round(e.seconds, 2),
        }
        for e in evaluations
    }
    with whole_file(out / "scores.json") as partial:
        partial.write_text(json.dumps({"search": config.to_json(), "masks": of_masks}) + "\n", encoding="utf-8")
    with whole_file(out / "table.md") as partial:
        partial.write_text(table(evaluations), encoding="utf-8")
    columns = [label for e in evaluations for label in ("original", e.mask, "completion", "blended")]
    strips = np.concatenate([e.strips for e in evaluations], axis=1)
    figures.save_png(out / "figure.png", figures.labelled(strips.repeat(2, axis=0).repeat(2, axis=1), [], columns))
