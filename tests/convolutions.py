"""Strided convolutions by loops and by XLA, and arrays to try them on."""

import numpy as np
from jax import lax
from plain import DIMENSIONS


def loop_down(x, kernel):
    b, h, w, _ = x.shape
    y = np.zeros((b, h // 2, w // 2, kernel.shape[3]))
    for i, j, k, m in np.ndindex(h // 2, w // 2, 5, 5):
        row, column = 2 * i + k - 1, 2 * j + m - 1
        if 0 <= row < h and 0 <= column < w:
            y[:, i, j] += x[:, row, column] @ kernel[k, m]
    return y


def loop_up(y, kernel):
    b, h, w, _ = y.shape
    x = np.zeros((b, 2 * h, 2 * w, kernel.shape[2]))
    for i, j, k, m in np.ndindex(h, w, 5, 5):
        row, column = 2 * i + k - 1, 2 * j + m - 1
        if 0 <= row < 2 * h and 0 <= column < 2 * w:
            x[:, row, column] += y[:, i, j] @ kernel[k, m].T
    return x


def plain_down(x, kernel):
    return lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=DIMENSIONS)


def plain_up(y, kernel):
    return lax.conv_transpose(y, kernel, (2, 2), "SAME", dimension_numbers=DIMENSIONS, transpose_kernel=True)


def draw(shape, seed=0, batch=2):
    """An image, a feature map of half its size and a kernel, all standard normal in float64."""
    h, w, inner, outer = shape
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((batch, h, w, inner)),
        rng.standard_normal((batch, h // 2, w // 2, outer)),
        rng.standard_normal((5, 5, inner, outer)),
    )
