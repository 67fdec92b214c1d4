"""Model cards: what a trained prior was made from, and how, for people who are handed its weights."""

import dataclasses
from pathlib import Path
from typing import Any

from dcgan_jax import checkpoints, mirror, remote
from dcgan_jax.config import TrainConfig
from dcgan_jax.files import whole_file
from dcgan_jax.prior import prior_from_state, save_prior

_PREPARATION = {
    "kind": "kind of source",
    "source": "source",
    "where": "part of it",
    "split": "split",
    "count": "training images",
    "cut": "cut to",
    "crop": "crop",
    "sha256": "SHA-256 of the prepared pixels",
}


def export(run: str | Path, path: Path, *, half: bool = False) -> None:
    """Saves a run's prior as one file with a model card beside it, of the same name in .md.

    Args:
        run: the run's folder, here or in a bucket; its newest checkpoint is taken.
        path: the file, .safetensors.
        half: see `save_prior`.

    Raises:
        UserError: the folder is not a run's, or the name does not end in .safetensors.
    """
    run = mirror.fetch_prior(run) if remote.is_url(run) else Path(run)
    state, config = checkpoints.load_state(run)
    _, data, _ = checkpoints.read_record(run)
    save_prior(dataclasses.replace(prior_from_state(state, config), crop=data.get("crop")), path, half=half)
    with whole_file(path.with_suffix(".md")) as partial:
        partial.write_text(model_card(path.stem, config, data, int(state.step), half), encoding="utf-8")


def model_card(name: str, config: TrainConfig, data: dict[str, Any], steps: int, half: bool) -> str:
    """The card of a prior in Markdown: data, the part of it that was used, configuration, images seen.

    Args:
        data: the record of the run's data; entries that are absent (older runs) are left out.
        steps: training steps done.
        half: kernels are stored in float16.
    """
    model = config.model
    seen = steps * config.batch_size * config.discriminator_steps
    colour = "in colour" if model.channels == 3 else "in grey"
    precision = "kernels in float16, everything else in float32" if half else "float32"
    lines = [
        f"# `{name}`",
        "",
        "A DCGAN prior: the moving average of the generator, with batch statistics of its own, and the discriminator.",
        f"{model.image_size}×{model.image_size} pixels {colour}, {model.latent_dim} {model.latent} latents, base width "
        f"{model.base_width}; {precision}.",
        "",
        "## Data",
        "",
        *(f"- {title}: {_text(data[key])}" for key, title in _PREPARATION.items() if data.get(key)),
        "",
        "The licence of these images holds for what is made from them: name it here before you pass the weights on.",
        "",
        "## Training",
        "",
        f"{steps:,} steps, {seen:,} images seen. Batch {config.batch_size}, Adam {config.learning_rate:g} "
        f"(β₁ {config.beta1:g}, β₂ {config.beta2:g}), {config.discriminator_steps} discriminator update(s) a step, "
        f"{config.loss.replace('_', '-')} loss, flips {'on' if config.flip else 'off'}, noise {config.noise:g}, moving "
        f"average {config.average_decay:g}, arithmetic in {config.compute_dtype}, seed {config.seed}.",
        "",
        "## Use",
        "",
        "Research on image completion. It makes up what it does not see: a completion says nothing about what was "
        "there. It carries the biases of its images. Figures on held-out images: `dcgan-jax evaluate`.",
    ]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    return " and ".join(f"`{part}`" for part in value) if isinstance(value, list) else f"`{value}`"
