"""The fill of a hole against its definition as a matrix, and what it must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import plain

from dcgan_jax import masks
from dcgan_jax.networks.filling import fill

SIDE = 16
HOLES = np.concatenate([masks.by_name(name, jax.random.split(jax.random.key(3), 2), SIDE) for name in masks.NAMES])
IMAGES = np.random.default_rng(0).uniform(-1, 1, (len(HOLES), SIDE, SIDE, 3)).astype(np.float32)


def test_the_fill_is_the_one_of_its_definition():
    filled = jax.jit(fill)(IMAGES, HOLES)
    np.testing.assert_allclose(filled, plain.fill(IMAGES, HOLES), atol=1e-5)
    np.testing.assert_array_equal(np.asarray(filled)[~HOLES], IMAGES[~HOLES])
    assert np.abs(filled).max() <= 1  # averages


def test_values_in_the_hole_have_no_influence():
    other = np.where(HOLES[..., None], 7, IMAGES).astype(np.float32)
    np.testing.assert_array_equal(fill(other, HOLES), fill(IMAGES, HOLES))


def test_a_constant_fills_with_itself_and_nothing_with_0():
    even = np.full(IMAGES.shape, 0.3, np.float32)
    np.testing.assert_allclose(fill(even, HOLES), even, rtol=1e-6)
    nothing = fill(even[:1], jnp.ones((1, SIDE, SIDE), bool))
    np.testing.assert_array_equal(nothing, np.zeros_like(nothing))
