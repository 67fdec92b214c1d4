"""Batch norm and the activation after it, with few passes over memory.

The forward pass reads the features twice, first for their sums and then for the result. So does the backward pass. Only
the input is stored for the backward pass. Several devices exchange their sums once in each pass.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import ones, zeros
from jaxtyping import Array, Float

EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Normalises each channel over images and places, scales and shifts it (Ioffe, Szegedy 2015), and activates it.

    Parameters, statistics and results equal those of `flax.linen.BatchNorm` and `flax.linen.leaky_relu`, up to
    rounding. Sums are computed in float32 or better. In training mode only reverse-mode derivatives work, of any order.

    Attributes:
        use_running_average: True normalises by the stored statistics. False normalises by the statistics of the batch,
            and updates the stored ones.
        momentum: decay of the stored statistics at each update.
        dtype: type of the result; None stands for the features' type.
        scale_init: draws the scales.
    """

    use_running_average: bool
    momentum: float
    dtype: jnp.dtype | None = None
    scale_init: nn.initializers.Initializer = ones

    @nn.compact
    def __call__(
        self, x: Float[Array, "n *places c"], leak: float = 1.0, groups: int = 1
    ) -> Float[Array, "n *places c"]:
        """Normalises and activates features.

        Args:
            x: features, channels last.
            leak: slope of the activation below zero: 0 for ReLU, 1 for no activation.
            groups: number of batches in `x`, each with its own statistics. Image i belongs to batch i % groups. The
                stored statistics are updated as if the batches came one after the other.

        Raises:
            ValueError: the number of images is 0, or not a multiple of `groups`.
        """
        if x.shape[0] == 0 or x.shape[0] % groups != 0:  # `len` does not take a symbolic batch
            raise ValueError(f"`x` has {x.shape[0]} images; pass a multiple of `groups` ({groups}), at least one image")
        exact = jnp.promote_types(x.dtype, jnp.float32)
        channels = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(channels, exact))
        variance = self.variable("batch_stats", "var", lambda: jnp.ones(channels, exact))
        scale = self.param("scale", self.scale_init, channels, exact)
        bias = self.param("bias", zeros, channels, exact)
        if self.use_running_average:
            factor = scale * lax.rsqrt(variance.value + EPSILON)
            y = activate((x - mean.value) * factor + bias, leak)
        else:
            x32 = x.astype(exact)
            means, squares = (s * (groups * channels[0] / x.size) for s in sums(x32, x32 * x32, groups))
            variances = jnp.maximum(squares - means * means, 0)
            factors = scale * lax.rsqrt(variances + EPSILON)
            y: Any = affine(x, factors, bias - means * factors, leak)
            if not self.is_initializing():
                for i in range(groups):
                    mean.value = self.momentum * mean.value + (1 - self.momentum) * means[i]
                    variance.value = self.momentum * variance.value + (1 - self.momentum) * variances[i]
        return y.astype(self.dtype or x.dtype)


def in_turn(*batches: Array) -> Array:
    """Joins several batches into one. Image i comes from batch i % groups, where groups is the number of batches.

    In this order every image stays on its device.
    """
    return jnp.stack(batches, axis=1).reshape(-1, *batches[0].shape[1:])


def activate(y: Array, leak: float) -> Array:
    """Applies LeakyReLU. `leak` is its slope below zero: 0 for ReLU, 1 for no activation."""
    if leak == 1:
        return y
    return nn.relu(y) if leak == 0 else nn.leaky_relu(y, leak)


def _grouped(x: Array, groups: int) -> Float[Array, "n groups *places c"]:
    return x.reshape(-1, groups, *x.shape[1:])


_Sums = tuple[Float[Array, "groups c"], Float[Array, "groups c"]]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def sums(a: Float[Array, "n *places c"], b: Float[Array, "n *places c"], groups: int) -> _Sums:
    """Sums two arrays over images and places, for each group and channel."""
    plain, fused = (functools.partial(form, groups=groups) for form in (plain_sums, fused_sums))
    return lax.platform_dependent(a, b, cuda=fused, default=plain)


def plain_sums(a: Array, b: Array, groups: int) -> _Sums:
    """Computes the two sums one after the other.

    This is fast on CPUs. The TPU compiler combines the exchanges of both sums between devices.
    """
    first, second = (jnp.sum(_grouped(x, groups), (0, *range(2, x.ndim))) for x in (a, b))
    return first, second


def fused_sums(a: Array, b: Array, groups: int) -> _Sums:
    """Computes both sums in one pass over memory. On a GPU, XLA would use more kernels for `plain_sums`."""

    def reduce(arrays: tuple[Array, ...], axes: tuple[int, ...]) -> Sequence[Array]:
        start = tuple(jnp.zeros((), x.dtype) for x in arrays)
        return lax.reduce(arrays, start, lambda x, y: (x[0] + y[0], x[1] + y[1]), axes)

    if groups == 1:
        first, second = reduce((a, b), tuple(range(a.ndim - 1)))
        return first[None], second[None]
    # Places are summed first, because XLA uses a slow loop to sum over axes that are not neighbours.
    rows = reduce((a, b), tuple(range(1, a.ndim - 1)))
    first, second = reduce(tuple(_grouped(x, groups) for x in rows), (0,))
    return first, second


@sums.defjvp
def _sums_jvp(groups: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[_Sums, _Sums]:
    (a, b), (da, db) = primals, tangents
    return sums(a, b, groups), plain_sums(da, db, groups)  # JAX can transpose only `plain_sums`


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(
    x: Float[Array, "n *places c"], factors: Float[Array, "groups c"], offsets: Float[Array, "groups c"], leak: float
) -> Float[Array, "n *places c"]:
    """Computes `activate(x · factors + offsets)`.

    The backward pass computes its two sums in one pass, and needs only `x` of the large arrays.
    """
    return activate(_line(x, factors, offsets), leak)


def _line(x: Array, factors: Array, offsets: Array) -> Array:
    return _times(x, factors) + _wide(offsets, x)


def _times(x: Array, factors: Array) -> Array:
    return x.astype(factors.dtype) * _wide(factors, x)


def _wide(values: Float[Array, "groups c"], x: Float[Array, "n *places c"]) -> Float[Array, "n *_ c"]:
    """Returns the values of each image's group, in a shape that broadcasts against `x`."""
    values = values.reshape(len(values), *[1] * (x.ndim - 2), -1)
    return jnp.tile(values, (len(x) // len(values), *[1] * (x.ndim - 1))) if len(values) > 1 else values


def _affine_forward(x: Array, factors: Array, offsets: Array, leak: float) -> tuple[Array, tuple[Array, Array, Array]]:
    return affine(x, factors, offsets, leak), (x, factors, offsets)


def _affine_backward(leak: float, kept: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    x, factors, offsets = kept
    if leak != 1:
        # The comparison is written differently from the one in the forward pass. Otherwise XLA would compare only once,
        # and keep the result in memory.
        y, zero = _times(x, factors), -_wide(offsets, x)
        dy = jnp.where(y > zero, dy, 0) if leak == 0 else jnp.where(y >= zero, dy, leak * dy)
    dx = _times(dy, factors).astype(x.dtype)
    return dx, *sums(dy * x.astype(dy.dtype), dy, len(factors))


affine.defvjp(_affine_forward, _affine_backward)
