"""A small search problem, and the latent search written plainly in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import dcgan_jax as dj

H, W, C, LATENT = 4, 3, 2, 4  # not square: rows and columns cannot be mistaken for one another
KEY = jax.random.key(11)


def decode(params, z):
    return jnp.tanh(z @ params["matrix"] + params["offset"]).reshape(-1, H, W, C)


def judge(params, x):
    return x.reshape(x.shape[0], -1) @ params["critic"]


def draw_uniform(key, n):
    return jax.random.uniform(key, (n, LATENT), minval=-1.0, maxval=1.0)


def draw_normal(key, n):
    return jax.random.normal(key, (n, LATENT))


def make_params():
    rng = np.random.default_rng(0)
    return {
        "matrix": jnp.asarray(rng.normal(0, 0.6, (LATENT, H * W * C)), jnp.float32),
        "offset": jnp.asarray(rng.normal(0, 0.3, H * W * C), jnp.float32),
        "critic": jnp.asarray(rng.normal(0, 2.0, H * W * C), jnp.float32),
    }


PARAMS = make_params()
UNIFORM = dj.Prior(PARAMS, decode, draw_uniform, (-1.0, 1.0), judge)
NORMAL = dj.Prior(PARAMS, decode, draw_normal, None, judge)
NO_CRITIC = dj.Prior(PARAMS, decode, draw_uniform, (-1.0, 1.0))

RNG = np.random.default_rng(1)
IMAGES = RNG.uniform(-0.9, 0.9, (4, H, W, C)).astype(np.float32)
HOLES = RNG.random((4, H, W)) < np.array([0.15, 0.3, 0.5, 0.7])[:, None, None]
# Most tests use this, so that they share compiled programs. The large weight makes the prior loss matter.
CONFIG = dj.InpaintConfig(num_steps=12, learning_rate=0.2, prior_weight=0.5, window=3)
EARLY = dataclasses.replace(CONFIG, num_steps=40, tolerance=0.1, patience=4)  # stops at different steps


def brute_force_weights(hole, window):
    weights = np.zeros(hole.shape)
    for i, j in np.argwhere(~hole):
        top, left = max(i - window // 2, 0), max(j - window // 2, 0)
        weights[i, j] = hole[top : i + window // 2 + 1, left : j + window // 2 + 1].mean()
    return weights


def numpy_losses(params, image, hole, config, z, critic=True):
    """Context loss, prior loss and the gradient of their sum, by hand, in float64."""
    weights = np.repeat(brute_force_weights(hole, config.window), C)
    y = np.where(hole[..., None], 0, image).ravel()
    x = np.tanh(z @ params["matrix"] + params["offset"])
    context = np.sum(weights * np.abs(x - y))
    slope = weights * np.sign(x - y)
    prior = 0.0
    if critic:
        logit = x @ params["critic"]
        prior = config.prior_weight * np.log(1 - 1 / (1 + np.exp(-logit)))
        slope = slope - config.prior_weight / (1 + np.exp(-logit)) * params["critic"]
    return context, prior, params["matrix"] @ (slope * (1 - x**2))


def numpy_search(image, hole, config, start, bounds, critic=True):
    """All iterates from the start to the last update, each with its losses."""
    params = {name: np.asarray(value, np.float64) for name, value in PARAMS.items()}
    z = np.asarray(start, np.float64)
    m = v = np.zeros(LATENT)
    iterates = []
    for t in range(config.num_steps + 1):
        context, prior, gradient = numpy_losses(params, image, hole, config, z, critic)
        iterates.append((z, context, prior))
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        z = np.clip(z - config.learning_rate * step, *bounds)
    return iterates


def kept(iterates, keep_best=True):
    return min(iterates, key=lambda it: it[1] + it[2]) if keep_best else iterates[-1]


def start(prior, i, restart=0, bound=np.inf):
    z = prior.sample_latents(jax.random.fold_in(jax.random.fold_in(KEY, i), restart), 1)[0]
    return np.clip(z, -bound, bound)
