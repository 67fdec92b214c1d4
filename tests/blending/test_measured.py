"""The blend with measured values against dense solves in float64, and the cases that it is made for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import quick_jit

from dcgan_jax import measurements
from dcgan_jax.blending import measured as module
from dcgan_jax.blending.measured import COLOUR, REACH, measured_blend
from dcgan_jax.blending.poisson import poisson_blend

H, W, C = 6, 4, 3  # not square: rows and columns cannot be mistaken for one another
RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-0.9, 0.9, (H, W, C)).astype(np.float32)
COMPLETION = RNG.uniform(-0.9, 0.9, (H, W, C)).astype(np.float32)
SENSING = RNG.normal(0, 1, (7, H * W * C)).astype(np.float32)


def sensed(image):
    """Seven random sums of all values."""
    return SENSING @ image.ravel()


def bent(image):
    """A nonlinear function with a derivative that is nowhere 0."""
    return jnp.tanh(image[::2]) + image[::2] / 2


MEASURES = {
    "identity": measurements.Identity(),
    "low resolution": measurements.LowResolution(2),
    "grey": measurements.Grey(),
    "grid": measurements.Grid(3),
    "sensed": sensed,
    "bent": bent,
}


def dense_covariance():
    """The inverse of the quadratic form |grad e|^2 + |e|^2 / REACH^2, times the covariance of the channels."""
    pixel = np.arange(H * W).reshape(H, W)
    rows = []
    for r, c in itertools.product(range(H), range(W)):
        for other in ((r + 1, c), (r, c + 1)):
            if other[0] < H and other[1] < W:
                row = np.zeros(H * W)
                row[pixel[r, c]], row[pixel[other]] = -1, 1
                rows.append(row)
    gradients = np.stack(rows)
    form = gradients.T @ gradients + np.eye(H * W) / REACH**2
    channels = COLOUR * np.eye(C) + (1 - COLOUR) * np.ones((C, C)) / C
    return np.kron(np.linalg.inv(form), channels)


def dense(measure, y, noise):
    """The least squares solution by the normal equations in the pixels, in float64."""
    jacobian = np.asarray(jax.jacobian(lambda x: measure(x).ravel())(jnp.asarray(COMPLETION)), np.float64)
    jacobian = jacobian.reshape(-1, H * W * C)
    residual = (y - np.asarray(measure(COMPLETION), np.float64)).ravel()
    covariance = dense_covariance()
    if not noise:
        gain = covariance @ jacobian.T @ np.linalg.pinv(jacobian @ covariance @ jacobian.T, rcond=1e-9)
        return COMPLETION + (gain @ residual).reshape(H, W, C)
    # The scale of the error, by the length of the residual; the trace is estimated with the same random signs.
    signs = np.asarray(jax.random.rademacher(jax.random.key(0), (4, residual.size), jnp.float32), np.float64)
    trace = np.mean(np.sum(signs @ jacobian @ covariance * (signs @ jacobian), axis=1))
    square = max(np.mean(residual**2) - noise**2, 0.02 * np.mean(residual**2))
    scale = square * residual.size / trace
    form = np.linalg.inv(covariance) / scale + jacobian.T @ jacobian / noise**2
    return COMPLETION + np.linalg.solve(form, jacobian.T @ residual / noise**2).reshape(H, W, C)


def blend(measure):
    """The blend as a compiled function of the completion, the measured values and the noise."""
    return quick_jit(lambda completion, y, noise: measured_blend(completion, y, measure, noise))


@pytest.mark.parametrize("name", MEASURES)
def test_agrees_with_a_dense_solve(name):
    measure = MEASURES[name]
    program, exact = blend(measure), np.asarray(measure(IMAGE))
    for noise in (0.0, 0.2, 2.0):
        y = exact + noise * RNG.normal(size=exact.shape).astype(np.float32)
        found = np.asarray(program(COMPLETION, y, noise))
        np.testing.assert_allclose(found, dense(measure, y, noise), atol=1e-3)
        if noise < 1:
            assert np.abs(found - COMPLETION).max() > 0.05
        if noise == 0 and name != "bent":
            np.testing.assert_allclose(measure(found), y, atol=1e-3)


def test_known_pixels_give_poissons_blend_without_a_reach(monkeypatch, float64):
    for name, value in {"REACH": 1e4, "_RIDGE": 1e-14, "_TOLERANCE": 1e-12}.items():
        monkeypatch.setattr(module, name, value)
    hole = np.zeros((H, W), bool)
    hole[1:5, 1:] = True
    completion, image = COMPLETION.astype(np.float64), IMAGE.astype(np.float64)
    found = blend(lambda x: x[~hole])(completion, image[~hole], 0.0)
    np.testing.assert_allclose(found, poisson_blend(completion, image, hole), atol=1e-5)


def test_brightness_is_corrected_without_a_tint():
    grey = np.full((H, W, C), 0.1, np.float32)
    found = np.asarray(measured_blend(grey, measurements.Grey()(grey + 0.3), measurements.Grey()))
    assert np.ptp(found, axis=-1).max() < 0.1 and np.abs(found - 0.4).max() < 0.1


def test_noise_that_explains_the_residual_leaves_the_completion():
    little = measured_blend(COMPLETION, COMPLETION + 0.01, measurements.Identity(), 5.0)
    np.testing.assert_allclose(little, COMPLETION, atol=1e-4)


def test_equal_values_twice_count_as_one():
    """The matrix of the measured values is singular then."""

    def twice(image):
        return jnp.concatenate([image[::2], image[::2]])

    found = measured_blend(COMPLETION, twice(IMAGE), twice)
    np.testing.assert_allclose(found, measured_blend(COMPLETION, IMAGE[::2], lambda x: x[::2]), atol=1e-3)


def test_vmap_equals_a_loop():
    measure = MEASURES["low resolution"]
    completions, images = np.stack([COMPLETION, IMAGE]), np.stack([IMAGE, COMPLETION / 2])
    y = np.stack([measure(x) for x in images])
    mapped = jax.jit(jax.vmap(lambda g, y: measured_blend(g, y, measure, 0.1)))(completions, y)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], measured_blend(completions[i], y[i], measure, 0.1), atol=1e-4)


def test_gradients_agree_with_finite_differences(float64):
    measure, g, y = measurements.LowResolution(2), COMPLETION.astype(np.float64), RNG.normal(size=(3, 2, C))

    def value(g, y, noise):
        return jnp.sum(measured_blend(g, y, measure, noise) ** 2)

    point = (g, y, np.float64(0.3))
    gradient = jax.jit(jax.grad(value, (0, 1, 2)))(*point)
    for i in range(3):
        direction = RNG.normal(size=np.shape(point[i]))
        moved = [[*point[:i], point[i] + t * direction, *point[i + 1 :]] for t in (1e-4, -1e-4)]
        slope = (value(*moved[0]) - value(*moved[1])) / 2e-4
        np.testing.assert_allclose(np.vdot(gradient[i], direction), slope, rtol=2e-3)


@pytest.mark.parametrize("noise", [0.0, 0.1, 8.0])
def test_a_completion_that_agrees_has_derivatives(noise):
    """The residual is exactly 0 there, and so is the scale of the error that is inferred from it."""
    measure = measurements.LowResolution(2)
    measured = measure(jnp.asarray(COMPLETION))
    image, pullback = jax.vjp(lambda y: measured_blend(jnp.asarray(COMPLETION), y, measure, noise), measured)
    np.testing.assert_array_equal(image, COMPLETION)
    (gradient,) = pullback(jnp.ones_like(image))
    assert jnp.isfinite(gradient).all()
    # Without noise, a value moves the sum of its block of 4 pixels, and so does the sum of all values.
    if not noise:
        np.testing.assert_allclose(jnp.sum(gradient), gradient.size * 4, rtol=0.05)
