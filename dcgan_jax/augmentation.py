"""What is done to training images before a discriminator sees them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from dcgan_jax.config import TrainConfig


def to_floats(batch: UInt8[Array, "n h w c"], flip: bool, key: PRNGKeyArray) -> Float[Array, "n h w c"]:
    """Scales to [−1, 1] and, with `flip`, mirrors half of the images left to right."""
    images = batch.astype(jnp.float32) / 127.5 - 1.0
    if flip:
        mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def augment(config: TrainConfig, batch: UInt8[Array, "n h w c"], key: PRNGKeyArray) -> Float[Array, "n h w c"]:
    """Scales to [−1, 1], mirrors half of the images and adds Gaussian noise, as the configuration says."""
    flip_key, noise_key = jax.random.split(key)
    images = to_floats(batch, config.flip, flip_key)
    if config.noise > 0:
        images = images + config.noise * jax.random.normal(noise_key, images.shape)
    return images


def diff_augment(images: Float[Array, "n h w c"], key: PRNGKeyArray) -> Float[Array, "n h w c"]:
    """Gives each image another brightness, saturation and contrast, shifts it, and cuts a square out of it.

    Brightness moves by up to 0.5 on the scale [−1, 1], distances to the grey of a pixel are scaled by 0 to 2, those to
    the mean of the image by 0.5 to 1.5; the shift is up to an eighth of the side, with zeros behind; the square has
    half the side, its centre anywhere, and is set to zero. All of it is differentiable in the images: generated ones
    are treated alike while the generator learns, so that it does not learn the augmentations.

    Source:
        Zhao, Liu, Lin, Zhu, Han, "Differentiable augmentation for data-efficient GAN training", NeurIPS 2020: the
        policy color,translation,cutout.
    """
    return jax.vmap(_diff_augment)(images, jax.random.split(key, images.shape[0]))


def _diff_augment(image, key):
    h, w, _ = image.shape
    colour_key, shift_key, cut_key = jax.random.split(key, 3)
    brightness, saturation, contrast = jax.random.uniform(colour_key, (3,), image.dtype)
    image = image + brightness - 0.5
    grey = jnp.mean(image, axis=-1, keepdims=True)
    image = grey + (image - grey) * 2 * saturation
    mean = jnp.mean(image)
    image = mean + (image - mean) * (contrast + 0.5)
    most = jnp.array([h // 8, w // 8])
    shift = jax.random.randint(shift_key, (2,), 0, 2 * most + 1)
    padded = jnp.pad(image, ((h // 8, h // 8), (w // 8, w // 8), (0, 0)))
    image = jax.lax.dynamic_slice(padded, (shift[0], shift[1], 0), image.shape)
    centre = jax.random.randint(cut_key, (2,), 0, jnp.array([h, w]))
    rows, columns = jnp.arange(h) - centre[0], jnp.arange(w) - centre[1]
    inside_rows, inside_columns = (-(h // 4) <= rows) & (rows < h // 4), (-(w // 4) <= columns) & (columns < w // 4)
    return jnp.where((inside_rows[:, None] & inside_columns)[..., None], 0.0, image)
