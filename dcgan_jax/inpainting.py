"""Inpainting by latent search: the latent whose image agrees with what is known, blended into the hole.

The search has the shape of every iterative method here: `init_search`, `search_step` and `search` for one image; a
batch is their `vmap` under one `jit`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from dcgan_jax import sharding
from dcgan_jax.config import InpaintConfig
from dcgan_jax.losses import context_loss, prior_loss
from dcgan_jax.masks import importance_weights
from dcgan_jax.poisson import poisson_blend
from dcgan_jax.prior import Prior, image_shape

OK, NOT_FINITE, NOTHING_MISSING, NOTHING_KNOWN = range(4)  # values of `InpaintResult.status`
STATUS = ("ok", "not finite", "nothing missing", "nothing known")


class Trace(NamedTuple):
    """How a search went: its iterates at the start, after every `trace_every` steps, and at the end."""

    num_steps: Int[Array, "*b t"]  # updates done
    context_loss: Float[Array, "*b t"]
    prior_loss: Float[Array, "*b t"]
    latents: Float[Array, "*b t latent"]


class InpaintResult(NamedTuple):
    """Completed images and how their searches went; a row each."""

    images: Shaped[Array, "b h w c"]  # blended, of the input's type; equal to the input where nothing is missing
    completions: Float[Array, "b h w c"]  # G(ẑ), in [−1, 1]
    latents: Float[Array, "b latent"]  # ẑ
    context_loss: Float[Array, " b"]
    prior_loss: Float[Array, " b"]
    num_steps: Int[Array, " b"]  # updates of the latent in each restart
    status: Int[Array, " b"]  # index into `STATUS`
    trace: Trace | None = None  # of the restart that was kept; None unless `trace_every` is set


class Search(NamedTuple):
    """The search of one image: the iterate and the best one so far."""

    latent: Float[Array, " latent"]
    optimizer: optax.OptState
    best_latent: Float[Array, " latent"]
    best_loss: Float[Array, ""]  # infinite before the first step


def inpaint(
    prior: Prior,
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "*b h w"],
    key: PRNGKeyArray,
    config: InpaintConfig | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> InpaintResult:
    """Completes masked images: a latent search for each, then a Poisson blend into its hole.

    ẑ = argmin Σ W |G(z) − y| + λ log(1 − D(G(z))) by Adam or another optimiser, then `poisson_blend(G(ẑ), y, hole)`.
    An image's result depends on the image, its hole and its key alone, bit for bit in batches of the same shape; what
    lies in the hole has no influence, be it NaN.

    Args:
        prior: of `load_prior`, or any decoder.
        images: float in [−1, 1] or uint8, of the prior's size.
        hole: True where a pixel is missing (the paper's M is its opposite); one for each image, or one [h, w] for all.
        key: one key, of which image i uses fold_in(key, i), or an array of b keys.
        config: by default `InpaintConfig()`.
        optimizer: any of optax, line searches included, in place of Adam at `config.learning_rate`. Make it once:
            optax's functions compare by identity, and a new one means a new compilation.

    Returns:
        `InpaintResult`. Missing pixels of `images` are clipped to the range of images, and grey (0, or 128 in uint8)
        where the status is not finite. An image with nothing missing comes back as it is; one with nothing known is a
        free sample, shaped by the discriminator alone; the status says so. On several local devices the batch is
        spread over them.

    Raises:
        ValueError: shapes or types do not fit together, or a known pixel is not finite (under `jit`, where values
            cannot be looked at, the status says so).

    Example:
        >>> import dcgan_jax as dj, jax
        >>> prior = dj.load_prior("faces-64")  # doctest: +SKIP
        >>> hole = dj.masks.center(64)
        >>> result = dj.inpaint(prior, images, hole, jax.random.key(0))  # doctest: +SKIP

    Source:
        Yeh et al. 2017, equations 3 to 6.
    """
    config = InpaintConfig() if config is None else config
    shape = image_shape(prior)
    for name, array in (("images", images), ("hole", hole)):
        if not isinstance(array, jax.Array | np.ndarray):
            raise ValueError(f"`{name}` is a {type(array).__name__}; it takes an array of NumPy or JAX")
    if images.ndim != 4 or images.shape[1:] != shape:
        raise ValueError(
            f"`images` is {list(images.shape)}; this prior completes images of [b, {', '.join(map(str, shape))}]: "
            "scale them to its size"
        )
    held = jax.dtypes.canonicalize_dtype(images.dtype)  # JAX cuts float64 to float32, bits of known pixels with it
    if images.dtype != np.uint8 and (held != images.dtype or not jnp.issubdtype(held, jnp.floating)):
        raise ValueError(f"`images` is {images.dtype}; it takes uint8, or float32 in [-1, 1]")
    n, (h, w, _) = images.shape[0], shape
    if hole.dtype != bool or hole.shape not in ((h, w), (n, h, w)):
        raise ValueError(
            f"`hole` is {hole.dtype}{list(hole.shape)}; it takes bool [{h}, {w}] or [{n}, {h}, {w}], True where missing"
        )
    keys = _image_keys(key, n)
    if n == 0:
        raise ValueError("`images` holds no image")
    hole = jnp.broadcast_to(hole, (n, h, w))
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((prior, images, hole, keys))):
        return _inpaint(prior, images, hole, keys, config, optimizer)
    if images.dtype != np.uint8:
        _refuse_non_finite(images, hole)
    prior, (images, hole, keys) = _spread(prior, (images, hole, keys))
    result = _inpaint(prior, images, hole, keys, config, optimizer)
    return jax.tree.map(lambda x: x[:n], result) if images.shape[0] > n else result


def init_search(
    prior: Prior, config: InpaintConfig, key: PRNGKeyArray, optimizer: optax.GradientTransformation | None = None
) -> Search:
    """Starts the search of one image from a latent drawn from the prior."""
    latent = prior.sample_latents(key, 1)[0]
    if config.latent_bound is not None:
        latent = jnp.clip(latent, -config.latent_bound, config.latent_bound)
    return Search(
        latent,
        _optimizer(config, optimizer).init(latent),
        latent,
        jnp.full((), jnp.inf, jnp.promote_types(latent.dtype, jnp.float32)),
    )


def search_step(
    prior: Prior,
    config: InpaintConfig,
    image: Float[Array, "h w c"],
    weights: Float[Array, "h w"],
    search: Search,
    optimizer: optax.GradientTransformation | None = None,
) -> Search:
    """One step: judges the iterate, keeps it if it is the best so far, and moves on, within the bounds."""

    def objective(z):
        return sum(_losses(prior, config, image, weights, z))

    loss, gradient = jax.value_and_grad(objective)(search.latent)
    best_latent, best_loss = _better(search, loss)
    updates, state = _optimizer(config, optimizer).update(
        gradient, search.optimizer, search.latent, value=loss, grad=gradient, value_fn=objective
    )
    latent = _clip(prior, config, jnp.asarray(optax.apply_updates(search.latent, updates)))
    return Search(latent, state, best_latent, best_loss)


def search(
    prior: Prior,
    config: InpaintConfig,
    image: Float[Array, "h w c"],
    weights: Float[Array, "h w"],
    key: PRNGKeyArray,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[Float[Array, " latent"], Float[Array, ""], Float[Array, ""], Trace | None]:
    """Searches for one image from one start.

    Args:
        image: in [−1, 1], finite in the hole.
        weights: importance weights, 0 in the hole.
        optimizer: see `inpaint`.

    Returns:
        The latent kept (the best iterate, the last one counted, or the last one), its context and its prior loss, and
        the trace if `config` asks for one.
    """

    def advance(state: Search, steps: int) -> Search:
        def step(_, state):
            return search_step(prior, config, image, weights, state, optimizer)

        return jax.lax.fori_loop(0, steps, step, state)

    def point(state: Search, done) -> Trace:
        return Trace(jnp.asarray(done), *_losses(prior, config, image, weights, state.latent), state.latent)

    state, trace = init_search(prior, config, key, optimizer), None
    if config.trace_every:
        whole, rest = divmod(config.num_steps, config.trace_every)
        state, trace = jax.lax.scan(
            lambda state, i: (advance(state, config.trace_every), point(state, i * config.trace_every)),
            state,
            jnp.arange(whole),
        )
        ends = [point(state, whole * config.trace_every)]
        if rest:
            state = advance(state, rest)
            ends.append(point(state, config.num_steps))
        trace = jax.tree.map(lambda x, *last: jnp.concatenate([x, jnp.stack(last)]), trace, *ends)
    else:
        state = advance(state, config.num_steps)
    latent = state.latent
    if config.keep_best:
        last_loss = sum(_losses(prior, config, image, weights, latent))
        latent, _ = _better(state, last_loss)
    return latent, *_losses(prior, config, image, weights, latent), trace


@functools.partial(jax.jit, static_argnames=("config", "optimizer"))
def _inpaint(prior, images, hole, keys, config, optimizer):
    floats = images.astype(jnp.float32) / 127.5 - 1.0 if images.dtype == jnp.uint8 else images
    y = jnp.where(hole[..., None], 0, floats)
    weights = importance_weights(hole, window=config.window)

    def one(image, weights, key):
        starts = jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(config.restarts))
        found = jax.vmap(lambda start: search(prior, config, image, weights, start, optimizer))(starts)
        loss = found[1] + found[2]
        best = jnp.argmin(jnp.where(jnp.isfinite(loss), loss, jnp.inf))
        return jax.tree.map(lambda x: x[best], found)

    latents, context, prior_term, trace = jax.vmap(one)(y, weights, keys)
    completions = prior.generate(prior.params, latents)
    blended = jnp.clip(poisson_blend(completions.astype(y.dtype), y, hole), -1.0, 1.0)
    finite = jnp.isfinite(context + prior_term) & jnp.all(jnp.isfinite(completions), axis=(1, 2, 3))
    blended = jnp.where(finite[:, None, None, None], blended, 0.0)
    if images.dtype == jnp.uint8:
        blended = jnp.floor(blended * 127.5 + 128.0)  # the nearest level, as `figures.to_uint8` has it
    missing = jnp.sum(hole, axis=(1, 2))
    status = jnp.where(missing == 0, NOTHING_MISSING, jnp.where(missing == hole[0].size, NOTHING_KNOWN, OK))
    return InpaintResult(
        images=jnp.where(hole[..., None], blended.astype(images.dtype), images),
        completions=completions,
        latents=latents,
        context_loss=context,
        prior_loss=prior_term,
        num_steps=jnp.full(images.shape[0], config.num_steps, jnp.int32),
        status=jnp.where(finite, status, NOT_FINITE).astype(jnp.int32),
        trace=trace,
    )


def _losses(prior, config, image, weights, z):
    completion = prior.generate(prior.params, z[None])
    context = context_loss(completion, image[None], weights[None])[0]
    if prior.discriminate is None or config.prior_weight == 0:
        return context, jnp.zeros_like(context)
    return context, prior_loss(prior.discriminate(prior.params, completion), config.prior_weight)[0]


def _better(state: Search, loss):
    better = loss < state.best_loss
    best_loss = jnp.where(better, loss.astype(state.best_loss.dtype), state.best_loss)  # a loop keeps its types
    return jnp.where(better, state.latent, state.best_latent), best_loss


def _clip(prior, config, latent):
    bounds = prior.latent_bounds if config.latent_bound is None else (-config.latent_bound, config.latent_bound)
    return jnp.clip(latent, *bounds) if config.clip and bounds is not None else latent


def _optimizer(config, optimizer):
    if optimizer is None:
        # Far below any gradient that counts: without it Adam's square root has no derivative where a gradient is 0.
        optimizer = optax.adam(config.learning_rate, eps_root=1e-30)
    return optax.with_extra_args_support(optimizer)  # line searches take the loss and its function


def _refuse_non_finite(images, hole):
    spoilt = np.flatnonzero(_spoilt(images, hole))
    if spoilt.size:
        raise ValueError(
            f"`images` has known pixels that are not finite, in image {spoilt[0]} first: mark them as missing in `hole`"
        )


@jax.jit
def _spoilt(images, hole):
    return jnp.any(~hole[..., None] & ~jnp.isfinite(images), axis=(1, 2, 3))


def _image_keys(key, n):
    """A typed key for each image, from one key or n, typed or of the older kind."""
    key = jnp.asarray(key)
    if key.dtype == jnp.uint32 and key.ndim:
        key = jax.random.wrap_key_data(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"`key` is {key.dtype}{list(key.shape)}; it takes a random key, such as jax.random.key(0)")
    if key.shape not in ((), (n,)):
        raise ValueError(f"`key` holds {list(key.shape)} keys; it takes one key, or one for each of the {n} images")
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))


def _spread(prior, batch):
    """Pads a batch to a multiple of this process's devices and spreads it over them; one device changes nothing."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return prior, batch
    mesh = sharding.data_mesh(devices)
    missing = -batch[0].shape[0] % mesh.size
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[:1], missing, axis=0)]), batch)
    return jax.device_put(prior, sharding.replicated(mesh)), jax.device_put(padded, sharding.along_batch(mesh))
