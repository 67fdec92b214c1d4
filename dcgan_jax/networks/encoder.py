"""The encoder network, which maps a masked image to a latent and feature shifts."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import normal
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.networks.filling import fill
from dcgan_jax.networks.layers import LEAK, STATISTICS_DECAY, batch_norm, convolve_down, convolve_up

ENCODED = 512  # width of the encoder's hidden dense layer
NARROWEST = 0.01  # least standard deviation of the encoder's Gaussian


def init_params(model: ModelConfig, key: PRNGKeyArray) -> Any:
    """Initialises an encoder. Returns its weights ("params") and statistics ("batch_stats")."""
    known = jnp.zeros((1, model.image_size, model.image_size, model.channels))
    return Encoder(model).init(key, known, jnp.zeros(known.shape[:3], bool), train=True)


def upgrade(params: Any, model: ModelConfig) -> Any:
    """Returns the weights of an encoder of version 0.2 or earlier as those of an equal one today; others as they are.

    Earlier encoders did not see the filled hole. The weights for it are then 0.

    Args:
        params: weights ("params") and statistics ("batch_stats").
        model: the configuration of the generator.
    """
    kernel = params["params"]["down_0"]
    if kernel.ndim != 4 or kernel.shape[2] != model.channels + 1:
        return params
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, model.channels), (0, 0)))
    return {**params, "params": {**params["params"], "down_0": kernel}}


class Encoder(nn.Module):
    """Maps a masked image to a Gaussian over latents and to offsets ("shifts") of the generator's features.

    It sees the known pixels, the hole, and the known pixels again with the hole filled by `fill`. Convolutions halve
    the side, as in the discriminator. Two dense layers then give mean and standard deviation of the latent. Transposed
    convolutions double the side again. At each size they add the features of the first half, as a U-Net does
    (Ronneberger et al. 2015). Their features give the shifts, which hold detail that a latent cannot hold. The encoder
    has the widths of the model. Before training all shifts are 0.

    Attributes:
        config: the configuration of the generator.
        dtype: type of the arithmetic; None stands for the weights' type.
    """

    config: ModelConfig
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, known: Float[Array, "n h w c"], hole: Bool[Array, "n h w"], train: bool
    ) -> tuple[Float[Array, "n latent"], Float[Array, "n latent"], tuple[Float[Array, "n _ _ _"], ...]]:
        """Encodes masked images.

        Args:
            known: images in [−1, 1], with 0 in the hole.
            hole: True = missing.
            train: True normalises by the batch's statistics, False by the stored ones.

        Returns:
            The Gaussian's mean and standard deviation, and a shift for each ReLU of the generator. In a conditional
            model the mean ends with the probabilities of the classes.
        """
        norm = functools.partial(batch_norm, use_running_average=not train, momentum=STATISTICS_DECAY, dtype=self.dtype)
        # He's initialisation makes the start of training faster than deviation 0.02, because the loss is in pixels.
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        dense = functools.partial(nn.Dense, use_bias=False, kernel_init=init, dtype=self.dtype)
        widths, sides = self.config.widths, []
        x = jnp.concatenate([known, hole[..., None].astype(known.dtype), fill(known, hole)], axis=-1)
        for i, width in enumerate(widths):
            x = convolve_down(self, f"down_{i}", x, width, init, self.dtype)
            x = norm(name=f"norm_{i}")(x, LEAK)
            sides.append(x)
        z = norm(name="norm_dense")(dense(ENCODED, name="dense")(x.reshape(x.shape[0], -1)), LEAK)
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
                x = convolve_up(self, f"up_{i}", x, width, init, self.dtype) + dense(width, name=f"side_{i}")(side)
                x = norm(name=f"norm_up_{i}")(x, LEAK)
            shift = nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name=f"shift_{i}")(x)
            shifts.append(shift.astype(mean.dtype))
        return mean, NARROWEST + nn.softplus(spread), tuple(shifts)
