"""Priors made from the weights of a DCGAN."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from dcgan_jax.config import COMPUTE_DTYPES
from dcgan_jax.errors import UserError
from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.networks.dcgan import Discriminator, Generator, draw_latents, generator_statistics
from dcgan_jax.networks.encoder import Encoder
from dcgan_jax.networks.layers import arithmetic_dtype
from dcgan_jax.priors.prior import Prior


@dataclass(frozen=True)
class _DCGAN:
    """The functions of a model, computed in `dtype`; None stands for the weights' type."""

    model: ModelConfig
    dtype: jnp.dtype | None

    def generate(self, params: Any, z: Array, shifts: Sequence[Array] = ()) -> Array:
        generator = Generator(self.model, self.dtype)
        return generator.apply(params["generator"], z, train=False, shifts=shifts)  # type: ignore[return-value]  # Flax: Any or a tuple

    def discriminate(self, params: Any, x: Array) -> Array:
        return Discriminator(self.model, self.dtype).apply(params["discriminator"], x, train=False)  # type: ignore[return-value]  # Flax: Any or a tuple

    def encode(self, params: Any, known: Array, hole: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        return Encoder(self.model, self.dtype).apply(params["encoder"], known, hole, train=False)  # type: ignore[return-value]  # Flax: Any or a tuple

    def sample_latents(self, key: PRNGKeyArray, n: int) -> Array:
        return draw_latents(self.model, key, n)


def averaged_params(
    model: ModelConfig, average: Any, discriminator: Any, discriminator_statistics: Any
) -> dict[str, Any]:
    """Returns the parameters of a prior whose generator is the moving average.

    The average gets its own batch statistics. They come from 1,024 latents of a fixed key, so the same weights always
    give the same prior.

    Args:
        model: the configuration of the networks.
        average: the moving average of the generator's weights.
        discriminator: the discriminator's weights.
        discriminator_statistics: the discriminator's running batch statistics.
    """
    statistics = _generator_statistics(model, average, jax.random.key(0))
    return {
        "generator": {"params": average, "batch_stats": statistics},
        "discriminator": {"params": discriminator, "batch_stats": discriminator_statistics},
    }


_generator_statistics = jax.jit(generator_statistics, static_argnums=0)


def prior_from_params(params: Any, model: ModelConfig) -> Prior:
    """Makes a prior from the parameters of a DCGAN.

    Args:
        params: "generator" and optionally "discriminator" and "encoder", each with "params" and "batch_stats".
        model: the configuration of the networks.
    """
    dcgan = _dcgan(model, None)
    return Prior(
        params=params,
        generate=dcgan.generate,
        sample_latents=dcgan.sample_latents,
        latent_bounds=(-1.0, 1.0) if model.latent == "uniform" else None,
        discriminate=dcgan.discriminate if "discriminator" in params else None,
        encode=dcgan.encode if "encoder" in params else None,
        feature_shapes=tuple((4 << i, 4 << i, width) for i, width in enumerate(reversed(model.widths))),
        num_classes=model.num_classes,
        image_shape=(model.image_size, model.image_size, model.channels),
        model=model,
    )


def with_compute_dtype(prior: Prior, dtype: str) -> Prior:
    """Returns the same prior with its networks computed in another type. Images and logits stay in float32.

    The latent and the optimiser of a search also stay in float32. The gain in speed depends on the hardware: there is
    almost none on two cores with AVX512-BF16.

    Args:
        prior: a prior from `load_prior` or `prior_from_state`.
        dtype: "float32" or "bfloat16".

    Raises:
        UserError: the prior is not a DCGAN, or `dtype` is another type.

    Example:
        >>> import dcgan_jax as dj
        >>> prior = dj.with_compute_dtype(dj.load_prior("digits-64"), "bfloat16")
    """
    if prior.model is None:
        raise UserError("`prior` has your own decoder: compute in another type inside its functions")
    if dtype not in COMPUTE_DTYPES:
        raise UserError(f"`dtype` is {dtype!r}; it takes {' or '.join(COMPUTE_DTYPES)}")
    dcgan = _dcgan(prior.model, arithmetic_dtype(dtype))
    discriminate = None if prior.discriminate is None else dcgan.discriminate
    encode = None if prior.encode is None else dcgan.encode
    return dataclasses.replace(prior, generate=dcgan.generate, discriminate=discriminate, encode=encode)


def is_dcgan(prior: Prior) -> bool:
    """Tells whether all functions of a prior are those of its DCGAN, so that `prior.model` says what they compute."""
    functions = (prior.generate, prior.sample_latents, prior.discriminate, prior.encode)
    return all(x is None or isinstance(getattr(x, "__self__", None), _DCGAN) for x in functions)


def fingerprint(prior: Prior) -> str:
    """Returns a hash of a prior, 64 hex digits. It covers the parameters, and a DCGAN's configuration and dtype."""
    dcgan = getattr(prior.generate, "__self__", None)
    digest = hashlib.sha256(f"{prior.model} {dcgan.dtype if isinstance(dcgan, _DCGAN) else None}".encode())
    for x in jax.tree.leaves(prior.params):
        digest.update(np.asarray(x).tobytes())
    return digest.hexdigest()


@functools.cache
def _dcgan(model: ModelConfig, dtype: jnp.dtype | None) -> _DCGAN:
    # Bound methods are equal only if their objects are identical. With one cached object per model, all priors of that
    # model share compiled programs.
    return _DCGAN(model, dtype)
