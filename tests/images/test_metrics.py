"""PSNR and SSIM against NumPy, SciPy and scikit-image."""

import jax
import numpy as np
import pytest
from plain import plain_ms_ssim
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dcgan_jax.images.metrics import ms_ssim, psnr, ssim


def images(channels=3, dtype=np.float32):
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (3, 24, 17, channels))
    a[1] = np.linspace(-1, 1, 24)[:, None, None]
    b = np.clip(a + rng.normal(0, [[[[0.01]]], [[[0.1]]], [[[0.5]]]], a.shape), -1, 1)
    if dtype == np.uint8:
        a, b = (a + 1) * 127.5, (b + 1) * 127.5
    return a.astype(dtype), b.astype(dtype)


def full_map(a, b, data_range):
    return structural_similarity(
        a.astype(np.float64),
        b.astype(np.float64),
        data_range=data_range,
        channel_axis=-1,
        gaussian_weights=True,
        use_sample_covariance=False,
        full=True,
    )[1]


@pytest.mark.parametrize(("dtype", "channels", "data_range"), [(np.float32, 3, 2.0), (np.uint8, 1, 255.0)])
def test_whole_images_agree_with_scikit_image(dtype, channels, data_range):
    a, b = images(channels, dtype)
    expected = [
        peak_signal_noise_ratio(x.astype(np.float64), y.astype(np.float64), data_range=data_range)
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5)
    expected = [full_map(x, y, data_range).mean() for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b), expected, atol=2e-5)


def test_where_restricts_the_mean():
    a, b = images()
    where = np.random.default_rng(1).random(a.shape[:3]) < 0.3
    for i, one in enumerate(where):
        error = np.mean((a[i][one].astype(np.float64) - b[i][one]) ** 2)
        np.testing.assert_allclose(psnr(a, b, where)[i], 10 * np.log10(4 / error), rtol=1e-5)
        np.testing.assert_allclose(ssim(a, b, where)[i], full_map(a[i], b[i], 2.0)[one].mean(), atol=2e-5)
    shared = np.broadcast_to(where[0], where.shape)
    for metric in (psnr, ssim):
        assert (metric(a, b, where[0]) == metric(a, b, shared)).all()


def test_the_data_range_scales_the_metrics():
    a, b = images()
    np.testing.assert_allclose(psnr(a, b, data_range=1.0), psnr(a, b) - 20 * np.log10(2), rtol=1e-5)
    np.testing.assert_allclose(ssim(a, b, data_range=1.0)[1], full_map(a[1], b[1], 1.0).mean(), atol=2e-5)
    np.testing.assert_allclose(psnr((a + 1) / 2, (b + 1) / 2, data_range=1.0), psnr(a, b), rtol=1e-5)


def test_equal_images_and_empty_selections_have_defined_values():
    a, b = images()
    assert np.isposinf(psnr(a, a)).all()
    np.testing.assert_allclose(ssim(a, a), 1, rtol=1e-6)
    where = np.zeros(a.shape[:3], bool)
    where[1, 4, 4] = True
    for metric in (psnr, ssim):
        assert np.isnan(metric(a, b, where)).tolist() == [True, False, True]


def test_psnr_does_not_read_values_outside_where():
    a, b = images()
    where = np.zeros(a.shape[1:3], bool)
    where[5:15, 3:9] = True
    lost = np.where(where[..., None], b, np.float32(np.nan))
    assert (psnr(a, lost, where) == psnr(a, b, where)).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "scales"),
    [((32, 32, 1), np.uint8, 2), ((64, 64, 3), np.float32, 3), ((47, 90, 3), np.uint8, 3), ((176, 180, 1), "f4", 5)],
)
def test_several_scales_agree_with_scipy(shape, dtype, scales):
    rng, side = np.random.default_rng(0), min(shape[:2])
    a = ndimage.gaussian_filter(rng.normal(size=(4, *shape)), (0, side / 16, side / 16, 0))
    a /= np.abs(a).max((1, 2, 3), keepdims=True)
    # Nearly equal, noisy, half replaced, and negated: a negative similarity has no real power.
    b = np.stack([a[0] * 0.98, np.clip(a[1] + rng.normal(0, 0.2, shape), -1, 1), (a[2] + a[1]) / 2, -a[3]])
    if dtype == np.uint8:
        a, b = (a + 1) * 127.5, (b + 1) * 127.5
    a, b = a.astype(dtype), b.astype(dtype)
    data_range = 255.0 if dtype == np.uint8 else 2.0
    expected = [plain_ms_ssim(x, y, data_range) for x, y in zip(a, b, strict=True)]
    assert {count for _, count in expected} == {scales}
    assert expected[0][0] > 0.99 > min(expected[1][0], expected[2][0]) > expected[3][0] == 0
    np.testing.assert_allclose(ms_ssim(a, b), [value for value, _ in expected], atol=2e-5)
    np.testing.assert_allclose(ms_ssim(a, a), 1, rtol=1e-6)


def test_batch_equals_loop_and_jit_equals_eager():
    a, b = images()
    for metric in (psnr, ssim, ms_ssim):
        whole = metric(a, b)
        np.testing.assert_allclose(whole[2:], metric(a[2:], b[2:]), rtol=1e-5)
        np.testing.assert_allclose(jax.jit(metric)(a, b), whole, rtol=1e-5)


def test_bad_arguments_are_refused_by_name():
    a, b = images()
    for metric in (psnr, ssim):
        for arguments, name in [
            ((a[0], b[0]), "`a`"),
            ((a, b[:2]), "`b`"),
            ((a, b.astype(np.float16)), "`b`"),
            ((a.astype(np.int32), b.astype(np.int32)), "`a`"),
            ((a, b, np.ones(a.shape[:3], np.float32)), "`where`"),
            ((a, b, np.ones((2, *a.shape[1:3]), bool)), "`where`"),
            ((a, b, None, 0.0), "`data_range`"),
        ]:
            with pytest.raises(ValueError, match=name):
                metric(*arguments)
    for metric in (ssim, ms_ssim):
        with pytest.raises(ValueError, match=f"{metric.__name__} takes images of at least 11 x 11"):
            metric(a[:, :10], b[:, :10])
