"""The encoder network: from a masked image to a latent and feature shifts."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import normal
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.networks.convolution import KERNEL_SIZE, conv_down, conv_up
from dcgan_jax.networks.layers import LEAK, STATISTICS_DECAY, _BatchNorm


def init_params(model: ModelConfig, key: PRNGKeyArray) -> Any:
    """Draws an encoder's weights and gives it statistics."""
    known = jnp.zeros((1, model.image_size, model.image_size, model.channels))
    return Encoder(model).init(key, known, jnp.zeros(known.shape[:3], bool), train=True)


ENCODED = 512  # entries of the encoder's hidden dense layer
NARROWEST = 0.01  # least deviation of an encoder's Gaussian


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
