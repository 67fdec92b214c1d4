"""Poisson blending with nothing kept between runs, except compiled programs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dcgan_jax as dj
from benchmarks.harness import Case, Ready
from dcgan_jax.images.pixels import to_float, to_uint8

BATCH, SIDE, LARGE = 64, 64, 1000
KINDS = ("center", "random", "half", "pattern")


def cases(base_width: int, batch_size: int) -> list[Case]:
    """All cases. They use sizes of their own and ignore both arguments."""
    del base_width, batch_size
    found = []
    for name in ("spsolve of SciPy", "seamlessClone of OpenCV", "dcgan_jax, device", "dcgan_jax, sparse"):
        # OpenCV works in 8 bits and treats the rim and clipping differently, so its answer differs.
        loose = np.inf if name.startswith("seamless") else 1e-3
        found.append(Case("64 images, one mask", name, "poisson:small", {"kind": "center", "by": name}, loose))
    for kind in KINDS[1:]:
        for name in ("spsolve of SciPy", "dcgan_jax, device", "dcgan_jax, sparse"):
            found.append(Case(f"64 images, a {kind} mask each", name, "poisson:small", {"kind": kind, "by": name}))
    for name in ("dcgan_jax, sparse", "dcgan_jax, device"):
        found.append(Case(f"hole of {LARGE}×{LARGE}", name, "poisson:large", {"by": name}, rounds=3))
    return found


def notes(records: list[dict[str, Any]]) -> dict[str, float]:
    """Residuals of the large hole."""
    return {f"residual, {r['case']}": r["figure"] for r in records if "figure" in r}


def dense(completion: np.ndarray, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Blends one image [h, w, c] by a dense solve in float64: pairs of 4-neighbours, x = image where known."""
    height, width = hole.shape
    matrix, right = np.eye(hole.size), image.reshape(hole.size, -1).astype(np.float64)
    flat = completion.reshape(hole.size, -1).astype(np.float64)
    for i, j in np.argwhere(hole):
        here = i * width + j
        there = [
            a * width + b
            for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
            if 0 <= a < height and 0 <= b < width
        ]
        matrix[here, here], matrix[here, there] = len(there), -1
        right[here] = (flat[here] - flat[there]).sum(0)
    return np.linalg.solve(matrix, right).reshape(image.shape)


def problem(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smooth random completions and images in [−1, 1], and holes: [h, w] for "center", else [b, h, w]."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-1, 1, (2, BATCH, 8, 8, 3))
    smooth = jax.image.resize(jnp.asarray(coarse, jnp.float32), (2, BATCH, SIDE, SIDE, 3), "bicubic")
    completion, image = np.clip(np.asarray(smooth), -1, 1)
    if kind == "center":
        return completion, image, np.asarray(dj.masks.center(SIDE))
    draw = {"random": (dj.masks.random, 0.8), "half": (dj.masks.half,), "pattern": (dj.masks.pattern, 0.25)}[kind]
    keys = jax.random.split(jax.random.key(0), BATCH)
    return completion, image, np.stack([np.asarray(draw[0](key, SIDE, *draw[1:])) for key in keys])


def small(kind: str, by: str) -> Ready:
    """Blends a batch of small images. Some are checked against `dense`, except OpenCV's."""
    completion, image, hole = problem(kind)
    blend: Callable[..., np.ndarray] = {
        "seamlessClone of OpenCV": seamless_clone,
        "spsolve of SciPy": spsolve,
        "dcgan_jax, device": on_device,
        "dcgan_jax, sparse": dj.poisson_blend_sparse,
    }[by]
    holes = np.broadcast_to(hole, (BATCH, SIDE, SIDE))
    found = blend(completion, image, hole)
    if not by.startswith("seamless"):
        error = max(np.abs(found[i] - dense(completion[i], image[i], holes[i])).max() for i in range(0, BATCH, 16))
        if not error <= 1e-3:
            raise ValueError(f"the blend differs from the dense solution by {error:.1e}, which is more than 1e-3")
    return Ready(functools.partial(blend, completion, image, hole), BATCH, steps=BATCH, answer={"blend": found})


def on_device(*arrays: Any) -> np.ndarray:
    """`poisson_blend` of completions, images and holes, copied back to the host."""
    return np.asarray(dj.poisson_blend(*arrays))


def seamless_clone(completion: np.ndarray, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """OpenCV's seamlessClone, one image at a time, with one hole [h, w] for all."""
    import cv2

    blended = []
    mask = np.where(hole, 255, 0).astype(np.uint8)
    rows, columns = np.nonzero(hole)
    centre = (int(columns.min() + columns.max() + 1) // 2, int(rows.min() + rows.max() + 1) // 2)
    for source, target in zip(completion, image, strict=True):
        source, target = (to_uint8(x) for x in (source, target))
        blended.append(cv2.seamlessClone(source, target, mask, centre, cv2.NORMAL_CLONE))
    return to_float(np.stack(blended))


def spsolve(completion: np.ndarray, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The way of the tutorials: one equation per pixel and one sparse solve per channel."""
    import scipy.sparse
    import scipy.sparse.linalg

    height, width = hole.shape[-2:]
    ones = [scipy.sparse.eye_array(n, format="csr") for n in (height, width)]
    # SciPy documents a list of offsets; its signature's default is an integer.
    steps = [
        scipy.sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(n - 1, n))  # type: ignore[arg-type]
        for n in (height, width)
    ]
    gradient = scipy.sparse.vstack([scipy.sparse.kron(steps[0], ones[1]), scipy.sparse.kron(ones[0], steps[1])])
    laplacian = (gradient.T @ gradient).tocsr()
    blended = image.astype(np.float64)
    for i, one in enumerate(np.broadcast_to(hole, (len(image), height, width))):
        missing = one.ravel()
        inside = laplacian[missing]
        matrix = inside[:, missing].tocsc()
        for channel in range(image.shape[-1]):
            known = blended[i, ..., channel].ravel()[~missing]
            right = inside @ completion[i, ..., channel].ravel().astype(np.float64) - inside[:, ~missing] @ known
            blended[i, one, channel] = np.asarray(scipy.sparse.linalg.spsolve(matrix, right))
    return blended


def large(by: str) -> Ready:
    """Blends one large hole and checks the residual of its equations."""
    rng = np.random.default_rng(0)
    side = LARGE + 2
    # The sparse blend solves in float64. Rounded to float32, no solution has a residual below 1e-6.
    dtype = np.float64 if by == "dcgan_jax, sparse" else np.float32
    completion, image = (rng.uniform(-1, 1, (side, side, 3)).astype(dtype) for _ in range(2))
    hole = np.zeros((side, side), bool)
    hole[1:-1, 1:-1] = True
    blend, allowed = (dj.poisson_blend_sparse, 1e-6) if by == "dcgan_jax, sparse" else (on_device, 1e-4)
    error = residual(blend(completion, image, hole), completion, image, hole)
    if not error <= allowed:
        raise ValueError(f"the residual is {error:.1e} of the first, which is more than {allowed:.0e}")
    return Ready(functools.partial(blend, completion, image, hole), figure=error)


def residual(found: np.ndarray, completion: np.ndarray, image: np.ndarray, hole: np.ndarray) -> float:
    """Residual of the hole's equations in float64, relative to the pasted completion's."""

    def equations(x: np.ndarray) -> float:
        e = x.astype(np.float64) - completion
        padded = np.pad(e, ((1, 1), (1, 1), (0, 0)), mode="edge")
        total = 4 * e - padded[2:, 1:-1] - padded[:-2, 1:-1] - padded[1:-1, 2:] - padded[1:-1, :-2]
        return float(np.linalg.norm(total[hole]))

    return equations(found) / equations(np.where(hole[..., None], completion, image))
