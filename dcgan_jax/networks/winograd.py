"""The stride-2 convolutions of `convolution.py` by Winograd's algorithm, with half the multiplications, for CPUs.

Along one axis, a 5-tap convolution of stride 2 is the sum of two convolutions of stride 1. One has three taps over
every second input, the other has two taps over the inputs in between. Winograd's minimal filtering computes two
outputs as y = A (G w · B x) with an elementwise product. For three taps it takes 4 multiplications instead of 6, and
for two taps 3 instead of 4. Along both axes, a tile of 2×2 outputs takes (4 + 3)² = 49 multiplications instead of 100.

Over all images and channels, each of the 49 multiplications is a matrix product, the fastest operation of a CPU. In
bfloat16 it is also the only product that XLA's CPU backend does not compute in float32.

All factors are 0, ±1/2 or ±1, so the float32 error is no larger than the error of a plain sum. In 16-bit types the sums
are rounded before the products, and the mean error is about twice the error of a plain sum.

Source: Winograd 1980; Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Float

# B, G and A of F(2, 3), two outputs of three taps, at the points 0, 1, -1, infinity.
_B3 = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G3 = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A3 = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
# B, G and A of F(2, 2), two outputs of two taps, at the points 0, 1, infinity.
_B2 = np.array([[1, -1, 0], [0, 1, 0], [0, -1, 1]])
_G2 = np.array([[1, 0], [1, 1], [0, 1]])
_A2 = np.array([[1, 1, 0], [0, 1, 1]])


def block_matrix(rows: int, columns: int, *blocks: tuple[np.ndarray, slice, slice]) -> np.ndarray:
    """Makes a matrix of zeros with some blocks in it. Each block comes with the rows and the columns that it fills."""
    matrix = np.zeros((rows, columns))
    for block, row, column in blocks:
        matrix[np.ix_(range(rows)[row], range(columns)[column])] = block
    return matrix


_THREE, _TWO, _EVEN, _ODD, _ALL = slice(4), slice(4, 7), slice(0, None, 2), slice(1, None, 2), slice(None)
# Down: two outputs from a window of 7 inputs. The 1st, 3rd, ... inputs meet the taps 0, 2, 4, the others the taps 1, 3.
_B_DOWN = block_matrix(7, 7, (_B3, _THREE, _EVEN), (_B2, _TWO, _ODD))
_G_DOWN = block_matrix(7, 5, (_G3, _THREE, _EVEN), (_G2, _TWO, _ODD))
_A_DOWN = block_matrix(2, 7, (_A3, _ALL, _THREE), (_A2, _ALL, _TWO))
# Up: four outputs from a window of 4 inputs. Odd outputs use the taps 4, 2, 0, even ones the taps 3, 1.
_B_UP = block_matrix(7, 4, (_B3, _THREE, _ALL), (_B2, _TWO, slice(3)))
_G_UP = block_matrix(7, 5, (_G3[:, ::-1], _THREE, _EVEN), (_G2[:, ::-1], _TWO, _ODD))
_A_UP = block_matrix(4, 7, (_A3, _ODD, _THREE), (_A2, _EVEN, _TWO))


def down(x: Float[Array, "b h w i"], kernel: Float[Array, "5 5 i o"]) -> Float[Array, "b h/2 w/2 o"]:
    """Computes `convolution.conv_down`. Height and width must be multiples of 4."""
    inputs = _mix(_B_DOWN, _windows(x, 7, 4, (1, 2), axis=1), x.dtype)
    kernels = _mix(_G_DOWN, _taps(kernel), x.dtype)
    return _interleave(_mix(_A_DOWN, _products(inputs, kernels, (3,), (0,)), x.dtype))


def up(y: Float[Array, "b h w i"], kernel: Float[Array, "5 5 o i"]) -> Float[Array, "b 2h 2w o"]:
    """Computes `convolution.conv_up`. Height and width must be even."""
    inputs = _mix(_B_UP, _windows(y, 4, 2, (1, 1), axis=1), y.dtype)
    kernels = _mix(_G_UP, _taps(kernel), y.dtype)
    return _interleave(_mix(_A_UP, _products(inputs, kernels, (3,), (1,)), y.dtype))


def kernel_gradient(x: Float[Array, "b h w i"], y: Float[Array, "b h/2 w/2 o"]) -> Float[Array, "5 5 i o"]:
    """Computes `direct.kernel_gradient`. Height and width of `x` must be multiples of 4."""
    # A matrix product reads the axes in this order. They are moved here once, instead of 49 times.
    inputs = _mix(_B_DOWN, _windows(x.transpose(3, 1, 2, 0), 7, 4, (1, 2), axis=1), x.dtype)
    outputs = _mix(_A_DOWN.T, _windows(y.transpose(1, 2, 0, 3), 2, 2, (0, 0), axis=0), x.dtype)
    kernel = _mix(_G_DOWN.T, _products(inputs, outputs, (1, 2, 3), (0, 1, 2)), x.dtype)
    return jnp.stack([jnp.stack(row) for row in kernel])


_Grid = list[list[Array]]  # an array for each place of a small square


def _windows(x: Array, size: int, stride: int, padding: tuple[int, int], axis: int) -> _Grid:
    """Slides a square window over two axes of `x`, and collects the values at each place of the window.

    Args:
        x: array with four axes.
        size: side of the window.
        stride: step between windows.
        padding: zeros before and behind each of the two axes.
        axis: the first of the two axes.

    Returns:
        Entry [i][j] holds the values at row i and column j of all windows.
    """
    widths = [padding if i in (axis, axis + 1) else (0, 0) for i in range(4)]
    counts = [(n + sum(padding) - size) // stride for n in x.shape[axis : axis + 2]]
    # The barrier keeps XLA from fusing the padding into the slices. The fused code would test each element for the
    # border.
    x = lax.optimization_barrier(jnp.pad(x, widths))

    def every(x: Array, start: int, i: int) -> Array:
        return lax.slice_in_dim(x, start, start + stride * counts[i] + 1, stride, axis + i)

    return [[every(every(x, row, 0), column, 1) for column in range(size)] for row in range(size)]


def _taps(kernel: Array) -> _Grid:
    return [[kernel[i, j] for j in range(kernel.shape[1])] for i in range(kernel.shape[0])]


def _mix(matrix: np.ndarray, grid: _Grid, dtype: DTypeLike) -> _Grid:
    """Computes matrix · grid · matrixᵀ in float32 or better, and returns it in `dtype`."""
    exact = jnp.promote_types(dtype, jnp.float32)
    columns = [[combine(row, [x.astype(exact) for x in entries]) for row in matrix] for entries in grid]
    mixed = [[combine(row, column) for column in zip(*columns, strict=True)] for row in matrix]
    return [[x.astype(dtype) for x in row] for row in mixed]


def combine(factors: Iterable[float], arrays: Sequence[Array]) -> Array:
    """Computes Σ factor · array without multiplications by 0, 1 and −1."""
    terms = [
        x if factor == 1 else -x if factor == -1 else factor * x
        for factor, x in zip(factors, arrays, strict=True)
        if factor
    ]
    return sum(terms[1:], start=terms[0])


def _products(a: _Grid, b: _Grid, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> _Grid:
    """Multiplies the arrays at each place as matrices, with sums in float32 or better.

    Args:
        a: left factors.
        b: right factors.
        a_axes: axes of the left factors to sum over.
        b_axes: axes of the right factors to sum over.
    """
    exact = jnp.promote_types(a[0][0].dtype, jnp.float32)
    dimensions = ((a_axes, b_axes), ((), ()))
    return [
        [lax.dot_general(x, y, dimensions, preferred_element_type=exact) for x, y in zip(*rows, strict=True)]
        for rows in zip(a, b, strict=True)
    ]


def _interleave(grid: _Grid) -> Float[Array, "b h w c"]:
    """Assembles an image from tiles of m × m pixels. Entry [i][j] holds the pixels (i, j) of all tiles."""
    # The barriers keep XLA from fusing the sums into the stack. The fused code would test each element for its place.
    rows = [lax.optimization_barrier(jnp.stack(lax.optimization_barrier(row), axis=3)) for row in grid]
    b, h, w, m, c = rows[0].shape
    return jnp.stack(rows, axis=2).reshape(b, m * h, m * w, c)
