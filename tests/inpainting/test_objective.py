"""The losses of a latent search against loops and formulas."""

import jax.numpy as jnp
import numpy as np

from dcgan_jax.inpainting.objective import context_loss, prior_loss


def test_context_loss_is_the_weighted_sum_of_differences():
    rng = np.random.default_rng(0)
    completions, images = rng.uniform(-1, 1, (2, 3, 5, 4, 3)).astype(np.float32)
    weights = rng.random((3, 5, 4)).astype(np.float32)
    expected = np.zeros(3)
    for n, i, j, c in np.ndindex(completions.shape):
        expected[n] += weights[n, i, j] * abs(float(completions[n, i, j, c]) - float(images[n, i, j, c]))
    np.testing.assert_allclose(context_loss(completions, images, weights), expected, rtol=1e-5)


def test_prior_loss_is_its_formula(float64):
    logits = np.array([-3.0, 0.0, 0.5, 4.0])
    probability = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(prior_loss(logits, 0.003), 0.003 * np.log(1 - probability))


def test_prior_loss_stays_finite_at_extreme_logits():
    np.testing.assert_allclose(prior_loss(jnp.array([-1e4, 1e4]), 0.5), [0, -5e3])
