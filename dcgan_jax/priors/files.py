"""Loads and saves priors."""

import dataclasses
import json
from collections.abc import Container
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from dcgan_jax.errors import UserError
from dcgan_jax.networks import dcgan, encoder
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.priors.dcgan import averaged_params, prior_from_params
from dcgan_jax.priors.prior import Prior
from dcgan_jax.storage import mirror, remote
from dcgan_jax.storage.checkpoints import read_newest
from dcgan_jax.storage.runs import RECORD, Run, read_run
from dcgan_jax.storage.weights import check_shapes, read_weights, save_weights

FORMAT = "dcgan_jax prior"


def load_prior(source: str | Path) -> Prior:
    """Loads a prior: a packaged one, the newest checkpoint of a run, or a file of `save_prior`.

    Loading reads arrays and JSON, and runs no code from the files.

    Args:
        source: "faces-64", "digits-64" or "cars-64"; a run's folder; or a .safetensors file. Folder and file may be in
            a bucket.

    Raises:
        UserError: there is no such prior, or it is damaged.

    Example:
        >>> import dcgan_jax as dj
        >>> prior = dj.load_prior("runs/celeba")  # doctest: +SKIP
    """
    path = mirror.fetch_prior(source) if remote.is_url(source) else Path(source)
    if path.is_dir():
        return prior_from_run(read_run(path))[0]
    if path.is_file():
        return _read(path)
    packaged = packaged_priors()
    if str(source) in packaged:
        return _read(packaged[str(source)])
    raise UserError(
        f"there is no prior {str(source)!r}: give a run's folder, a .safetensors file, or one of {', '.join(packaged)}"
    )


def prior_from_run(run: Run) -> tuple[Prior, int]:
    """Makes a prior from the newest checkpoint of a run. The run of an encoder holds its prior too.

    Returns:
        The prior, and the number of training steps done.

    Raises:
        UserError: the run trains no prior, or has no readable checkpoint.
    """
    if run.kind not in _PARTS:
        raise UserError(f"{run.folder} holds a run of kind {run.kind}, which has no prior: give another folder")
    try:
        model = ModelConfig.from_json(run.config["model"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{run.folder / RECORD} is damaged ({error}): restore it from a copy") from error
    weights = jax.device_put(read_newest(run.folder, _PARTS[run.kind]), jax.local_devices()[0])
    if run.kind == "encoder":
        trained = {"params": weights["encoder"], "batch_stats": weights["statistics"]}
        params = weights["prior"] | {"encoder": encoder.upgrade(trained, model)}
    else:
        params = averaged_params(
            model, weights["average"], weights["discriminator"], weights["discriminator_statistics"]
        )
    check_shapes(run.folder, params, lambda: _init_params(model, {"encoder"} & params.keys()))
    return dataclasses.replace(prior_from_params(params, model), crop=run.data.get("crop")), int(weights["step"])


# The parts of a training state that its prior needs, by the kind of the run.
_PARTS = {
    "dcgan": ("step", "average", "discriminator", "discriminator_statistics"),
    "encoder": ("step", "prior", "encoder", "statistics"),
}


def packaged_priors() -> dict[str, Path]:
    """Returns the files of the packaged priors by name."""
    folder = Path(str(resources.files("dcgan_jax.priors")))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def save_prior(prior: Prior, path: str | Path, *, half: bool = False) -> None:
    """Saves the weights of a DCGAN and its encoder as one safetensors file, with the model's configuration inside.

    Args:
        prior: a prior from `load_prior`, `prior_from_state` or `prior_from_pytorch`.
        path: the file to write. Its suffix is .safetensors. An existing file is replaced as a whole.
        half: store kernels in float16, which halves the size. Biases, scales and statistics stay in float32.

    Raises:
        UserError: the prior is not a DCGAN, or the suffix of `path` is not .safetensors.
    """
    if prior.model is None:
        raise UserError("`prior` has your own decoder, whose functions cannot be saved: save its `params` yourself")
    metadata = {"format": FORMAT, "model": json.dumps(prior.model.to_json())}
    if prior.crop is not None:
        metadata["crop"] = prior.crop
    if prior.encode is not None:
        metadata["encoder"] = "yes"
    if "discriminator" not in prior.params:
        metadata["generator_alone"] = "yes"
    save_weights(path, prior.params, metadata, half_precision=half)


def _read(path: Path) -> Prior:
    params, model, metadata = read_weights(path, FORMAT, "a prior", ModelConfig, _init_params, _upgrade)
    return dataclasses.replace(prior_from_params(params, model), crop=metadata.get("crop"))


def _upgrade(params: Any, model: ModelConfig) -> Any:
    return params | {"encoder": encoder.upgrade(params["encoder"], model)} if "encoder" in params else params


def _init_params(model: ModelConfig, metadata: Container[str]) -> Any:
    params = dcgan.init_gan(model)
    if "generator_alone" in metadata:
        del params["discriminator"]
    return params | {"encoder": encoder.init_params(model, jax.random.key(0))} if "encoder" in metadata else params
