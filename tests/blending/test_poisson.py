"""Poisson blending against dense float64 solves and exact solutions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcgan_jax import masks
from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.blending.sparse import poisson_blend_sparse


def dense(completion, image, hole):
    """The normal equations of min |grad x - grad G|^2 over missing pixels, edge by edge, in float64."""
    h, w, channels = image.shape
    number = {pixel: i for i, pixel in enumerate(zip(*np.nonzero(hole), strict=True))}
    matrix, right = np.zeros((len(number),) * 2), np.zeros((len(number), channels))
    g, y = completion.astype(np.float64), image.astype(np.float64)
    for (r, c), i in number.items():
        for other in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
            if not (0 <= other[0] < h and 0 <= other[1] < w):
                continue
            matrix[i, i] += 1
            right[i] += g[r, c] - g[other]
            if other in number:
                matrix[i, number[other]] -= 1
            else:
                right[i] += y[other]
    result = y.copy()
    if number:
        result[hole] = np.linalg.solve(matrix, right)
    return result


def holes(size):
    """Holes of all four kinds, at corners, of several parts, of one pixel, and of all but one pixel."""
    corner, parts, single, most = np.zeros((4, size, size), bool)
    corner[: size // 3, : size // 2] = corner[-3:, -4:] = True
    parts[1:4, 2:5] = parts[6:, 7:] = parts[1, -2] = parts[5, 0] = True
    single[0, 0] = True
    most[:] = True
    most[3, 5] = False
    drawn = {
        name: np.asarray(masks.by_name(name, jax.random.split(jax.random.key(3), 1), size)[0]) for name in masks.NAMES
    }
    left = drawn["half"].T.copy()
    return {
        **drawn,
        "other half": left,
        "corner": corner,
        "parts": parts,
        "single": single,
        "all but one": most,
    }


SIZE = 16
HOLES = holes(SIZE)
STACK = np.stack(list(HOLES.values()))


def pair(count, size=SIZE, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (2, count, size, size, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def blended():
    """Many tests share this one call, with every kind of hole in one batch."""
    completion, image = pair(len(STACK))
    return completion, image, np.asarray(poisson_blend(completion, image, STACK))


@pytest.mark.parametrize("name", HOLES)
def test_the_blend_agrees_with_the_dense_solve(blended, name):
    i = list(HOLES).index(name)
    completion, image, result = blended
    np.testing.assert_allclose(result[i], dense(completion[i], image[i], STACK[i]), atol=2e-5)


def test_the_sparse_solve_agrees_with_the_dense_solve():
    completion, image = pair(len(STACK))
    result = poisson_blend_sparse(completion, image, STACK)
    assert result.dtype == np.float32
    for i, hole in enumerate(STACK):
        np.testing.assert_allclose(result[i], dense(completion[i], image[i], hole), atol=1e-6)
        assert (result[i][~hole] == image[i][~hole]).all()


def test_a_full_size_blend_agrees_with_the_sparse_solve():
    drawn = [masks.by_name(name, jax.random.split(jax.random.key(0), 2), 64) for name in masks.NAMES]
    hole = np.concatenate(drawn)
    completion, image = pair(len(hole), 64)
    result = poisson_blend(completion, image, hole)
    np.testing.assert_allclose(result, poisson_blend_sparse(completion, image, hole), atol=5e-5)


def test_oblong_and_odd_sizes_agree_with_the_dense_solve():
    rng = np.random.default_rng(1)
    completion, image = rng.uniform(-1, 1, (2, 5, 15, 1)).astype(np.float32)
    hole = rng.random((5, 15)) < 0.6
    hole[:, 9:] = True
    np.testing.assert_allclose(poisson_blend(completion, image, hole), dense(completion, image, hole), atol=2e-5)


@pytest.mark.parametrize("blend", [poisson_blend, poisson_blend_sparse])
def test_a_constant_shift_is_undone(blend):
    """Fails if the image wraps round at its border, or if zeros are assumed beyond it."""
    completion, _ = pair(len(STACK))
    truth = completion + np.linspace(-0.7, 0.9, 3, dtype=np.float32)
    given = np.where(STACK[..., None], np.float32(0), truth)
    np.testing.assert_allclose(blend(completion, given, STACK), truth, atol=2e-5)


def test_a_harmonic_difference_is_undone():
    """Linear and bilinear fields are discretely harmonic away from the image's border."""
    inside = np.zeros_like(STACK)
    inside[:, 1:-1, 1:-1] = STACK[:, 1:-1, 1:-1]
    row, column = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    field = np.stack([row, column - row, row * column], axis=-1).astype(np.float32)
    completion, _ = pair(len(STACK))
    truth = completion + field
    np.testing.assert_allclose(poisson_blend(completion, truth, inside), truth, atol=2e-5)


def test_nothing_is_clipped():
    completion = np.full((*STACK.shape, 3), 0.9, np.float32)
    completion[:, 8:10, 8:10] = 1.0
    result = poisson_blend(completion, np.full_like(completion, 0.99), STACK)
    assert np.asarray(result)[0].max() > 1.05


def test_known_pixels_keep_their_bits(blended):
    _, image, result = blended
    assert (result.view(np.int32) == image.view(np.int32))[~STACK].all()


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_hidden_pixels_are_not_read(blended, garbage):
    completion, image, result = blended
    hidden = np.where(STACK[..., None], np.float32(garbage), image)
    assert (np.asarray(poisson_blend(completion, hidden, STACK)) == result).all()
    sparse = poisson_blend_sparse(completion, image, STACK)
    assert (poisson_blend_sparse(completion, hidden, STACK) == sparse).all()


@pytest.mark.parametrize("blend", [poisson_blend, poisson_blend_sparse])
def test_all_missing_gives_the_completion_and_none_missing_gives_the_image(blend):
    completion, image = pair(len(STACK))
    hole = np.zeros_like(STACK)
    hole[::2] = True
    result = np.asarray(blend(completion, image, hole))
    assert (result[::2] == completion[::2]).all() and (result[1::2] == image[1::2]).all()


def test_other_images_and_the_place_in_the_batch_have_no_influence(blended):
    completion, image, result = blended
    rolled = poisson_blend(*(np.roll(x, 2, axis=0) for x in (completion, image, STACK)))
    assert (np.asarray(rolled) == np.roll(result, 2, axis=0)).all()
    others = [x.copy() for x in (completion, image, STACK)]
    others[0][1:], others[1][1:], others[2][1:] = np.nan, 1e6, True
    assert (np.asarray(poisson_blend(*others))[0] == result[0]).all()


def test_a_completion_of_nan_gives_nan(blended):
    """A correction of 0 would hide a completion that is not finite."""
    completion, image, _ = blended
    completion = completion.copy()
    completion[..., 0] = np.nan
    result = np.asarray(poisson_blend(completion, image, STACK))
    assert np.isnan(result[STACK][:, 0]).all() and np.isfinite(result[~STACK]).all()


def test_batch_vmap_jit_and_loop_agree(blended):
    completion, image, result = blended
    under_jit = jax.jit(jax.vmap(poisson_blend))(completion, image, STACK)
    np.testing.assert_allclose(under_jit, result, atol=5e-6)
    for i in (0, 5):
        np.testing.assert_allclose(poisson_blend(completion[i], image[i], STACK[i]), result[i], atol=5e-6)


def test_holes_broadcast():
    completion, image = (x.reshape(2, 3, 8, 8, 1) for x in pair(6, 8, 1))
    holes = np.random.default_rng(2).random((2, 1, 8, 8)) < 0.6
    result = poisson_blend(completion, image, holes)
    sparse = poisson_blend_sparse(completion, image, holes)
    assert result.shape == sparse.shape == image.shape
    np.testing.assert_allclose(result, sparse, atol=2e-5)
    shared = poisson_blend(completion, image, holes[0, 0])
    np.testing.assert_allclose(shared, poisson_blend_sparse(completion, image, holes[0, 0]), atol=2e-5)


def test_derivatives_agree_with_finite_differences():
    completion, image = (x[0] for x in pair(1, 8, 1))
    rng = np.random.default_rng(5)
    hole = rng.random((8, 8)) < 0.5
    weights, direction = rng.standard_normal((2, 8, 8, 1)).astype(np.float32)

    def loss(g, y):
        return jnp.sum(jnp.asarray(weights) * poisson_blend(g, y, hole) ** 2)

    def oracle(g, y):
        return np.sum(weights * dense(g, y, hole) ** 2)

    given = [completion.astype(np.float64), image.astype(np.float64)]
    for which, grad in enumerate(jax.jit(jax.grad(loss, argnums=(0, 1)))(completion, image)):
        for place in itertools.product((0, 3, 7), (0, 4, 6)):
            step = [x.copy() for x in given], [x.copy() for x in given]
            step[0][which][place] += 1e-5
            step[1][which][place] -= 1e-5
            slope = (oracle(*step[0]) - oracle(*step[1])) / 2e-5
            np.testing.assert_allclose(grad[place][0], slope, rtol=2e-4, atol=2e-4)

    _, tangent = jax.jvp(lambda g: poisson_blend(g, image, hole), (completion,), (direction,))
    forward = (dense(given[0] + direction, given[1], hole) - dense(given[0] - direction, given[1], hole)) / 2
    np.testing.assert_allclose(tangent, forward, atol=1e-5)  # the blend is linear


def test_derivatives_are_finite_when_all_or_nothing_is_missing():
    completion, image = pair(3, 8, 1)
    hole = np.stack([np.ones((8, 8), bool), np.zeros((8, 8), bool), np.eye(8, dtype=bool)])
    image[hole] = np.nan
    grad = jax.grad(lambda g: poisson_blend(g, image, hole).sum())(completion)
    np.testing.assert_allclose(grad[0], 1.0, atol=1e-5)
    assert (grad[1] == 0).all() and np.isfinite(grad[2]).all()


def test_tiny_and_huge_values_are_blended(blended):
    """The squares of these values leave the range of float32."""
    completion, image, exact = blended
    for scale in (2.0**-60, 2.0**70):
        scaled = poisson_blend(np.float32(scale) * completion, np.float32(scale) * image, STACK)
        np.testing.assert_allclose(np.asarray(scaled) / scale, exact, atol=1e-5)


@pytest.mark.parametrize("blend", [poisson_blend, poisson_blend_sparse])
def test_bad_arguments_are_refused_by_name(blend):
    image = np.zeros((2, 8, 8, 3), np.float32)
    hole = np.zeros((2, 8, 8), bool)
    for arguments, name in [
        ((image, image, hole.astype(np.float32)), "`hole`"),
        ((image, image, hole[:, :4]), "`hole`"),
        ((image, image, np.zeros((3, 8, 8), bool)), "`hole`"),
        ((image, image, np.zeros((1, 2, 8, 8), bool)), "`hole`"),
        ((image, image[:1], hole), "`image`"),
        ((image, image.astype(np.float16), hole), "`image`"),
        ((image.astype(np.uint8), image, hole), "`completion`"),
        ((image[0, 0], image[0, 0], hole), "`completion`"),
    ]:
        with pytest.raises(ValueError, match=name):
            blend(*arguments)
