"""Generator and discriminator as Flax modules (Radford et al. 2016, figure 1), and the encoder that inverts them.

Arithmetic runs in `dtype`, or in the weights' own type where it is None; images and logits come out in the weights'
type.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn.initializers import normal
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.networks.convolution import KERNEL_SIZE, conv_down, conv_up
from dcgan_jax.networks.layers import LEAK, STATISTICS_DECAY, _BatchNorm


class Generator(nn.Module):
    """Latents to images: dense to 4×4, transposed convolutions that double the side, tanh.

    A conditional model's label is part of the latent, so the first layer gives it a pattern of its own over the 4×4
    features, and a soft label the mixture of these. (What tells digits apart is where their strokes are: batch norm by
    class scales and shifts whole channels.) The label is scaled to the length of a latent: as a one
    among a hundred entries it has a 36th of their part in the first features, and 800 steps on digits left it there.

    In training mode the statistics it stores are those of the batch alone; what `train=False` reads is made by
    `training.generator_statistics`. `shifts`, if any, are added to the features in front of each ReLU.
    """

    config: ModelConfig
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, z: Float[Array, "n latent"], train: bool, shifts: Sequence[Float[Array, "n _ _ _"]] = ()
    ) -> Float[Array, "n h w c"]:
        norm = functools.partial(_BatchNorm, use_running_average=not train, momentum=0.0, dtype=self.dtype)
        widths = self.config.widths
        dense = nn.Dense(16 * widths[-1], use_bias=False, kernel_init=normal(0.02), dtype=self.dtype, name="dense")
        if self.config.num_classes:
            d = self.config.latent_dim
            length = (d / 3 if self.config.latent == "uniform" else d) ** 0.5
            z = jnp.concatenate([z[:, :d], length * z[:, d:]], axis=1)
        x = dense(z).reshape(-1, 4, 4, widths[-1])
        for i, width in enumerate((*widths[-2::-1], self.config.channels)):
            if shifts:
                x = nn.relu(norm(name=f"norm_{i}")(x) + shifts[i].astype(x.dtype))
            else:
                x = norm(name=f"norm_{i}")(x, leak=0)
            kernel = self.param(f"up_{i}", normal(0.02), (KERNEL_SIZE, KERNEL_SIZE, width, x.shape[-1]))
            x = conv_up(x, kernel.astype(self.dtype or kernel.dtype))
        bias = self.param("bias", nn.initializers.zeros, (self.config.channels,))
        return jnp.tanh(x.astype(bias.dtype) + bias)


class Discriminator(nn.Module):
    """Images to logits: convolutions that halve the side, LeakyReLU, a dense layer from 4×4.

    That of a conditional model adds the projection of the flattened 4×4 features, which go into the last layer, on the
    embedding of the label (Miyato, Koyama 2018). Without a label it gives the logarithm of the odds' mean over the
    classes: an image is real if it is a real one of some class.

    `groups` batches may lie in `x`, image i in batch i % groups: one pass then does what one pass each would do.
    """

    config: ModelConfig
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        train: bool,
        label: Float[Array, "n classes"] | None = None,
        groups: int = 1,
    ) -> Float[Array, " n"]:
        norm = functools.partial(_BatchNorm, use_running_average=not train, momentum=STATISTICS_DECAY, dtype=self.dtype)
        for i, width in enumerate(self.config.widths):
            kernel = self.param(f"down_{i}", normal(0.02), (KERNEL_SIZE, KERNEL_SIZE, x.shape[-1], width))
            dtype = self.dtype or kernel.dtype
            x = conv_down(x.astype(dtype), kernel.astype(dtype))
            if i == 0:  # no batch norm at the input
                x = nn.leaky_relu(x + self.param("bias", nn.initializers.zeros, (width,)).astype(dtype), LEAK)
            else:
                x = norm(name=f"norm_{i}")(x, LEAK, groups)
        x = x.reshape(x.shape[0], -1)
        logit = nn.Dense(1, kernel_init=normal(0.02), dtype=self.dtype, name="dense")(x)[:, 0]
        logit = logit.astype(jnp.promote_types(logit.dtype, jnp.float32))
        if self.config.num_classes:
            kernel = self.param("embedding", normal(0.02), (x.shape[-1], self.config.num_classes))
            projections = (x @ kernel.astype(x.dtype)).astype(logit.dtype)
            if label is None:
                return logit + nn.logsumexp(projections, axis=-1) - jnp.log(self.config.num_classes)
            logit = logit + jnp.sum(label * projections, axis=-1)
        return logit


def init_gan(model: ModelConfig) -> dict[str, Any]:
    """Weights and statistics of an untrained generator and discriminator, for the shapes of a prior's parameters."""
    key = jax.random.key(0)
    z = jnp.zeros((1, model.latent_size))
    x = jnp.zeros((1, model.image_size, model.image_size, model.channels))
    return {
        "generator": Generator(model).init(key, z, train=True),
        "discriminator": Discriminator(model).init(key, x, train=True),
    }


def draw_latents(
    model: ModelConfig, key: PRNGKeyArray, n: int, labels: int | Int[Array | np.ndarray, "*n"] | None = None
) -> Float[Array, "n latent"]:
    """Draws n latents from the model's prior: uniform on [−1, 1] or standard normal.

    In a conditional model a label stands behind them, as 0 and 1: the one that is given, or any, all as likely.

    Args:
        labels: one for each, or one for all; of conditional models alone.
    """
    shape = (n, model.latent_dim)
    if model.latent == "uniform":
        latents = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
    else:
        latents = jax.random.normal(key, shape)
    if not model.num_classes:
        return latents
    if labels is None:
        labels = jax.random.randint(jax.random.fold_in(key, 0), (n,), 0, model.num_classes)
    label = jax.nn.one_hot(jnp.broadcast_to(jnp.asarray(labels), n), model.num_classes, dtype=latents.dtype)
    return jnp.concatenate([latents, label], axis=1)


def generator_statistics(model: ModelConfig, params: Any, key: PRNGKeyArray, batches: int = 16, size: int = 64) -> Any:
    """Batch-norm statistics that belong to these generator weights: the mean of those of `batches` fresh batches.

    Averaged weights need statistics of their own: with the raw network's the images fall apart.
    """
    generator = Generator(model)

    def one(batch_key):
        z = draw_latents(model, batch_key, size)
        return generator.apply({"params": params}, z, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    statistics = jax.lax.map(one, jax.random.split(key, batches))
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), statistics)
