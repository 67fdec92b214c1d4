"""Blending with measured values: the most likely image, given a completion and measured values of the image.

The error e = x - G of a completion G counts as normal noise. Its density is highest where its gradients are small:
minus its logarithm is |grad e|^2 + |e|^2 / REACH^2, up to a scale s. The second term lets a correction fade at a
distance from the values that ask for it. Without it, and with exactly known pixels as the measured values, the result
is that of Poisson's equation.

The errors of an image's channels are alike: where one is too dark, all are. So the mean of the channels carries the
error, and the differences between channels have the fraction COLOUR of its variance. Without this, correcting the
brightness of a grey image would tint it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

REACH = 16.0  # pixels over which a correction fades
COLOUR = 0.1  # variance of an error's differences between channels, as a fraction of the whole error's
_LEAST = 0.02  # least fraction of the squared residual that is the completion's error rather than noise
_RIDGE = 1e-6  # least noise, as a fraction of the error's variance; keeps repeated values solvable
_PROBES = 4  # random vectors that estimate a trace
_TOLERANCE = 1e-5  # of the solver, relative to the residual
_MAX_STEPS = 500  # a safety limit


def measured_blend(
    completion: Float[Array, "h w c"],
    measured: Float[Array, "*shape"],
    measure: Callable[[Array], Array],
    noise: float | Float[Array, ""] = 0.0,
) -> Float[Array, "h w c"]:
    """Corrects the completion of one image until it agrees with measured values, up to their noise.

    The result x = G + e minimises (|grad e|^2 + |e|^2 / REACH^2) / s^2 + |measure(G) + J e - y|^2 / noise^2, for a grey
    image. J is the derivative of `measure` at G. Colours are weighed as the module says. The scale s is chosen such
    that the residual y - measure(G) has the length that the model expects. Without noise, measure(G) + J e = y.

    The function works under `jit`, `vmap`, `grad` and `jvp`. It never forms a matrix of J or of the gradients.

    Args:
        completion: G, any scale.
        measured: y, of the shape of `measure`'s result.
        measure: differentiable, for one image. For linear functions the result is exact. Other functions are taken as
            linear near G.
        noise: standard deviation of the noise in `measured`, on its scale.

    Returns:
        x, not clipped.
    """

    def values(x: Array) -> Array:
        return measure(x).reshape(-1).astype(x.dtype)

    def product(u: Array) -> Array:
        return forward(_covariance(backward(u)[0]))

    at_completion, forward = jax.linearize(values, completion)
    backward = jax.linear_transpose(forward, completion)
    residual = measured.reshape(-1) - at_completion
    noise = jnp.asarray(noise, residual.dtype)
    probes = jax.random.rademacher(jax.random.key(0), (_PROBES, residual.size), residual.dtype)
    variance = jnp.mean(jax.vmap(product)(probes) * probes)  # of a value, for the scale 1; by Hutchinson's trace
    square = jnp.mean(residual**2)
    # s^2 is `share / variance`, and noise^2 / s^2 weighs the noise against an error of scale 1.
    # Rounding is the least share: derivatives divide by its square, which must not underflow.
    share = jnp.maximum(jnp.maximum(square - noise**2, _LEAST * square), jnp.finfo(residual.dtype).eps ** 2)
    ratio = jnp.where(variance > 0, variance * jnp.maximum(noise**2 / share, _RIDGE), 1)
    solution, _ = jax.scipy.sparse.linalg.cg(
        lambda u: product(u) + ratio * u, residual, tol=_TOLERANCE, maxiter=_MAX_STEPS
    )
    return completion + _covariance(backward(solution)[0])


def _covariance(x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Multiplies by the covariance of a completion's error, of scale 1."""
    # The cosine transform diagonalises the Laplacian with free borders.
    (rows, down), (columns, right) = (_cosines(n) for n in x.shape[:2])
    rows, columns = jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype)
    spectrum = jnp.asarray(1 / (np.add.outer(down, right) + REACH**-2), x.dtype)
    waves = jnp.einsum("ij,jkc,lk->ilc", rows, x, columns, precision="highest") * spectrum[..., None]
    smooth = jnp.einsum("ji,jkc,kl->ilc", rows, waves, columns, precision="highest")
    return COLOUR * smooth + (1 - COLOUR) * jnp.mean(smooth, axis=-1, keepdims=True)


def _cosines(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the orthonormal cosines [n, n] of a line of n pixels, a row for each, and their Laplacians."""
    waves = np.arange(n)
    cosines = np.cos(np.pi * np.outer(waves, waves + 0.5) / n) * np.sqrt(2 / n)
    cosines[0] /= np.sqrt(2)
    return cosines, 4 * np.sin(np.pi * waves / 2 / n) ** 2
