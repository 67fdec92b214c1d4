"""The networks and Adam written plainly, with XLA's own convolutions. The tests compare the library with these."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage

from dcgan_jax.training.gan import init_state

# Halves the compile time, for programs that run only a few times.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def batch_norm(x, params, statistics=None):
    """Normalises by the given statistics, or else by the batch's own, and also returns the statistics."""
    axes = tuple(range(x.ndim - 1))
    if statistics is None:
        mean = jnp.mean(x, axes)
        statistics = {"mean": mean, "var": jnp.mean((x - mean) ** 2, axes)}
    scaled = (x - statistics["mean"]) / jnp.sqrt(statistics["var"] + 1e-5)
    return scaled * params["scale"] + params["bias"], statistics


def fill(images, holes):
    """Pull and push by one matrix for each hole, which must not be traced."""
    matrices = np.stack([fill_matrix(hole) for hole in np.asarray(holes)])
    return (matrices @ images.reshape(*matrices.shape[:2], -1)).reshape(images.shape)


def fill_matrix(hole):
    """Averages of known pixels, level by level, and enlargements."""
    side = len(hole)
    if side == 1:
        return np.diag((~hole).astype(np.float32).ravel())
    known = [
        [np.flatnonzero(~hole[r : r + 2, c : c + 2].ravel()) for c in range(0, side, 2)] for r in range(0, side, 2)
    ]
    pull = np.zeros((side // 2, side // 2, side, side), np.float32)
    for r, c in np.ndindex(side // 2, side // 2):
        for place in known[r][c]:
            pull[r, c, 2 * r + place // 2, 2 * c + place % 2] = 1 / len(known[r][c])
    smaller = np.array([[not len(cell) for cell in row] for row in known])
    # The centres of the pixels of an enlarged image lie a quarter of a pixel beside those of the smaller one.
    places = np.clip((np.arange(side) + 0.5) / 2 - 0.5, 0, side // 2 - 1)
    enlarge = np.maximum(1 - np.abs(places[:, None] - np.arange(side // 2)), 0).astype(np.float32)
    pushed = np.kron(enlarge, enlarge) @ fill_matrix(smaller) @ pull.reshape(-1, side * side)
    return np.where(hole.reshape(-1, 1), pushed, np.eye(side * side, dtype=np.float32))


def conv_up(x, kernel):
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=DIMENSIONS, transpose_kernel=True)


def generator(params, z, statistics=None, shifts=()):
    """Images and the statistics used. Shifts are added before each ReLU."""
    x = (z @ params["dense"]["kernel"]).reshape(z.shape[0], 4, 4, -1)
    seen = {}
    for i in range(sum(name.startswith("up_") for name in params)):
        name = f"norm_{i}"
        x, seen[name] = batch_norm(x, params[name], statistics and statistics[name])
        x = x + shifts[i] if shifts else x
        x = conv_up(jnp.where(x > 0, x, 0), params[f"up_{i}"])
    return jnp.tanh(x + params["bias"]), seen


def discriminator(params, x, statistics=None, labels=None):
    """Logits (for the labels, if the model is conditional) and the statistics used."""
    seen = {}
    for i in range(sum(name.startswith("down_") for name in params)):
        x = lax.conv_general_dilated(x, params[f"down_{i}"], (2, 2), "SAME", dimension_numbers=DIMENSIONS)
        if i == 0:
            x = x + params["bias"]
        else:
            name = f"norm_{i}"
            x, seen[name] = batch_norm(x, params[name], statistics and statistics[name])
        x = jnp.where(x > 0, x, 0.2 * x)
    dense, features = params["dense"], x.reshape(x.shape[0], -1)
    logits = (features @ dense["kernel"] + dense["bias"])[:, 0]
    if labels is not None:
        logits = logits + jnp.stack([f @ params["embedding"][:, c] for f, c in zip(features, labels, strict=True)])
    return logits, seen


def adam(params, gradient, mu, nu, count, rate, beta1, beta2):
    """One step of Kingma and Ba's algorithm 1; count is the number of this step, from 1."""
    mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, mu, gradient)
    nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, nu, gradient)
    params = jax.tree.map(
        lambda p, m, v: p - rate * (m / (1 - beta1**count)) / (jnp.sqrt(v / (1 - beta2**count)) + 1e-8),
        params,
        mu,
        nu,
    )
    return params, mu, nu


def some_state(config, seed=0):
    """A state with weights drawn by NumPy and a new optimiser, in float64 if it is enabled."""
    rng = np.random.default_rng(seed)

    def fill(path, x):
        name = jax.tree_util.keystr(path)
        if "optimizer" in name or x.ndim == 0:
            return jnp.zeros(x.shape, float if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)
        if "statistics" in name or "scale" in name:
            return jnp.asarray(rng.uniform(0.5, 1.5, x.shape), float)
        return jnp.asarray(0.05 * rng.standard_normal(x.shape), float)

    state = jax.eval_shape(lambda key: init_state(config, key), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, state)


def plain_ms_ssim(a, b, data_range):
    """Equation 7 of Wang et al. 2003 for one image, written out in SciPy and double precision."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def blur(x):  # the window is 11 wide: 5 pixels, or 5 / 1.5 standard deviations, to each side
        return ndimage.gaussian_filter(x, (1.5, 1.5, 0), truncate=5 / 1.5)

    a, b, terms = a.astype(np.float64), b.astype(np.float64), []
    while min(a.shape[:2]) >= 11 and len(terms) < 5:
        mean_a, mean_b = blur(a), blur(b)
        v_a, v_b, v_ab = blur(a**2) - mean_a**2, blur(b**2) - mean_b**2, blur(a * b) - mean_a * mean_b
        cs = (2 * v_ab + c2) / (v_a + v_b + c2)
        terms.append((cs.mean(), (cs * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)).mean()))
        h, w = a.shape[0] // 2 * 2, a.shape[1] // 2 * 2
        a, b = ((x[:h:2, :w:2] + x[1:h:2, :w:2] + x[:h:2, 1:w:2] + x[1:h:2, 1:w:2]) / 4 for x in (a, b))
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][: len(terms)])
    values = [cs for cs, _ in terms[:-1]] + [terms[-1][1]]
    return float(np.prod(np.maximum(values, 0) ** (weights / weights.sum()))), len(terms)
