"""The recipes of `docs/notebooks/others.md`: decoders from Flax NNX and Equinox, with layers that a mode changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dcgan_jax as dj
from dcgan_jax.inpainting.inpaint import inpaint_batch

HOLE = np.zeros((6, 5), bool)
HOLE[2:4, 1:4] = True
SEARCH = dj.InpaintConfig(num_steps=5, window=3)
LATENTS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def draw(key, n):
    return jax.random.normal(key, (n, 3))


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.image = nnx.Linear(16, 30, rngs=rngs)

    def __call__(self, z):
        x = self.dropout(jax.nn.relu(self.norm(self.hidden(z))))
        return jnp.tanh(self.image(x)).reshape(-1, 6, 5, 1)


def check(prior, expected):
    """The prior's images are the expected ones, each depends on its own latent only, and a search compiles once."""
    assert prior.image_shape == (6, 5, 1)
    images = np.asarray(dj.generate(prior, LATENTS))
    np.testing.assert_allclose(images, expected, atol=1e-5)
    np.testing.assert_allclose(dj.generate(prior, LATENTS[:1]), images[:1], atol=1e-6)
    first = dj.inpaint(prior, images, HOLE, jax.random.key(0), SEARCH)
    assert np.isfinite(first.context_loss).all()
    programs = inpaint_batch._cache_size()
    other = jax.tree.map(lambda x: 2 * x if jnp.issubdtype(x.dtype, jnp.floating) else x, prior)  # other weights
    second = dj.inpaint(other, images, HOLE, jax.random.key(0), SEARCH)
    assert inpaint_batch._cache_size() == programs
    assert not np.allclose(first.completions, second.completions)


def test_an_nnx_module_in_eval_mode_is_a_prior():
    model = Decoder(nnx.Rngs(0))
    for _ in range(20):
        model(3 * LATENTS + 1)  # in training mode, so that the running statistics are not 0 and 1
    model.eval()
    structure, params = nnx.split(model)

    def decode(params, z):
        return nnx.merge(structure, params)(z)

    norm = model.norm
    x = LATENTS @ model.hidden.kernel[...] + model.hidden.bias[...]
    x = (x - norm.mean[...]) / np.sqrt(norm.var[...] + 1e-5) * norm.scale[...] + norm.bias[...]
    expected = np.tanh(np.maximum(x, 0) @ model.image.kernel[...] + model.image.bias[...]).reshape(-1, 6, 5, 1)
    assert np.abs(norm.mean[...]).max() > 0.1
    check(dj.Prior(params=params, generate=decode, sample_latents=draw), expected)


def test_an_equinox_module_in_inference_mode_is_a_prior():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0))
    layers = [eqx.nn.Linear(3, 16, key=keys[0]), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Dropout(0.5)]
    model = eqx.nn.inference_mode(eqx.nn.Sequential([*layers, eqx.nn.Linear(16, 30, key=keys[1])]))
    params, rest = eqx.partition(model, eqx.is_array)

    def decode(params, z):
        return jnp.tanh(jax.vmap(eqx.combine(params, rest))(z)).reshape(-1, 6, 5, 1)

    first, last = model[0], model[3]
    x = np.maximum(LATENTS @ first.weight.T + first.bias, 0)
    expected = np.tanh(x @ last.weight.T + last.bias).reshape(-1, 6, 5, 1)
    check(dj.Prior(params=params, generate=decode, sample_latents=draw), expected)
