"""The context loss of a latent search against a loop."""

import numpy as np

from dcgan_jax.inpainting.objective import context_loss


def test_context_loss_is_the_weighted_sum_of_differences():
    rng = np.random.default_rng(0)
    completions, images = rng.uniform(-1, 1, (2, 3, 5, 4, 3)).astype(np.float32)
    weights = rng.random((3, 5, 4)).astype(np.float32)
    expected = np.zeros(3)
    for n, i, j, c in np.ndindex(completions.shape):
        expected[n] += weights[n, i, j] * abs(float(completions[n, i, j, c]) - float(images[n, i, j, c]))
    np.testing.assert_allclose(context_loss(completions, images, weights), expected, rtol=1e-5)
