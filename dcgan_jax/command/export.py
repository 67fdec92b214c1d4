"""The command `export`: saves trained weights as one file with a model card, or a whole completion as a program."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcgan_jax.baselines import context_encoder
from dcgan_jax.baselines.context_encoder import ContextEncoderConfig
from dcgan_jax.errors import UserError
from dcgan_jax.inpainting.config import InpaintConfig
from dcgan_jax.inpainting.export import export_program
from dcgan_jax.priors.files import load_prior, prior_from_run, save_prior
from dcgan_jax.storage import mirror, remote
from dcgan_jax.storage.files import whole_file
from dcgan_jax.storage.runs import read_run
from dcgan_jax.training.config import RunConfig, TrainConfig
from dcgan_jax.training.encoder import EncoderConfig

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


def run(options: argparse.Namespace) -> int:
    """Exports a run or a program, and prints the names of the files."""
    if options.compiled:
        if options.half:
            raise UserError("`--half` does not go with `--compiled`: leave one of them out")
        config = None if options.preset is None else InpaintConfig.preset(options.preset)
        export_program(load_prior(options.run or options.prior), options.out, config)
        print(options.out)
        return 0
    if options.run is None or options.preset is not None:
        raise UserError("`--prior` and `--preset` need `--compiled`: add it, or give `--run` alone")
    export(options.run, options.out, half_precision=options.half)
    print(f"{options.out}, {options.out.with_suffix('.md')}")
    return 0


def export(run: str | Path, path: Path, *, half_precision: bool = False) -> None:
    """Saves the prior or the context encoder of a run as one file. The model card has the same name with suffix .md.

    Args:
        run: the folder of the run, local or in a bucket. Its newest checkpoint is saved.
        path: the file to write. Its suffix is .safetensors.
        half_precision: store kernels in float16, see `save_prior`.

    Raises:
        UserError: `run` is not the folder of a run, or the suffix of `path` is not .safetensors.
    """
    folder = mirror.fetch_prior(run) if remote.is_url(run) else Path(run)
    record = read_run(folder)
    if record.kind == ContextEncoderConfig.KIND:
        encoder, steps = context_encoder.from_run(record)
        context_encoder.save(encoder, path, half_precision=half_precision)
    else:
        prior, steps = prior_from_run(record)
        save_prior(prior, path, half=half_precision)
    config = record.settings(_CONFIGS[record.kind])
    with whole_file(path.with_suffix(".md")) as partial:
        partial.write_text(model_card(path.stem, config, record.data, steps, half_precision), encoding="utf-8")


def model_card(name: str, config: RunConfig, data: dict[str, Any], steps: int, half_precision: bool) -> str:
    """Returns the model card of trained weights, in Markdown.

    Args:
        name: the name of the weights.
        config: the run's configuration.
        data: the run's record of its data. Entries that an older run lacks are left out.
        steps: number of training steps done.
        half_precision: whether kernels are stored in float16.
    """
    h, w, channels = config.image_shape
    what, details = _OF[type(config)](config)
    precision = "kernels in float16, everything else in float32" if half_precision else "float32"
    lines = [
        f"# `{name}`",
        "",
        what,
        f"{h}×{w} pixels {'in colour' if channels == 3 else 'in grey'}; {precision}.",
        "",
        "## Data",
        "",
        *(f"- {title}: {_text(data[key])}" for key, title in _PREPARATION.items() if data.get(key)),
        "",
        "The licence of these images also applies to these weights: name it here before you pass them on.",
        "",
        "## Training",
        "",
        f"{steps:,} steps, {steps * config.images_per_step:,} images seen. Batch {config.batch_size}, Adam "
        f"{config.learning_rate:g} (β₁ {config.beta1:g}, β₂ {config.beta2:g}), {details}, flips "
        f"{'on' if config.flip else 'off'}, arithmetic in {config.compute_dtype}, seed {config.seed}.",
        "",
        "## Use",
        "",
        "Research on image completion. The model invents missing content: a completion is no evidence of the original. "
        "The model has the biases of its training images. `dcgan-jax evaluate` measures it on held-out images.",
    ]
    return "\n".join(lines) + "\n"


def _of_prior(config: Any) -> tuple[str, str]:
    """Returns a description of the weights, and the settings that only this kind of training has."""
    model = config.model
    return (
        "A DCGAN prior: the moving average of the generator with its own batch statistics, and the discriminator; "
        f"{model.latent_dim} {model.latent} latents, base width {model.base_width}"
        + (f", conditional on {model.num_classes} classes." if model.num_classes else "."),
        f"{config.discriminator_steps} discriminator update(s) a step, {config.loss.replace('_', '-')} loss, noise "
        f"{config.noise:g}, moving average {config.average_decay:g}",
    )


def _of_encoder(config: Any) -> tuple[str, str]:
    what, _ = _of_prior(TrainConfig(model=config.model))
    return (
        f"{what} It includes an encoder, whose guess can start a search. This card describes the training of the "
        f"encoder; the card of `{config.prior}` describes the training of the prior.",
        "learning rate falling to 0 along a half cosine, real images and half as many generated ones, weight of the "
        f"latent loss {config.latent_weight:g}",
    )


def _of_context_encoder(config: Any) -> tuple[str, str]:
    return (
        f"A context encoder (Pathak et al. 2016), a baseline of `dcgan-jax evaluate`; base width {config.base_width}.",
        f"learning rate falling to 0 along a half cosine, weight of the adversarial loss {config.adversarial_weight:g}",
    )


_OF: dict[type[RunConfig], Callable[[Any], tuple[str, str]]] = {
    TrainConfig: _of_prior,
    EncoderConfig: _of_encoder,
    ContextEncoderConfig: _of_context_encoder,
}


def _text(value: Any) -> str:
    return " and ".join(f"`{part}`" for part in value) if isinstance(value, list) else f"`{value}`"


_CONFIGS: dict[str, type[RunConfig]] = {config.KIND: config for config in _OF}
