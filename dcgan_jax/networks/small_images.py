"""The stride-2 convolutions of `convolution.py` on GPUs, for images smaller than the 5×5 kernel.

For such images XLA swaps the roles of image and kernel. From 4×4 pixels, `up` then takes 7.8 times the multiplications
that the layer needs, and the kernel gradient 3.1 times. The forms here take no more than the layer needs.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dcgan_jax.networks.direct import DIMENSIONS


def up(y: Float[Array, "b h w i"], kernel: Float[Array, "5 5 o i"]) -> Float[Array, "b 2h 2w o"]:
    """Computes `convolution.conv_up` by one matrix product.

    The product gives a patch of 5×5 pixels for each pixel of `y`: its contribution to the result. Overlapping patches
    are summed.
    """
    patches = lax.dot_general(y, kernel, (((3,), (3,)), ((), ())))  # [b, h, w, 5, 5, o]
    exact = jnp.promote_types(y.dtype, jnp.float32)
    return _sum_overlaps(_sum_overlaps(patches.astype(exact), axis=1, taps=3), axis=2, taps=3).astype(y.dtype)


def _sum_overlaps(patches: Array, axis: int, taps: int) -> Array:
    """Sums the overlapping patches along one direction.

    The result lacks the axis `taps`, and its axis `axis` is twice as long.
    """

    def shifted(tap: int, by: int) -> Array:
        """Returns the values of one tap, moved by `by` places along `axis`. Zeros fill the free places."""
        values = lax.index_in_dim(patches, tap, taps, keepdims=False)
        move = [(by, -by, 0) if i == axis else (0, 0, 0) for i in range(values.ndim)]
        return lax.pad(values, jnp.zeros((), values.dtype), move)

    even, odd = shifted(1, 0) + shifted(3, 1), shifted(0, -1) + shifted(2, 0) + shifted(4, 1)
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis + 1).reshape(shape)


def kernel_gradient(x: Float[Array, "b h w i"], y: Float[Array, "b h/2 w/2 o"]) -> Float[Array, "5 5 i o"]:
    """Computes `direct.kernel_gradient` as four gradients of stride 1, one for each parity of row and column of `x`."""

    def phase(row: int, column: int) -> Array:
        """Returns the gradient of the taps that meet the rows and columns of this parity."""
        # Odd rows meet the taps 0, 2 and 4, and need a zero at both ends. Even rows meet the taps 1 and 3, and need a
        # zero at the end.
        part = jnp.pad(x[:, row::2, column::2], ((0, 0), (row, 1), (column, 1), (0, 0)))
        kernel = jax.ShapeDtypeStruct((2 + row, 2 + column, x.shape[3], y.shape[3]), x.dtype)
        valid = functools.partial(
            lax.conv_general_dilated, part, window_strides=(1, 1), padding="VALID", dimension_numbers=DIMENSIONS
        )
        return jax.linear_transpose(valid, kernel)(y)[0]

    def interleaved(odd: Array, even: Array, axis: int) -> Array:
        parts = [
            lax.slice_in_dim(part, i, i + 1, axis=axis)
            for i in range(3)
            for part in (odd, even)
            if i < part.shape[axis]
        ]
        return jnp.concatenate(parts, axis)

    odd, even = (interleaved(phase(row, 1), phase(row, 0), 1) for row in (1, 0))
    return interleaved(odd, even, 0)
