"""Augmentation of training images, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from dcgan_jax.images.pixels import to_float
from dcgan_jax.training.config import TrainConfig


def scale_and_flip(batch: UInt8[Array, "n h w c"], flip: bool, key: PRNGKeyArray) -> Float[Array, "n h w c"]:
    """Scales images to [−1, 1]. With `flip`, mirrors each image left to right with probability 1/2."""
    images = to_float(batch)
    if flip:
        mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def augment(config: TrainConfig, batch: UInt8[Array, "n h w c"], key: PRNGKeyArray) -> Float[Array, "n h w c"]:
    """Scales images to [−1, 1]. Then mirrors some images and adds Gaussian noise, if `config` asks for it."""
    flip_key, noise_key = jax.random.split(key)
    images = scale_and_flip(batch, config.flip, flip_key)
    if config.noise > 0:
        images = images + config.noise * jax.random.normal(noise_key, images.shape)
    return images
