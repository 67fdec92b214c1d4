"""Augmentation of training images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dcgan_jax.networks.config import ModelConfig
from dcgan_jax.training.augmentation import augment
from dcgan_jax.training.config import TrainConfig

CONFIG = TrainConfig(model=ModelConfig(image_size=32, channels=1, base_width=4, latent_dim=6), batch_size=4)


def test_augmentation_scales_bytes_to_minus_one_to_one():
    batch = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    images = augment(CONFIG, batch, jax.random.key(0))
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(np.ravel(images), np.linspace(-1, 1, 256), atol=1e-6)
    assert images.min() == -1 and images.max() == 1


def test_augmentation_mirrors_half_of_the_images_left_to_right():
    config = dataclasses.replace(CONFIG, flip=True)
    batch = np.random.default_rng(0).integers(0, 256, (2000, 3, 4, 3), np.uint8)
    images = np.asarray(augment(config, batch, jax.random.key(0)))
    clean = np.asarray(augment(CONFIG, batch, jax.random.key(0)))
    same = (images == clean).all(axis=(1, 2, 3))
    mirrored = (images == clean[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_augmentation_adds_noise_of_the_given_deviation():
    config = dataclasses.replace(CONFIG, noise=0.05)
    batch = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 1), np.uint8)
    noise = np.asarray(augment(config, batch, jax.random.key(0)) - augment(CONFIG, batch, jax.random.key(0)))
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3)), 0.05, rtol=0.1)
    assert abs(noise.mean()) < 4 * 0.05 / np.sqrt(noise.size)
    assert abs(np.corrcoef(noise.reshape(20, -1)) - np.eye(20)).max() < 0.2  # each image has its own noise
