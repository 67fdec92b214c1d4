"""Winograd's algorithm for the convolutions: values in float64 against loops, rounding, and the layers that use it."""

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from convolutions import draw, loop_down, loop_up, plain_down, plain_up

from dcgan_jax.networks import winograd, winograd_rows
from dcgan_jax.networks.convolution import conv_down, conv_up

FORMS = [
    (winograd, (4, 4, 1, 2)),
    (winograd, (8, 12, 2, 3)),
    (winograd_rows, (8, 2, 1, 2)),
    (winograd_rows, (16, 6, 2, 3)),
]


@pytest.fixture(autouse=True)
def default_precision():
    """The precision of users. Under the highest (of tests beside a GPU) no layer uses Winograd's algorithm."""
    with jax.default_matmul_precision("default"):
        yield


def loop_kernel(x, y):
    """The derivative of ⟨down(x, kernel), y⟩ by each entry of the kernel, in which it is linear."""
    gradient = np.zeros((5, 5, x.shape[3], y.shape[3]))
    for place in np.ndindex(gradient.shape):
        unit = np.zeros_like(gradient)
        unit[place] = 1
        gradient[place] = np.sum(loop_down(x, unit) * y)
    return gradient


@pytest.mark.parametrize(("form", "shape"), FORMS)
def test_the_three_maps_agree_with_loops(form, shape, float64):
    x, y, kernel = draw(shape)
    x64, y64, kernel64 = map(jnp.asarray, (x, y, kernel))

    @plain.quick_jit
    def maps(x, y, kernel):
        return form.down(x, kernel), form.up(y, kernel), form.kernel_gradient(x, y)

    expected = loop_down(x, kernel), loop_up(y, kernel), loop_kernel(x, y)
    for a, b in zip(maps(x64, y64, kernel64), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("form", "dtype", "tolerance"),
    [(winograd, "float32", 2e-6), (winograd, "bfloat16", 1.5e-2), (winograd_rows, "float32", 5e-6)],
)
def test_the_rounding_error_is_small(form, dtype, tolerance):
    """The error is relative to the largest value. In bfloat16 it was measured as three times that of a plain sum."""
    x, y, kernel = (jnp.asarray(a, dtype) for a in draw((16, 16, 24, 40)))
    exact = [np.asarray(a, np.float64) for a in (x, y, kernel)]
    for found, expected in (
        (plain.quick_jit(form.down)(x, kernel), loop_down(exact[0], exact[2])),
        (plain.quick_jit(form.up)(y, kernel), loop_up(exact[1], exact[2])),
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(found, np.float64), expected, rtol=0, atol=tolerance * abs(expected).max()
        )


@pytest.mark.parametrize(
    ("shape", "operation", "count"), [((4, 8, 128, 256), "dot_general", 49), ((16, 8, 32, 64), "convolution", 11)]
)
def test_layers_of_many_channels_use_winograd_with_all_derivatives(shape, operation, count):
    """Values, gradients and gradients of gradients in the network's own functions.

    The inner gradient is an `up`, so the outer one needs the derivatives of both maps.
    """
    x, y, kernel = (jnp.asarray(a, jnp.float32) for a in draw(shape))

    def penalty(down, up, jit):
        def value(x, kernel):
            slope = jax.grad(lambda x: jnp.sum(jnp.tanh(down(x, kernel))))(x)
            return jnp.sum(slope**2)

        return jit(lambda x, y, kernel: (up(y, kernel), jax.value_and_grad(value, argnums=(0, 1))(x, kernel)))

    scaled = kernel / 50
    found = penalty(conv_down, conv_up, jax.jit)(x, y, scaled)
    expected = penalty(plain_down, plain_up, plain.quick_jit)(x, y, scaled)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.max(abs(b)))), found, expected
    )
    text = jax.jit(conv_down).lower(x, kernel).as_text()
    assert text.count(f"stablehlo.{operation}") == count


def test_vmap_over_kernels_agrees_with_a_loop():
    x, _, kernel = (jnp.asarray(a, jnp.float32) for a in draw((8, 8, 128, 256), batch=3))
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])
    found = plain.quick_jit(jax.vmap(conv_down))(x[:, None], kernels)
    for i in range(3):
        np.testing.assert_allclose(found[i], plain_down(x[i : i + 1], kernels[i]), rtol=0, atol=2e-3)


def test_the_highest_precision_rounds_less():
    """It takes the direct forms, in gradients and in compiled functions too."""
    x, y, kernel = draw((16, 16, 32, 64))
    expected = loop_down(x, kernel), loop_up(y, kernel), loop_up(y, kernel)
    arguments = [jnp.asarray(a, jnp.float32) for a in (x, y, kernel)]

    @jax.jit
    def convolve(x, y, kernel):
        down, pullback = jax.vjp(lambda x: conv_down(x, kernel, "cpu"), x)
        return down, pullback(y)[0], conv_up(y, kernel, "cpu")

    def errors():
        return [np.mean(np.abs(a - b)) for a, b in zip(convolve(*arguments), expected, strict=True)]

    by_default = errors()
    with jax.default_matmul_precision("highest"):
        assert all(a < 0.7 * b for a, b in zip(errors(), by_default, strict=True))
    assert errors() == by_default
