"""The stride-2 convolutions of `convolution.py` with half the multiplications, for CPUs.

Split by parity, a 5-tap stride-2 convolution is a 3-tap and a 2-tap one of stride 1. Winograd's minimal filtering
gives two outputs of these for 4 and 3 multiplications in place of 6 and 4, y = A (G w · B x), and over rows and columns
49 in place of 100. Each of the 49 is a product of matrices, which is where a CPU is fastest; in bfloat16 it is the only
product that XLA's CPU backend does not compute in float32. All factors are 0, ±1/2 or ±1, so that float32 loses no more
than in a plain sum; in half precision the sums are rounded before the products, and the mean error is about twice that
of a plain sum.

Source: Winograd 1980; Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# F(2, 3) at the points 0, 1, -1, infinity, and F(2, 2) at 0, 1, infinity.
_B3 = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G3 = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A3 = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_B2 = np.array([[1, -1, 0], [0, 1, 0], [0, -1, 1]])
_G2 = np.array([[1, 0], [1, 1], [0, 1]])
_A2 = np.array([[1, 1, 0], [0, 1, 1]])


def block_matrix(rows, columns, *blocks):
    """Zeros but for blocks, each given with its rows and columns."""
    matrix = np.zeros((rows, columns))
    for block, row, column in blocks:
        matrix[np.ix_(range(rows)[row], range(columns)[column])] = block
    return matrix


_THREE, _TWO, _EVEN, _ODD, _ALL = slice(4), slice(4, 7), slice(0, None, 2), slice(1, None, 2), slice(None)
# Down: two outputs from a window of 7 inputs, whose 1st, 3rd, ... meet the taps 0, 2, 4 and the others the taps 1, 3.
_B_DOWN = block_matrix(7, 7, (_B3, _THREE, _EVEN), (_B2, _TWO, _ODD))
_G_DOWN = block_matrix(7, 5, (_G3, _THREE, _EVEN), (_G2, _TWO, _ODD))
_A_DOWN = block_matrix(2, 7, (_A3, _ALL, _THREE), (_A2, _ALL, _TWO))
# Up: four outputs from a window of 4 inputs; odd ones meet the taps 4, 2, 0 and even ones the taps 3, 1.
_B_UP = block_matrix(7, 4, (_B3, _THREE, _ALL), (_B2, _TWO, slice(3)))
_G_UP = block_matrix(7, 5, (_G3[:, ::-1], _THREE, _EVEN), (_G2[:, ::-1], _TWO, _ODD))
_A_UP = block_matrix(4, 7, (_A3, _ODD, _THREE), (_A2, _EVEN, _TWO))


def down(x: Float[Array, "b h w i"], kernel: Float[Array, "5 5 i o"]) -> Float[Array, "b h/2 w/2 o"]:
    """`convolution.conv_down`, for sides that are multiples of 4."""
    inputs = _mix(_B_DOWN, _windows(x, 7, 4, (1, 2), axis=1), x.dtype)
    kernels = _mix(_G_DOWN, _taps(kernel), x.dtype)
    return _interleave(_mix(_A_DOWN, _products(inputs, kernels, (3,), (0,)), x.dtype))


def up(y: Float[Array, "b h w i"], kernel: Float[Array, "5 5 o i"]) -> Float[Array, "b 2h 2w o"]:
    """`convolution.conv_up`, for even sides."""
    inputs = _mix(_B_UP, _windows(y, 4, 2, (1, 1), axis=1), y.dtype)
    kernels = _mix(_G_UP, _taps(kernel), y.dtype)
    return _interleave(_mix(_A_UP, _products(inputs, kernels, (3,), (1,)), y.dtype))


def kernel_gradient(x: Float[Array, "b h w i"], y: Float[Array, "b h/2 w/2 o"]) -> Float[Array, "5 5 i o"]:
    """The gradient of ⟨down(x, kernel), y⟩ in the kernel, for sides of x that are multiples of 4."""
    # Axes in the order in which a matrix product reads them, moved once and not for each of the 49.
    inputs = _mix(_B_DOWN, _windows(x.transpose(3, 1, 2, 0), 7, 4, (1, 2), axis=1), x.dtype)
    outputs = _mix(_A_DOWN.T, _windows(y.transpose(1, 2, 0, 3), 2, 2, (0, 0), axis=0), x.dtype)
    kernel = _mix(_G_DOWN.T, _products(inputs, outputs, (1, 2, 3), (0, 1, 2)), x.dtype)
    return jnp.stack([jnp.stack(row) for row in kernel])


_Grid = list[list[Array]]


def _windows(x: Array, size: int, stride: int, padding: tuple[int, int], axis: int) -> _Grid:
    """The values at each place of a window that strides over two axes, zeros beyond the border."""
    widths = [padding if i in (axis, axis + 1) else (0, 0) for i in range(4)]
    counts = [(n + sum(padding) - size) // stride for n in x.shape[axis : axis + 2]]
    # Fused into the slices, the padding would be tested for at every element of each.
    x = lax.optimization_barrier(jnp.pad(x, widths))

    def every(x, start, i):
        return lax.slice_in_dim(x, start, start + stride * counts[i] + 1, stride, axis + i)

    return [[every(every(x, row, 0), column, 1) for column in range(size)] for row in range(size)]


def _taps(kernel: Array) -> _Grid:
    return [[kernel[i, j] for j in range(kernel.shape[1])] for i in range(kernel.shape[0])]


def _mix(matrix: np.ndarray, grid: _Grid, dtype) -> _Grid:
    """The linear combinations matrix · grid · matrixᵀ, computed in float32 at least."""
    exact = jnp.promote_types(dtype, jnp.float32)
    columns = [[combine(row, [x.astype(exact) for x in entries]) for row in matrix] for entries in grid]
    mixed = [[combine(row, column) for column in zip(*columns, strict=True)] for row in matrix]
    return [[x.astype(dtype) for x in row] for row in mixed]


def combine(factors, arrays):
    terms = [
        x if factor == 1 else -x if factor == -1 else factor * x
        for factor, x in zip(factors, arrays, strict=True)
        if factor
    ]
    return sum(terms[1:], start=terms[0])


def _products(a: _Grid, b: _Grid, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> _Grid:
    """A product of matrices at each place, summed in float32 at least."""
    exact = jnp.promote_types(a[0][0].dtype, jnp.float32)
    dimensions = ((a_axes, b_axes), ((), ()))
    return [
        [lax.dot_general(x, y, dimensions, preferred_element_type=exact) for x, y in zip(*rows, strict=True)]
        for rows in zip(a, b, strict=True)
    ]


def _interleave(grid: _Grid) -> Float[Array, "b h w c"]:
    """Puts the value at place (i, j) of m × m of every tile [b, h, w, c] into row m · h + i, column m · w + j."""
    # Fused, the sums would be computed element by element behind a test for the place.
    rows = [lax.optimization_barrier(jnp.stack(lax.optimization_barrier(row), axis=3)) for row in grid]
    b, h, w, m, c = rows[0].shape
    return jnp.stack(rows, axis=2).reshape(b, m * h, m * w, c)
