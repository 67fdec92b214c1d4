"""The stride-2 convolutions of `convolution.py` by direct convolution, for every platform."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

KERNEL_SIZE = 5
DIMENSIONS = ("NHWC", "HWIO", "NHWC")  # order of the axes of image, kernel and result
# The taps that even and odd outputs of `up` use, in the order of the inputs, and the padding of the input.
UP_TAPS = ((slice(3, None, -2), (1, 0)), (slice(4, None, -2), (1, 1)))  # taps 3, 1 and taps 4, 2, 0


def down(x: Float[Array, "b h w i"], kernel: Float[Array, "5 5 i o"]) -> Float[Array, "b h/2 w/2 o"]:
    """Computes `convolution.conv_down`."""
    return lax.conv_general_dilated(
        x, kernel, window_strides=(2, 2), padding=((1, 2), (1, 2)), dimension_numbers=DIMENSIONS
    )


def up(y: Float[Array, "b h w i"], kernel: Float[Array, "5 5 o i"]) -> Float[Array, "b 2h 2w o"]:
    """Computes `convolution.conv_up` as XLA's transpose of `down`."""
    large = jax.ShapeDtypeStruct((y.shape[0], 2 * y.shape[1], 2 * y.shape[2], kernel.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: down(x, kernel), large)(y)[0]


def up_in_phases(y: Float[Array, "b h w i"], kernel: Float[Array, "5 5 o i"]) -> Float[Array, "b 2h 2w o"]:
    """Computes `convolution.conv_up` as four stride-1 convolutions, one for each parity of row and column.

    An even row of the result uses only the taps 1 and 3, an odd row the taps 0, 2 and 4. The same holds for columns.
    """
    rows = []
    for row_taps, row_padding in UP_TAPS:
        columns = []
        for column_taps, column_padding in UP_TAPS:
            columns.append(
                lax.conv_general_dilated(
                    y,
                    kernel[row_taps, column_taps].swapaxes(2, 3),
                    window_strides=(1, 1),
                    padding=(row_padding, column_padding),
                    dimension_numbers=DIMENSIONS,
                )
            )
        rows.append(jnp.stack(columns, axis=3))  # [b, h, w, 2, o]
    b, h, w, _, o = rows[0].shape
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, o)


def kernel_gradient(x: Float[Array, "b h w i"], y: Float[Array, "b h/2 w/2 o"]) -> Float[Array, "5 5 i o"]:
    """Computes the gradient of ⟨down(x, kernel), y⟩ with respect to the kernel, as XLA's transpose of `down`.

    Along one axis, the gradient of tap k is Σ x[2i + k − 1] y[i] over all images and places i.
    """
    kernel = jax.ShapeDtypeStruct((KERNEL_SIZE, KERNEL_SIZE, x.shape[3], y.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: down(x, kernel), kernel)(y)[0]


def kernel_gradient_in_order(x: Float[Array, "b h w i"], y: Float[Array, "b h/2 w/2 o"]) -> Float[Array, "5 5 i o"]:
    """Computes `kernel_gradient` as a convolution with the axes in the order `DIMENSIONS`.

    XLA's CPU backend moves the axes into this order only at the top level of a program, not in a branch or a loop. Its
    code for other orders is fifty times slower.
    """
    kernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        y.transpose(1, 2, 0, 3),
        window_strides=(1, 1),
        padding=((1, 2), (1, 2)),
        rhs_dilation=(2, 2),
        dimension_numbers=DIMENSIONS,
    )
    return kernel.transpose(1, 2, 0, 3)
