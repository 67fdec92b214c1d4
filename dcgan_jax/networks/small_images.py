"""The stride-2 convolutions of `convolution.py` for images smaller than the 5×5 kernel, for GPUs.

XLA takes such images for kernels and slides the kernel over them. It then multiplies 7.8 times as much for `up` from
4×4 pixels, and 3.1 times as much for the kernel's gradient. These forms multiply what the layer asks for.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def up(y: Float[Array, "b h w i"], kernel: Float[Array, "5 5 o i"]) -> Float[Array, "b 2h 2w o"]:
    """`convolution.conv_up`. One matrix product gives what each pixel adds to 5×5 neighbours; overlaps add up."""
    parts = lax.dot_general(y, kernel, (((3,), (3,)), ((), ())))  # [b, h, w, 5, 5, o]
    exact = jnp.promote_types(y.dtype, jnp.float32)
    return _overlap(_overlap(parts.astype(exact), axis=1, taps=3), axis=2, taps=3).astype(y.dtype)


def _overlap(parts, axis, taps):
    """Adds what the taps of one direction give: axis `taps` goes, axis `axis` doubles."""

    def tap(k, by):
        """What tap k gives, moved along the axis, zeros behind it."""
        part = lax.index_in_dim(parts, k, taps, keepdims=False)
        move = [(by, -by, 0) if i == axis else (0, 0, 0) for i in range(part.ndim)]
        return lax.pad(part, jnp.zeros((), part.dtype), move)

    even, odd = tap(1, 0) + tap(3, 1), tap(0, -1) + tap(2, 0) + tap(4, 1)
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis + 1).reshape(shape)


def kernel_gradient(x: Float[Array, "b h w i"], y: Float[Array, "b h/2 w/2 o"]) -> Float[Array, "5 5 i o"]:
    """The gradient of ⟨down(x, kernel), y⟩ in the kernel: four of stride 1, for each parity of row and column."""

    def phase(rows, columns):
        # Taps 0, 2, 4 meet the odd rows with a zero at both ends, taps 1 and 3 the even ones with a zero at the end.
        part = jnp.pad(x[:, rows::2, columns::2], ((0, 0), (rows, 1), (columns, 1), (0, 0)))
        kernel = jax.ShapeDtypeStruct((2 + rows, 2 + columns, x.shape[3], y.shape[3]), x.dtype)
        valid = functools.partial(
            lax.conv_general_dilated, part, window_strides=(1, 1), padding="VALID", dimension_numbers=_DIMENSIONS
        )
        return jax.linear_transpose(valid, kernel)(y)[0]

    def interleaved(odd, even, axis):
        parts = [
            lax.slice_in_dim(part, i, i + 1, axis=axis)
            for i in range(3)
            for part in (odd, even)
            if i < part.shape[axis]
        ]
        return jnp.concatenate(parts, axis)

    odd, even = (interleaved(phase(rows, 1), phase(rows, 0), 1) for rows in (1, 0))
    return interleaved(odd, even, 0)
