"""Layers that several networks share."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer, normal
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from dcgan_jax.networks.convolution import conv_down, conv_up
from dcgan_jax.networks.direct import KERNEL_SIZE
from dcgan_jax.networks.normalization import BatchNorm

LEAK = 0.2  # slope of LeakyReLU below zero, Radford et al. 2016
STATISTICS_DECAY = 0.99  # decay per pass of the running batch statistics


def draw_scale(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Draws the scales of batch norm from a normal distribution with mean 1 and standard deviation 0.02."""
    return 1.0 + normal(0.02)(key, shape, dtype)


def arithmetic_dtype(name: str) -> jnp.dtype | None:
    """Returns the `dtype` of a network by a name in `config.COMPUTE_DTYPES`. None stands for the weights' float32."""
    return None if name == "float32" else jnp.dtype(name)


batch_norm = functools.partial(BatchNorm, scale_init=draw_scale)


def convolve_down(
    module: nn.Module,
    name: str,
    x: Float[Array, "n h w i"],
    width: int,
    init: Initializer,
    dtype: DTypeLike | None,
) -> Float[Array, "n h/2 w/2 width"]:
    """Applies `conv_down` with a kernel that is a parameter of a network.

    Args:
        module: the network; call this function in its compact method.
        name: name of the parameter.
        x: features.
        width: channels of the result.
        init: draws the kernel.
        dtype: type of the arithmetic and the result; None stands for the kernel's type.
    """
    kernel = module.param(name, init, (KERNEL_SIZE, KERNEL_SIZE, x.shape[-1], width))
    dtype = dtype or kernel.dtype
    return conv_down(x.astype(dtype), kernel.astype(dtype))


def convolve_up(
    module: nn.Module,
    name: str,
    x: Float[Array, "n h w i"],
    width: int,
    init: Initializer,
    dtype: DTypeLike | None,
) -> Float[Array, "n 2h 2w width"]:
    """Applies `conv_up` with a kernel that is a parameter of a network. The arguments are those of `convolve_down`."""
    kernel = module.param(name, init, (KERNEL_SIZE, KERNEL_SIZE, width, x.shape[-1]))
    dtype = dtype or kernel.dtype
    return conv_up(x.astype(dtype), kernel.astype(dtype))
