"""Layers that the networks share."""

import functools

import jax.numpy as jnp
from jax.nn.initializers import normal

from dcgan_jax.networks.normalization import BatchNorm

LEAK = 0.2  # slope of LeakyReLU below zero, Radford et al. 2016
STATISTICS_DECAY = 0.99  # decay a pass of running batch statistics


def _scale_init(key, shape, dtype=jnp.float32):
    return 1.0 + normal(0.02)(key, shape, dtype)


_BatchNorm = functools.partial(BatchNorm, scale_init=_scale_init)
