"""Generator and discriminator as Flax modules (Radford et al. 2016, figure 1).

They compute in `dtype`; None stands for the weights' type. Images and logits have the weights' type.
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
from dcgan_jax.networks.layers import LEAK, STATISTICS_DECAY, batch_norm, convolve_down, convolve_up


class Generator(nn.Module):
    """Maps latents to images: a dense layer to 4×4, transposed convolutions that double the side, tanh.

    In a conditional model the label is part of the latent. So the first layer gives each class its own pattern over the
    4×4 features, and mixes these patterns for a soft label. Class-conditional batch norm would be weaker: it only
    scales and shifts whole channels, but digits differ in the places of their strokes. The label is scaled to the
    length of a latent. An unscaled label is a one among a hundred entries. Its share in the first features is 1/36 of
    the share of these entries, even after 800 training steps on digits.

    In training mode the module stores the statistics of the current batch. `train=False` reads statistics that
    `generator_statistics` computes.

    Attributes:
        config: the configuration of the networks.
        dtype: type of the arithmetic; None stands for the weights' type.
    """

    config: ModelConfig
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, z: Float[Array, "n latent"], train: bool, shifts: Sequence[Float[Array, "n _ _ _"]] = ()
    ) -> Float[Array, "n h w c"]:
        """Generates images.

        Args:
            z: latents; in a conditional model each ends with its label.
            train: True normalises by the batch's statistics, False by the stored ones.
            shifts: offsets added to the features before each ReLU; () for none.
        """
        norm = functools.partial(batch_norm, use_running_average=not train, momentum=0.0, dtype=self.dtype)
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
            x = convolve_up(self, f"up_{i}", x, width, normal(0.02), self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.config.channels,))
        return jnp.tanh(x.astype(bias.dtype) + bias)


class Discriminator(nn.Module):
    """Maps images to logits: convolutions that halve the side, LeakyReLU, a dense layer from 4×4.

    A conditional model adds the projection of the flattened 4×4 features on the label's embedding (Miyato, Koyama
    2018). Without a label it returns the logarithm of the mean odds over the classes, so an image of any class can be
    real.

    Attributes:
        config: the configuration of the networks.
        dtype: type of the arithmetic; None stands for the weights' type.
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
        """Returns one logit for each image.

        Args:
            x: images in [−1, 1].
            train: True normalises by the batch's statistics, False by the stored ones.
            label: probabilities of the classes, in a conditional model.
            groups: number of batches in `x`, each with its own statistics. Image i belongs to batch i % groups.
        """
        norm = functools.partial(batch_norm, use_running_average=not train, momentum=STATISTICS_DECAY, dtype=self.dtype)
        for i, width in enumerate(self.config.widths):
            x = convolve_down(self, f"down_{i}", x, width, normal(0.02), self.dtype)
            if i == 0:  # no batch norm at the input
                x = nn.leaky_relu(x + self.param("bias", nn.initializers.zeros, (width,)).astype(x.dtype), LEAK)
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
    """Returns weights and statistics of untrained networks, in the structure of `Prior.params`."""
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
    """Draws n latents from the model's distribution: uniform on [−1, 1] or standard normal.

    In a conditional model each latent ends with its label, one-hot.

    Args:
        model: the configuration of the networks.
        key: random key.
        n: number of latents.
        labels: for a conditional model, the class of each latent, or one class for all. None draws the classes, each
            with the same probability.
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
    """Computes the generator's batch-norm statistics as a mean over fresh batches.

    Averaged weights need their own statistics. With the statistics of the raw network they do not give useful images.

    Args:
        model: the configuration of the networks.
        params: the generator's weights.
        key: random key of the latents.
        batches: number of batches.
        size: number of latents in each batch.
    """
    generator = Generator(model)

    def one(batch_key: PRNGKeyArray) -> Any:
        z = draw_latents(model, batch_key, size)
        return generator.apply({"params": params}, z, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    statistics = jax.lax.map(one, jax.random.split(key, batches))
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), statistics)
