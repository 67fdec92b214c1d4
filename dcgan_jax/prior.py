"""The prior: a trained generator ready for use, or any other differentiable decoder."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dcgan_jax import checkpoints, mirror, remote
from dcgan_jax import encoder as encoders
from dcgan_jax.config import ModelConfig, RunConfig, TrainConfig
from dcgan_jax.encoder import EncoderConfig, EncoderState
from dcgan_jax.errors import UserError
from dcgan_jax.networks import Discriminator, Encoder, Generator
from dcgan_jax.training import GANState, draw_latents, generator_statistics
from dcgan_jax.weights import read_weights, save_weights

FORMAT = "dcgan_jax prior"
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class _DCGAN:
    """A model's functions, computed in `dtype`, or in the weights' own type where it is None."""

    model: ModelConfig
    dtype: jnp.dtype | None

    def generate(self, params: Any, z: Array, shifts: Sequence[Array] = ()) -> Array:
        generator = Generator(self.model, self.dtype)
        return generator.apply(params["generator"], z, train=False, shifts=shifts)  # type: ignore[return-value]

    def discriminate(self, params: Any, x: Array) -> Array:
        return Discriminator(self.model, self.dtype).apply(params["discriminator"], x, train=False)  # type: ignore[return-value]

    def encode(self, params: Any, known: Array, hole: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        return Encoder(self.model, self.dtype).apply(params["encoder"], known, hole, train=False)  # type: ignore[return-value]

    def sample_latents(self, key: PRNGKeyArray, n: int) -> Array:
        return draw_latents(self.model, key, n)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Prior:
    """What a latent search needs of a generative model: a pytree of arrays plus static functions.

    Build one from any differentiable decoder; `load_prior` and `prior_from_state` build it from a DCGAN. Functions
    compare by identity, so define them once, at module level: a new function means a new compilation.

    Attributes:
        params: arrays, any pytree.
        generate: generate(params, z [n, latent_dim]) -> images [n, h, w, c] in [−1, 1], each from its own latent alone.
        sample_latents: sample_latents(key, n) -> [n, latent_dim].
        latent_bounds: (lowest, highest) value of a latent's entries, or None; a label's have their own.
        discriminate: discriminate(params, x) -> logits [n], above 0 for a real image; None where there is no critic.
        model: the configuration of a DCGAN; None for any other decoder.
        crop: how the training images were cut out, a name in `data.CROPS`, or None where nobody said.
        encode: encode(params, known [n, h, w, c], hole [n, h, w]) -> (mean, deviation, shifts): the latents that may
            lie behind what is known (grey, 0, in the hole), as a Gaussian with mean and deviation [n, latent_dim], and
            the shifts of features (see below) from which a search starts, () for none; None without an encoder.
        feature_shapes: shapes of the decoder's intermediate features that a search may refine, if `generate` takes a
            third argument: a tuple of arrays [n, *shape] that are added to them. () if it takes none.
        num_classes: how many of a latent's entries, the last ones, are a label: 0 and 1 as `sample_latents` draws it,
            0 or above and of sum 1 while a search looks for it; 0 where the prior knows no classes.

    Example:
        >>> import dcgan_jax as dj, jax, jax.numpy as jnp
        >>> def decode(params, z):
        ...     return jnp.tanh(z @ params).reshape(-1, 8, 8, 1)
        >>> def draw(key, n):
        ...     return jax.random.normal(key, (n, 5))
        >>> prior = dj.Prior(params=jnp.ones((5, 64)), generate=decode, sample_latents=draw)
        >>> dj.generate(prior, dj.sample_latents(prior, jax.random.key(0), 3)).shape
        (3, 8, 8, 1)
    """

    params: Any
    generate: Callable[..., Array] = dataclasses.field(metadata={"static": True})
    sample_latents: Callable[[PRNGKeyArray, int], Array] = dataclasses.field(metadata={"static": True})
    latent_bounds: tuple[float, float] | None = dataclasses.field(default=None, metadata={"static": True})
    discriminate: Callable[[Any, Array], Array] | None = dataclasses.field(default=None, metadata={"static": True})
    model: ModelConfig | None = dataclasses.field(default=None, metadata={"static": True})
    crop: str | None = dataclasses.field(default=None, metadata={"static": True})
    encode: Callable[[Any, Array, Array], tuple[Array, Array, tuple[Array, ...]]] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    feature_shapes: tuple[tuple[int, ...], ...] = dataclasses.field(default=(), metadata={"static": True})
    num_classes: int = dataclasses.field(default=0, metadata={"static": True})


def sample_latents(
    prior: Prior, key: PRNGKeyArray, n: int, labels: int | Int[Array | np.ndarray, "*n"] | None = None
) -> Float[Array, "n latent"]:
    """Draws n latents from the prior's distribution.

    Args:
        prior: any.
        key: of the draws.
        n: how many.
        labels: of a conditional prior, the class of each, or one for all, from 0 on; by default they are drawn too.

    Raises:
        ValueError: there is no such class, or the prior knows none.
    """
    latents = prior.sample_latents(key, n)
    if labels is None:
        return latents
    labels = check_labels(prior, labels, n)
    if not isinstance(labels, Tracer) and bool((labels < 0).any()):
        raise ValueError(f"`labels` has {int(labels.min())}; it takes classes from 0 to {prior.num_classes - 1}")
    return with_label(prior, latents, label_entries(prior, labels, latents.dtype))


def check_labels(prior: Prior, labels: int | Int[Array | np.ndarray, "*n"], n: int) -> Int[Array | np.ndarray, " n"]:
    """Labels of n images, of which −1 means that there is none.

    Raises:
        ValueError: they are not integers, one or n of them, from −1 to below the prior's number of classes.
    """
    if not prior.num_classes:
        raise ValueError(
            "`labels` are given and this prior knows no classes: leave them out, or train one with classes"
        )
    labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape not in ((), (n,)):
        raise ValueError(f"`labels` is {labels.dtype}{list(labels.shape)}; it takes an integer, or [{n}] of them")
    if not isinstance(labels, Tracer):
        labels = np.asarray(labels)
        for label in labels[(labels < -1) | (labels >= prior.num_classes)].ravel()[:1]:
            raise ValueError(f"`labels` has {label}; this prior's classes are 0 to {prior.num_classes - 1}")
        return np.broadcast_to(labels.astype(np.int32), (n,))
    return jnp.broadcast_to(labels.astype(jnp.int32), (n,))


def check_label(prior: Prior, label: int | None) -> None:
    """Raises UserError if the prior has no such class; None is always one."""
    if label is not None and not prior.num_classes:
        raise UserError(f"`label` is {label} and this prior knows no classes: leave it out")
    if label is not None and not 0 <= label < prior.num_classes:
        raise UserError(f"`label` is {label}; this prior's classes are 0 to {prior.num_classes - 1}")


def label_entries(prior: Prior, labels: Int[Array | np.ndarray, "*b"], dtype: Any) -> Float[Array, "*b classes"]:
    """Labels as a latent has them: 1 at the class and 0 elsewhere, or all classes alike where there is none, −1."""
    label = jax.nn.one_hot(jnp.asarray(labels), prior.num_classes, dtype=dtype)
    return jnp.where(jnp.asarray(labels)[..., None] < 0, 1 / prior.num_classes, label)


def with_label(
    prior: Prior, latents: Float[Array, "*b latent"], label: Float[Array, "*b classes"]
) -> Float[Array, "*b latent"]:
    """Latents of a conditional prior with another label."""
    return jnp.concatenate([latents[..., : -prior.num_classes], label], axis=-1)


def generate(prior: Prior, z: Float[Array, "n latent"]) -> Float[Array, "n h w c"]:
    """Generates images in [−1, 1]; each depends on its own latent alone.

    Raises:
        ValueError: `z` is not of shape [n, latent_dim] or not of floating point.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> prior = dj.load_prior("faces-64")  # doctest: +SKIP
        >>> x = dj.generate(prior, dj.sample_latents(prior, jax.random.key(0), 4))  # doctest: +SKIP
    """
    z = jnp.asarray(z)
    if z.ndim != 2 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"`z` is {z.dtype}{list(z.shape)}; it takes floating point [n, latent_dim]")
    if prior.model is not None and z.shape[1] != prior.model.latent_size:
        raise ValueError(f"`z` has {z.shape[1]} entries a latent; this prior's latents have {prior.model.latent_size}")
    return _generate(prior, z)


def discriminate(prior: Prior, x: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """The discriminator's logits: above 0 where it takes the image for a real one, of whichever class.

    Args:
        prior: one with a discriminator.
        x: images in [−1, 1].

    Raises:
        ValueError: the prior has no discriminator, or `x` is not a batch of its images.
    """
    if prior.discriminate is None:
        raise ValueError("`prior` has no discriminator: give `discriminate` to `Prior`, or do without the prior loss")
    x = jnp.asarray(x)
    shape = image_shape(prior)
    if x.ndim != 4 or x.shape[1:] != shape or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`x` is {x.dtype}{list(x.shape)}; this prior takes floating point [n, {', '.join(map(str, shape))}]"
        )
    return _discriminate(prior, x)


def image_shape(prior: Prior) -> tuple[int, int, int]:
    """Height, width and channels of the prior's images, without computing one."""
    if prior.model is not None:
        return prior.model.image_size, prior.model.image_size, prior.model.channels
    images = jax.eval_shape(
        lambda params, key: prior.generate(params, prior.sample_latents(key, 1)),
        prior.params,
        jax.random.key(0),
    )
    return images.shape[1:]


@jax.jit
def _generate(prior, z):
    return prior.generate(prior.params, z)


@jax.jit
def _discriminate(prior, x):
    return prior.discriminate(prior.params, x)


def prior_from_state(state: GANState, config: TrainConfig) -> Prior:
    """Makes the prior of a training state: the generator's moving average, with batch statistics of its own.

    The statistics are computed anew from 1,024 latents of a fixed key, so the same state gives the same prior.
    """
    statistics = _statistics(config.model, state.average)
    params = {
        "generator": {"params": state.average, "batch_stats": statistics},
        "discriminator": {"params": state.discriminator, "batch_stats": state.discriminator_statistics},
    }
    # A training step may be handed its state's buffers to reuse; the prior keeps copies.
    return _from_params(jax.tree.map(jnp.copy, params), config.model)


def _statistics(model: ModelConfig, params: Any) -> Any:
    return _jitted_statistics(model, params, jax.random.key(0))


_jitted_statistics = jax.jit(generator_statistics, static_argnums=0)


def _from_params(params: Any, model: ModelConfig) -> Prior:
    dcgan = _dcgan(model, None)
    return Prior(
        params=params,
        generate=dcgan.generate,
        sample_latents=dcgan.sample_latents,
        latent_bounds=(-1.0, 1.0) if model.latent == "uniform" else None,
        discriminate=dcgan.discriminate,
        encode=dcgan.encode if "encoder" in params else None,
        feature_shapes=tuple((4 << i, 4 << i, width) for i, width in enumerate(reversed(model.widths))),
        num_classes=model.num_classes,
        model=model,
    )


def with_compute_dtype(prior: Prior, dtype: str) -> Prior:
    """The same prior with its networks computed in another type, images and logits still in float32.

    The latent and the optimiser of a search stay in float32. How much time it saves is a matter of the hardware: on two
    cores with AVX512-BF16 hardly any.

    Args:
        prior: one made by `load_prior` or `prior_from_state`.
        dtype: "float32" or "bfloat16".

    Raises:
        UserError: the prior is not a DCGAN, or the type is another.

    Example:
        >>> import dcgan_jax as dj
        >>> prior = dj.with_compute_dtype(dj.load_prior("digits-64"), "bfloat16")
    """
    if prior.model is None:
        raise UserError("`prior` has a decoder of your own: compute in another type inside its functions")
    if dtype not in COMPUTE_DTYPES:
        raise UserError(f"`dtype` is {dtype!r}; it takes {' or '.join(COMPUTE_DTYPES)}")
    dcgan = _dcgan(prior.model, None if dtype == "float32" else jnp.dtype(dtype))
    encode = None if prior.encode is None else dcgan.encode
    return dataclasses.replace(prior, generate=dcgan.generate, discriminate=dcgan.discriminate, encode=encode)


def fingerprint(prior: Prior) -> str:
    """64 hexadecimal digits that tell priors apart by their parameters and, if they are DCGANs, their arithmetic."""
    dcgan = getattr(prior.generate, "__self__", None)
    digest = hashlib.sha256(f"{prior.model} {dcgan.dtype if isinstance(dcgan, _DCGAN) else None}".encode())
    for x in jax.tree.leaves(prior.params):
        digest.update(np.asarray(x).tobytes())
    return digest.hexdigest()


@functools.cache
def _dcgan(model: ModelConfig, dtype: jnp.dtype | None) -> _DCGAN:
    # Bound methods are equal only if their objects are identical: one object a model lets every prior of that model
    # share compiled programs.
    return _DCGAN(model, dtype)


def load_prior(source: str | Path) -> Prior:
    """Loads a prior from a run's folder, from a file of `save_prior`, or by the name of one in the package.

    Args:
        source: "faces-64", "digits-64" or "cars-64", a run's folder (its newest checkpoint), or a .safetensors file,
            the latter two also in a bucket. Only arrays and JSON are read: loading runs no code.

    Raises:
        UserError: there is nothing of the kind, or it is damaged.

    Example:
        >>> import dcgan_jax as dj
        >>> prior = dj.load_prior("runs/celeba")  # doctest: +SKIP
    """
    path = mirror.fetch_prior(source) if remote.is_url(source) else Path(source)
    if path.is_dir():
        return prior_from_run(path)[0]
    if path.is_file():
        return _read(path)
    packaged = packaged_priors()
    if str(source) in packaged:
        return _read(packaged[str(source)])
    raise UserError(
        f"there is no prior {str(source)!r}: give a run's folder, a .safetensors file, or one of {', '.join(packaged)}"
    )


def prior_from_run(run: Path) -> tuple[Prior, RunConfig, dict[str, Any], int]:
    """The prior of a run's newest checkpoint, be it a GAN's or an encoder's, which holds the prior it learned for.

    Returns:
        Prior, configuration, the record of the run's data, and the steps done.

    Raises:
        UserError: the folder is not such a run's, or has no checkpoint that can be restored.
    """
    if checkpoints.read_kind(run) == EncoderConfig.KIND:
        state, config = checkpoints.load_state(run, EncoderConfig, encoders.init_state)
        prior = encoder_prior(state, config)
    else:
        state, config = checkpoints.load_state(run)
        prior = prior_from_state(state, config)
    _, data, _ = checkpoints.read_record(run, type(config))
    return dataclasses.replace(prior, crop=data.get("crop")), config, data, int(state.step)


def encoder_prior(state: EncoderState, config: EncoderConfig) -> Prior:
    """The prior for which an encoder learns, with the encoder."""
    encoder = {"params": state.encoder, "batch_stats": state.statistics}
    return _from_params(jax.tree.map(jnp.copy, {**state.prior, "encoder": encoder}), config.model)


def packaged_priors() -> dict[str, Path]:
    """The priors inside the package, by name."""
    folder = Path(str(resources.files("dcgan_jax") / "priors"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def save_prior(prior: Prior, path: str | Path, *, half: bool = False) -> None:
    """Saves a DCGAN's weights, and its encoder's, as safetensors with the model's configuration inside.

    Args:
        prior: one made by `load_prior` or `prior_from_state`.
        path: the file, .safetensors; replaced as a whole if it exists.
        half: store kernels in float16 (half the size; biases, scales and statistics stay float32).

    Raises:
        UserError: the prior is not a DCGAN, or the name does not end in .safetensors.
    """
    if prior.model is None:
        raise UserError("`prior` has a decoder of your own: its functions cannot be saved, save its `params` yourself")
    metadata = {"format": FORMAT, "model": json.dumps(prior.model.to_json())}
    if prior.crop is not None:
        metadata["crop"] = prior.crop
    if prior.encode is not None:
        metadata["encoder"] = "yes"
    save_weights(path, prior.params, metadata, half=half)


def _read(path: Path) -> Prior:
    params, model, metadata = read_weights(path, FORMAT, "a prior", ModelConfig, _init_params)
    return dataclasses.replace(_from_params(params, model), crop=metadata.get("crop"))


def _init_params(model: ModelConfig, metadata: dict[str, str]) -> Any:
    params = encoders.init_gan(model)
    return params | {"encoder": encoders.init_params(model, jax.random.key(0))} if "encoder" in metadata else params
