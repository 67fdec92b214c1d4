"""Checks of a function's arguments: images, holes and keys. A failed check raises `ValueError`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray, Shaped

LARGEST = 2.0  # largest absolute value of a known pixel; beyond it, the images are on another scale than [-1, 1]


def check_images(
    images: Shaped[Array | np.ndarray, "..."],
    shape: Sequence[int | str] = ("b", "h", "w", "c"),
    *,
    name: str = "`images`",
    taker: str | None = None,
    only_uint8: bool = False,
) -> None:
    """Checks type, shape and dtype of one image or a batch.

    Args:
        images: the caller's argument.
        shape: the length of each axis, or a letter for an axis of any length.
        name: the name of the argument, for the message.
        taker: the object or function that takes the images, for the message, such as "this prior"; None names none.
        only_uint8: allow no floats.

    Raises:
        ValueError: the argument is not a NumPy or JAX array, or its shape or dtype is wrong.
    """
    _check_array(images, name)
    fits = images.ndim == len(shape) and all(
        isinstance(expected, str) or found == expected for found, expected in zip(images.shape, shape, strict=True)
    )
    if not fits:
        remedy = ""
        if images.ndim == len(shape) - 1:
            remedy = ", for one image x[None]"
        elif images.ndim == len(shape) and images.shape[-1] == shape[-1]:
            remedy = ": resize the images"
        verb = "pass" if taker is None else f"{taker} takes"
        raise ValueError(f"{name} has shape {list(images.shape)}; {verb} [{', '.join(map(str, shape))}]{remedy}")
    # Known pixels must be returned bit for bit, but JAX converts float64 to float32 by default.
    held = jax.dtypes.canonicalize_dtype(images.dtype)
    is_float = held == images.dtype and jnp.issubdtype(held, jnp.floating)
    if images.dtype != np.uint8 and (only_uint8 or not is_float):
        raise ValueError(f"{name} is {images.dtype}; pass uint8" + ("" if only_uint8 else ", or float32 in [-1, 1]"))


def check_hole_fits(
    hole: Bool[Array | np.ndarray, "..."], shape: Sequence[int], *, shared: bool = False, name: str = "`hole`"
) -> None:
    """Checks that a hole is a bool array of the right shape.

    Args:
        hole: the caller's argument.
        shape: the shape of the images without the channels. The hole must have it.
        shared: also allow one hole [h, w] for the whole batch.
        name: the name of the argument, for the message.

    Raises:
        ValueError: the argument is not such an array.
    """
    _check_array(hole, name)
    shapes = [tuple(shape), tuple(shape[-2:])] if shared else [tuple(shape)]
    if hole.dtype != bool or hole.shape not in shapes:
        raise ValueError(
            f"{name} is {hole.dtype} {list(hole.shape)}; pass bool {' or '.join(str(list(one)) for one in shapes)}, "
            "True where pixels are missing"
        )


def check_pairs(images: Shaped[Array | np.ndarray, "b h w c"], hole: Bool[Array | np.ndarray, "b h w"]) -> None:
    """Checks a batch of images of any size, and one hole for each."""
    check_images(images)
    check_hole_fits(hole, images.shape[:3])


def check_known_values(
    images: Shaped[Array | np.ndarray, "*b h w c"],
    hole: Bool[Array | np.ndarray, "*b h w"],
    *,
    name: str = "`images`",
) -> None:
    """Checks that the known pixels of float images are finite and in [−2, 2].

    Args:
        images: one image or a batch.
        hole: True = missing. The values there are not checked.
        name: the name of the argument, for the message.

    Raises:
        ValueError: a known pixel is not finite or outside [−2, 2].
    """
    if images.dtype == np.uint8:
        return
    if isinstance(images, jax.Array):
        largest = np.asarray(_largest(images, hole), np.float32)
    else:  # on the host, because the device may be busy
        known = np.where(np.asarray(hole)[..., None], 0, np.abs(images))
        largest = known.max(axis=(-3, -2, -1), initial=0).astype(np.float32)
    bad = np.flatnonzero(~(largest <= LARGEST))
    if not bad.size:
        return
    value = largest.flat[bad[0]]
    problem = f"reach {value:g}: scale them to [-1, 1]"
    if not np.isfinite(value):
        problem = "are not finite: mark them as missing in `hole`"
    which = f"image {bad[0]} of {name}" if largest.ndim else name
    raise ValueError(f"{which} has known pixels that {problem}")


def typed_key(key: PRNGKeyArray | Array, name: str = "`key`") -> PRNGKeyArray:
    """Returns one or more random keys in the form of `jax.random.key`. Converts keys of `jax.random.PRNGKey`.

    Raises:
        ValueError: `key` is not a random key.
    """
    key = jnp.asarray(key)
    if key.dtype == jnp.uint32 and key.ndim:
        key = jax.random.wrap_key_data(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{name} is {key.dtype}{list(key.shape)}; pass a random key, such as jax.random.key(0)")
    return key


def single_key(key: PRNGKeyArray | Array, like: PRNGKeyArray | None = None, *, name: str = "`key`") -> PRNGKeyArray:
    """Returns one key, as `typed_key` does.

    Args:
        key: the caller's argument.
        like: another key; both must use the same random number generator.
        name: the name of the argument, for the message.

    Raises:
        ValueError: `key` is not one key, or uses another generator.
    """
    key = typed_key(key, name)
    if key.shape or (like is not None and key.dtype != like.dtype):
        kind = "" if like is None else " of the same kind as `key`"
        raise ValueError(f"{name} is {key.dtype}{list(key.shape)}; pass one key{kind}")
    return key


def image_keys(key: PRNGKeyArray | Array, n: int) -> PRNGKeyArray:
    """Returns a key for each of n images: the n given keys, or fold_in(key, i) for a single given key.

    Raises:
        ValueError: `key` is neither one key nor n keys.
    """
    key = typed_key(key)
    if key.shape not in ((), (n,)):
        raise ValueError(f"`key` holds {list(key.shape)} keys; pass one key, or one for each of the {n} images")
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))


def _check_array(array: object, name: str) -> None:
    if not isinstance(array, jax.Array | np.ndarray):
        raise ValueError(f"{name} is a {type(array).__name__}; pass a NumPy or JAX array")


@jax.jit
def _largest(images: Array, hole: Array) -> Array:
    """Returns the largest absolute value of each image's known pixels; NaN or infinite if a known pixel is."""
    return jnp.max(jnp.abs(jnp.where(hole[..., None], 0, images)), axis=(-3, -2, -1))
