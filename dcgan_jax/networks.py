"""Generator and discriminator as Flax modules (Radford et al. 2016, figure 1), and the encoder that inverts them.

Arithmetic runs in `dtype`, or in the weights' own type where it is None; images and logits come out in the weights'
type.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import normal
from jaxtyping import Array, Bool, Float

from dcgan_jax.config import ModelConfig
from dcgan_jax.convolution import KERNEL_SIZE, conv_down, conv_up
from dcgan_jax.normalization import BatchNorm

LEAK = 0.2  # slope of LeakyReLU below zero, Radford et al. 2016
STATISTICS_DECAY = 0.99  # decay a pass of running batch statistics
ENCODED = 512  # entries of the encoder's hidden dense layer
NARROWEST = 0.01  # least deviation of an encoder's Gaussian


def _scale_init(key, shape, dtype=jnp.float32):
    return 1.0 + normal(0.02)(key, shape, dtype)


_BatchNorm = functools.partial(BatchNorm, scale_init=_scale_init)


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


class Encoder(nn.Module):
    """What is known to what may lie behind it: a Gaussian over latents, and shifts of the generator's features.

    Convolutions that halve the side, as the discriminator's, then two dense layers for mean and deviation; and back up
    again, at each size with what was there on the way down (Ronneberger et al. 2015), for the shifts, which carry what
    no latent holds. As wide as the model. Untrained it shifts nothing.
    """

    config: ModelConfig
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, known: Float[Array, "n h w c"], hole: Bool[Array, "n h w"], train: bool
    ) -> tuple[Float[Array, "n latent"], Float[Array, "n latent"], tuple[Float[Array, "n _ _ _"], ...]]:
        norm = functools.partial(_BatchNorm, use_running_average=not train, momentum=STATISTICS_DECAY, dtype=self.dtype)
        # He's scale in place of 0.02: it learns by errors of pixels, and is to start fast.
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        dense = functools.partial(nn.Dense, use_bias=False, kernel_init=init, dtype=self.dtype)
        widths, sides = self.config.widths, []
        x = jnp.concatenate([known, hole[..., None].astype(known.dtype)], axis=-1)
        for i, width in enumerate(widths):
            kernel = self.param(f"down_{i}", init, (KERNEL_SIZE, KERNEL_SIZE, x.shape[-1], width))
            dtype = self.dtype or kernel.dtype
            x = conv_down(x.astype(dtype), kernel.astype(dtype))
            x = norm(name=f"norm_{i}")(x, LEAK)
            sides.append(x)
        z = norm(name="norm_dense")(dense(ENCODED, name="dense")(x.reshape(len(x), -1)), LEAK)
        z = nn.Dense(2 * self.config.latent_size, kernel_init=normal(0.02), dtype=self.dtype, name="latent")(z)
        mean, spread = jnp.split(z.astype(jnp.promote_types(z.dtype, jnp.float32)), 2, axis=-1)
        mean, label = mean[:, : self.config.latent_dim], mean[:, self.config.latent_dim :]
        mean = jnp.tanh(mean) if self.config.latent == "uniform" else mean
        if self.config.num_classes:
            mean = jnp.concatenate([mean, nn.softmax(label)], axis=-1)

        shifts = []
        for i, side in enumerate(reversed(sides)):
            if i:
                width = side.shape[-1]
                kernel = self.param(f"up_{i}", init, (KERNEL_SIZE, KERNEL_SIZE, width, x.shape[-1]))
                x = conv_up(x, kernel.astype(x.dtype)) + dense(width, name=f"side_{i}")(side)
                x = norm(name=f"norm_up_{i}")(x, LEAK)
            shift = nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name=f"shift_{i}")(x)
            shifts.append(shift.astype(mean.dtype))
        return mean, NARROWEST + nn.softplus(spread), tuple(shifts)


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
