"""Completion by patches of the same image, found by PatchMatch (Barnes et al. 2009; Wexler et al. 2007).

`complete_one` completes one image by `init_field`, `field_step`, `search` and `vote`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from dcgan_jax.blending.poisson import poisson_blend
from dcgan_jax.images.inputs import check_pairs, image_keys
from dcgan_jax.images.pixels import composite, known_pixels
from dcgan_jax.masks import check_hole

_JUMPS = (8, 4, 2, 1)  # distances in pixels to the neighbours whose sources a patch tries
_TINY = 1e-12  # far below the square of one grey level
_LEAST = 1e-20  # smallest weight of a vote, so that no missing pixel has a total weight of 0


class Settings(NamedTuple):
    """The settings of `patch_match`."""

    patch_size: int
    num_levels: int
    num_rounds: int
    num_sweeps: int
    sharpness: float
    decay: float


class Level(NamedTuple):
    """One level of an image's pyramid.

    Its n = (h − p + 1)(w − p + 1) patches are numbered by their upper left pixels.
    """

    image: Float[Array, "h w c"]  # finite; the values in the hole are a first guess
    hole: Bool[Array, "h w"]
    patches: Float[Array, "n d"]  # the patches of `image`, p·p·c values each
    usable: Bool[Array, " n"]  # True for sources, which have no missing pixel; False for targets
    weights: Float[Array, " n"]  # weights of the votes; smaller for patches deeper in the hole


class Field(NamedTuple):
    """The correspondence field: the nearest source found so far for each patch; for a source, itself."""

    nearest: Int[Array, " n"]
    distance: Float[Array, " n"]  # sum of squared differences; infinite where the level has no source


def patch_match(
    images: Shaped[Array | np.ndarray, "b h w c"],
    hole: Bool[Array | np.ndarray, "b h w"],
    key: Key[Array, ""],
    *,
    patch_size: int = 5,
    num_levels: int = 1,
    num_rounds: int = 4,
    num_sweeps: int = 1,
    sharpness: float = 0.5,
    decay: float = 1.3,
) -> Shaped[Array, "b h w c"]:
    """Completes each image with patches of its own known part.

    Targets are the patches with a missing pixel; sources are the patches without. The method minimises the sum over the
    targets of the squared difference to the nearest source, from coarse to fine. Each level alternates `num_rounds`
    times between two parts:

    - Search: every target looks for its nearest source by a parallel form of PatchMatch. It first tries the sources
      that continue the sources of its neighbours 8, 4, 2 and 1 pixels away (propagation). Then it tries random sources
      around its current one, in squares that shrink by half from the whole image to one pixel (random search).
    - Vote: each target over a missing pixel proposes the corresponding pixel of its source. The missing pixel becomes
      their mean, weighted by `decay^−depth · exp(−sharpness · d² / mean d²)`. Known pixels never change.

    The first level starts from the harmonic fill of the hole and random sources. Each finer level starts from the
    enlarged field of the coarser level. A coarse pixel is known if all of its four pixels are. An image starts at the
    coarsest level that has a source.

    The method needs a source, so it cannot complete images with 80 % of the pixels missing at random: see `applicable`.
    It does not work under `jit` or `vmap`, because it reads `hole` first. An image's result does not depend on the rest
    of its batch.

    Args:
        images: uint8, or floats in [−1, 1]; sides of at least `patch_size` pixels. Values in the hole are never read.
        hole: True = missing; any part of the image, its border included.
        key: one random key, from which image i uses `fold_in(key, i)`; or an array of b keys.
        patch_size: side of the patches in pixels, odd.
        num_levels: largest number of pyramid levels, at least 1. Each level has half the size of the previous one.
            Levels with sides below `patch_size` are left out. On 64×64 photographs 1 level comes closest to the
            original; more levels copy larger structures, and more often wrong ones.
        num_rounds: number of rounds of search and vote on each level, at least 1.
        num_sweeps: passes of propagation and random search in each search, at least 1.
        sharpness: at least 0. With 0 all sources have equal weight. Large values follow the nearest source, which gives
            sharper but less reliable pixels.
        decay: at least 1. A target's weight is divided by this for each pixel of its middle's depth in the hole.

    Returns:
        Images of the shape and dtype of `images`, equal to them bit for bit where `hole` is False.

    Raises:
        ValueError: a shape, dtype or setting is wrong, or a hole leaves no source.

    Example:
        >>> import jax, numpy as np
        >>> stripes = np.tile(np.array([0, 255], np.uint8), (1, 16, 8))[..., None]
        >>> hole = np.zeros((1, 16, 16), bool)
        >>> hole[:, 6:9, 6:9] = True
        >>> bool((patch_match(stripes, hole, jax.random.key(0), patch_size=5) == stripes).all())
        True

    Source: Barnes, Shechtman, Finkelstein, Goldman, "PatchMatch", SIGGRAPH 2009, sections 3 and 4; Wexler, Shechtman,
    Irani, "Space-time completion of video", PAMI 2007, section 3 (objective, weights, levels). Neighbours at distances
    that are powers of two: Rong, Tan, "Jump flooding in GPU", I3D 2006.
    """
    settings = Settings(patch_size, num_levels, num_rounds, num_sweeps, sharpness, decay)
    images, holes = jnp.asarray(images), np.asarray(hole)
    _check(images, holes, settings)
    if not holes.any():
        return images
    # One after the other, so that one program serves batches of every size, and no image changes the bits of another.
    completed = [
        _complete_image(image, hole, own_key, settings)
        for image, hole, own_key in zip(images, holes, image_keys(key, len(images)), strict=True)
    ]
    return jnp.stack(completed)


def applicable(hole: Bool[Array | np.ndarray, "b h w"], *, patch_size: int = 5) -> Bool[np.ndarray, " b"]:
    """Tells which images `patch_match` can complete: those with a source, a patch without a missing pixel.

    Args:
        hole: True = missing.
        patch_size: side of the patches in pixels, odd.

    Returns:
        True for each image with a square of `patch_size` × `patch_size` known pixels.

    Raises:
        ValueError: `hole` is not bool [b, h, w], or `patch_size` is not an odd number.

    Example:
        >>> applicable(np.zeros((1, 9, 9), bool)).tolist(), applicable(np.eye(9, dtype=bool)[None]).tolist()
        ([True], [False])
    """
    hole = np.asarray(hole)
    check_hole(hole)
    if hole.ndim != 3:
        raise ValueError(f"`hole` has shape {hole.shape}; pass [b, h, w], for one hole x[None]")
    _check_patch_size(patch_size)
    if min(hole.shape[1:]) < patch_size:
        return np.zeros(len(hole), bool)
    windows = np.lib.stride_tricks.sliding_window_view(hole, (patch_size, patch_size), axis=(1, 2))
    return np.any(~np.any(windows, axis=(3, 4)), axis=(1, 2))


def complete_one(
    image: Float[Array, "h w c"], hole: Bool[Array, "h w"], key: Key[Array, ""], settings: Settings
) -> Float[Array, "h w c"]:
    """Completes one image.

    Args:
        image: the image, with a finite first guess in the hole.
        hole: True = missing.
        key: random key of the sources.
        settings: the settings of `patch_match`.
    """
    pyramid = [(image, hole)]
    while len(pyramid) < settings.num_levels and min(pyramid[-1][1].shape) >= 2 * settings.patch_size:
        pyramid.append(_halve(*pyramid[-1]))
    levels = [make_level(*one, settings.patch_size, settings.decay) for one in reversed(pyramid)]  # coarsest first
    keys = jax.random.split(key, (len(levels), 2))
    level = levels[0]
    field = _improve(level, init_field(level, keys[0, 0]), keys[0, 1], settings, True)
    for level, coarser, (start_key, rounds_key) in zip(levels[1:], levels[:-1], keys[1:], strict=True):
        field = init_field(level, start_key, _enlarge(field, coarser, level))
        field = _improve(level, field, rounds_key, settings, ~coarser.usable.any())
    return vote(level, field, settings.sharpness)


def _improve(
    level: Level, field: Field, key: Key[Array, ""], settings: Settings, begins: bool | Bool[Array, ""]
) -> Field:
    """Does the rounds of one level. If the image `begins` at this level, the first guess is `level.image`."""

    def one_round(i: Array, field: Field) -> Field:
        voted = vote(level, field, settings.sharpness)
        guess = jnp.where(begins & (i == 0), level.image, voted)
        return search(level, guess, field, jax.random.fold_in(key, i), settings.num_sweeps)

    return jax.lax.fori_loop(0, settings.num_rounds, one_round, field)


def make_level(image: Float[Array, "h w c"], hole: Bool[Array, "h w"], patch_size: int, decay: float = 1.0) -> Level:
    """Makes a level: cuts the image into patches, and finds the sources among them."""
    middle, (h, w) = patch_size // 2, hole.shape
    depth = _depth(hole)[middle : h - middle, middle : w - middle].ravel()
    usable = ~_patches(hole[..., None], patch_size).any(axis=1)
    return Level(image, hole, _patches(image, patch_size), usable, jnp.float32(decay) ** -depth.astype(jnp.float32))


def init_field(level: Level, key: Key[Array, ""], start: Int[Array, " n"] | None = None) -> Field:
    """Returns the initial field. Targets take the source in `start`; −1 and targets without `start` take a random one.

    The distances are 0 until a search computes them.
    """
    own = jnp.arange(level.usable.size)
    sources_first = jnp.argsort(~level.usable, stable=True)
    nearest = sources_first[jax.random.randint(key, own.shape, 0, jnp.maximum(level.usable.sum(), 1))]
    if start is not None:
        nearest = jnp.where((start >= 0) & level.usable[start], start, nearest)
    nearest = jnp.where(level.usable, own, nearest)
    return Field(nearest, jnp.zeros(own.shape, level.image.dtype))


def search(level: Level, guess: Float[Array, "h w c"], field: Field, key: Key[Array, ""], num_sweeps: int) -> Field:
    """Improves a field for the patches of `guess` by some sweeps."""
    patches = _patches(guess, _patch_size(level))
    distance = jnp.where(level.usable[field.nearest], _distance(level, patches, field.nearest), jnp.inf)

    def sweep(i: Array, field: Field) -> Field:
        return field_step(level, patches, field, jax.random.fold_in(key, i))

    return jax.lax.fori_loop(0, num_sweeps, sweep, Field(field.nearest, distance))


def field_step(level: Level, patches: Float[Array, "n d"], field: Field, key: Key[Array, ""]) -> Field:
    """Does one sweep: propagation, then random search. No distance gets larger.

    Args:
        level: the level with the sources.
        patches: the patches of the current completion.
        field: the field, with the distances of `patches`.
        key: random key of the random search.
    """
    rows, columns = _grid(level)
    row, column = jnp.divmod(jnp.arange(rows * columns), columns)

    def within(row: Array, column: Array) -> Array:
        return (row >= 0) & (row < rows) & (column >= 0) & (column < columns)

    def nearer(field: Field, row: Array, column: Array) -> Field:
        allowed = within(row, column)
        candidate = jnp.where(allowed, row * columns + column, 0)
        distance = _distance(level, patches, candidate)
        taken = allowed & level.usable[candidate] & (distance < field.distance)
        return Field(jnp.where(taken, candidate, field.nearest), jnp.where(taken, distance, field.distance))

    def propagate(field: Field, shift: Array) -> tuple[Field, None]:
        there = row + shift[0], column + shift[1]
        neighbour = field.nearest[jnp.where(within(*there), there[0] * columns + there[1], 0)]
        return nearer(field, neighbour // columns - shift[0], neighbour % columns - shift[1]), None

    def draw(field: Field, radius_and_key: tuple[Array, Array]) -> tuple[Field, None]:
        radius, key = radius_and_key
        offset = jnp.round(radius * jax.random.uniform(key, (2, rows * columns), minval=-1.0)).astype(jnp.int32)
        return nearer(field, field.nearest // columns + offset[0], field.nearest % columns + offset[1]), None

    shifts = [(dy * jump, dx * jump) for jump in _JUMPS for dy, dx in ((0, -1), (-1, 0), (0, 1), (1, 0))]
    radii = [float(max(rows, columns))]
    while radii[-1] >= 2:
        radii.append(radii[-1] / 2)
    field, _ = jax.lax.scan(propagate, field, jnp.array(shifts, jnp.int32))
    field, _ = jax.lax.scan(draw, field, (jnp.array(radii, jnp.float32), jax.random.split(key, len(radii))))
    return field


def vote(level: Level, field: Field, sharpness: float) -> Float[Array, "h w c"]:
    """Fills each missing pixel with the weighted mean of the pixels that the targets' sources propose for it."""
    targets = ~level.usable
    distance = jnp.where(targets & jnp.isfinite(field.distance), field.distance, 0)
    scale = distance.sum() / jnp.maximum(targets.sum(), 1)
    weights = level.weights * jnp.exp(-sharpness * distance / jnp.maximum(scale, _TINY))
    weights = jnp.where(targets, jnp.maximum(weights, _LEAST), 0)[:, None, None]
    proposed = level.patches[field.nearest].reshape(targets.size, -1, level.image.shape[2])  # [n, p·p, c]
    sums = _overlay(weights * jnp.pad(proposed, [(0, 0), (0, 0), (0, 1)], constant_values=1), level)
    missing = level.hole[..., None]
    return jnp.where(missing, sums[..., :-1] / jnp.where(missing, sums[..., -1:], 1), level.image)


def _distance(level: Level, patches: Float[Array, "n d"], candidate: Int[Array, " n"]) -> Float[Array, " n"]:
    # Gathers whole rows, because gathering scalars is slow on a CPU. Callers pass indices within bounds.
    difference = level.patches.at[candidate].get(mode="promise_in_bounds") - patches
    return jnp.sum(difference * difference, axis=1)


def _patch_size(level: Level) -> int:
    return round((level.patches.shape[1] // level.image.shape[2]) ** 0.5)


def _grid(level: Level) -> tuple[int, int]:
    """Returns the numbers of rows and columns of patches."""
    size = _patch_size(level)
    return level.image.shape[0] - size + 1, level.image.shape[1] - size + 1


def _patches(image: Shaped[Array, "h w c"], size: int) -> Shaped[Array, "n d"]:
    """Cuts out all patches, each as p·p·c values."""
    h, w, _ = image.shape
    rows = jnp.stack([image[i : h - size + 1 + i] for i in range(size)], axis=2)  # [h', w, p, c]
    both = jnp.stack([rows[:, i : w - size + 1 + i] for i in range(size)], axis=3)  # [h', w', p, p, c]
    return both.reshape((h - size + 1) * (w - size + 1), -1)


def _overlay(patches: Float[Array, "n p*p c"], level: Level) -> Float[Array, "h w c"]:
    """Adds up patches at their places in the image."""
    size, (rows, columns) = _patch_size(level), _grid(level)
    channels, (h, w) = patches.shape[2], level.hole.shape
    patches = patches.reshape(rows, columns, size, size, channels)

    # Loops keep the compiled program small.
    def add_column(i: Array, strips: Array) -> Array:
        there = jax.lax.dynamic_slice_in_dim(strips, i, columns, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(strips, there + patches[:, :, :, i], i, axis=1)

    strips = jax.lax.fori_loop(0, size, add_column, jnp.zeros((rows, w, size, channels), patches.dtype))

    def add_row(i: Array, image: Array) -> Array:
        there = jax.lax.dynamic_slice_in_dim(image, i, rows, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(image, there + strips[:, :, i], i, axis=0)

    return jax.lax.fori_loop(0, size, add_row, jnp.zeros((h, w, channels), patches.dtype))


def _halve(image: Float[Array, "h w c"], hole: Bool[Array, "h w"]) -> tuple[Array, Array]:
    """Halves an image by means of 2×2 pixels. A mean is missing if one of its pixels is missing."""
    h, w = hole.shape
    h, w, border = (h + 1) // 2, (w + 1) // 2, [(0, h % 2), (0, w % 2)]
    # The last row and column are repeated, so the mean is over the pixels that exist.
    image = jnp.pad(image, [*border, (0, 0)], mode="edge").reshape(h, 2, w, 2, -1)
    return image.mean(axis=(1, 3)), jnp.pad(hole, border, mode="edge").reshape(h, 2, w, 2).any(axis=(1, 3))


def _enlarge(field: Field, coarser: Level, level: Level) -> Int[Array, " n"]:
    """Returns for each patch the place at the offset of its parent, the patch of the coarser level around it.

    The place is −1 if it lies outside the image, or if the coarser level has no source.
    """
    (rows, columns), (coarse_rows, coarse_columns) = _grid(level), _grid(coarser)
    middle = _patch_size(level) // 2
    row, column = jnp.divmod(jnp.arange(rows * columns), columns)
    parent_row = jnp.clip((row + middle) // 2 - middle, 0, coarse_rows - 1)
    parent_column = jnp.clip((column + middle) // 2 - middle, 0, coarse_columns - 1)
    nearest = field.nearest[parent_row * coarse_columns + parent_column]
    to_row = row + 2 * (nearest // coarse_columns - parent_row)
    to_column = column + 2 * (nearest % coarse_columns - parent_column)
    inside = (to_row >= 0) & (to_row < rows) & (to_column >= 0) & (to_column < columns)
    return jnp.where(inside & coarser.usable.any(), to_row * columns + to_column, -1)


def _depth(hole: Bool[Array, "h w"]) -> Int[Array, "h w"]:
    """Returns the chessboard distance of each pixel to the nearest known pixel of the image."""

    def erode(_: Array, depth_and_rest: tuple[Array, Array]) -> tuple[Array, Array]:
        depth, rest = depth_and_rest
        x = jnp.pad(rest, 1, mode="edge")
        x = x[:-2] & x[1:-1] & x[2:]
        return depth + rest, x[:, :-2] & x[:, 1:-1] & x[:, 2:]

    depth = jnp.zeros(hole.shape, jnp.int32)
    return jax.lax.fori_loop(0, max(hole.shape), erode, (depth, hole))[0]


@partial(jax.jit, static_argnames="settings")
def _complete_image(
    image: Shaped[Array, "h w c"], hole: Bool[Array, "h w"], key: Key[Array, ""], settings: Settings
) -> Shaped[Array, "h w c"]:
    known = known_pixels(image[None], hole[None])[0].astype(jnp.float32)
    filled = poisson_blend(jnp.zeros_like(known), known, hole)
    return composite(image[None], hole[None], complete_one(filled, hole, key, settings)[None])[0]


def _check(images: Array, hole: np.ndarray, settings: Settings) -> None:
    check_pairs(images, hole)
    usable = applicable(hole, patch_size=settings.patch_size)
    for name in ("num_levels", "num_rounds", "num_sweeps"):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"`{name}` is {value!r}; pass an integer of at least 1")
    for name, least in (("sharpness", 0), ("decay", 1)):
        value = getattr(settings, name)
        if not least <= value < np.inf:
            raise ValueError(f"`{name}` is {value!r}; pass a finite number of at least {least}")
    lacking = ~usable & hole.any(axis=(1, 2))
    if lacking.any():
        size = settings.patch_size
        raise ValueError(
            f"`hole` of image {int(np.argmax(lacking))} leaves no patch of {size}×{size} known pixels to copy: "
            "leave this image out (see `applicable`)"
        )


def _check_patch_size(patch_size: int) -> None:
    whole = isinstance(patch_size, int | np.integer) and not isinstance(patch_size, bool)
    if not whole or patch_size < 1 or patch_size % 2 == 0:
        raise ValueError(f"`patch_size` is {patch_size!r}; pass an odd number of pixels, e.g. 7")
