"""Smooth and sharp blends against dense solves in float64, and the cases that they are made for."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dcgan_jax import masks
from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.blending.smooth import LONGEST, MOST_DETAIL, ROUGHNESS, SHARPNESS, smooth_blend

SIZE = 12
HOLES = {name: np.asarray(masks.by_name(name, jax.random.split(jax.random.key(3), 1), SIZE)[0]) for name in masks.NAMES}
HOLES["corner"] = np.add.outer(np.arange(SIZE), np.arange(SIZE)) < 7
HOLES["single"] = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) == 40
STACK = np.stack(list(HOLES.values()))


def in_rows(h, w, n):
    """All runs of n pixels, downwards or to the right."""
    for r, c in itertools.product(range(h), range(w)):
        for down, right in ((1, 0), (0, 1)):
            line = [(r + k * down, c + k * right) for k in range(n)]
            if line[-1][0] < h and line[-1][1] < w:
                yield line


def energies(x, hole, n):
    """Mean squares of the n-th differences: first between known pixels only, then with a missing pixel."""
    squares = {False: [0.0], True: [0.0]}
    for line in in_rows(*hole.shape, n + 1):
        difference = sum((-1) ** k * math.comb(n, k) * x[p] for k, p in enumerate(line))
        squares[any(hole[p] for p in line)].append(np.sum(difference**2))
    return [sum(found) / max(len(found) - 1, 1) for found in (squares[False], squares[True])]


def length_squared(completion, image, hole):
    error = image - completion
    missing = energies(completion, hole, 2)[1] - energies(error, hole, 2)[0]
    roughness = max(energies(image, hole, 2)[0], ROUGHNESS * missing)
    return min(energies(error, hole, 1)[0] / roughness, LONGEST**2) if roughness > 0 else LONGEST**2


def expected_energy(completion, image, hole, order):
    known, missing = energies(completion, hole, order)
    return SHARPNESS * energies(image, hole, order)[0] * math.cbrt(missing / max(known, 1e-18))


def dense(completion, image, hole, sharp=False):
    """The normal equations of both terms, with each difference as a row of a matrix, in float64."""
    g, y = completion.astype(np.float64), np.where(hole[..., None], 0, image.astype(np.float64))
    h, w, channels = g.shape
    pixel = np.arange(h * w).reshape(h, w)

    def rows(stencils):
        matrix = np.zeros((len(stencils), h * w))
        for row, stencil in zip(matrix, stencils, strict=True):
            for p, value in stencil:
                row[pixel[p]] = value
        return matrix.T @ matrix

    membrane = rows([[(p, -1), (q, 1)] for p, q in in_rows(h, w, 2)])
    twisted = [
        [((r, c), root), ((r, c + 1), -root), ((r + 1, c), -root), ((r + 1, c + 1), root)]
        for r, c, root in itertools.product(range(h - 1), range(w - 1), [np.sqrt(2)])
    ]
    plate = rows([[(p, 1), (q, -2), (s, 1)] for p, q, s in in_rows(h, w, 3)] + twisted)
    square, missing = length_squared(g, y, hole), hole.ravel()
    matrix = membrane + square * plate

    x = y.reshape(-1, channels).copy()
    right = (membrane @ g.reshape(-1, channels))[missing] - matrix[missing][:, ~missing] @ x[~missing]
    x[missing] = np.linalg.solve(matrix[missing][:, missing], right)
    if not sharp:
        return x.reshape(y.shape)

    def solve(detail):
        return (x + detail * missing[:, None] * (membrane @ x)).reshape(y.shape)

    def at_goal(order):
        goal = expected_energy(g, y, hole, order)
        # The energy is a parabola in d; three values give its coefficients.
        at = [energies(solve(d), hole, order)[1] for d in (-1.0, 0.0, 1.0)]
        parabola = [(at[2] + at[0]) / 2 - at[1], (at[2] - at[0]) / 2, at[1] - goal]
        roots = np.roots(parabola) if abs(parabola[0]) > 1e-12 else [0]
        # Without a real root, use the parabola's lowest point, the real part of its roots.
        return max(np.real(roots))

    return solve(np.clip(min(at_goal(1), at_goal(2)), 0, MOST_DETAIL))


def pair(count=6, size=SIZE, seed=0):
    """Rough completions of smooth images."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:size, :size] / size
    waves = rng.uniform(-3, 3, (count, 4, 3))
    image = 0.5 * np.sin(
        waves[:, None, None, 0] * row[..., None] + waves[:, None, None, 1] * column[..., None] + waves[:, None, None, 2]
    )
    image += rng.normal(0, 0.05, image.shape)
    completion = image + 0.3 * waves[:, None, None, 3] / 3 + rng.normal(0, 0.1, image.shape)
    return completion.astype(np.float32), image.astype(np.float32)


@pytest.fixture(scope="module", params=[False, True], ids=["smooth", "sharp"])
def blended(request):
    completion, image = pair()
    return request.param, completion, image, np.asarray(smooth_blend(completion, image, STACK, request.param))


# All tests of derivatives use one shape, so that these compile only once for each blend.


@functools.partial(jax.jit, static_argnames="sharp")
def tangent(completion, image, hole, change, sharp):
    """The derivative of the blend along a change of the completion, in forward mode."""
    return jax.jvp(lambda g: smooth_blend(g, image, hole, sharp), (completion,), (change,))[1]


@functools.partial(jax.jit, static_argnames="sharp")
def gradients(completion, image, hole, weights, sharp):
    """The gradients of Σ weights · blend by completion and image, in reverse mode."""
    return jax.vjp(lambda g, y: smooth_blend(g, y, hole, sharp), completion, image)[1](weights)


def test_the_blend_agrees_with_the_dense_solve(blended):
    sharp, completion, image, result = blended
    exact = (completion.astype(float), image.astype(float), STACK)
    lengths = [length_squared(g, y, hole) for g, y, hole in zip(*exact, strict=True)]
    assert 0.3 < min(lengths) < max(lengths) < LONGEST**2  # the lengths reach neither bound
    for name, *one, x in zip(HOLES, completion, image, STACK, result, strict=True):
        np.testing.assert_allclose(x, dense(*one, sharp), atol=2e-4 if sharp else 2e-5, err_msg=name)


@pytest.mark.parametrize("bound", ["least detail", "most detail", "longest"])
def test_the_blend_agrees_with_the_dense_solve_at_the_bounds(bound):
    """Completions that are too rough at known pixels, completions without detail, and nearly flat images."""
    (completion, image), hole = (x[:2] for x in pair()), STACK[[0, 1]]
    if bound == "least detail":
        rough = np.random.default_rng(1).normal(0, 0.5, image.shape)
        completion = np.where(hole[..., None], image, rough).astype(np.float32)
    elif bound == "most detail":
        completion = np.float32(0.01) * completion
        image = (image + np.random.default_rng(1).normal(0, 0.5, image.shape)).astype(np.float32)
    else:
        image = np.float32(0.2) * image
    result = np.asarray(smooth_blend(completion, image, hole, sharp=True))
    for *one, x in zip(completion, image, hole, result, strict=True):
        np.testing.assert_allclose(x, dense(*one, sharp=True), atol=1e-3)


def test_a_smooth_blend_has_less_error_than_poisson_s():
    completion, image = pair()
    blends = (smooth_blend(completion, image, STACK), poisson_blend(completion, image, STACK))
    errors = [np.mean((np.asarray(x) - image)[STACK] ** 2) for x in blends]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize(("grid", "bound"), [(0.0, 1), (0.1, 2)])
def test_sharp_holes_have_the_energy_expected_from_known_pixels(grid, bound):
    """Without a checkerboard in the completion the gradients set the bound; with one the second differences do."""
    noise = np.random.default_rng(0).normal(size=(32, 32, 3))
    image, completion = (gaussian_filter(noise, (softness, softness, 0)) for softness in (1.0, 1.6))
    completion += grid * (-1) ** np.add.outer(np.arange(32), np.arange(32))[..., None]
    hole = np.zeros((32, 32), bool)
    hole[8:24, 10:26] = True
    given = [x[None].astype(np.float32) for x in (completion, image)]
    smooth, sharp = (
        np.asarray(smooth_blend(*given, hole[None], sharp=sharp))[0].astype(np.float64) for sharp in (False, True)
    )
    ratios = [energies(sharp, hole, n)[1] / expected_energy(completion, image, hole, n) for n in (1, 2)]
    assert max(ratios) == pytest.approx(1, rel=1e-4)
    assert ratios[bound - 1] == max(ratios)
    assert energies(smooth, hole, 1)[1] < 0.5 * energies(sharp, hole, 1)[1]


def test_a_completion_that_fits_the_known_pixels_gets_the_poisson_blend():
    """The gradients have no error at known pixels, so l is 0. A constant added to the completion changes nothing."""
    _, image = pair()
    hidden = np.where(STACK[..., None], image[:, ::-1], image)  # other content in the hole
    for sharp in (False, True):
        result = smooth_blend(hidden + np.float32(0.25), image, STACK, sharp)
        np.testing.assert_allclose(result, poisson_blend(hidden, image, STACK), atol=1e-5)


def test_a_plane_is_continued(blended):
    """Both terms keep a plane under any flat completion. A membrane alone would sag."""
    row, column = np.mgrid[:SIZE, :SIZE] / SIZE
    plane = np.stack([row, column, row - column], axis=-1).astype(np.float32)
    inside = np.zeros((SIZE, SIZE), bool)
    inside[2:-2, 3:-4] = True
    planes, holes = np.stack([plane] * len(STACK)), np.stack([inside] * len(STACK))
    given = np.where(inside[..., None], np.float32(9), planes)
    np.testing.assert_allclose(smooth_blend(np.zeros_like(planes), given, holes, blended[0]), planes, atol=1e-4)


def test_a_rough_object_on_flat_ground_is_not_smoothed_away():
    """The known part is flat and tells nothing of the missing part, where the completion is nearly right."""
    row, column = np.mgrid[:32, :32]
    rough = np.where(
        np.hypot(row - 16, column - 16) < 6.5, 0.5 * np.sign(np.sin(0.9 * row) * np.sin(0.7 * column)), 0.9
    )
    image = np.repeat(rough[None, ..., None], 3, axis=-1).astype(np.float32)
    hole = np.zeros((1, 32, 32), bool)
    hole[:, 8:24, 8:24] = True
    completion = image + np.random.default_rng(0).normal(0, 0.02, image.shape).astype(np.float32)
    errors = [
        np.sqrt(np.mean((np.asarray(blend(completion, image, hole)) - image)[hole] ** 2))
        for blend in (poisson_blend, smooth_blend, functools.partial(smooth_blend, sharp=True))
    ]
    assert errors[0] > 0.015 and max(errors[1:]) < 1.2 * errors[0]


@pytest.mark.parametrize("sharp", [False, True])
def test_slopes_are_continued_to_the_border(sharp):
    """Neither term flattens slopes at the border, so a noisy completion has less error than with Poisson's blend."""
    row, column = np.mgrid[:32, :32] / 32
    image = np.repeat(0.6 * np.sin(2.5 * row + 1.5 * column)[None, ..., None], 3, axis=-1).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.05, image.shape)
    completion = (0.9 * image + 0.1 + noise).astype(np.float32)
    hole = np.zeros((1, 32, 32), bool)
    hole[:, :12, :12] = True
    errors = [
        np.sqrt(np.mean((np.asarray(x) - image)[hole] ** 2))
        for x in (poisson_blend(completion, image, hole), smooth_blend(completion, image, hole, sharp))
    ]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(
    ("shape", "sharp"),
    [((1, 1), True), ((1, 2), True), ((8, 1), True), ((2, 2), True), ((2, 5), True), ((1, 2), False), ((2, 5), False)],
)
def test_images_of_few_pixels_agree_with_the_dense_solve(shape, sharp):
    rng = np.random.default_rng(0)
    completion, image = rng.normal(0, 0.3, (2, *shape, 3)).astype(np.float32)
    hole = np.arange(math.prod(shape)).reshape(shape) == 0
    exact = completion if hole.all() else dense(completion, image, hole, sharp)
    np.testing.assert_allclose(smooth_blend(completion, image, hole, sharp), exact, atol=1e-4)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**30, 2.0**45])
def test_the_blend_scales_with_the_image(blended, scale):
    sharp, completion, image, result = blended
    scaled = smooth_blend(np.float32(scale) * completion, np.float32(scale) * image, STACK, sharp)
    np.testing.assert_allclose(np.asarray(scaled) / scale, result, atol=1e-5)


def test_known_pixels_keep_their_bits_and_hidden_pixels_are_not_read(blended):
    sharp, completion, image, result = blended
    assert (result.view(np.int32) == image.view(np.int32))[~STACK].all()
    for garbage in (np.nan, np.inf, 1e30):
        hidden = np.where(STACK[..., None], np.float32(garbage), image)
        again = np.asarray(smooth_blend(completion, hidden, STACK, sharp))
        assert (again[STACK] == result[STACK]).all()


def test_other_images_of_the_batch_have_no_influence(blended):
    sharp, completion, image, result = blended
    others = [x.copy() for x in (completion, image, STACK)]
    others[0][1:], others[1][1:], others[2][1:] = np.nan, 1e6, True
    assert (np.asarray(smooth_blend(*others, sharp))[0] == result[0]).all()


def test_a_completion_of_nan_gives_nan(blended):
    sharp, completion, image, _ = blended
    completion = completion.copy()
    completion[..., 0] = np.nan
    result = np.asarray(smooth_blend(completion, image, STACK, sharp))
    assert np.isnan(result[STACK][:, 0]).all() and np.isfinite(result[~STACK]).all()


def test_all_missing_gives_the_completion_and_none_missing_gives_the_image(blended):
    sharp, completion, image, _ = blended
    hole = np.zeros_like(STACK)
    hole[::2] = True
    result = np.asarray(smooth_blend(completion, image, hole, sharp))
    assert (result[::2] == completion[::2]).all() and (result[1::2] == image[1::2]).all()


def test_leading_axes_and_a_shared_hole_are_accepted():
    completion, image = pair()
    shape = (2, 3, SIZE, SIZE, 3)
    nested = smooth_blend(completion.reshape(shape), image.reshape(shape), STACK[:1])
    assert nested.shape == shape
    plain = smooth_blend(completion, image, np.repeat(STACK[:1], 6, axis=0))
    np.testing.assert_allclose(nested.reshape(plain.shape), plain, atol=2e-5)


def test_derivatives_agree_with_finite_differences(blended):
    sharp, completions, images, results = blended
    which_hole = list(HOLES).index("center")
    completion, image, hole = completions[which_hole], images[which_hole], STACK[which_hole]
    weights = np.random.default_rng(5).standard_normal(image.shape)
    towards = np.zeros_like(results)
    towards[which_hole] = 2 * weights * results[which_hole]  # the derivative of Σ weights · blend²
    found = [x[which_hole] for x in gradients(completions, images, STACK, towards, sharp)]

    given = [completion.astype(np.float64), image.astype(np.float64)]
    for which, grad in enumerate(found):
        for place in itertools.product((0, 3, 6), (2, 4)):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [x.copy() for x in given]
                moved[which][(*place, 1)] += step
                ends.append(np.sum(weights * dense(*moved, hole, sharp) ** 2))
            slope = (ends[0] - ends[1]) / 2e-5
            if which == 1 and hole[place]:
                slope = 0.0
            np.testing.assert_allclose(grad[place][1], slope, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("constant", [False, True])
def test_derivatives_are_finite_when_all_nothing_or_a_flat_part_is_known(blended, constant):
    completion, image = pair()
    hole = STACK.copy()
    hole[0], hole[1] = True, False
    image[3], completion[2] = 0.25, 0.5
    if constant:  # both are constant, up to rounding
        image[:], completion[:] = -0.64043623, -0.6478475
    image[hole] = np.nan
    grad = gradients(completion, image, hole, np.ones_like(image), blended[0])
    assert np.isfinite(grad[0]).all() and np.isfinite(grad[1]).all()
    np.testing.assert_allclose(grad[0][0], 1.0, atol=1e-5)


def test_derivatives_are_finite_when_the_completion_is_right_or_has_no_root(blended):
    """If the completion is right up to a constant, the correction is constant up to rounding."""
    completion, image = pair()
    completion[0] = image[0] + np.float32(0.25)
    rough = np.random.default_rng(1).normal(0, 0.5, image[1].shape)
    completion[1] = np.where(STACK[0][..., None], image[1], rough)
    change = np.random.default_rng(2).standard_normal(image.shape).astype(np.float32)
    holes = np.stack([STACK[0]] * len(STACK))
    moved = np.asarray(tangent(completion, image, holes, change, blended[0]))
    assert np.isfinite(moved).all() and (np.abs(moved)[:, STACK[0]] > 0).any(axis=(1, 2)).all()


def test_reverse_and_forward_derivatives_agree(blended):
    """For every kind of hole, and for a completely missing image."""
    sharp, completion, image, _ = blended
    holes = STACK | (np.array(list(HOLES)) == "half")[:, None, None]
    rng = np.random.default_rng(3)
    change, weights = (rng.standard_normal(image.shape).astype(np.float32) for _ in range(2))
    moved, pulled = (
        tangent(completion, image, holes, change, sharp),
        gradients(completion, image, holes, weights, sharp)[0],
    )
    sums = [np.sum(np.asarray(a, np.float64) * b, axis=(1, 2, 3)) for a, b in ((moved, weights), (pulled, change))]
    np.testing.assert_allclose(*sums, rtol=1e-2, atol=1e-2)


def test_bad_arguments_are_refused_by_name():
    image, hole = np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8), bool)
    for arguments, name in [
        ((image, image, hole.astype(np.float32)), "`hole`"),
        ((image, image[:1], hole), "`image`"),
        ((image.astype(np.uint8), image, hole), "`completion`"),
    ]:
        with pytest.raises(ValueError, match=name):
            smooth_blend(*arguments)
