"""Image quality: PSNR and SSIM, over whole images or over chosen pixels, and multi-scale SSIM."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, UInt8

_SIGMA = 1.5
_RADIUS = 5  # 11 x 11 window
_K1, _K2 = 0.01, 0.03
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003; the first is for the full size


def psnr(
    a: Num[Array, "b h w c"],
    b: Num[Array, "b h w c"],
    where: Bool[Array, "*#b h w"] | None = None,
    data_range: float | None = None,
) -> Float[Array, " b"]:
    """Returns the peak signal-to-noise ratio of each image in decibels.

    10 log10(data_range^2 / mean of (a - b)^2), the mean over the pixels in `where` and the channels.

    Args:
        a: images, float or uint8.
        b: images of the same shape and dtype.
        where: True = counted; one array [h, w] for all images, or one for each. None counts every pixel. Pass the hole
            to score an inpainting.
        data_range: difference between the largest and the smallest possible value. None means 2.0 for floats ([-1, 1])
            and 255.0 for uint8.

    Returns:
        Decibels, float32: inf for equal images, NaN for an image without a pixel in `where`.

    Raises:
        ValueError: a shape, dtype or range does not fit.

    Example:
        >>> float(psnr(jnp.zeros((1, 8, 8, 3)), jnp.full((1, 8, 8, 3), 0.2)).round(3)[0])
        20.0
    """
    where, data_range = _check(a, b, where, data_range)
    return _psnr(jnp.asarray(a), jnp.asarray(b), where, data_range)


def ssim(
    a: Num[Array, "b h w c"],
    b: Num[Array, "b h w c"],
    where: Bool[Array, "*#b h w"] | None = None,
    data_range: float | None = None,
) -> Float[Array, " b"]:
    """Returns the structural similarity of each image.

    With means, variances and covariance m, v, v_ab under a Gaussian window (sigma 1.5, 11 x 11), at each
    pixel and channel

        (2 m_a m_b + C1) (2 v_ab + C2) / ((m_a^2 + m_b^2 + C1) (v_a + v_b + C2)),

    C1 = (0.01 data_range)^2, C2 = (0.03 data_range)^2, averaged over the pixels in `where` and the channels.
    Images are mirrored at the border (the edge pixel is repeated), as in `scipy.ndimage`, so the map covers
    every pixel. The map equals scikit-image's with `gaussian_weights=True, use_sample_covariance=False`.
    scikit-image's mean leaves out 5 pixels at the border; this one does not.

    Args:
        a: images, float or uint8, sides of at least 11 pixels.
        b: images of the same shape and dtype.
        where: True = counted in the average; one array [h, w] for all images, or one for each. None counts every pixel.
            The window reaches 5 pixels beyond each pixel, so values around `where` have an influence.
        data_range: difference between the largest and the smallest possible value. None means 2.0 for floats ([-1, 1])
            and 255.0 for uint8.

    Returns:
        Values from -1 to 1, float32; NaN for an image without a pixel in `where`.

    Raises:
        ValueError: a shape, dtype or range does not fit.

    Example:
        >>> float(ssim(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 16, 3)))[0])
        1.0

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", IEEE TIP 2004, eq. 13.
    """
    where, data_range = _check(a, b, where, data_range)
    _refuse_small(a, "ssim")
    return _ssim(jnp.asarray(a), jnp.asarray(b), where, data_range)


def ms_ssim(a: Num[Array, "b h w c"], b: Num[Array, "b h w c"], data_range: float | None = None) -> Float[Array, " b"]:
    """Returns the structural similarity of each image over several scales.

    SSIM is the product of a luminance term l and a contrast and structure term cs. Scale 1 is the image. Each further
    scale halves the previous one by means of 2 x 2 pixels, and leaves out an odd last row or column. Then

        MS-SSIM = l_M^w_M  cs_1^w_1 ... cs_M^w_M,

    where cs is averaged over all pixels and channels of its scale; at the last scale, M, the product l cs is averaged.

    The paper uses five scales. Only scales with at least 11 x 11 pixels are used here: 2 for images of 32 pixels, 3 for
    64, 4 for 128, 5 from 176 on. Their weights (0.0448, 0.2856, 0.3001, 0.2363, 0.1333 in the paper) are divided by
    their sum. So values of images of different sizes are not comparable. A negative average counts as 0, because its
    power is not a real number. Windows and borders are as in `ssim`; in the paper no window crosses the border.

    Args:
        a: images, float or uint8, sides of at least 11 pixels.
        b: images of the same shape and dtype.
        data_range: difference between the largest and the smallest possible value. None means 2.0 for floats ([-1, 1])
            and 255.0 for uint8.

    Returns:
        Values from 0 to 1, float32.

    Raises:
        ValueError: a shape, dtype or range does not fit.

    Example:
        >>> float(ms_ssim(jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 64, 3)))[0])
        1.0

    Source: Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality assessment", Asilomar 2003,
    eq. 7.
    """
    _, data_range = _check(a, b, None, data_range)
    _refuse_small(a, "ms_ssim")
    return _ms_ssim(jnp.asarray(a), jnp.asarray(b), data_range)


def composite_scores(
    results: UInt8[np.ndarray, "n h w c"], images: UInt8[np.ndarray, "n h w c"], holes: Bool[np.ndarray, "n h w"]
) -> dict[str, Float[np.ndarray, " n"]]:
    """Scores each result against its original.

    Returns:
        `psnr` and `psnr_hole` in dB, `ssim` and `ssim_hole`: scores of the whole image and of the hole. SSIM is NaN for
        images smaller than its window of 11 x 11 pixels.
    """
    large = min(results.shape[1:3]) > 2 * _RADIUS
    parts: dict[str, list[np.ndarray]] = {"psnr": [], "psnr_hole": [], "ssim": [], "ssim_hole": []}
    for start in range(0, len(results), 256):  # the maps of SSIM take memory
        a, b, where = (jnp.asarray(x[start : start + 256]) for x in (results, images, holes))
        for name, values in (
            ("psnr", psnr(a, b)),
            ("psnr_hole", psnr(a, b, where=where)),
            ("ssim", ssim(a, b) if large else np.full(len(a), np.nan)),
            ("ssim_hole", ssim(a, b, where=where) if large else np.full(len(a), np.nan)),
        ):
            parts[name].append(np.asarray(values))
    return {name: np.concatenate(values) for name, values in parts.items()}


def finite_or_none(value: float) -> float | None:
    """Rounds a number to 5 decimals for JSON. Infinity and NaN become None, because JSON has neither."""
    return round(float(value), 5) if np.isfinite(value) else None


def _check(
    a: Num[Array, "b h w c"], b: Num[Array, "b h w c"], where: Bool[Array, "*#b h w"] | None, data_range: float | None
) -> tuple[Bool[Array, "*#b h w"], float]:
    for name, array in (("a", a), ("b", b)):
        if jnp.ndim(array) != 4:
            raise ValueError(f"`{name}` has shape {jnp.shape(array)}; pass [b, h, w, c], for one image x[None]")
        dtype = jnp.result_type(array)
        if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"`{name}` is {dtype}; pass floats or uint8")
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(
            f"`b` is {b.dtype}{list(b.shape)} and `a` is {a.dtype}{list(a.shape)}; pass one dtype and shape"
        )
    if data_range is None:
        data_range = 255.0 if a.dtype == jnp.uint8 else 2.0
    elif not data_range > 0:
        raise ValueError(f"`data_range` is {data_range!r}; pass a positive number, 2.0 for images in [-1, 1]")
    if where is None:
        where = jnp.ones(a.shape[1:3], bool)
    elif jnp.result_type(where) != jnp.bool_:
        raise ValueError(f"`where` is {jnp.result_type(where)}; pass bool, True = counted")
    elif jnp.shape(where) not in (a.shape[:3], a.shape[1:3]):
        raise ValueError(f"`where` has shape {jnp.shape(where)}; pass {a.shape[:3]} or {a.shape[1:3]}")
    return jnp.asarray(where), float(data_range)


def _refuse_small(a: Num[Array, "b h w c"], function: str) -> None:
    if min(a.shape[1:3]) <= 2 * _RADIUS:
        raise ValueError(f"`a` has shape {a.shape}; {function} takes images of at least 11 x 11 pixels")


def _mean(x: Float[Array, "b h w c"], where: Bool[Array, "*#b h w"]) -> Float[Array, " b"]:
    """Returns the mean over `where` and the channels. Values elsewhere have no influence, not even NaN."""
    where = jnp.broadcast_to(where, x.shape[:3])[..., None]
    return jnp.where(where, x, 0).sum((1, 2, 3)) / (where.sum((1, 2, 3)) * x.shape[-1])


@jax.jit
def _psnr(a: Array, b: Array, where: Array, data_range: float) -> Float[Array, " b"]:
    error = (a.astype(jnp.float32) - b.astype(jnp.float32)) / data_range
    return -10 * jnp.log10(_mean(error**2, where))


@jax.jit
def _ssim(a: Array, b: Array, where: Array, data_range: float) -> Float[Array, " b"]:
    # Scaled first, because a variance is a difference of squares and loses digits on large values.
    luminance, contrast = _similarities(a.astype(jnp.float32) / data_range, b.astype(jnp.float32) / data_range)
    return _mean(luminance[0] * contrast[0] / (luminance[1] * contrast[1]), where)


@jax.jit
def _ms_ssim(a: Array, b: Array, data_range: float) -> Float[Array, " b"]:
    a, b = a.astype(jnp.float32) / data_range, b.astype(jnp.float32) / data_range
    scales = [i for i in range(len(_SCALE_WEIGHTS)) if min(a.shape[1:3]) >> i > 2 * _RADIUS]
    weights = np.array(_SCALE_WEIGHTS[: len(scales)]) / sum(_SCALE_WEIGHTS[: len(scales)])
    result = jnp.ones(len(a))
    for i in scales:
        luminance, contrast = _similarities(a, b)
        similarity = contrast[0] / contrast[1]
        if i == scales[-1]:
            similarity = similarity * luminance[0] / luminance[1]
        result = result * jnp.maximum(similarity.mean((1, 2, 3)), 0) ** weights[i]
        a, b = _halve(a), _halve(b)
    return result


def _similarities(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> tuple[tuple[Array, Array], ...]:
    """Returns SSIM's luminance and contrast-structure terms at each pixel, each as (numerator, denominator)."""
    rows, columns = _gaussian_filter_matrix(a.shape[1]), _gaussian_filter_matrix(a.shape[2])

    def blur(x: Array) -> Array:
        return jnp.einsum("ij,bjkc,lk->bilc", rows, x, columns, precision="highest")

    mean_a, mean_b = blur(a), blur(b)
    variances = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    luminance = 2 * mean_a * mean_b + _K1**2, mean_a**2 + mean_b**2 + _K1**2
    return luminance, (2 * covariance + _K2**2, variances + _K2**2)


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Halves the images by means of 2 x 2 pixels."""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _gaussian_filter_matrix(side: int) -> Float[np.ndarray, "side side"]:
    """Returns a matrix whose row i is the window around pixel i, mirrored at the border."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()
    place = np.arange(side)[:, None] + offsets
    place = np.where(place < 0, -1 - place, np.where(place >= side, 2 * side - 1 - place, place))
    matrix = np.zeros((side, side), np.float32)
    np.add.at(matrix, (np.arange(side)[:, None], place), weights)
    return matrix
