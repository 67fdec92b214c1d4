"""The losses of generator and discriminator against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from dcgan_jax.training.losses import discriminator_loss, generator_loss

LOGITS = np.array([-3.0, 0.0, 0.5, 4.0])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_losses_agree_with_their_formulas(float64):
    other = LOGITS[::-1] * 0.3 + 0.1
    value = discriminator_loss(LOGITS, other)
    np.testing.assert_allclose(value, -np.mean(np.log(sigmoid(LOGITS))) - np.mean(np.log(1 - sigmoid(other))))
    np.testing.assert_allclose(generator_loss(LOGITS, "saturating"), np.mean(np.log(1 - sigmoid(LOGITS))))
    np.testing.assert_allclose(generator_loss(LOGITS, "non_saturating"), -np.mean(np.log(sigmoid(LOGITS))))
    hinge = np.mean([max(0, 1 - x) for x in LOGITS]) + np.mean([max(0, 1 + x) for x in np.asarray(other)])
    np.testing.assert_allclose(discriminator_loss(LOGITS, other, "hinge"), hinge, rtol=1e-6)
    np.testing.assert_allclose(generator_loss(LOGITS, "hinge"), -np.mean(LOGITS), rtol=1e-6)


def test_losses_stay_finite_at_extreme_logits():
    logits = jnp.array([-1e4, 1e4])
    np.testing.assert_allclose(discriminator_loss(logits, logits), 1e4)
    for kind in ("saturating", "non_saturating"):
        slope = jax.grad(lambda x, kind=kind: generator_loss(x, kind))(logits)
        assert np.isfinite(slope).all() and (slope <= 0).all()  # both losses push the logits up
