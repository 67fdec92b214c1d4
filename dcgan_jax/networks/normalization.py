"""Batch norm and the activation behind it, with few passes over memory.

The forward pass reads the features twice: for both sums, and for the result. So does the backward pass. A forward pass
stores only its input for the backward pass. On several devices each pass exchanges its sums once.
"""

import functools
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

    Parameters, statistics and results are those of `flax.linen.BatchNorm` and `flax.linen.leaky_relu`, up to rounding.
    Sums are in float32 at least. In training mode it can be differentiated in reverse, as often as need be, but not
    forward.

    Attributes:
        use_running_average: normalise by the stored statistics; else by the batch's own, which then go into the
            stored ones.
        momentum: share of the stored statistics that a pass leaves.
        dtype: of the result; None, that of the features.
        scale_init: draws the scale.
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
            leak: slope of the activation below zero: 0 for ReLU, 1 for none.
            groups: how many batches lie in `x`, each with statistics of its own. Image i belongs to batch i % groups,
                and what is stored is as if the batches had come one after the other.

        Raises:
            ValueError: the images do not divide into so many batches.
        """
        if not len(x) or len(x) % groups:
            raise ValueError(f"`x` has {len(x)} images; it takes a multiple of `groups`, {groups}, and not 0")
        exact = jnp.promote_types(x.dtype, jnp.float32)
        channels = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(channels, exact))
        variance = self.variable("batch_stats", "var", lambda: jnp.ones(channels, exact))
        scale = self.param("scale", self.scale_init, channels, exact)
        bias = self.param("bias", zeros, channels, exact)
        if self.use_running_average:
            factor = scale * lax.rsqrt(variance.value + EPSILON)
            y = _activate((x - mean.value) * factor + bias, leak)
        else:
            x32 = x.astype(exact)
            means, squares = (s * (groups * channels[0] / x.size) for s in _sums(x32, x32 * x32, groups))
            variances = jnp.maximum(squares - means * means, 0)
            factors = scale * lax.rsqrt(variances + EPSILON)
            y: Any = _affine(x, factors, bias - means * factors, leak)
            if not self.is_initializing():
                for i in range(groups):
                    mean.value = self.momentum * mean.value + (1 - self.momentum) * means[i]
                    variance.value = self.momentum * variance.value + (1 - self.momentum) * variances[i]
        return y.astype(self.dtype or x.dtype)


def in_turn(*batches: Array) -> Array:
    """Several batches as the groups of one: image i of it is of batch i % groups. So images stay on their device."""
    return jnp.stack(batches, axis=1).reshape(-1, *batches[0].shape[1:])


def _activate(y, leak):
    if leak == 1:
        return y
    return nn.relu(y) if leak == 0 else nn.leaky_relu(y, leak)


def _grouped(x, groups):
    return x.reshape(-1, groups, *x.shape[1:])


_Sums = tuple[Float[Array, "groups c"], Float[Array, "groups c"]]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _sums(a: Float[Array, "n *places c"], b: Float[Array, "n *places c"], groups: int) -> _Sums:
    """The sums of two arrays over images and places, for each group and channel."""
    plain, together = (functools.partial(form, groups=groups) for form in (_plain_sums, _sums_together))
    return lax.platform_dependent(a, b, cuda=together, default=plain)


def _plain_sums(a, b, groups) -> _Sums:
    """One sum after the other. A CPU does that well, and a TPU's compiler joins their exchanges between devices."""
    first, second = (jnp.sum(_grouped(x, groups), (0, *range(2, x.ndim))) for x in (a, b))
    return first, second


def _sums_together(a, b, groups) -> _Sums:
    """Both in one pass over memory. Of plain sums XLA makes more kernels on a GPU."""

    def reduce(arrays: tuple[Any, ...], axes):
        start = tuple(jnp.zeros((), x.dtype) for x in arrays)
        return lax.reduce(arrays, start, lambda x, y: (x[0] + y[0], x[1] + y[1]), axes)

    if groups == 1:
        first, second = reduce((a, b), tuple(range(a.ndim - 1)))
        return first[None], second[None]
    # Over the places first. Over axes that are not neighbours, XLA sums in a slow loop.
    rows = reduce((a, b), tuple(range(1, a.ndim - 1)))
    return reduce(tuple(_grouped(x, groups) for x in rows), (0,))


@_sums.defjvp
def _sums_tangents(groups, primals, tangents):
    (a, b), (da, db) = primals, tangents
    return _sums(a, b, groups), _plain_sums(da, db, groups)  # JAX can transpose plain sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _affine(x, factors: Float[Array, "groups c"], offsets: Float[Array, "groups c"], leak: float):
    """Activates x · factors + offsets. Its backward pass takes both sums together, and needs no array but `x`."""
    return _activate(_line(x, factors, offsets), leak)


def _line(x, factors, offsets):
    return _times(x, factors) + _wide(offsets, x)


def _times(x, factors):
    return x.astype(factors.dtype) * _wide(factors, x)


def _wide(values: Float[Array, "groups c"], x) -> Float[Array, "n *_ c"]:
    """The values of each image's group, to go with `x`."""
    values = values.reshape(len(values), *[1] * (x.ndim - 2), -1)
    return jnp.tile(values, (len(x) // len(values), *[1] * (x.ndim - 1))) if len(values) > 1 else values


def _affine_forward(x, factors, offsets, leak):
    return _affine(x, factors, offsets, leak), (x, factors, offsets)


def _affine_backward(leak, kept, dy):
    x, factors, offsets = kept
    if leak != 1:
        # Compared in another way than in the forward pass. Else XLA compares once, and keeps the result in memory.
        y, zero = _times(x, factors), -_wide(offsets, x)
        dy = jnp.where(y > zero, dy, 0) if leak == 0 else jnp.where(y >= zero, dy, leak * dy)
    dx = _times(dy, factors).astype(x.dtype)
    return dx, *_sums(dy * x.astype(dy.dtype), dy, len(factors))


_affine.defvjp(_affine_forward, _affine_backward)
