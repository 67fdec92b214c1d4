"""Tiny priors for searches. Each shape has one pair of functions, so that tests share compiled programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import dcgan_jax as dj

LATENT = 3


def tanh_prior(shape, seed=0):
    """A prior of one random layer and tanh for images of `shape`, with uniform latents and no critic."""
    matrix = np.random.default_rng(seed).normal(0, 0.4, (LATENT, np.prod(shape)))
    return dj.Prior(jnp.asarray(matrix, jnp.float32), _decoder(shape), draw_latents, (-1.0, 1.0))


def constant_prior(image):
    """A prior that makes the same image from every latent."""
    return dj.Prior(jnp.asarray(image, jnp.float32), _constant, draw_latents, (-1.0, 1.0))


def draw_latents(key, n):
    return jax.random.uniform(key, (n, LATENT), minval=-1.0, maxval=1.0)


def arrays(result):
    """The fields of an `InpaintResult` that are not None (the trace often is)."""
    return {name: value for name, value in result._asdict().items() if value is not None}


@functools.cache
def _decoder(shape):
    return lambda params, z: jnp.tanh(z @ params).reshape(-1, *shape)


def _constant(params, z):
    return jnp.broadcast_to(params, (z.shape[0], *params.shape))
