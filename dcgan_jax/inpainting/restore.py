"""Restoration of a batch from any measurement: the latent search, and the blend with the measured values."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from dcgan_jax.blending.measured import measured_blend
from dcgan_jax.images.inputs import image_keys
from dcgan_jax.inpainting.config import InpaintConfig, default_config
from dcgan_jax.inpainting.inpaint import check_config, inpaint
from dcgan_jax.inpainting.objective import Point, Problem
from dcgan_jax.inpainting.result import InpaintResult, Status, collect
from dcgan_jax.inpainting.search import Found, search
from dcgan_jax.inpainting.starts import add_starts
from dcgan_jax.measurements import BUILT_IN, Known
from dcgan_jax.parallel.sharding import spread
from dcgan_jax.priors.labels import check_labels
from dcgan_jax.priors.prior import Prior

_DRAWS = 64  # images whose mean an encoder sees where nothing is measured


def restore(
    prior: Prior,
    measured: Shaped[Array | np.ndarray, "b ..."],
    measure: Callable[[Array], Array],
    key: PRNGKeyArray,
    config: InpaintConfig | None = None,
    noise: float | Float[Array, ""] = 0.0,
    optimizer: optax.GradientTransformation | None = None,
    labels: int | Int[Array | np.ndarray, "*b"] | None = None,
) -> InpaintResult:
    """Restores images from measured values, such as their block means, their grey values, or themselves with noise.

    The search is that of `inpaint`, with the context loss h w c · mean |measure(G(z)) − y| in place of the weighted
    differences of pixels. In place of the blend into a hole, the whole generated image is corrected until it agrees
    with the measured values, up to their noise. An encoder sees a smooth image that agrees with them, without a hole.

    Each image is restored by itself. The batch is split over all local devices.

    Args:
        prior: see `inpaint`.
        measured: y, floats: one row of `measure`'s shape for each image, on the scale of images in [−1, 1].
        measure: measure(image [h, w, c] in [−1, 1]) -> real values of any shape. It is one of `dj.measurements`, or any
            differentiable function. Functions are compared by identity, so define yours once: a new one causes a new
            compilation. The last step takes a nonlinear function as linear near G(ẑ), and agrees only about so well.
            With `measurements.Known(hole)`, `measured` holds images, and the call is `inpaint`, bit for bit.
        key: see `inpaint`.
        config: see `inpaint`. `window`, `blend` and `guess_length` have no effect. With noise, the default has no
            `refine_steps`; a traced `noise` counts as noise.
        noise: standard deviation of normal noise in `measured`, on the scale of [−1, 1]: 25 levels of 255 are 25 /
            127.5. 0 if the values are exact.
        optimizer: see `inpaint`.
        labels: see `inpaint`.

    Returns:
        `InpaintResult`. `images` and `mean` are floats in [−1, 1], clipped; they are 0 if the status is "not finite".

    Raises:
        ValueError: shapes or types do not fit together, a measured value is not finite, or `noise` is negative; or
            a value of one of `dj.measurements` is beyond 2 + 10 `noise`.
        UserError: the configuration needs an encoder, but the prior has none.

    Example:
        >>> import dcgan_jax as dj, jax
        >>> prior = dj.load_prior("faces-64")  # doctest: +SKIP
        >>> small = dj.measurements.LowResolution(8)
        >>> result = dj.restore(prior, small_images, small, jax.random.key(0))  # doctest: +SKIP

    Source:
        The search: Yeh et al. 2017. The same loss for other measurements: Bora et al., "Compressed sensing using
        generative models", ICML 2017.
    """
    if isinstance(measure, Known):
        _check_noise(noise, exact=True)
        return inpaint(prior, measured, measure.hole, key, config, optimizer, labels)
    _check_noise(noise)
    config = default_config(prior, noisy=isinstance(noise, Tracer) or float(noise) > 0) if config is None else config
    check_config(prior, config)
    _check_measurement(prior, measured, measure)
    n = measured.shape[0]
    keys = image_keys(key, n)
    if labels is not None or prior.num_classes:
        labels = check_labels(prior.num_classes, -1 if labels is None else labels, n)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((prior, measured, keys, noise, labels))):
        return restore_batch(prior, measured, measure, keys, config, noise, optimizer, labels)
    bad = np.flatnonzero(~np.isfinite(np.asarray(measured, np.float32)).reshape(n, -1).all(axis=1))
    if bad.size:
        raise ValueError(f"row {bad[0]} of `measured` has values that are not finite")
    most = 2 + 10 * float(noise)
    if isinstance(measure, BUILT_IN) and np.abs(measured).max() > most:
        raise ValueError(
            f"`measured` has values up to {np.abs(measured).max():g}; pass floats on the scale of images in [-1, 1]"
        )
    prior, (measured, keys, labels) = spread(prior, (measured, keys, labels))
    result = restore_batch(prior, measured, measure, keys, config, noise, optimizer, labels)
    return jax.tree.map(lambda x: x[:n], result) if measured.shape[0] > n else result


@functools.partial(jax.jit, static_argnames=("measure", "config", "optimizer"))
def restore_batch(
    prior: Prior,
    measured: Float[Array | np.ndarray, "b ..."],
    measure: Callable[[Array], Array],
    keys: PRNGKeyArray,
    config: InpaintConfig,
    noise: float | Float[Array, ""],
    optimizer: optax.GradientTransformation | None,
    labels: Int[Array | np.ndarray, " b"] | None = None,
) -> InpaintResult:
    """Restores a batch in one program for search and blend. The arguments must have been checked."""
    # An encoder learned from images with holes. From most other measurements its guess has more error than the search.
    config = dataclasses.replace(config, guess_length=0.0)
    n, size = measured.shape[0], np.prod(prior.image_shape)
    measured = jnp.asarray(measured, jnp.promote_types(measured.dtype, jnp.float32)).reshape(n, -1)
    grey, everywhere = jnp.zeros((n, *prior.image_shape), measured.dtype), jnp.ones((n, *prior.image_shape[:2]), bool)

    def blend(completions: Float[Array, "b k h w c"]) -> Float[Array, "b k h w c"]:
        one = functools.partial(measured_blend, measure=measure, noise=noise)
        return jax.vmap(jax.vmap(one, (0, None)))(completions.astype(measured.dtype), measured)

    def search_image(problem: Problem, starts: Point) -> Found:
        return jax.vmap(lambda start: search(prior, config, problem, start, optimizer))(starts)

    problem = Problem(measured, jnp.full(n, size / measured.shape[1], measured.dtype), measure=measure)
    smooth = jnp.clip(blend(jnp.broadcast_to(average(prior), (n, 1, *prior.image_shape)))[:, 0], -1, 1)
    problems, starts = add_starts(prior, config, problem, smooth, ~everywhere, keys, labels)
    found = jax.vmap(search_image)(problems, starts)
    return collect(prior, config, grey, everywhere, blend, jnp.full(n, Status.OK), problems, found)


def average(prior: Prior) -> Float[Array, "h w c"]:
    """Returns the mean of `_DRAWS` images of the prior, always of the same latents."""
    latents = prior.sample_latents(jax.random.key(0), _DRAWS)
    return jnp.mean(prior.generate(prior.params, latents), axis=0)


def _check_measurement(prior: Prior, measured: Any, measure: Any) -> None:
    """Checks that `measure` can be called and that `measured` has its shape."""
    if not callable(measure):
        raise ValueError(
            f"`measure` is a {type(measure).__name__}; pass a function of one image, see `dj.measurements`"
        )
    try:
        hash(measure)
    except TypeError:
        raise ValueError(
            f"`measure` is a {type(measure).__name__} without a hash; pass a function or a frozen dataclass"
        ) from None
    values = jax.eval_shape(measure, jax.ShapeDtypeStruct(prior.image_shape, jnp.float32))
    if not isinstance(values, jax.ShapeDtypeStruct) or not jnp.issubdtype(values.dtype, jnp.floating):
        found = values.dtype if isinstance(values, jax.ShapeDtypeStruct) else type(values).__name__
        raise ValueError(f"`measure` returns {found}; it must return one array of floats")
    if not isinstance(measured, jax.Array | np.ndarray):
        raise ValueError(f"`measured` is a {type(measured).__name__}; pass a NumPy or JAX array")
    if not jnp.issubdtype(measured.dtype, jnp.floating):
        raise ValueError(f"`measured` is {measured.dtype}; pass floats on the scale of images in [-1, 1]")
    if measured.shape[1:] != values.shape or not measured.ndim:
        expected = ", ".join(map(str, ("b", *values.shape)))
        raise ValueError(f"`measured` has shape {list(measured.shape)}; `measure` gives [{expected}]")
    if not measured.size:
        raise ValueError("`measured` holds no value")


def _check_noise(noise: Any, exact: bool = False) -> None:
    if isinstance(noise, Tracer):
        return
    is_number = isinstance(noise, int | float | np.number | np.ndarray | jax.Array) and jnp.ndim(noise) == 0
    if not is_number or not jnp.isrealobj(noise) or not 0 <= float(noise) < np.inf:
        raise ValueError(f"`noise` is {noise}; it takes a standard deviation, 0 or more, on the scale of [-1, 1]")
    if exact and noise:
        raise ValueError(f"`noise` is {noise}, but known pixels are exact: leave it at 0")
