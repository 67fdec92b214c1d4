"""The stride-2 convolutions against loops and XLA's own forms, in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from convolutions import draw, loop_down, loop_up, plain_down, plain_up

from dcgan_jax.networks import direct
from dcgan_jax.networks.convolution import conv_down, conv_up

# Height and width of the larger map, channels of the larger map, channels of the smaller one.
LARGE = (10, 12, 2, 3)  # the smaller map is no smaller than the kernel
SHAPES = [(8, 8, 3, 4), (6, 10, 1, 3), (2, 4, 3, 1), (4, 2, 1, 1), LARGE]
PLATFORMS = [None, "cuda", "tpu"]  # their algorithms run here on the CPU


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), found, expected)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_conv_down_is_the_strided_convolution(shape, platform, float64):
    x, _, kernel = draw(shape)
    found = conv_down(jnp.asarray(x), jnp.asarray(kernel), platform)
    assert found.dtype == jnp.float64
    assert_close(found, loop_down(x, kernel))
    assert_close(found, plain_down(x, kernel))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_conv_up_is_the_transpose_of_conv_down(shape, platform, float64):
    x, y, kernel = draw(shape)
    found = conv_up(jnp.asarray(y), jnp.asarray(kernel), platform)
    assert found.dtype == jnp.float64
    assert_close(found, loop_up(y, kernel))
    assert_close(found, plain_up(y, kernel))
    assert_close(jnp.sum(found * x), jnp.sum(y * conv_down(jnp.asarray(x), jnp.asarray(kernel), platform)))


@pytest.mark.parametrize("shape", SHAPES)
def test_conv_up_in_phases_is_the_same_transpose(shape, float64):
    _, y, kernel = draw(shape)
    assert_close(direct.up_in_phases(jnp.asarray(y), jnp.asarray(kernel)), loop_up(y, kernel))


def test_each_platform_gets_its_own_algorithm():
    def convolutions(platform, side, images=2, gradient=False):
        y, kernel = jnp.zeros((images, side, side, 4)), jnp.zeros((5, 5, 3, 4))
        function = jax.grad(lambda y, kernel: jnp.sum(conv_up(y, kernel)), argnums=1) if gradient else conv_up
        text = jax.jit(function).trace(y, kernel).lower(lowering_platforms=(platform,)).as_text()
        return text.count("stablehlo.convolution")

    assert convolutions("cuda", 4) == 0  # few images smaller than the kernel: a matrix product
    assert convolutions("cuda", 4, images=600) == 4  # many such images: in phases
    assert convolutions("cuda", 8) == convolutions("tpu", 4) == convolutions("rocm", 4) == 1
    assert convolutions("cuda", 4, gradient=True) == 4
    assert convolutions("cuda", 8, gradient=True) == convolutions("tpu", 4, gradient=True) == 1
    with pytest.raises(ValueError, match="`platform` is 'gpu'; it takes cpu, cuda, rocm, tpu or None"):
        conv_up(jnp.zeros((2, 4, 4, 4)), jnp.zeros((5, 5, 3, 4)), "gpu")


def test_float32_agrees_with_the_loops():
    x, y, kernel = draw((16, 12, 3, 8))
    x32, y32, kernel32 = (jnp.asarray(a, jnp.float32) for a in (x, y, kernel))
    np.testing.assert_allclose(conv_down(x32, kernel32), loop_down(x, kernel), atol=1e-4)
    np.testing.assert_allclose(conv_up(y32, kernel32), loop_up(y, kernel), atol=1e-4)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("shape", [*SHAPES[:2], LARGE])
def test_gradients_equal_the_plain_convolutions_gradients(shape, platform, float64):
    x, y, kernel = draw(shape)
    ours = [functools.partial(convolve, platform=platform) for convolve in (conv_down, conv_up)]

    def gradients(down, up):
        return plain.quick_jit(lambda: (jax.vjp(down, x, kernel)[1](y), jax.vjp(up, y, kernel)[1](x)))()

    assert_close(gradients(*ours), gradients(plain_down, plain_up))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(("function", "which"), [(conv_down, 0), (conv_up, 1)])
def test_derivatives_match_finite_differences(function, which, platform, float64):
    """First and second directional derivatives, in all combinations of forward and reverse mode."""

    def value(point):
        return jnp.sum(jnp.tanh(function(*point, platform)) ** 2)

    def slope(point, direction):
        return jax.jvp(value, (point,), (direction,))[1]

    def reverse_slope(point, direction):
        return sum(jnp.vdot(g, d) for g, d in zip(jax.grad(value)(point), direction, strict=True))

    @plain.quick_jit
    def at(point, direction):
        slopes = [slope(point, direction), reverse_slope(point, direction)]
        second = [
            jax.jvp(jax.grad(value), (point,), (direction,))[1],  # forward over reverse
            jax.grad(reverse_slope)(point, direction),  # reverse over reverse
            jax.grad(slope)(point, direction),  # reverse over forward
        ]
        curvature = jax.jvp(lambda p: slope(p, direction), (point,), (direction,))[1]  # forward over forward
        return (value(point), jax.grad(value)(point), slopes[0]), (slopes, second, curvature)

    point, *directions = [(drawn[which], drawn[2]) for drawn in (draw((4, 6, 2, 3), seed) for seed in range(3))]
    for direction in directions:
        ahead, behind = (
            at(tuple(p + s * 1e-5 * d for p, d in zip(point, direction, strict=True)), direction)[0] for s in (1, -1)
        )
        derivative, second, curvature = jax.tree.map(lambda a, b: (a - b) / 2e-5, ahead, behind)
        expected = [derivative] * 2, [second] * 3, curvature
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), at(point, direction)[1], expected
        )


@pytest.mark.parametrize("platform", PLATFORMS)
def test_reverse_over_reverse_gives_the_gradient_penalty(platform, float64):
    x, _, kernel = draw((8, 6, 2, 3), batch=4)

    def penalty(down):
        def score(image, kernel):
            return jnp.sum(jnp.tanh(down(image[None], kernel)))

        def loss(kernel, x):
            slopes = jax.vmap(jax.grad(score), (0, None))(x, kernel)
            return jnp.mean((jnp.sqrt(jnp.sum(slopes**2, axis=(1, 2, 3))) - 1) ** 2)

        return plain.quick_jit(jax.value_and_grad(loss, argnums=(0, 1)))(kernel, x)

    assert_close(penalty(functools.partial(conv_down, platform=platform)), penalty(plain_down))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(("function", "which"), [(conv_down, 0), (conv_up, 1)])
def test_vmap_equals_loop(function, which, platform, float64):
    """Values, first and second gradients, with either argument mapped, along several axes."""
    function = functools.partial(function, platform=platform)
    draws = [draw((6, 4, 2, 3), seed) for seed in range(3)]
    inputs, kernels = np.stack([d[which] for d in draws]), np.stack([d[2] for d in draws])

    def one(x, kernel):
        def gradients(x, kernel):
            value, pull = jax.vjp(function, x, kernel)
            return value, pull(jnp.cos(value))

        first, pull = jax.vjp(gradients, x, kernel)
        return first, pull(jax.tree.map(jnp.sin, first))

    @plain.quick_jit
    def mapped(inputs, kernels):
        return [
            jax.vmap(one)(inputs, kernels),
            jax.vmap(one, (0, None))(inputs, kernels[0]),
            jax.vmap(one, (None, 0))(inputs[0], kernels),
            jax.vmap(one, (2, 4))(jnp.moveaxis(inputs, 0, 2), jnp.moveaxis(kernels, 0, 4)),
            jax.vmap(one, (3, None))(jnp.moveaxis(inputs, 0, 3), kernels[0]),
        ]

    loop = plain.quick_jit(one)
    pairs = [[(i, i) for i in range(3)], [(i, 0) for i in range(3)], [(0, i) for i in range(3)]]
    for found, indices in zip(mapped(inputs, kernels), [*pairs, *pairs[:2]], strict=True):
        results = [loop(inputs[i], kernels[j]) for i, j in indices]
        assert_close(found, jax.tree.map(lambda *leaves: np.stack(leaves), *results))


def test_jit_equals_eager(float64):
    x, y, kernel = draw(SHAPES[1])
    assert_close(jax.jit(conv_down)(x, kernel), conv_down(x, kernel))
    assert_close(jax.jit(conv_up)(y, kernel), conv_up(y, kernel))


def test_the_compiler_computes_products_and_sums_right():
    """jaxlib 0.10.2 is wrong by 3 here (jax#39103). If this fails, do not use the installed jaxlib."""
    rng = np.random.default_rng(0)
    x, matrix = rng.standard_normal((32_769, 3)), rng.standard_normal((3, 3))
    found = jax.jit(lambda m, x: jax.vmap(lambda row: jnp.sum((m @ row) ** 2))(x))(
        jnp.asarray(matrix, jnp.float32), jnp.asarray(x, jnp.float32)
    )
    np.testing.assert_allclose(found, np.sum((x @ matrix.T) ** 2, axis=1), rtol=1e-4, atol=1e-4)


def test_images_that_do_not_fit_the_kernel_are_refused():
    kernel = jnp.zeros((5, 5, 3, 4))
    for x in (jnp.zeros((1, 5, 4, 3)), jnp.zeros((1, 4, 5, 3)), jnp.zeros((1, 4, 4, 4))):
        with pytest.raises(ValueError, match=r"`x` .* does not fit `kernel`"):
            conv_down(x, kernel)
    with pytest.raises(ValueError, match=r"`x` .* does not fit `kernel`"):
        conv_up(jnp.zeros((1, 4, 4, 3)), kernel)


@pytest.mark.parametrize("convolve", [conv_down, conv_up])
def test_kernels_of_other_sizes_and_types_are_refused(convolve):
    x = jnp.zeros((1, 8, 8, 4))
    for kernel in (jnp.zeros((3, 3, 4, 4)), jnp.zeros((7, 7, 4, 4)), jnp.zeros((5, 5, 4))):
        with pytest.raises(ValueError, match=r"they take \[b, h, w, c\] and \[5, 5, a, b\]"):
            convolve(x, kernel)
    for dtype in (jnp.int32, jnp.bfloat16):
        with pytest.raises(ValueError, match="they take floats of one type"):
            convolve(x, jnp.zeros((5, 5, 4, 4), dtype))
    with pytest.raises(ValueError, match="they take floats of one type"):
        convolve(x.astype(jnp.int32), jnp.zeros((5, 5, 4, 4), jnp.int32))


@pytest.mark.parametrize("shape", [(16, 16, 3, 8), (16, 16, 32, 64)])
def test_convolutions_in_branches_and_loops_keep_the_fast_layout(shape):
    """XLA's CPU backend is fast only with this order of axes, and does not restore it inside branches and loops."""
    shapes = (jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in draw(shape))

    def penalty(kernel, x):
        return jnp.sum(
            jax.grad(lambda x: jnp.sum(jnp.tanh(conv_down(jnp.tanh(conv_up(conv_down(x, kernel), kernel)), kernel))))(x)
            ** 2
        )

    def program(x, y, kernel):
        def loop(_, kernel):
            return kernel - jax.grad(penalty)(kernel, x)

        return jax.lax.cond(jnp.sum(y) > 0, jax.grad(penalty), lambda kernel, _: kernel, kernel, x), jax.lax.fori_loop(
            0, 9, loop, kernel
        )

    text = jax.jit(program).lower(*shapes).compile().as_text()
    orders = re.findall(r" convolution\(.*dim_labels=(\S+?),", text)
    assert len(orders) > 20 and set(orders) == {"b01f_01io->b01f"}
