"""The stride-2 convolutions of `convolution.py` by Winograd's algorithm along the height only, for CPUs.

Along the height, a 5-tap convolution of stride 2 is the sum of a 3-tap and a 2-tap convolution of stride 1, as in
`winograd.py`. Four outputs of these take 6 and 5 multiplications instead of 12 and 8. So 11 convolutions along the
width replace 20.

`winograd.py` works along both axes. It needs a tenth fewer multiplications, but moves more data and has more operations
to compile:

| | here | `winograd.py` |
|---|---|---|
| times the large image is written and read | 1.4 | 3 |
| times the small image is written and read | 2.8 | 12 |
| operations to compile | 1/5 | 1 |

The form here is faster when the sums between the products take most of the time: for large images, and on processors
with fast products.

The factors are up to 8. The float32 error is 4e-6 of the largest value, about four times the error of a plain sum.

Source: Winograd 1980; Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from dcgan_jax.networks.direct import DIMENSIONS, UP_TAPS
from dcgan_jax.networks.winograd import block_matrix, combine

ROWS = 4  # rows of the small image in a tile
# B, G and A of F(4, 3), four outputs of three taps, at the points 0, 1, -1, 2, -2, infinity.
_B3 = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_G3 = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_A3 = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
# B, G and A of F(4, 2), four outputs of two taps, at the points 0, 1, -1, 2, infinity.
_B2 = np.array([[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]])
_G2 = np.array([[3, 0], [-3, -3], [-1, 1], [1, 2], [0, 6]]) / 6
_A2 = np.array([[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 0], [0, 1, -1, 8, 1]])
_THREE, _TWO, _EVEN, _ODD, _ALL = slice(6), slice(6, 11), slice(0, None, 2), slice(1, None, 2), slice(None)
# Down: four outputs from a window of 11 inputs. Up: eight outputs from a window of 6 inputs.
_B_DOWN = block_matrix(11, 11, (_B3, _THREE, _EVEN), (_B2, _TWO, _ODD))
_G_DOWN = block_matrix(11, 5, (_G3, _THREE, _EVEN), (_G2, _TWO, _ODD))
_A_DOWN = block_matrix(4, 11, (_A3, _ALL, _THREE), (_A2, _ALL, _TWO))
_B_UP = block_matrix(11, 6, (_B3, _THREE, _ALL), (_B2, _TWO, slice(5)))
_G_UP = block_matrix(11, 5, (_G3[:, ::-1], _THREE, _EVEN), (_G2[:, ::-1], _TWO, _ODD))
_A_UP = block_matrix(8, 11, (_A3, _ODD, _THREE), (_A2, _EVEN, _TWO))


def down(x: Float[Array, "b h w i"], kernel: Float[Array, "5 5 i o"]) -> Float[Array, "b h/2 w/2 o"]:
    """Computes `convolution.conv_down`. The height must be a multiple of 8."""
    inputs = _mix(_B_DOWN, _windows(x, 11, 8, (1, 2)), x.dtype)
    kernels = _mix(_G_DOWN, list(kernel), x.dtype)
    products = [_convolve(a, k, (1, 2), (1, 2)) for a, k in zip(inputs, kernels, strict=True)]
    return _interleave(_mix(_A_DOWN, products, x.dtype))


def up(y: Float[Array, "b h w i"], kernel: Float[Array, "5 5 o i"]) -> Float[Array, "b 2h 2w o"]:
    """Computes `convolution.conv_up`. The height must be a multiple of 4."""
    inputs = _mix(_B_UP, _windows(y, 6, 4, (1, 1)), y.dtype)
    kernels = _mix(_G_UP, list(kernel), y.dtype)
    columns = []
    for taps, padding in UP_TAPS:
        products = [_convolve(a, k[taps].swapaxes(1, 2), (1, 1), padding) for a, k in zip(inputs, kernels, strict=True)]
        columns.append(_mix(_A_UP, products, y.dtype))
    rows = [_stack(list(row), axis=3) for row in zip(*columns, strict=True)]
    b, h, w, _, o = rows[0].shape
    return jnp.stack(rows, axis=2).reshape(b, 2 * ROWS * h, 2 * w, o)


def kernel_gradient(x: Float[Array, "b h w i"], y: Float[Array, "b h/2 w/2 o"]) -> Float[Array, "5 5 i o"]:
    """Computes `direct.kernel_gradient`. The height of `x` must be a multiple of 8."""
    exact = jnp.promote_types(x.dtype, jnp.float32)
    inputs = _mix(_B_DOWN, _windows(x, 11, 8, (1, 2)), x.dtype)
    outputs = _mix(_A_DOWN.T, _windows(y, ROWS, ROWS, (0, 0)), x.dtype)
    sums = []
    for a, b in zip(inputs, outputs, strict=True):
        a = lax.optimization_barrier(jnp.pad(a, ((0, 0), (0, 0), (1, 2), (0, 0))))
        taps = [a[:, :, k : k + x.shape[2] - 1 : 2] for k in range(5)]
        over = ((0, 1, 2), (0, 1, 2)), ((), ())
        sums.append(jnp.stack([lax.dot_general(tap, b, over, preferred_element_type=exact) for tap in taps]))
    return jnp.stack(_mix(_G_DOWN.T, sums, x.dtype))


def _windows(x: Array, size: int, stride: int, padding: tuple[int, int]) -> list[Array]:
    """Slides a window of `size` rows down `x`. Entry i holds the i-th rows of all windows; zeros pad the border."""
    # The barrier keeps XLA from fusing the padding into the slices. The fused code would test each element for the
    # border.
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), padding, (0, 0), (0, 0))))
    length = x.shape[1] - size + 1
    return [lax.slice_in_dim(x, start, start + length, stride, axis=1) for start in range(size)]


def _mix(matrix: np.ndarray, arrays: list[Array], dtype: DTypeLike) -> list[Array]:
    """Computes matrix · arrays in float32 or better, and returns it in `dtype`."""
    exact = jnp.promote_types(dtype, jnp.float32)
    return [combine(row, [x.astype(exact) for x in arrays]).astype(dtype) for row in matrix]


def _convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: tuple[int, int]) -> Array:
    """Convolves along the width with a kernel [taps, i, o]."""
    return lax.conv_general_dilated(x, kernel[None], strides, ((0, 0), padding), dimension_numbers=DIMENSIONS)


def _stack(arrays: list[Array], axis: int) -> Array:
    # The barriers keep XLA from fusing the sums into the stack. The fused code would test each element for its place.
    return lax.optimization_barrier(jnp.stack(lax.optimization_barrier(arrays), axis=axis))


def _interleave(rows: list[Array]) -> Float[Array, "b h w c"]:
    """Assembles an image from tiles of m rows. Entry i holds the i-th rows of all tiles, [b, h, w, c]."""
    stacked = _stack(rows, axis=2)
    b, h, m, w, c = stacked.shape
    return stacked.reshape(b, h * m, w, c)
