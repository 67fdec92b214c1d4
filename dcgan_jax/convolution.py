"""Stride-2 convolutions, down and up, in the form that is fast on the backend they run on.

A 5×5 stride-2 convolution reads y[i] = Σ_k x[2i + k − 1] w[k] in each direction (padding "SAME"), and its transpose
x[m] = Σ_{2i + k − 1 = m} y[i] w[k]. An even m meets only the odd taps k = 1, 3 and an odd m only the even ones 0, 2, 4,
so the transpose is four small stride-1 convolutions, one for each parity of row and column, whose results interleave.
XLA's own form, a convolution over an input dilated with zeros, runs up to fifty times slower on a CPU (jax#23783).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

KERNEL_SIZE = 5
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# By parity of the output row or column: the taps it meets, from the earliest input to the latest, and the padding.
_TAPS = ((3, 1), (4, 2, 0))
_PADDING = ((1, 0), (1, 1))


@jax.custom_vjp
def conv_down(x: Float[Array, "b h w i"], kernel: Float[Array, "5 5 i o"]) -> Float[Array, "b h/2 w/2 o"]:
    """Convolves with stride 2 and halves height and width, which must be even (padding "SAME", zeros).

    Differentiable in reverse to any order; its input gradient is `conv_up`. Not differentiable forward (`jax.jvp`),
    as any `jax.custom_vjp`.
    """
    return _strided(x, kernel)


def conv_up(x: Float[Array, "b h w i"], kernel: Float[Array, "5 5 o i"]) -> Float[Array, "b 2h 2w o"]:
    """The transpose of `conv_down` with the same kernel: doubles height and width.

    ⟨conv_up(x, k), y⟩ = ⟨x, conv_down(y, k)⟩. Made of plain convolutions: every transformation works.
    """
    rows = []
    for row in range(2):
        columns = []
        for column in range(2):
            taps = kernel[jnp.array(_TAPS[row])][:, jnp.array(_TAPS[column])]
            columns.append(
                lax.conv_general_dilated(
                    x,
                    taps.swapaxes(2, 3),
                    window_strides=(1, 1),
                    padding=(_PADDING[row], _PADDING[column]),
                    dimension_numbers=_DIMENSIONS,
                )
            )
        rows.append(jnp.stack(columns, axis=3))  # [b, h, w, 2, o]
    b, h, w, _, o = rows[0].shape
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, o)


def _strided(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, window_strides=(2, 2), padding=((1, 2), (1, 2)), dimension_numbers=_DIMENSIONS
    )


def _down_forward(x, kernel):
    return _strided(x, kernel), (x, kernel)


def _down_backward(residuals, cotangent):
    x, kernel = residuals
    kernel_gradient = jax.linear_transpose(functools.partial(_strided, x), kernel)(cotangent)[0]
    return conv_up(cotangent, kernel), kernel_gradient


conv_down.defvjp(_down_forward, _down_backward)
